// Conversions between floating-point types, one instruction a function. No CUDA header is needed.
//
// SPDX-License-Identifier: Apache-2.0
#ifndef MAGI_ATTN_KERNELS_PTX_CONVERT_CUH
#define MAGI_ATTN_KERNELS_PTX_CONVERT_CUH

#define MAGI_DEVICE static __device__ __forceinline__

namespace ptx {

MAGI_DEVICE unsigned short f32_to_bf16(float x) {
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

MAGI_DEVICE unsigned short f32_to_f16(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

MAGI_DEVICE float f16_to_f32(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

// Towards zero.
MAGI_DEVICE float f64_to_f32_cut(double x) {
    float y;
    asm("cvt.rz.f32.f64 %0, %1;" : "=f"(y) : "d"(x));
    return y;
}

MAGI_DEVICE unsigned f32_bits(float x) {
    unsigned y;
    asm("mov.b32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

MAGI_DEVICE float bits_f32(unsigned x) {
    float y;
    asm("mov.b32 %0, %1;" : "=f"(y) : "r"(x));
    return y;
}

} // namespace ptx

#endif
