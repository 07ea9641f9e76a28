// mbarriers in shared memory, named barriers, fences, register quotas: one PTX instruction a function.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "types.cuh"

DEV u32 smem_addr(const void *p) {
    return (u32)__cvta_generic_to_shared(p);
}

template <int N> DEV void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> DEV void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

DEV void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

DEV void mbar_fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEV void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

DEV void mbar_arrive_if(u32 bar, bool yes) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; @p mbarrier.arrive.shared::cta.b64 _, [%0]; }" ::"r"(bar),
                 "r"((u32)yes)
                 : "memory");
}

// A warp whose lanes have met in __syncwarp arrives once, by lane 0. The racecheck tool of compute-sanitizer does not
// follow that order; for its sake every lane arrives in kernels that are built to be debugged.
#ifndef RACECHECK
#define RACECHECK 0
#endif
constexpr u32 WARP_ARRIVALS = RACECHECK ? 32 : 1;

DEV void mbar_arrive_warp(u32 bar, int lane) {
    mbar_arrive_if(bar, RACECHECK || lane == 0);
}

// Before the arrival of one thread at a barrier at which otherwise a warp arrives: what is missing.
DEV void mbar_arrive_rest(u32 bar) {
#if RACECHECK
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "n"(WARP_ARRIVALS - 1) : "memory");
#endif
}

// Arrives, and lets the phase end only after `bytes` more have been copied to shared memory.
DEV void mbar_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

// May suspend the thread for some hundred cycles.
DEV bool mbar_try(u32 bar, u32 parity) {
    u32 ok;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(ok)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return ok;
}

// Never suspends.
DEV bool mbar_test(u32 bar, u32 parity) {
    u32 ok;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(ok)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return ok;
}

DEV void mbar_wait(u32 bar, u32 parity) {
    while (!mbar_try(bar, parity)) {
    }
}

// Looks first: a wait may suspend the thread for longer than what it waits for takes.
DEV void wait_for(u32 bar, u32 parity) {
    if (!mbar_test(bar, parity)) {
        mbar_wait(bar, parity);
    }
}

// Makes this thread's ordinary writes to shared memory visible to the tensor cores and the copy engine.
DEV void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Named barriers of `threads` threads: arrive without waiting, or wait for all.
DEV void named_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEV void named_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
