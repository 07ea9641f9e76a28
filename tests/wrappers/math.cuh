// kernels/ptx/math.cuh for the processor.
#pragma once
#include "types.cuh"

static float exp2_approx(float x) {
    return exp2f(x);
}
static float rcp_approx(float x) {
    return 1 / x;
}

#ifdef DTYPE_F16
static u16 rounded(float x) {
    const _Float16 y = (_Float16)x;
    u16 bits;
    memcpy(&bits, &y, 2);
    return bits;
}
// All there are: processors have no instruction for it that a compiler may count on.
static const std::vector<float> all_widened = [] {
    std::vector<float> all(1 << 16);
    for (u32 bits = 0; bits < all.size(); bits++) {
        _Float16 y;
        memcpy(&y, &bits, 2);
        all[bits] = (float)y;
    }
    return all;
}();
static float widened(u16 bits) {
    return all_widened[bits];
}
#else
static u16 rounded(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
static float widened(u16 bits) {
    const u32 wide = (u32)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}
#endif
static u32 pack(float lo, float hi) {
    return rounded(lo) | (u32)rounded(hi) << 16;
}
static void unpack(float (&x)[2], u32 packed) {
    x[0] = widened((u16)packed), x[1] = widened((u16)(packed >> 16));
}
