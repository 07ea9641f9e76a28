// kernels/ptx/barrier.cuh for the processor.
#pragma once
#include "types.cuh"

static u32 smem_addr(const void *p) {
    return (u32)((const u8 *)p - raw) + 1024;
}
template <int N> static void setmaxnreg_inc() {}
template <int N> static void setmaxnreg_dec() {}

struct Mbarrier {
    int count, missing, bytes;
    u32 phase;
};
static Mbarrier mbarriers[(257 << 10) / 8];
static Mbarrier &mbarrier(u32 bar) {
    return mbarriers[bar / 8];
}
static void mbar_look(Mbarrier &m) {
    if (m.missing < 0) {
        fail("more arrivals than a barrier waits for");
    }
    if (m.missing == 0 && m.bytes == 0) {
        m.missing = m.count, m.phase++, events++;
    }
}
static void mbar_init(u32 bar, u32 count) {
    mbarrier(bar) = {(int)count, (int)count, 0, 0};
}
static void mbar_fence_init() {}
static void mbar_expect(u32 bar, u32 bytes) {
    Mbarrier &m = mbarrier(bar);
    m.bytes += (int)bytes, m.missing--;
    mbar_look(m);
}
static void mbar_arrive(u32 bar) {
    mbar_expect(bar, 0);
}
static void mbar_arrive_if(u32 bar, bool yes) {
    if (yes) {
        mbar_arrive(bar);
    }
}
#ifndef RACECHECK
#define RACECHECK 0
#endif
static constexpr u32 WARP_ARRIVALS = RACECHECK ? 32 : 1;
static void mbar_arrive_warp(u32 bar, int lane) {
    mbar_arrive_if(bar, RACECHECK || lane == 0);
}
static void mbar_arrive_rest(u32 bar) {
    for (u32 i = 1; i < WARP_ARRIVALS; i++) {
        mbar_arrive(bar);
    }
}
static bool mbar_test(u32 bar, u32 parity) {
    return (mbarrier(bar).phase & 1) != (parity & 1);
}
static void mbar_wait(u32 bar, u32 parity) {
    while (!mbar_test(bar, parity)) {
        give_way();
    }
}
static void wait_for(u32 bar, u32 parity) {
    mbar_wait(bar, parity);
}
static void fence_proxy_async() {}

static void named_arrive(int barrier, int count) {
    named[barrier].arrive(count);
}
static void named_sync(int barrier, int count) {
    named[barrier].wait(count);
}
