// The products of a warpgroup of 64 keys with a block of queries: S, dP, and what a block adds to dV and dK.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_mask.cuh"

// What the threads of a warpgroup know of their place.
struct Place {
    int group, lane, row; // row: the thread's first key of the tile
};

// x = S = K Q^T, in flight. `place`: of the tile; `stage`: of the block.
DEV void scores(float (&x)[BQ / 2], u32 place, u32 stage, int group) {
    const u64 k = smem_desc(AT(k) + group * 64 * 128, 16, 1024) + k_stage(place) / 16;
    const u64 q = smem_desc(AT(q), 16, 1024) + stage * (Q_BYTES / 16);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        wgmma_ss(x, k + (j / 4 * BK * 128 + j % 4 * 32) / 16, q + (j / 4 * BQ * 128 + j % 4 * 32) / 16, j != 0);
    }
    wgmma_commit();
}

// y = V dO^T - delta, in flight.
DEV void probability_gradients(float (&y)[BQ / 2], u32 stage, const Place &at) {
    const u64 v = smem_desc(AT(v) + at.group * 64 * 128, 16, 1024);
    const u64 dout = smem_desc(AT(dout), 16, 1024) + stage * (DO_BYTES / 16);
    start_gradients(y, delta_of(stage, at.lane));
    pin(y);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < DV / 16; j++) {
        wgmma_ss(y, v + (j / 4 * BK * 128 + j % 4 * 32) / 16, dout + (j / 4 * BQ * 128 + j % 4 * 32) / 16, 1);
    }
    wgmma_commit();
}

// Queries of a stage as the B operand of dK, gradients of the output as that of dV.
DEV u64 queries_of(u32 stage) {
    return smem_desc(AT(q), BQ * 128, 1024) + stage * (Q_BYTES / 16);
}
DEV u64 dout_of(u32 stage) {
    return smem_desc(AT(dout), BQ * 128, 1024) + stage * (DO_BYTES / 16);
}

// acc += A times the queries (or gradients of the output) of a block.
template <int N> DEV void add_product(float (&acc)[N], const u32 (&a)[BQ / 16][4], u64 b, int keep) {
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BQ / 16; j++) {
        wgmma_rs_t(acc, a[j], b + j * 16 * 128 / 16, j != 0 || keep);
    }
    wgmma_commit();
}
