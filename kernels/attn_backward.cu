// Attention backward over a list of key tiles, for sm_90a: magi_attn_backward. See docs/kernels.md.
//
// A thread block is a producer warpgroup and two consumer warpgroups, or three; blocks are as many as multiprocessors
// and take tiles from a counter.
// Switches: DTYPE_F16 SOFTCAP=1 DQ=0
// SPDX-License-Identifier: Apache-2.0
// What both consumers include stands before the choice: in flattened text a header is where it is first named.
#include "attn/backward_epilogue.cuh"
#include "attn/backward_helpers.cuh"
#include "attn/backward_mask.cuh"
#include "attn/backward_producer.cuh"
#include "attn/backward_products.cuh"
#include "attn/last_block.cuh"
#include "ptx/launch.cuh"
#if WIDE
#include "attn/backward_wide_consumer.cuh"
#elif KEYS_ALONE
#include "attn/backward_keys_consumer.cuh"
#else
#include "attn/backward_consumer.cuh"
#endif

// For the host: keys of a tile, queries of a step, threads of a block, bytes of dynamic shared memory, floats of a
// piece.
__device__ int magi_attn_backward_sizes[5] = {BK, BQ, THREADS, sizeof(Shared), BK *(D + DV)};

DEV void set_up(const BackwardMaps &maps, const magi_attn_backward_params &p, Shared &s) {
    s.share = {p.tile_count * p.heads_kv * p.splits, p.tile_count * p.section, p.group / p.splits};
    tma_prefetch(&maps.q);
    tma_prefetch(&maps.dout);
    tma_prefetch(&maps.stats);
    tma_prefetch(&maps.dq);
    for (int i = 0; i < 2; i++) {
        tma_prefetch(&maps.k[i]);
        tma_prefetch(&maps.v[i]);
        mbar_init(AT(k_full) + 8 * i, WARP_ARRIVALS); // the cleaning warp's, as those of `full`
        mbar_init(AT(k_loaded) + 8 * i, 1);
        mbar_init(AT(k_empty) + 8 * i, CONSUMER_WARPS * WARP_ARRIVALS);
        mbar_init(AT(brief_full) + 8 * i, 1);
        mbar_init(AT(brief_empty) + 8 * i, 1);
        mbar_init(AT(dq_full) + 8 * i, 4 * WARP_ARRIVALS);
        mbar_init(AT(dq_empty) + 8 * i, 1);
    }
    for (int i = 0; i < STAGES; i++) {
        mbar_init(AT(full) + 8 * i, WARP_ARRIVALS);
        mbar_init(AT(empty) + 8 * i, 8 * WARP_ARRIVALS); // dQ needs no queries
    }
    mbar_init(AT(v_full), 1);
    mbar_init(AT(v_empty), (WIDE ? 4 : 8) * WARP_ARRIVALS);
#if WIDE
    for (int i = 0; i < 2; i++) {
        mbar_init(AT(dout_full) + 8 * i, WARP_ARRIVALS);
        mbar_init(AT(dout_empty) + 8 * i, 8 * WARP_ARRIVALS);
    }
#endif
    for (int i = 0; i < ORDERS; i++) {
        mbar_init(AT(ordered) + 8 * i, 1);
    }
    s.no_more_dq = 0;
    mbar_fence_init();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    magi_attn_backward(const __grid_constant__ BackwardMaps maps, const __grid_constant__ magi_attn_backward_params p) {
    extern __shared__ __align__(1024) u8 raw[];
    // A constant address costs less than that of `raw`.
    Shared &s = *static_cast<Shared *>(__builtin_assume_aligned(__cvta_shared_to_generic(SMEM), alignof(Shared)));
    const int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0); // uniform, and known to be
    if (threadIdx.x == 0) {
        if (smem_addr(raw) != SMEM) {
            __trap();
        }
        set_up(maps, p, s);
    }
    ptx::wait_for_previous(); // which made stats and cleared dq, where launches overlap
    ptx::let_next_start();
    __syncthreads();
    if (group == 0) {
        setmaxnreg_dec<PRODUCER_REGS>();
        if (threadIdx.x == 0) {
            Producer{maps, p, s}.run();
        } else if (threadIdx.x / 32 == 1) {
            clean(p, s, threadIdx.x & 31);
        } else if (threadIdx.x == 64) {
            Scheduler{maps, p, s}.run();
#if DQ
        } else if (threadIdx.x == 96) {
            add_queries(maps, s);
#elif KEYS_ALONE
        } else if (threadIdx.x == 96) {
            fetch_values(maps, p, s);
#endif
        }
    } else {
        consume(p, s, group - 1, threadIdx.x & 127);
    }
    if (threadIdx.x == 0 && last_block(p.counters)) {
        p.counters[2] = p.counters[3] = 0;
    }
}
