// kernels/ptx/convert.cuh for the processor.
#pragma once
#define MAGI_DEVICE static __device__ __forceinline__
namespace ptx {
MAGI_DEVICE unsigned f32_bits(float x) {
    unsigned y;
    memcpy(&y, &x, 4);
    return y;
}
MAGI_DEVICE float bits_f32(unsigned x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
MAGI_DEVICE unsigned short f32_to_bf16(float x) {
    const unsigned bits = f32_bits(x);
    return x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
MAGI_DEVICE float f16_to_f32(unsigned short x) {
    const int exponent = x >> 10 & 31, fraction = x & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                                      : ldexpf(fraction, -24);
    return x >> 15 ? -size : size;
}
MAGI_DEVICE unsigned short f32_to_f16(float x) {
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (x != x) {
        return 0x7fff;
    }
    if (size == 0) {
        return sign;
    }
    if (size >= 65520) {
        return sign | 0x7c00;
    }
    // The spacing of halves there; adding it up in units of it is exact, and nearbyintf rounds to even.
    int exponent;
    frexpf(size, &exponent);
    const int unit = exponent < -13 ? -24 : exponent - 11;
    const int units = (int)nearbyintf(ldexpf(size, -unit));
    return sign | (unit == -24 ? units : (exponent + 14 << 10) + units - 1024);
}
MAGI_DEVICE float f64_to_f32_cut(double x) {
    const float near = (float)x;
    return fabs((double)near) > fabs(x) ? nextafterf(near, 0) : near;
}
} // namespace ptx
