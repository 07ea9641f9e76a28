// The consumer warpgroups: 64 keys each. A block of queries is multiplied with the tile's keys, transposed: a row of S
// is a key, a column a query.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_epilogue.cuh"
#include "columns.cuh"

struct Consumer {
    float dk[D / 2], dv[DV / 2];
    float x[BQ / 2], y[BQ / 2]; // S, then P; dP
    u32 unseen[2];              // of the thread's two keys: the queries that do not see them, by the bits of columns_below
    int flags;
    u32 n;    // blocks so far
    u32 tile; // tiles so far
};

// What the threads of a warpgroup know of their place.
struct Place {
    int group, lane, row; // row: the thread's first key of the tile
};

// S = K Q^T of block n.
DEV void scores(float (&x)[BQ / 2], const Consumer &c, int group) {
    const u32 i = c.n & 1;
    const u64 k = smem_desc(AT(k) + group * 64 * 128, 16, 1024) + (c.tile & 1) * (K_BYTES / 16);
    const u64 q = smem_desc(AT(q), 16, 1024) + i * (Q_BYTES / 16);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        wgmma_ss(x, k + (j / 4 * BK * 128 + j % 4 * 32) / 16, q + (j / 4 * BQ * 128 + j % 4 * 32) / 16, j != 0);
    }
    wgmma_commit();
}

// dP = V dO^T of block n.
DEV void probability_gradients(float (&y)[BQ / 2], const Consumer &c, int group) {
    const u32 i = c.n & 1;
    const u64 v = smem_desc(AT(v) + group * 64 * 128, 16, 1024);
    const u64 dout = smem_desc(AT(dout), 16, 1024) + i * (DO_BYTES / 16);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < DV / 16; j++) {
        wgmma_ss(y, v + (j / 4 * BK * 128 + j % 4 * 32) / 16, dout + (j / 4 * BQ * 128 + j % 4 * 32) / 16, j != 0);
    }
    wgmma_commit();
}

// What does not see becomes 0.
DEV void select(float (&x)[BQ / 2], const u32 (&unseen)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int i = 0; i < BQ / 4; i++) {
            if (unseen[h] >> i & 1) {
                x[4 * (i / 2) + 2 * h + i % 2] = 0;
            }
        }
    }
}

// P = 2^(S * scale - lse).
DEV void probabilities(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at) {
    const u32 i = c.n & 1, lse = AT(stats) + i * STATS_BYTES + 8 * (at.lane & 3);
    const float scale = p.scale_log2;
#pragma unroll
    for (int j = 0; j < BQ / 8; j++) {
        const float2 l = ld_shared_f32x2(lse + 32 * j);
        c.x[4 * j] = exp2_approx(__fmaf_rn(c.x[4 * j], scale, -l.x));
        c.x[4 * j + 1] = exp2_approx(__fmaf_rn(c.x[4 * j + 1], scale, -l.y));
        c.x[4 * j + 2] = exp2_approx(__fmaf_rn(c.x[4 * j + 2], scale, -l.x));
        c.x[4 * j + 3] = exp2_approx(__fmaf_rn(c.x[4 * j + 3], scale, -l.y));
    }
    if (c.flags & MASKED) {
        find_unseen(c.unseen, s.block[i], p.limits, at.row, 2 * (at.lane & 3));
        __syncwarp(); // products want all lanes
        select(c.x, c.unseen);
    }
}

// What does not see has P = 0, but its dP may be infinite or NaN.
DEV void take_gradients(Consumer &c) {
    wgmma_wait<0>();
    pin(c.y);
    if (c.flags & MASKED) {
        select(c.y, c.unseen);
    }
}

// Waits for block n and brings it as far as the loop wants it: P and dP.
DEV void begin(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at) {
    const u32 i = c.n & 1;
    mbar_wait(AT(full) + 8 * i, c.n >> 1 & 1);
    c.flags = __shfl_sync(~0u, s.block[i].flags, 0);
    scores(c.x, c, at.group);
    mbar_wait(AT(v_full), c.tile & 1);
    probability_gradients(c.y, c, at.group);
    wgmma_wait<1>();
    pin(c.x);
    probabilities(c, p, s, at);
    take_gradients(c);
}

// dS = P (dP - delta) as A fragments.
DEV void score_gradients(const Consumer &c, u32 (&ds)[BQ / 16][4], const Place &at) {
    const u32 delta = AT(stats) + (c.n & 1) * STATS_BYTES + BQ * 4 + 8 * (at.lane & 3);
#pragma unroll
    for (int j = 0; j < BQ / 8; j++) {
        const float2 d = ld_shared_f32x2(delta + 32 * j);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float x0 = c.x[4 * j + 2 * h], x1 = c.x[4 * j + 2 * h + 1];
            ds[j / 2][j % 2 * 2 + h] = pack(x0 * (c.y[4 * j + 2 * h] - d.x), x1 * (c.y[4 * j + 2 * h + 1] - d.y));
        }
    }
}

// P as A fragments.
DEV void fragments(const Consumer &c, u32 (&p)[BQ / 16][4]) {
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
        p[j / 4][j % 4] = pack(c.x[2 * j], c.x[2 * j + 1]);
    }
}

DEV void pin(u32 (&x)[BQ / 16][4]) {
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
        asm volatile("" : "+r"(x[j / 4][j % 4])::"memory");
    }
}

// dS, transposed, into shared memory.
DEV void store_fragments(const u32 (&ds)[BQ / 16][4], u32 i, const Place &at) {
    const u32 row = (at.row & ~15) + (at.lane & 15), to = AT(ds) + i * DS_BYTES + row * 128;
#pragma unroll
    for (int j = 0; j < BQ / 16; j++) {
        stmatrix_x4(to + (((2 * j + at.lane / 16) ^ (row & 7)) * 16), ds[j][0], ds[j][1], ds[j][2], ds[j][3]);
    }
    fence_proxy_async();
}

// acc += A times the queries (or gradients of the output) of block n.
template <int N> DEV void add_product(float (&acc)[N], const u32 (&a)[BQ / 16][4], u64 b, int keep) {
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BQ / 16; j++) {
        wgmma_rs_t(acc, a[j], b + j * 16 * 128 / 16, j != 0 || keep);
    }
    wgmma_commit();
}

// The warpgroup's half of the columns of dQ = dS K.
DEV void query_gradients(const Consumer &c, float (&dq)[D / 4], u32 i, int group) {
    const u64 ds = smem_desc(AT(ds), 16, 1024) + i * (DS_BYTES / 16);
    const u64 k = smem_desc(AT(k) + group * BK * 128, 16, 1024) + (c.tile & 1) * (K_BYTES / 16);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BK / 16; j++) {
        wgmma_ss_t(dq, ds + j * 16 * 128 / 16, k + j * 16 * 128 / 16, j != 0);
    }
    wgmma_commit();
}

// Looks first: a wait may suspend the thread for longer than what it waits for takes.
DEV void wait_for(u32 bar, u32 parity) {
    if (!mbar_test(bar, parity)) {
        mbar_wait(bar, parity);
    }
}

#ifdef TRACE
#define TR(k) if (blockIdx.x == 5 && (threadIdx.x & 127) == 0 && c.n >= 40 && c.n < 48) { asm volatile("st.global.u32 [%0], %1;" :: "l"((u32*)params.piece + (((threadIdx.x >> 7) - 1) * 8 + c.n - 40) * 16 + k), "r"((u32)clock()) : "memory"); } __syncwarp();
#else
#define TR(k)
#endif
// Named barriers of the two warpgroups: dS of a slot is there, and has been read. `group`: whose half of dS.
DEV int ds_full(u32 slot, int group) {
    return 1 + 2 * slot + group;
}
DEV int ds_empty(u32 slot, int group) {
    return 5 + 2 * slot + group;
}

#ifndef PP
#define PP 1
#endif
// dQ of block n.
DEV void begin_queries(Consumer &c, u32 n, const Place &at) {
    named_sync(ds_full(n & 1, at.group ^ 1), 256);
    query_gradients(c, c.y, n & 1, at.group);
}
DEV void end_queries(Consumer &c, const magi_attn_backward_params &p, u32 n, const Place &at) {
    pin(c.y);
    named_arrive(ds_empty(n & 1, at.group ^ 1), 256);
    wait_for(AT(dq_empty) + 8 * at.group, (n & 1) ^ 1);
    leave_queries(c.y, p.scale, at.group, at.row & 63, at.lane);
}

// The turn of using the tensor cores: a warpgroup waits for its own and passes it on.
DEV void take_turn(const Place &at) {
    if (PP) {
        named_sync(14 + at.group, 256);
    }
}
DEV void pass_turn(const Place &at) {
    if (PP) {
        named_arrive(14 + (at.group ^ 1), 256);
    }
}

// Block n is done with.
DEV void release(Consumer &c, const Place &at) {
    pin(c.dv);
    pin(c.dk);
    __syncwarp();
    mbar_arrive_if(AT(empty) + 8 * (c.n & 1), at.lane == 0);
    c.n++;
}

// P and dS of block n from P and dP; dS, which dQ wants of both warpgroups, goes into shared memory.
DEV void make_fragments(Consumer &c, u32 (&p)[BQ / 16][4], u32 (&ds)[BQ / 16][4], const magi_attn_backward_params &params, const Place &at) {
    const u32 i = c.n & 1;
    TR(0)
    score_gradients(c, ds, at);
    fragments(c, p);
    TR(1)
    if (c.n >= 2) {
        named_sync(ds_empty(i, at.group), 256);
    }
    store_fragments(ds, i, at);
    named_arrive(ds_full(i, at.group), 256);
    TR(2)
}

// A step of the tile, from P and dP of block n to those of block n + 1. dQ is a block late, so that the warpgroups can
// take turns.
template <bool FIRST> DEV void step(Consumer &c, const magi_attn_backward_params &params, const Shared &s, const Place &at) {
    const u32 i = c.n & 1;
    u32 p[BQ / 16][4], ds[BQ / 16][4];
    make_fragments(c, p, ds, params, at);
    take_turn(at);
    TR(3)
    if (!FIRST) {
        begin_queries(c, c.n - 1, at);
    }
    add_product(c.dv, p, smem_desc(AT(dout), BQ * 128, 1024) + i * (DO_BYTES / 16), !FIRST);
    add_product(c.dk, ds, smem_desc(AT(q), BQ * 128, 1024) + i * (Q_BYTES / 16), !FIRST);
    TR(4)
    if (!FIRST) {
        wgmma_wait<2>();
        TR(15)
        end_queries(c, params, c.n - 1, at);
    }
    wait_for(AT(full) + 8 * ((c.n + 1) & 1), (c.n + 1) >> 1 & 1);
    c.flags = __shfl_sync(~0u, s.block[(c.n + 1) & 1].flags, 0);
    TR(5)
    wgmma_wait<0>(); // the queries are done with, and so are fragments: there are no registers for more
    release(c, at);
    TR(6)
    scores(c.x, c, at.group);
    if (PP == 1) {
        pass_turn(at);
    }
    TR(7)
    probability_gradients(c.y, c, at.group);
    if (PP == 2) {
        pass_turn(at);
    }
    TR(8)
    wgmma_wait<1>();
    pin(c.x);
    TR(9)
    probabilities(c, params, s, at);
    TR(10)
    take_gradients(c);
}

// The last block of a tile.
DEV void finish(Consumer &c, const magi_attn_backward_params &params, const Place &at, bool first) {
    const u32 i = c.n & 1;
    u32 p[BQ / 16][4], ds[BQ / 16][4];
    make_fragments(c, p, ds, params, at);
    take_turn(at);
    if (!first) {
        begin_queries(c, c.n - 1, at);
        wgmma_wait<0>();
        end_queries(c, params, c.n - 1, at);
    }
    add_product(c.dv, p, smem_desc(AT(dout), BQ * 128, 1024) + i * (DO_BYTES / 16), !first);
    add_product(c.dk, ds, smem_desc(AT(q), BQ * 128, 1024) + i * (Q_BYTES / 16), !first);
    pass_turn(at);
    begin_queries(c, c.n, at);
    wgmma_wait<0>();
    release(c, at);
    end_queries(c, params, c.n - 1, at);
}

DEV void consume(const magi_attn_backward_params &p, Shared &s, int group, int tid) {
    const Place at = {group, tid & 31, 64 * group + 16 * (tid / 32) + (tid & 31) / 4};
    Consumer c;
    c.n = 0;
    if (group == 1) {
        pass_turn(at);
    }
    for (c.tile = 0;; c.tile++) {
        const u32 i = c.tile & 1;
        mbar_wait(AT(k_full) + 8 * i, c.tile >> 1 & 1);
        const int blocks = __shfl_sync(~0u, s.place[i].blocks, 0);
        if (blocks < 0) {
            break;
        }
        if (blocks > 0) {
            begin(c, p, s, at);
            if (blocks > 1) {
                step<true>(c, p, s, at);
            }
#pragma unroll 1
            for (int j = 2; j < blocks; j++) {
                step<false>(c, p, s, at);
            }
            mbar_arrive_if(AT(v_empty), at.lane == 0);
            finish(c, p, at, blocks == 1);
            wait_for(AT(dq_empty) + 8 * group, (c.n & 1) ^ 1);
            store_keys(c.dk, c.dv, p, s.place[i], AT(dq), at.row, at.lane);
        } else {
            mbar_wait(AT(v_full), c.tile & 1);
            mbar_arrive_if(AT(v_empty), at.lane == 0);
            store_zeros(p, s.place[i], group, tid);
        }
        fence_proxy_async();
        __syncwarp();
        mbar_arrive_if(AT(k_empty) + 8 * i, at.lane == 0);
    }
    if (group == 0) { // all of its dQ is on its way
        s.no_more_dq = 1;
        __syncwarp();
        mbar_arrive_if(AT(dq_full), at.lane == 0);
    }
}
