// The second warpgroup of wide heads: dP and dS of the tile's keys, and dK. SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_wide_products.cuh"

struct Gradients {
    float dk[D / 2];
    float y[BQ / 2];      // dP - delta, then dS
    u32 ds[BQ / 16][4];   // dS as fragments
    int flags, lane, row; // row: the thread's first key of the tile
    u32 n;                // blocks so far
};

// dP - delta of block n, in flight.
DEV void begin_gradients(Gradients &c, const Shared &s) {
    c.flags = wait_for_queries(s, c.n);
    start_gradients(c.y, delta_of(c.n & 1, c.lane));
    wait_for_gradients(c.n);
    multiply<DV>(c.y, AT(v), gradients_of(c.n), 1);
}

// dS of block n, when dP is there. What does not see has 0, whatever its dP is.
DEV void take_probabilities(Gradients &c, const magi_attn_backward_params &params, const Shared &s) {
    pin(c.y);
    __syncwarp();
    release_gradients(c.n, c.lane);
    if (c.flags & MASKED) {
        u32 unseen[2];
        find_unseen(unseen, s.block[c.n & 1], params.limits, c.row, 2 * (c.lane & 3));
        select(c.y, unseen);
    }
    named_sync(P_FULL, 256);
    const u32 from = P_AT + c.row / 16 * P_WARP + c.lane * 16;
#pragma unroll
    for (int j = 0; j < BQ / 8; j++) {
        u32 p[4];
        ld_shared_v4(p, from + j * 512);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            c.y[4 * j + i] *= __uint_as_float(p[i]);
        }
    }
    named_arrive(P_EMPTY, 256);
}

// dS into its place, as a factor of dQ: a row for each query, so that stores need but one address.
DEV void hand_over(Gradients &c, bool first) {
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
        c.ds[j / 4][j % 4] = pack(c.y[2 * j], c.y[2 * j + 1]);
    }
#if DQ
    if (!first) {
        named_sync(DS_EMPTY, 256);
    }
    const u32 query = (c.lane & 7) + c.lane / 16 * 8, piece = c.row / 16 * 2 + c.lane / 8 % 2;
    const u32 to = DS_AT + query * 128 + (piece ^ (c.lane & 7)) * 16;
#pragma unroll
    for (int j = 0; j < BQ / 16; j++) {
        stmatrix_x4_trans(to + j * 16 * 128, c.ds[j][0], c.ds[j][1], c.ds[j][2], c.ds[j][3]);
    }
    fence_proxy_async();
    named_arrive(DS_FULL, 256);
#endif
}

// From dS of block n to that of block n + 1 with MORE. What may be waited for, the next block, is asked for when dK is
// under way.
template <bool MORE> DEV void step(Gradients &c, const magi_attn_backward_params &params, const Shared &s, bool first) {
    const u32 i = c.n & 1;
    hand_over(c, first);
    add_product(c.dk, c.ds, AT(q) + i * Q_BYTES, !first);
    c.n++;
    if constexpr (MORE) {
        begin_gradients(c, s);
    }
    wgmma_wait<MORE ? 1 : 0>();
    pin(c.dk);
    __syncwarp();
    mbar_arrive_warp(AT(empty) + 8 * i, c.lane);
    if constexpr (MORE) {
        wgmma_wait<0>();
        take_probabilities(c, params, s);
    }
}

DEV void consume_gradients(const magi_attn_backward_params &p, Shared &s, int tid) {
    Gradients c;
    c.lane = tid & 31, c.row = 16 * (tid / 32) + c.lane / 4;
    c.n = 0;
    for (u32 tile = 0;; tile++) {
        const u32 i = tile & 1;
        mbar_wait(AT(k_full) + 8 * i, tile >> 1 & 1);
        const int blocks = __shfl_sync(~0u, s.place[i].blocks, 0);
        if (blocks < 0) {
            break;
        }
        mbar_wait(AT(v_full), s.place[i].phase);
        if (blocks > 0) {
            begin_gradients(c, s);
            wgmma_wait<0>();
            take_probabilities(c, p, s);
            if (blocks > 1) {
                step<true>(c, p, s, true);
            }
#pragma unroll 1
            for (int left = blocks - 2; left > 0; left--) {
                step<true>(c, p, s, false);
            }
            asm volatile("" : "+r"(tile), "+r"(c.lane), "+r"(c.row)); // what follows from them is no loop's business
            mbar_arrive_warp(AT(v_empty), c.lane);
            // K is not its own, and the tile's place is kept a tile longer.
            mbar_arrive_warp(AT(k_empty) + 8 * (tile & 1), c.lane);
            step<false>(c, p, s, s.place[tile & 1].blocks == 1);
#if DQ
            named_sync(DS_EMPTY, 256);
#endif
            store_rows<false>(c.dk, p, s, (int)(tile & 1), DS_AT + c.row / 16 * 2048, c.row, c.lane);
#if DQ
            named_sync(ROWS_STORED, 128); // dS of the next tile goes where other warps put theirs together
#endif
        } else {
            mbar_arrive_warp(AT(v_empty), c.lane);
            if (tid < BK) {
                store_zeros(p, s.place[i], tid, false);
            }
            __syncwarp();
            mbar_arrive_warp(AT(k_empty) + 8 * i, c.lane);
        }
    }
}
