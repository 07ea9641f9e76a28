// The third warpgroup of wide heads: dQ. SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_wide_products.cuh"

#if DQ
// Where parts of dQ leave, in turn.
struct Way {
    u32 place, phase;
};

// Chunk C and the following ones of 64 columns of dQ = dS K. `k_empty`: where to say that K is done with; 0: it is not.
template <int C = 0> DEV void add_chunks(Way &way, const magi_attn_backward_params &p, u32 k_empty, int row, int lane) {
    if constexpr (C < D_CHUNKS) {
        const u64 ds = smem_desc(DS_AT, 16, 1024), k = smem_desc(AT(k) + C * BK * 128, 16, 1024);
        float dq[32];
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < BK / 16; j++) {
            wgmma_ss_bt(dq, ds + j * 32 / 16, k + j * 16 * 128 / 16, j != 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        pin(dq);
        if (C == D_CHUNKS - 1) {
            named_arrive(DS_EMPTY, 256);
            if (k_empty != 0) {
                mbar_arrive_warp(k_empty, lane);
            }
        }
        wait_for(AT(dq_empty) + 8 * way.place, way.phase ^ 1);
        leave_queries<0>(dq, p.scale, (int)way.place, row, lane);
        way.place++;
        if (way.place == OUT_PLACES) {
            way.place = 0, way.phase ^= 1;
        }
        add_chunks<C + 1>(way, p, k_empty, row, lane);
    }
}

DEV void consume_queries(const magi_attn_backward_params &p, Shared &s, int tid) {
    const int lane = tid & 31, row = 16 * (tid / 32) + lane / 4;
    Way way = {0, 0};
    u32 parts = 0;
    for (u32 tile = 0;; tile++) {
        const u32 i = tile & 1;
        mbar_wait(AT(k_full) + 8 * i, tile >> 1 & 1);
        const int blocks = __shfl_sync(~0u, s.place[i].blocks, 0);
        if (blocks < 0) {
            break;
        }
#pragma unroll 1
        for (int j = 0; j < blocks; j++) {
            named_sync(DS_FULL, 256);
            add_chunks(way, p, j == blocks - 1 ? AT(k_empty) + 8 * i : 0, row, lane);
        }
        parts += blocks * D_CHUNKS;
        if (blocks == 0) {
            mbar_arrive_warp(AT(k_empty) + 8 * i, lane);
        }
    }
    wait_for(AT(dq_empty) + 8 * way.place, way.phase ^ 1);
    s.no_more_dq = parts + 1;
    __syncwarp();
    mbar_arrive_warp(AT(dq_full) + 8 * way.place, lane);
}
#endif
