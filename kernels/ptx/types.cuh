// Plain names, and where a kernel's functions live. No CUDA header is needed, with nvcc or with NVRTC.
// SPDX-License-Identifier: Apache-2.0
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// Everything is inlined: a call would move register arrays to memory.
#define MEMBER __device__ __forceinline__
#define DEV static MEMBER

#define NEG_INFINITY __int_as_float(0xff800000)
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// What cuTensorMapEncodeTiled fills; passed by value as a __grid_constant__ parameter.
struct alignas(64) TensorMap {
    u64 opaque[16];
};
