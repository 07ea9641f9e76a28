// The consumer warpgroups: 64 keys each. A block of queries is multiplied with the tile's keys, transposed: a row of S
// is a key, a column a query.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_epilogue.cuh"
#include "backward_mask.cuh"
#include "backward_products.cuh"

// Columns of dQ of a block that are a warpgroup's.
constexpr int OWN_COLUMNS = 32 * BOXES;

struct Consumer {
    float dk[D / 2], dv[DV / 2];
    float x[BQ / 2], y[BQ / 2]; // S, then P; dP - delta, and between two blocks dQ of the one before
#if SOFTCAP || TRANSPOSED
    u32 p[BQ / 16][4]; // P; with SOFTCAP x has P times the slope then
#endif
#if CAPPED_LATE
    u32 ds[BQ / 16][4]; // dS
#endif
    int flags;
    u32 n;    // blocks so far
    u32 tile; // tiles so far
};

#if CAPPED_LATE
// P, and y = dS, of block n with a softcap, when dP is there: 16 columns after the other, so that few values are alive.
template <bool MASK>
DEV void capped_gradients(Consumer &c, const magi_attn_backward_params &p, u32 lse, const u32 (&unseen)[2]) {
#pragma unroll
    for (int j = 0; j < BQ / 16; j++) {
        float (&x)[8] = reinterpret_cast<float (&)[8]>(c.x[8 * j]);
        u32(&fragment)[1][4] = reinterpret_cast<u32(&)[1][4]>(c.p[j]);
        const u32 own[2] = {MASK ? unseen[0] >> 4 * j : 0, MASK ? unseen[1] >> 4 * j : 0};
        capped_exponentials<MASK>(x, fragment, lse + 2 * NEXT_PAIR * j, own, p);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            c.ds[j][i] = pack(c.y[8 * j + 2 * i] * x[2 * i], c.y[8 * j + 2 * i + 1] * x[2 * i + 1]);
        }
    }
}
#endif

#if TRANSPOSED
// y = dS, and P as fragments: what S and dP took is then free for fragments of dS and for dQ. The order of these steps
// is what the compiler needs; it would keep S beside both fragments.
DEV void pack_early(Consumer &c) {
#pragma unroll
    for (int i = 0; i < BQ / 2; i++) {
        c.y[i] *= c.x[i];
    }
    pin(c.y);
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
        c.p[j / 4][j % 4] = pack(c.x[2 * j], c.x[2 * j + 1]);
    }
    pin(c.p);
}
#endif

// P of block n, while dP is under way; then waits for that. What does not see has P = 0 and dP - delta = 0, which might
// be infinite or NaN.
DEV void probabilities(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at) {
    const u32 i = stage_of(c.n), first = lse_of(i, at.lane);
    u32 unseen[2];
#if CAPPED_LATE
    wgmma_wait<0>();
    pin(c.x);
    pin(c.y);
    if (c.flags & MASKED) {
        find_unseen(unseen, s.block[i], p.limits, at.row, 2 * (at.lane & 3));
        select(c.y, unseen);
        capped_gradients<true>(c, p, first, unseen);
    } else {
        capped_gradients<false>(c, p, first, unseen);
    }
#else
#if SOFTCAP
    wgmma_wait<1>();
    pin(c.x);
    if (c.flags & MASKED) {
        find_unseen(unseen, s.block[i], p.limits, at.row, 2 * (at.lane & 3));
        capped_exponentials<true>(c.x, c.p, first, unseen, p);
    } else {
        capped_exponentials<false>(c.x, c.p, first, unseen, p);
    }
#else
#if TRANSPOSED
    wgmma_wait<1>();
    pin(c.x);
    late_exponentials(c.x, first, p.scale_log2);
#else
    float2 lse[BQ / 8];
    load_lse(lse, first);
    wgmma_wait<1>();
    pin(c.x);
    exponentials(c.x, lse, p.scale_log2);
#endif
    if (c.flags & MASKED) {
        find_unseen(unseen, s.block[i], p.limits, at.row, 2 * (at.lane & 3));
        select(c.x, unseen);
    }
#endif
    wgmma_wait<0>();
    pin(c.y);
    if (c.flags & MASKED) {
        select(c.y, unseen);
    }
#if TRANSPOSED
    pack_early(c);
#endif
#endif
}

// Waits for the first block of a tile and brings it as far as steps want it: P and dP.
DEV void begin(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at) {
    const u32 i = stage_of(c.n);
    mbar_wait(AT(full) + 8 * i, phase_of(c.n));
    c.flags = __shfl_sync(~0u, s.block[i].flags, 0);
    scores(c.x, c.tile & 1, stage_of(c.n), at.group);
    wgmma_wait<0>();
    pin(c.x);
    mbar_wait(AT(v_full), c.tile & 1);
    probability_gradients(c.y, stage_of(c.n), at);
    probabilities(c, p, s, at);
}

// P and dS as A fragments.
DEV void make_fragments(const Consumer &c, u32 (&p)[BQ / 16][4], u32 (&ds)[BQ / 16][4]) {
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
#if CAPPED_LATE
        ds[j / 4][j % 4] = c.ds[j / 4][j % 4];
#elif TRANSPOSED
        ds[j / 4][j % 4] = pack(c.y[2 * j], c.y[2 * j + 1]);
#else
        ds[j / 4][j % 4] = pack(c.x[2 * j] * c.y[2 * j], c.x[2 * j + 1] * c.y[2 * j + 1]);
#endif
#if SOFTCAP || TRANSPOSED
        p[j / 4][j % 4] = c.p[j / 4][j % 4];
#else
        p[j / 4][j % 4] = pack(c.x[2 * j], c.x[2 * j + 1]);
#endif
    }
}

// Block n's parts of dV and dK, in flight.
DEV void add_key_gradients(Consumer &c, const u32 (&p)[BQ / 16][4], const u32 (&ds)[BQ / 16][4], bool first) {
    add_product(c.dv, p, dout_of(stage_of(c.n)), !first);
    add_product(c.dk, ds, queries_of(stage_of(c.n)), !first);
}

#if DQ
// Named barriers of the two warpgroups: dS of a slot is there, and has been read. `group`: whose half of dS.
DEV int ds_full(u32 slot, int group) {
    return 1 + 2 * slot + group;
}
DEV int ds_empty(u32 slot, int group) {
    return 5 + 2 * slot + group;
}

// dS of block n, transposed, into shared memory: dQ wants that of both warpgroups.
DEV void store_fragments(const u32 (&ds)[BQ / 16][4], u32 n, const Place &at) {
    const u32 slot = n & 1, row = (at.row & ~15) + (at.lane & 15), to = AT(ds) + slot * DS_BYTES;
    if (n >= 2) {
        named_sync(ds_empty(slot, at.group), 256);
    }
    if constexpr (TRANSPOSED) {
        const u32 query = (at.lane & 7) + at.lane / 16 * 8, piece = at.row / 16 % 4 * 2 + at.lane / 8 % 2;
        const u32 first = to + at.group * (BQ * 128) + query * 128 + ((piece ^ (at.lane & 7)) * 16);
#pragma unroll
        for (int j = 0; j < BQ / 16; j++) {
            stmatrix_x4_trans(first + j * 16 * 128, ds[j][0], ds[j][1], ds[j][2], ds[j][3]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < BQ / 16; j++) {
            stmatrix_x4(to + row * 128 + (((2 * j + at.lane / 16) ^ (row & 7)) * 16), ds[j][0], ds[j][1], ds[j][2],
                        ds[j][3]);
        }
    }
    fence_proxy_async();
    named_arrive(ds_full(slot, at.group), 256);
}

// The warpgroup's columns of dQ of block n = dS K, or of its transpose K^T dS^T, in flight, where dP was.
using QueryGradients = float[(TRANSPOSED ? BQ : OWN_COLUMNS) / 2];
DEV QueryGradients &query_gradients(Consumer &c) {
    return *reinterpret_cast<QueryGradients *>(c.y);
}
DEV void begin_queries(Consumer &c, u32 n, const Place &at) {
    const u32 slot = n & 1, columns = OWN_COLUMNS == 64 ? at.group * BK * 128 : at.group * OWN_COLUMNS * 2;
    const u64 ds = smem_desc(AT(ds), 16, 1024) + slot * (DS_BYTES / 16);
    const u64 k = smem_desc(AT(k) + columns, 16, 1024) + k_stage(c.tile & 1) / 16;
    named_sync(ds_full(slot, at.group ^ 1), 256);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BK / 16; j++) {
        if constexpr (TRANSPOSED) {
            wgmma_ss_at(query_gradients(c), k + j * 16 * 128 / 16, ds + (j / 4 * BQ * 128 + j % 4 * 32) / 16, j != 0);
        } else {
            wgmma_ss_t(query_gradients(c), ds + j * 16 * 128 / 16, k + j * 16 * 128 / 16, j != 0);
        }
    }
    wgmma_commit();
}
DEV void end_queries(Consumer &c, const magi_attn_backward_params &p, u32 n, const Place &at) {
    QueryGradients &dq = query_gradients(c);
    pin(dq);
    named_arrive(ds_empty(n & 1, at.group ^ 1), 256);
    wait_for(AT(dq_empty) + 8 * at.group, (n & 1) ^ 1);
    if constexpr (TRANSPOSED) {
        leave_transposed(dq, p.scale, at.group, at.row & 63, at.lane);
    } else {
        leave_queries<0>(dq, p.scale, at.group, at.row & 63, at.lane);
    }
}
#endif

// Block n is done with.
DEV void release(Consumer &c, const Place &at) {
    pin(c.dv);
    pin(c.dk);
    __syncwarp();
    mbar_arrive_warp(AT(empty) + 8 * stage_of(c.n), at.lane);
    c.n++;
}

// A step of the tile, from P and dP of block n to those of block n + 1. dQ is a block late, so that neither warpgroup
// waits for the other's dS, and comes first, so that it leaves while dV and dK, which leave half of the bandwidth of
// shared memory, are computed.
template <bool FIRST>
DEV void step(Consumer &c, const magi_attn_backward_params &params, const Shared &s, const Place &at) {
    u32 p[BQ / 16][4], ds[BQ / 16][4];
    make_fragments(c, p, ds);
#if DQ
    store_fragments(ds, c.n, at);
    if (!FIRST) {
        begin_queries(c, c.n - 1, at);
    }
#endif
    add_key_gradients(c, p, ds, FIRST);
#if DQ
    if (!FIRST) {
        wgmma_wait<2>();
        end_queries(c, params, c.n - 1, at);
    }
#endif
    wait_for(AT(full) + 8 * ((c.n + 1) % STAGES), (c.n + 1) / STAGES & 1);
    c.flags = __shfl_sync(~0u, s.block[(c.n + 1) % STAGES].flags, 0);
    wgmma_wait<0>(); // fragments are done with: there are no registers for more
    release(c, at);
    scores(c.x, c.tile & 1, stage_of(c.n), at.group);
    probability_gradients(c.y, stage_of(c.n), at);
    probabilities(c, params, s, at);
}

// The last block of a tile.
DEV void finish(Consumer &c, const magi_attn_backward_params &params, const Place &at, bool first) {
    u32 p[BQ / 16][4], ds[BQ / 16][4];
    make_fragments(c, p, ds);
#if DQ
    store_fragments(ds, c.n, at);
    if (!first) {
        begin_queries(c, c.n - 1, at);
        wgmma_wait<0>();
        end_queries(c, params, c.n - 1, at);
    }
#endif
    add_key_gradients(c, p, ds, first);
#if DQ
    begin_queries(c, c.n, at);
#endif
    wgmma_wait<0>();
    release(c, at);
#if DQ
    end_queries(c, params, c.n - 1, at);
    wait_for(AT(dq_empty) + 8 * at.group, (c.n & 1) ^ 1);
#endif
}

// K is done with, and the tile's place, too, where each has one.
DEV void release_keys(u32 place, const Place &at) {
    __syncwarp();
    mbar_arrive_warp(AT(k_empty) + 8 * place, at.lane);
}

DEV void consume(const magi_attn_backward_params &p, Shared &s, int group, int tid) {
    setmaxnreg_inc<CONSUMER_REGS>();
    const Place at = {group, tid & 31, 64 * group + 16 * (tid / 32) + (tid & 31) / 4};
    Consumer c;
    c.n = 0;
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
            mbar_arrive_warp(AT(v_empty), at.lane);
            finish(c, p, at, blocks == 1);
            if (K_STAGES < TILE_PLACES) {
                release_keys(i, at);
            }
            store_keys(c.dk, c.dv, p, s, i, at.row, at.row / 16, at.lane);
        } else {
            mbar_wait(AT(v_full), c.tile & 1);
            mbar_arrive_warp(AT(v_empty), at.lane);
            store_zeros(p, s.place[i], 64 * group + tid % 64, tid / 64);
        }
        if (K_STAGES == TILE_PLACES || blocks == 0) {
            release_keys(i, at);
        }
    }
    end_adding(s, group, at.lane);
}
