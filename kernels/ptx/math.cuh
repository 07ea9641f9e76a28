// Approximations of the special function unit, and packing to 16 bits.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "types.cuh"

// Relative error 2^-22; 0 below 2^-126.
DEV float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Absolute error 2^-22 near 1, relative elsewhere.
DEV float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEV float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Absolute error near 2^-23 everywhere; tanh.approx has 2^-11, which a large softcap makes visible.
DEV float tanh_exact(float x) {
    return 1.0f - 2.0f * rcp_approx(exp2_approx(x * (2.0f * LOG2_E)) + 1.0f);
}

#ifdef DTYPE_F16
#define WGMMA_DTYPE "f16.f16"
DEV u32 pack(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
#else
#define WGMMA_DTYPE "bf16.bf16"
DEV u32 pack(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
#endif
