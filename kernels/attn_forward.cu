// Attention forward over a tile list, for sm_90a: magi_attn_forward. See docs/kernels.md.
//
// A thread block is a producer warpgroup and consumer warpgroups of 64 rows each; blocks are as many as
// multiprocessors and take tiles from a counter.
// Switches: DTYPE_F16 SOFTCAP=1 MAX_LOGITS=1 GENERAL=1
// SPDX-License-Identifier: Apache-2.0
#include "attn/forward_consumer.cuh"
#include "attn/forward_producer.cuh"
#include "attn/last_block.cuh"

// For the host: rows of a tile, keys of a step, threads of a block, bytes of dynamic shared memory.
__device__ int magi_attn_forward_sizes[4] = {BM, BN, THREADS, sizeof(Shared)};

// Arrivals that end a phase of barrier i of the shared memory.
DEV u32 arrivals(int i) {
    const u32 at = AT(q_full) + 8 * i;
    const bool consumers = at >= AT(q_empty) && at < AT(full) || at >= AT(k_empty) && at < AT(dirty_full);
    return consumers ? CONSUMER_WARPS * WARP_ARRIVALS : at >= AT(full) && at < AT(k_empty) ? 2 : 1;
}

// Warp 0: barriers. Warp 1: maps.
DEV void set_up(const ForwardMaps &maps, Shared &s, int warp, int lane) {
    if (warp == 0 && lane < BARRIERS) {
        mbar_init(AT(q_full) + 8 * lane, arrivals(lane));
        mbar_fence_init();
    }
    if (warp == 1 && lane < 6) {
        tma_prefetch(&maps.q + lane);
    }
    if (warp == 1 && lane == 0) {
        s.place[PLACES - 1] = {};
    }
}

// The last block of a launch hands out the maxima.
DEV void wind_up(const magi_attn_forward_params &p) {
    if (!last_block(p.counters)) {
        return;
    }
#if MAX_LOGITS
    for (int h = 0; h < p.units * p.pack; h++) {
        const float m = from_ordered_bits(__ldcg(p.maxima + h));
        p.max_logits[h] = p.flags & MAGI_FORWARD_ACCUMULATE ? fmaxf(m, p.max_logits[h]) : m;
        p.maxima[h] = 0;
    }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    magi_attn_forward(const __grid_constant__ ForwardMaps maps, const __grid_constant__ magi_attn_forward_params p) {
    extern __shared__ __align__(1024) u8 raw[];
    // A constant address costs less than that of `raw`.
    Shared &s = *static_cast<Shared *>(__builtin_assume_aligned(__cvta_shared_to_generic(SMEM), alignof(Shared)));
    const int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0); // uniform, and known to be
    if (p.pack * (BM / p.pack) != BM) {                            // rows of Q that no copy reaches
        for (u32 i = threadIdx.x * 16; i < Q_STAGES * Q_BYTES; i += THREADS * 16) {
            st_shared_v4(AT(q) + i, 0, 0, 0, 0);
        }
        fence_proxy_async();
    }
    if (smem_addr(raw) != SMEM) {
        __trap();
    }
    Scheduler scheduler{maps, p, s};
    if (threadIdx.x == 64) {
        scheduler.begin();
    }
    set_up(maps, s, threadIdx.x / 32, threadIdx.x & 31);
    __syncthreads();
    if (group == 0) {
        setmaxnreg_dec<PRODUCER_REGS>();
        if (threadIdx.x == 0) {
            Producer{maps, p, s}.run();
        } else if (threadIdx.x / 32 == 1) {
            clean<DV_CHUNKS, V_BYTES>(s, AT(v), threadIdx.x & 31);
        } else if (threadIdx.x == 64) {
            scheduler.run();
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGS>();
        consume(maps, p, s, group - 1, threadIdx.x & 127);
    }
#if MAX_LOGITS
    __syncthreads(); // maxima of this block are in
#endif
    if (threadIdx.x == 0) {
        wind_up(p);
    }
}
