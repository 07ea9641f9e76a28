// The consumer warpgroups of the kernel of dk and dv alone: 64 keys each, one stream of blocks across tiles. They share
// nothing but stages, so that one may be up to two blocks ahead of the other.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_epilogue.cuh"
#include "backward_products.cuh"

struct Consumer {
    float dk[D / 2], dv[DV / 2];
    u32 p[BQ / 16][4], ds[BQ / 16][4]; // P and dS of block n, as A fragments
    u32 n;                             // blocks so far, counted round twice the stages
    u32 tile;                          // tiles so far
    bool first;                        // block n is the first of its tile
};

DEV u32 next_of(u32 n) {
    return n == 2 * STAGES - 1 ? 0 : n + 1;
}
DEV u32 stage_at(u32 n) {
    return n >= STAGES ? n - STAGES : n;
}
DEV u32 phase_at(u32 n) {
    return n >= STAGES;
}

// Block n's parts of dV and dK, in flight.
DEV void add_key_gradients(Consumer &c) {
    add_product(c.dv, c.p, dout_of(stage_at(c.n)), !c.first);
    add_product(c.dk, c.ds, queries_of(stage_at(c.n)), !c.first);
}

// Waits for a block of queries: its flags.
DEV int wait_for_block(const Shared &s, u32 n) {
    wait_for(AT(full) + 8 * stage_at(n), phase_at(n));
    return __shfl_sync(~0u, s.block[stage_at(n)].flags, 0);
}

// S and dP of a block: a row is a key, a column a query.
struct Scores {
    float x[BQ / 2], y[BQ / 2]; // S, then P; dP - delta
    int flags;
    u32 unseen[2];
};

// x = S becomes P. What does not see has 0.
DEV void probabilities(Scores &b, const magi_attn_backward_params &p, const Shared &s, const Place &at, u32 stage) {
    pin(b.x);
    late_exponentials(b.x, lse_of(stage, at.lane), p.scale_log2);
    if (b.flags & MASKED) {
        find_unseen(b.unseen, s.block[stage], p.limits, at.row, 2 * (at.lane & 3));
        select(b.x, b.unseen);
    }
}

// P and dS, when dP - delta is there, as fragments. What does not see has 0, where dP might be infinite or NaN.
DEV void make_fragments(Consumer &c, Scores &b) {
    pin(b.y);
    if (b.flags & MASKED) {
        select(b.y, b.unseen);
    }
#pragma unroll
    for (int j = 0; j < BQ / 4; j++) {
        c.ds[j / 4][j % 4] = pack(b.x[2 * j] * b.y[2 * j], b.x[2 * j + 1] * b.y[2 * j + 1]);
        c.p[j / 4][j % 4] = pack(b.x[2 * j], b.x[2 * j + 1]);
    }
}

// Block n is done with.
DEV void release(Consumer &c, const Place &at) {
    pin(c.dv);
    pin(c.dk);
    __syncwarp();
    mbar_arrive_warp(AT(empty) + 8 * stage_at(c.n), at.lane);
    c.n = next_of(c.n);
    c.first = false;
}

// The first block of a stream of tiles, as far as steps want it.
DEV void begin(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at) {
    const u32 stage = stage_at(c.n);
    Scores b;
    b.flags = wait_for_block(s, c.n);
    scores(b.x, c.tile & 1, stage, at.group);
    mbar_wait(AT(v_full), c.tile & 1);
    wgmma_wait<0>();
    probabilities(b, p, s, at, stage);
    probability_gradients(b.y, stage, at);
    wgmma_wait<0>();
    make_fragments(c, b);
    c.first = true;
}

// From P and dS of block n to those of the block behind it, of the next tile where n is the last of its tile. S of that
// block comes first: its exponentials are computed beside dV and dK of block n, whose fragments then make room for dP.
DEV void step(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at, bool last) {
    const u32 next = next_of(c.n), stage = stage_at(next);
    Scores b;
    b.flags = wait_for_block(s, next);
    scores(b.x, (c.tile + last) & 1, stage, at.group);
    add_key_gradients(c);
    wgmma_wait<2>();
    probabilities(b, p, s, at, stage);
    if (last) {
        mbar_wait(AT(v_full), (c.tile + 1) & 1);
    }
    wgmma_wait<1>();
    pin(c.dv);
    pin(c.p);
    probability_gradients(b.y, stage, at);
    wgmma_wait<0>();
    pin(c.ds);
    release(c, at);
    make_fragments(c, b);
}

// The last block of a stream of tiles.
DEV void finish(Consumer &c, const Place &at) {
    add_key_gradients(c);
    wgmma_wait<0>();
    release(c, at);
}

// Waits for K of a tile: how many blocks it has, as in TilePlace.
DEV int wait_for_tile(const Shared &s, u32 tile) {
    mbar_wait(AT(k_full) + 8 * (tile & 1), tile >> 1 & 1);
    return __shfl_sync(~0u, s.place[tile & 1].blocks, 0);
}

// K and the place of a tile are done with.
DEV void end_tile(Consumer &c, const Place &at) {
    __syncwarp();
    mbar_arrive_warp(AT(k_empty) + 8 * (c.tile & 1), at.lane);
    c.tile++;
}

// V of a tile is done with.
DEV void release_values(const Place &at) {
    __syncwarp();
    mbar_arrive_warp(AT(v_empty), at.lane);
}

// Tiles with blocks one after the other, the first of which has as many as given; how many the one behind them has.
DEV int stream(Consumer &c, const magi_attn_backward_params &p, const Shared &s, const Place &at, int blocks) {
    begin(c, p, s, at);
#pragma unroll 1
    while (blocks > 0) {
        const bool last = --blocks == 0;
        if (last) {
            release_values(at);
            blocks = wait_for_tile(s, c.tile + 1);
        }
        if (blocks > 0) {
            step(c, p, s, at, last);
        } else {
            finish(c, at);
        }
        if (last) {
            store_keys(c.dk, c.dv, p, s, c.tile & 1, at.row, at.row / 16, at.lane);
            end_tile(c, at);
            c.first = true;
        }
    }
    return blocks;
}

DEV void consume(const magi_attn_backward_params &p, Shared &s, int group, int tid) {
    setmaxnreg_inc<CONSUMER_REGS>();
    const Place at = {group, tid & 31, 64 * group + 16 * (tid / 32) + (tid & 31) / 4};
    Consumer c;
    c.n = c.tile = 0;
    int blocks = wait_for_tile(s, 0);
    while (blocks >= 0) {
        if (blocks > 0) {
            blocks = stream(c, p, s, at, blocks);
        } else {
            mbar_wait(AT(v_full), c.tile & 1);
            release_values(at);
            store_zeros(p, s.place[c.tile & 1], 64 * group + tid % 64, tid / 64);
            end_tile(c, at);
            blocks = wait_for_tile(s, c.tile);
        }
    }
}
