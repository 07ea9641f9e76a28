// The consumer warpgroups of wide heads. A tile has 64 keys, whose dK and dV fill the registers of both warpgroups:
// each has its own chunks of columns of dK, dV and dQ. Of S and dP, which have a row for each key and a column for each
// query, each computes half of the queries; P and dS are put together in shared memory. SPDX-License-Identifier:
// Apache-2.0
#pragma once
#include "backward_epilogue.cuh"
#include "backward_mask.cuh"

// Of S and dP, what a warpgroup computes.
constexpr int HALF = BQ / 2;

// A warpgroup's own columns.
template <int G> constexpr int K_COLUMNS = 64 * (k_chunk(G + 1) - k_chunk(G));
template <int G> constexpr int V_COLUMNS = 64 * (v_chunk(G + 1) - v_chunk(G));

template <int G> struct WideConsumer {
    float dk[K_COLUMNS<G> / 2], dv[V_COLUMNS<G> / 2];
    float x[HALF / 2], y[HALF / 2];        // S, then P; dP - delta
    u32 p[HALF / 16][4], ds[HALF / 16][4]; // P and dS as fragments
    int flags, lane, row;                  // row: the thread's first key of the tile
    u32 n;                                 // blocks so far
};

// x = S = K Q^T and y = V dO^T - delta, of the warpgroup's half of the queries of block n.
template <int G> DEV void products(WideConsumer<G> &c, const Shared &s) {
    const u32 i = c.n & 1;
    wait_for(AT(full) + 8 * i, c.n >> 1 & 1);
    c.flags = __shfl_sync(~0u, s.block[i].flags, 0);
    const u64 k = smem_desc(AT(k), 16, 1024), v = smem_desc(AT(v), 16, 1024);
    const u64 q = smem_desc(AT(q) + G * HALF * 128, 16, 1024) + i * (Q_BYTES / 16);
    const u64 dout = smem_desc(AT(dout) + G * HALF * 128, 16, 1024) + i * (DO_BYTES / 16);
    start_gradients(c.y, AT(stats) + i * STATS_BYTES + BQ * 4 + G * HALF * 4 + 8 * (c.lane & 3));
    pin(c.y);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        wgmma_ss(c.x, k + (j / 4 * BK * 128 + j % 4 * 32) / 16, q + (j / 4 * BQ * 128 + j % 4 * 32) / 16, j != 0);
    }
    wgmma_commit();
#pragma unroll
    for (int j = 0; j < DV / 16; j++) {
        wgmma_ss(c.y, v + (j / 4 * BK * 128 + j % 4 * 32) / 16, dout + (j / 4 * BQ * 128 + j % 4 * 32) / 16, 1);
    }
    wgmma_commit();
}

// P and dS of the warpgroup's queries, as fragments. What does not see has 0 in both, whatever its dP is.
template <int G> DEV void fragments(WideConsumer<G> &c, const magi_attn_backward_params &params, const Shared &s) {
    const u32 i = c.n & 1, first = AT(stats) + i * STATS_BYTES + G * HALF * 4 + 8 * (c.lane & 3);
    u32 unseen[2] = {0, 0};
    if (c.flags & MASKED) {
        find_unseen(unseen, s.block[i], params.limits, c.row, 2 * (c.lane & 3));
        unseen[0] >>= HALF / 4 * G, unseen[1] >>= HALF / 4 * G;
    }
    wgmma_wait<1>();
    pin(c.x);
#if SOFTCAP
    capped_exponentials<true>(c.x, c.p, first, unseen, params);
#else
    float2 lse[HALF / 8];
    load_lse(lse, first);
    exponentials(c.x, lse, params.scale_log2);
    select(c.x, unseen);
#pragma unroll
    for (int j = 0; j < HALF / 4; j++) {
        c.p[j / 4][j % 4] = pack(c.x[2 * j], c.x[2 * j + 1]);
    }
#endif
    if (c.flags < 0) { // never: the end of a block of code, above which the compiler would wait
        return;
    }
    wgmma_wait<0>();
    pin(c.y);
    select(c.y, unseen);
#pragma unroll
    for (int j = 0; j < HALF / 4; j++) {
        c.ds[j / 4][j % 4] = pack(c.x[2 * j] * c.y[2 * j], c.x[2 * j + 1] * c.y[2 * j + 1]);
    }
}

// A warpgroup's half of P or dS into its place of 64 keys by 64 queries.
template <int G> DEV void store_fragments(const u32 (&a)[HALF / 16][4], u32 to, int row, int lane) {
    const u32 r = (row & ~15) + (lane & 15);
#pragma unroll
    for (int j = 0; j < HALF / 16; j++) {
        stmatrix_x4(to + r * 128 + (((HALF / 8 * G + 2 * j + lane / 16) ^ (r & 7)) * 16), a[j][0], a[j][1], a[j][2],
                    a[j][3]);
    }
}

// acc += P or dS (`a`) times columns of dO or Q of a block.
template <int N> DEV void add_columns(float (&acc)[N], u32 a, u32 b, int keep) {
    const u64 da = smem_desc(a, 16, 1024), db = smem_desc(b, BQ * 128, 1024);
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BQ / 16; j++) {
        wgmma_ss_bt(acc, da + j * 32 / 16, db + j * 16 * 128 / 16, j != 0 || keep);
    }
    wgmma_commit();
}

#if DQ
// Chunk C of the warpgroup's own columns of dQ = dS K, in flight.
template <int G, int C> DEV void begin_queries(float (&dq)[32]) {
    const u64 ds = smem_desc(AT(ds) + DS_BYTES, 16, 1024), k = smem_desc(AT(k) + (k_chunk(G) + C) * BK * 128, 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BK / 16; j++) {
        wgmma_ss_t(dq, ds + j * 16 * 128 / 16, k + j * 16 * 128 / 16, j != 0);
    }
    wgmma_commit();
}

// Chunk C of block n, in parts.
template <int G, int C, int PART = 0>
DEV void end_queries(const WideConsumer<G> &c, float (&dq)[32], u32 n, const magi_attn_backward_params &p) {
    if constexpr (PART < 2 / BOXES) {
        const u32 before = n * parts_of(G) + C * (2 / BOXES) + PART; // parts that the warpgroup has left
        wait_for(AT(dq_empty) + 8 * G, (before & 1) ^ 1);
        leave_queries<PART>(dq, p.scale, G, c.row, c.lane);
        end_queries<G, C, PART + 1>(c, dq, n, p);
    }
}
#endif

// A step of the tile, from P and dS of block n to those of block n + 1 with MORE.
template <int G, bool MORE>
DEV void step(WideConsumer<G> &c, const magi_attn_backward_params &params, const Shared &s, bool first) {
    const u32 i = c.n & 1;
    named_sync(1, 256); // the block before is done with
    store_fragments<G>(c.p, AT(ds), c.row, c.lane);
    store_fragments<G>(c.ds, AT(ds) + DS_BYTES, c.row, c.lane);
    fence_proxy_async();
    named_sync(2, 256);
    constexpr int CHUNKS = DQ ? K_COLUMNS<G> / 64 : 0; // of dQ
#if DQ
    float dq[32];
    begin_queries<G, 0>(dq);
#endif
    add_columns(c.dv, AT(ds), AT(dout) + i * DO_BYTES + v_chunk(G) * BQ * 128, !first);
    add_columns(c.dk, AT(ds) + DS_BYTES, AT(q) + i * Q_BYTES + k_chunk(G) * BQ * 128, !first);
#if DQ
    wgmma_wait<2>();
    pin(dq);
    end_queries<G, 0>(c, dq, c.n, params);
    if constexpr (CHUNKS == 2) {
        begin_queries<G, 1>(dq);
    }
#endif
    wgmma_wait<CHUNKS == 2 ? 1 : 0>();
    pin(c.dv);
    pin(c.dk);
    __syncwarp();
    mbar_arrive_warp(AT(empty) + 8 * i, c.lane);
    c.n++;
    if constexpr (MORE) {
        products(c, s);
    }
#if DQ
    if constexpr (CHUNKS == 2) {
        wgmma_wait<MORE ? 2 : 0>();
        pin(dq);
        end_queries<G, 1>(c, dq, c.n - 1, params);
    }
#endif
    if constexpr (MORE) {
        fragments(c, params, s);
    }
}

template <int G> DEV void consume_columns(const magi_attn_backward_params &p, Shared &s, int tid) {
    WideConsumer<G> c;
    c.lane = tid & 31, c.row = 16 * (tid / 32) + c.lane / 4;
    c.n = 0;
    // The phase of K and V is read from the tile's place when the tile is done: meanwhile it would hold a register.
    for (u32 phase = 0;;) {
        mbar_wait(AT(k_full), phase);
        const int blocks = __shfl_sync(~0u, s.place[0].blocks, 0);
        if (blocks < 0) {
            break;
        }
        mbar_wait(AT(v_full), phase);
        if (blocks > 0) {
            products(c, s);
            fragments(c, p, s);
#pragma unroll 1
            for (int j = 1; j < blocks; j++) {
                step<G, true>(c, p, s, j == 1);
            }
            asm volatile("" : "+r"(c.lane), "+r"(c.row)); // addresses of the last step are no loop's business
            step<G, false>(c, p, s, blocks == 1);
            mbar_arrive_warp(AT(v_empty), c.lane);
#if DQ
            wait_for(AT(dq_empty) + 8 * G, (c.n * parts_of(G) & 1) ^ 1);
#endif
            store_keys<64 * k_chunk(G), 64 * v_chunk(G)>(c.dk, c.dv, p, s, 0, c.row, 4 * G + c.row / 16, c.lane);
        } else {
            mbar_arrive_warp(AT(v_empty), c.lane);
            store_zeros(p, s.place[0], tid % 64, G);
        }
        phase = s.place[0].phase ^ 1;
        __syncwarp();
        mbar_arrive_warp(AT(k_empty), c.lane);
    }
    end_adding(s, G, c.lane);
}

DEV void consume(const magi_attn_backward_params &p, Shared &s, int group, int tid) {
    if (group == 0) {
        consume_columns<0>(p, s, tid);
    } else {
        consume_columns<1>(p, s, tid);
    }
}
