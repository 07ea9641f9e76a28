// kernels/ptx/types.cuh for the processor.
#pragma once
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;
#define MEMBER inline
#define DEV static inline
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
struct alignas(64) TensorMap {
    u64 opaque[16];
};
