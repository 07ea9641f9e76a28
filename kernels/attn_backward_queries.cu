// dq of attention over a list of query tiles, for sm_90a: magi_attn_backward_queries. See docs/kernels.md.
//
// The forward kernel's twin: a thread block is a producer warpgroup and consumer warpgroups of 64 rows each; blocks are
// as many as multiprocessors and take tiles from a counter.
// Switches: DTYPE_F16 SOFTCAP=1
// SPDX-License-Identifier: Apache-2.0
#include "attn/backward_queries_consumer.cuh"
#include "attn/backward_queries_scheduler.cuh"
#include "attn/last_block.cuh"
#include "ptx/launch.cuh"

// For the host: rows of a tile, keys of a step, threads of a block, bytes of dynamic shared memory.
__device__ int magi_attn_backward_queries_sizes[4] = {BM, BN, THREADS, sizeof(Shared)};

DEV void set_up(const BackwardQueriesMaps &maps, Shared &s) {
    tma_prefetch(&maps.q);
    tma_prefetch(&maps.dout);
    tma_prefetch(&maps.rows);
    for (int i = 0; i < 2; i++) {
        tma_prefetch(&maps.k[i]);
        tma_prefetch(&maps.v[i]);
        mbar_init(AT(q_full) + 8 * i, 1);
        mbar_init(AT(q_empty) + 8 * i, CONSUMER_WARPS * WARP_ARRIVALS);
        mbar_init(AT(brief_full) + 8 * i, 1);
        mbar_init(AT(brief_empty) + 8 * i, 1);
    }
    for (int i = 0; i < CONSUMER_GROUPS; i++) {
        mbar_init(AT(dout_full) + 8 * i, 1);
        mbar_init(AT(dout_empty) + 8 * i, 4 * WARP_ARRIVALS);
    }
    for (int i = 0; i < K_STAGES; i++) {
        mbar_init(AT(full) + 8 * i, SPLIT ? 1 : 2);
        mbar_init(AT(empty) + 8 * i, CONSUMER_WARPS * WARP_ARRIVALS);
    }
    for (int i = 0; i < V_STAGES; i++) {
        mbar_init(AT(v_full) + 8 * i, 1);
        mbar_init(AT(v_empty) + 8 * i, CONSUMER_WARPS * WARP_ARRIVALS);
    }
    for (int i = 0; i < DIRTY; i++) {
        mbar_init(AT(dirty_full) + 8 * i, 1);
    }
    mbar_fence_init();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    magi_attn_backward_queries(const __grid_constant__ BackwardQueriesMaps maps,
                               const __grid_constant__ magi_attn_backward_queries_params p) {
    extern __shared__ __align__(1024) u8 raw[];
    // A constant address costs less than that of `raw`.
    Shared &s = *static_cast<Shared *>(__builtin_assume_aligned(__cvta_shared_to_generic(SMEM), alignof(Shared)));
    const int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0); // uniform, and known to be
    if (threadIdx.x == 0) {
        if (smem_addr(raw) != SMEM) {
            __trap();
        }
        set_up(maps, s);
    }
    __syncthreads();
    if (group == 0) {
        setmaxnreg_dec<PRODUCER_REGS>();
        if (threadIdx.x == 0) {
            Producer{maps, p, s}.run();
        } else if (threadIdx.x / 32 == 1) {
            clean<D_CHUNKS, K_BYTES>(s, AT(k), threadIdx.x & 31);
        } else if (threadIdx.x == 64) {
            Scheduler{maps, p, s}.run();
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGS>();
        consume(p, s, group - 1, threadIdx.x & 127);
    }
    if (threadIdx.x == 0) {
        ptx::wait_for_previous(); // in vain, unless this launch overlaps the one before: both have then ended together
        last_block(p.counters);
    }
}
