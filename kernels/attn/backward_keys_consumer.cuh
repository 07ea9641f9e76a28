// The consumer warpgroups of the kernel of dk and dv alone: 64 keys each. They share nothing but stages, so that one
// may be up to two blocks ahead of the other, and is computing while the other stores its rows.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_epilogue.cuh"
#include "backward_products.cuh"

struct Consumer {
    float dk[D / 2], dv[DV / 2];
    float x[BQ / 2], y[BQ / 2]; // of block n: S, then P; dP - delta
    int flags;
    u32 unseen[2];
    u32 n;    // blocks so far
    u32 tile; // tiles so far
};

// Waits for block n.
DEV void wait_for_block(Consumer &c, const Shared &s, u32 n) {
    const u32 i = stage_of(n);
    wait_for(AT(full) + 8 * i, phase_of(n));
    c.flags = __shfl_sync(~0u, s.block[i].flags, 0);
}

// x = S of a block becomes P. What does not see has 0.
DEV void probabilities(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at, u32 stage) {
    pin(c.x);
    late_exponentials(c.x, lse_of(stage, at.lane), p.scale_log2);
    if (c.flags & MASKED) {
        find_unseen(c.unseen, s.block[stage], p.limits, at.row, 2 * (at.lane & 3));
        select(c.x, c.unseen);
    }
}

// dP - delta is there. What does not see has 0, where it might be infinite or NaN.
DEV void end_gradients(Consumer &c) {
    pin(c.y);
    if (c.flags & MASKED) {
        select(c.y, c.unseen);
    }
}

// The first block of a tile, as far as steps want it.
DEV void begin(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at) {
    const u32 i = stage_of(c.n);
    wait_for_block(c, s, c.n);
    scores(c.x, c.tile & 1, i, at.group);
    wgmma_wait<0>();
    pin(c.x);
    mbar_wait(AT(v_full), c.tile & 1);
    probability_gradients(c.y, i, at);
    probabilities(c, p, s, at, i);
    wgmma_wait<0>();
    end_gradients(c);
}

// P and dS of block n as A fragments.
using Fragments = u32[BQ / 16][4];
DEV void make_fragments(const Consumer &c, Fragments &p, Fragments &ds) {
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
        ds[j / 4][j % 4] = pack(c.x[2 * j] * c.y[2 * j], c.x[2 * j + 1] * c.y[2 * j + 1]);
        p[j / 4][j % 4] = pack(c.x[2 * j], c.x[2 * j + 1]);
    }
}

// Block n's parts of dV and dK, in flight.
DEV void add_key_gradients(Consumer &c, const Fragments &p, const Fragments &ds, bool first) {
    add_product(c.dv, p, dout_of(stage_of(c.n)), !first);
    add_product(c.dk, ds, queries_of(stage_of(c.n)), !first);
}

// Block n is done with.
DEV void release(Consumer &c, const Place &at) {
    pin(c.dv);
    pin(c.dk);
    __syncwarp();
    mbar_arrive_warp(AT(empty) + 8 * stage_of(c.n), at.lane);
    c.n++;
}

// A step of the tile, from P and dP of block n to those of block n + 1. S of that block comes first: its exponentials
// are computed beside dV and dK of block n. When dV is done, P's fragments make room for dP.
template <bool FIRST>
DEV void step(Consumer &c, const magi_attn_backward_params &params, const Shared &s, const Place &at) {
    Fragments p, ds;
    make_fragments(c, p, ds);
    const u32 next = stage_of(c.n + 1);
    wait_for_block(c, s, c.n + 1);
    scores(c.x, c.tile & 1, next, at.group);
    add_key_gradients(c, p, ds, FIRST);
    wgmma_wait<2>();
    probabilities(c, params, s, at, next);
    wgmma_wait<1>();
    pin(c.dv);
    pin(p);
    probability_gradients(c.y, next, at);
    wgmma_wait<0>();
    pin(ds);
    release(c, at);
    end_gradients(c);
}

// The last block of a tile.
DEV void finish(Consumer &c, const Place &at, bool first) {
    Fragments p, ds;
    make_fragments(c, p, ds);
    add_key_gradients(c, p, ds, first);
    wgmma_wait<0>();
    release(c, at);
}

// A tile with blocks.
DEV void multiply(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at, int blocks) {
    begin(c, p, s, at);
    if (blocks > 1) {
        step<true>(c, p, s, at);
    }
#pragma unroll 1
    for (int j = 2; j < blocks; j++) {
        step<false>(c, p, s, at);
    }
    mbar_arrive_warp(AT(v_empty), at.lane);
    finish(c, at, blocks == 1);
    store_keys(c.dk, c.dv, p, s, c.tile & 1, at.row, at.row / 16, at.lane);
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
            multiply(c, p, s, at, blocks);
        } else {
            mbar_wait(AT(v_full), c.tile & 1);
            mbar_arrive_warp(AT(v_empty), at.lane);
            store_zeros(p, s.place[i], 64 * group + tid % 64, tid / 64);
        }
        __syncwarp();
        mbar_arrive_warp(AT(k_empty) + 8 * i, at.lane);
    }
}
