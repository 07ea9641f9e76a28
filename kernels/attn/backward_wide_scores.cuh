// The first warpgroup of wide heads: S and P of the tile's keys, and dV. SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_wide_products.cuh"

struct Scores {
    float dv[DV / 2];
    float x[BQ / 2];      // S, then P; with SOFTCAP P times the slope
    u32 p[BQ / 16][4];    // P as fragments
    int flags, lane, row; // row: the thread's first key of the tile
    u32 n;                // blocks so far
};

// S = K Q^T of block n, in flight.
DEV void begin_scores(Scores &c, const Shared &s) {
    c.flags = wait_for_queries(s, c.n);
    multiply<D>(c.x, AT(k), AT(q) + (c.n & 1) * Q_BYTES, 0);
}

// P of block n, when S is there; what does not see has 0. Queries are done with then.
DEV void find_probabilities(Scores &c, const magi_attn_backward_params &params, const Shared &s) {
    const u32 i = c.n & 1, first = lse_of(i, c.lane);
    u32 unseen[2];
    pin(c.x);
#if SOFTCAP
    if (c.flags & MASKED) {
        find_unseen(unseen, s.block[i], params.limits, c.row, 2 * (c.lane & 3));
        capped_exponentials<true>(c.x, c.p, first, unseen, params);
    } else {
        capped_exponentials<false>(c.x, c.p, first, unseen, params);
    }
#else
    late_exponentials(c.x, first, params.scale_log2);
    if (c.flags & MASKED) {
        find_unseen(unseen, s.block[i], params.limits, c.row, 2 * (c.lane & 3));
        select(c.x, unseen);
    }
#endif
    __syncwarp();
    mbar_arrive_warp(AT(empty) + 8 * i, c.lane);
}

// Hands P over to the thread that has the same keys and queries there. A warp writes where it also puts together rows
// of a tile, so that no warp is in another one's way.
DEV void hand_over(Scores &c, bool first) {
#if !SOFTCAP
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
        c.p[j / 4][j % 4] = pack(c.x[2 * j], c.x[2 * j + 1]);
    }
#endif
    if (!first) {
        named_sync(P_EMPTY, 256);
    }
    const u32 to = P_AT + c.row / 16 * P_WARP + c.lane * 16;
#pragma unroll
    for (int j = 0; j < BQ / 8; j++) {
        const float *const x = &c.x[4 * j];
        st_shared_v4(to + j * 512, __float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                     __float_as_uint(x[3]));
    }
    named_arrive(P_FULL, 256);
}

// From P of block n to that of block n + 1 with MORE. What may be waited for, the queries of the next block, is asked
// for when dV is under way.
template <bool MORE> DEV void step(Scores &c, const magi_attn_backward_params &params, const Shared &s, bool first) {
    hand_over(c, first);
    wait_for_gradients(c.n);
    add_product(c.dv, c.p, gradients_of(c.n), !first);
    c.n++;
    if constexpr (MORE) {
        begin_scores(c, s);
    }
    wgmma_wait<MORE ? 1 : 0>();
    pin(c.dv);
    __syncwarp();
    release_gradients(c.n - 1, c.lane);
    if constexpr (MORE) {
        wgmma_wait<0>();
        find_probabilities(c, params, s);
    }
}

DEV void consume_scores(const magi_attn_backward_params &p, Shared &s, int tid) {
    Scores c;
    c.lane = tid & 31, c.row = 16 * (tid / 32) + c.lane / 4;
    c.n = 0;
    for (u32 tile = 0;; tile++) {
        const u32 i = tile & 1;
        mbar_wait(AT(k_full) + 8 * i, tile >> 1 & 1);
        const int blocks = __shfl_sync(~0u, s.place[i].blocks, 0);
        if (blocks < 0) {
            break;
        }
        if (blocks > 0) {
            begin_scores(c, s);
            wgmma_wait<0>();
            find_probabilities(c, p, s);
            if (blocks > 1) {
                step<true>(c, p, s, true);
            }
#pragma unroll 1
            for (int left = blocks - 2; left > 0; left--) {
                step<true>(c, p, s, false);
            }
            asm volatile("" : "+r"(tile), "+r"(c.lane), "+r"(c.row)); // what follows from them is no loop's business
            mbar_arrive_warp(AT(k_empty) + 8 * (tile & 1), c.lane);
            step<false>(c, p, s, s.place[tile & 1].blocks == 1);
            named_sync(P_EMPTY, 256);
            store_rows<true>(c.dv, p, s, (int)(tile & 1), P_AT + c.row / 16 * P_WARP, c.row, c.lane);
        } else {
            if (tid < BK) {
                store_zeros(p, s.place[i], tid, true);
            }
            __syncwarp();
            mbar_arrive_warp(AT(k_empty) + 8 * i, c.lane);
        }
    }
}
