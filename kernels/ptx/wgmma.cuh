// Warpgroup matrix products m64nNk16 into f32: both operands from shared memory, both K-major (ss), both with rows
// along k (MN-major, ss_t) or only A (ss_at) or B so (ss_bt), or A from registers and B MN-major (rs_t). d += a * b,
// and d = a * b where add is 0. SPDX-License-Identifier: Apache-2.0
#pragma once
#include "math.cuh"

DEV void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DEV void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> DEV void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Ties values to this point of the program: no instruction, only an order for the compiler.
template <int N> DEV void pin(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(x[i])::"memory");
    }
}

template <int N> DEV void pin(u32 (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < 4 * N; i++) {
        asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
    }
}

// Matrix descriptor of shared memory in the 128-byte swizzle; address and distances in bytes.
DEV constexpr u64 smem_desc(u32 addr, u32 leading, u32 stride) {
    return (u64)((addr & 0x3FFFF) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}

// Register lists: the names of eight operands of an asm statement, and the eight accumulators behind them.
#define WGMMA_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_R8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_R16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_R24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_R32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_R40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_R48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_R56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_R64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_R72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_R80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_R88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_R96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_R104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_R112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_R120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_D(b)                                                                                                     \
    "+f"(d[b]), "+f"(d[b + 1]), "+f"(d[b + 2]), "+f"(d[b + 3]), "+f"(d[b + 4]), "+f"(d[b + 5]), "+f"(d[b + 6]),        \
        "+f"(d[b + 7])

// REGS and LIST are those of N / 2 accumulators; I0.. are the operands behind them.
#define WGMMA_DEFINE(N, REGS, LIST, I0, I1, I2, I3, I4, I5)                                                            \
    DEV void wgmma_ss(float (&d)[N / 2], u64 a, u64 b, int add) {                                                      \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " I2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                 \
                     "k16.f32." WGMMA_DTYPE " {" REGS "}, " I0 ", " I1 ", p, 1, 1, 0, 0; }"                            \
                     : LIST                                                                                            \
                     : "l"(a), "l"(b), "r"(add));                                                                      \
    }                                                                                                                  \
    DEV void wgmma_ss_t(float (&d)[N / 2], u64 a, u64 b, int add) {                                                    \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " I2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                 \
                     "k16.f32." WGMMA_DTYPE " {" REGS "}, " I0 ", " I1 ", p, 1, 1, 1, 1; }"                            \
                     : LIST                                                                                            \
                     : "l"(a), "l"(b), "r"(add));                                                                      \
    }                                                                                                                  \
    DEV void wgmma_ss_at(float (&d)[N / 2], u64 a, u64 b, int add) {                                                   \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " I2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                 \
                     "k16.f32." WGMMA_DTYPE " {" REGS "}, " I0 ", " I1 ", p, 1, 1, 1, 0; }"                            \
                     : LIST                                                                                            \
                     : "l"(a), "l"(b), "r"(add));                                                                      \
    }                                                                                                                  \
    DEV void wgmma_ss_bt(float (&d)[N / 2], u64 a, u64 b, int add) {                                                   \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " I2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                 \
                     "k16.f32." WGMMA_DTYPE " {" REGS "}, " I0 ", " I1 ", p, 1, 1, 0, 1; }"                            \
                     : LIST                                                                                            \
                     : "l"(a), "l"(b), "r"(add));                                                                      \
    }                                                                                                                  \
    DEV void wgmma_rs_t(float (&d)[N / 2], const u32(&a)[4], u64 b, int add) {                                         \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " I5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                 \
                     "k16.f32." WGMMA_DTYPE " {" REGS "}, {" I0 ", " I1 ", " I2 ", " I3 "}, " I4 ", p, 1, 1, 1; }"     \
                     : LIST                                                                                            \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                  \
    }

#define WGMMA_REGS32 WGMMA_R0 ", " WGMMA_R8
#define WGMMA_LIST32 WGMMA_D(0), WGMMA_D(8)
WGMMA_DEFINE(32, WGMMA_REGS32, WGMMA_LIST32, "%16", "%17", "%18", "%19", "%20", "%21")
#define WGMMA_REGS48 WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16
#define WGMMA_LIST48 WGMMA_D(0), WGMMA_D(8), WGMMA_D(16)
WGMMA_DEFINE(48, WGMMA_REGS48, WGMMA_LIST48, "%24", "%25", "%26", "%27", "%28", "%29")
#define WGMMA_REGS64 WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16 ", " WGMMA_R24
#define WGMMA_LIST64 WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24)
WGMMA_DEFINE(64, WGMMA_REGS64, WGMMA_LIST64, "%32", "%33", "%34", "%35", "%36", "%37")
#define WGMMA_REGS80 WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16 ", " WGMMA_R24 ", " WGMMA_R32
#define WGMMA_LIST80 WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24), WGMMA_D(32)
WGMMA_DEFINE(80, WGMMA_REGS80, WGMMA_LIST80, "%40", "%41", "%42", "%43", "%44", "%45")
#define WGMMA_REGS96 WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16 ", " WGMMA_R24 ", " WGMMA_R32 ", " WGMMA_R40
#define WGMMA_LIST96 WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24), WGMMA_D(32), WGMMA_D(40)
WGMMA_DEFINE(96, WGMMA_REGS96, WGMMA_LIST96, "%48", "%49", "%50", "%51", "%52", "%53")
#define WGMMA_REGS112 WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16 ", " WGMMA_R24 ", " WGMMA_R32 ", " WGMMA_R40 ", " WGMMA_R48
#define WGMMA_LIST112 WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24), WGMMA_D(32), WGMMA_D(40), WGMMA_D(48)
WGMMA_DEFINE(112, WGMMA_REGS112, WGMMA_LIST112, "%56", "%57", "%58", "%59", "%60", "%61")
#define WGMMA_REGS128                                                                                                  \
    WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16 ", " WGMMA_R24 ", " WGMMA_R32 ", " WGMMA_R40 ", " WGMMA_R48 ", " WGMMA_R56
#define WGMMA_LIST128                                                                                                  \
    WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24), WGMMA_D(32), WGMMA_D(40), WGMMA_D(48), WGMMA_D(56)
WGMMA_DEFINE(128, WGMMA_REGS128, WGMMA_LIST128, "%64", "%65", "%66", "%67", "%68", "%69")
#define WGMMA_REGS192                                                                                                  \
    WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16 ", " WGMMA_R24 ", " WGMMA_R32 ", " WGMMA_R40 ", " WGMMA_R48 ", " WGMMA_R56   \
             ", " WGMMA_R64 ", " WGMMA_R72 ", " WGMMA_R80 ", " WGMMA_R88
#define WGMMA_LIST192                                                                                                  \
    WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24), WGMMA_D(32), WGMMA_D(40), WGMMA_D(48), WGMMA_D(56), WGMMA_D(64), \
        WGMMA_D(72), WGMMA_D(80), WGMMA_D(88)
WGMMA_DEFINE(192, WGMMA_REGS192, WGMMA_LIST192, "%96", "%97", "%98", "%99", "%100", "%101")
#define WGMMA_REGS256                                                                                                  \
    WGMMA_R0 ", " WGMMA_R8 ", " WGMMA_R16 ", " WGMMA_R24 ", " WGMMA_R32 ", " WGMMA_R40 ", " WGMMA_R48 ", " WGMMA_R56   \
             ", " WGMMA_R64 ", " WGMMA_R72 ", " WGMMA_R80 ", " WGMMA_R88 ", " WGMMA_R96 ", " WGMMA_R104                \
             ", " WGMMA_R112 ", " WGMMA_R120
#define WGMMA_LIST256                                                                                                  \
    WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24), WGMMA_D(32), WGMMA_D(40), WGMMA_D(48), WGMMA_D(56), WGMMA_D(64), \
        WGMMA_D(72), WGMMA_D(80), WGMMA_D(88), WGMMA_D(96), WGMMA_D(104), WGMMA_D(112), WGMMA_D(120)
WGMMA_DEFINE(256, WGMMA_REGS256, WGMMA_LIST256, "%128", "%129", "%130", "%131", "%132", "%133")
