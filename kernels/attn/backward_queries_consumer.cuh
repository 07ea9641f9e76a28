// The consumer warpgroups of the dq kernel: 64 rows each. The key blocks of all the tiles that a thread block handles
// form one stream: S and dP of a tile's first block are computed beside the last dS K of the tile before it, so that
// the tensor cores see no tile boundary. There is one kind of step; the stream begins and ends with a step half unused.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_queries_tile.cuh"
#include "columns.cuh"

struct Consumer {
    float dq[D / 2];
    u32 ds[BN / 16][4];      // dS of the block before
    float lse2[2], delta[2]; // of row h
    u32 tiles;               // tiles whose last block went by: stage and phase of Q and dO
    u32 k, k_before, v;      // stages of this block, and of K of the one before
    u32 phase, v_phase;      // of the barrier of this block; of V's, if it has its own
    int before;              // flags of the block before

    MEMBER u32 q_stage() const { return Q_STAGES == 2 ? tiles & 1 : 0; }
    MEMBER u32 q_phase() const { return Q_STAGES == 2 ? tiles >> 1 & 1 : tiles & 1; }
    MEMBER void next_stages() {
        k_before = k;
        v = V_STAGES == 1 ? 0 : v ^ 1;
        v_phase ^= v == 0; // a round of V begins
        k++;
        if (k == K_STAGES) {
            k = 0, phase ^= 1;
        }
    }
};

// S = Q K^T of this block.
DEV void scores(const Consumer &c, float (&x)[BN / 2], int group) {
    const u64 q = smem_desc(AT(q), 16, 1024) + (c.q_stage() * CONSUMER_GROUPS + group) * (Q_PART / 16);
    const u64 k = smem_desc(AT(k), 16, 1024) + c.k * (K_BYTES / 16);
    pin(x);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        wgmma_ss(x, q + (i / 4 * 64 * 128 + i % 4 * 32) / 16, k + (i / 4 * BN * 128 + i % 4 * 32) / 16, i != 0);
    }
    wgmma_commit();
}

// dQ += dS K of the block before.
DEV void add_block(Consumer &c) {
    const u64 k = smem_desc(AT(k), BN * 128, 1024) + c.k_before * (K_BYTES / 16);
    pin(c.dq);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < BN / 16; i++) {
        wgmma_rs_t(c.dq, c.ds[i], k + i * 16 * 128 / 16, i != 0 || !(c.before & FIRST));
    }
    wgmma_commit();
}

// dP = dO V^T of this block.
DEV void slopes(const Consumer &c, float (&y)[BN / 2], int group) {
    const u64 dout = smem_desc(AT(dout), 16, 1024) + group * (DO_PART / 16);
    const u64 v = smem_desc(AT(v), 16, 1024) + c.v * (V_BYTES / 16);
    pin(y);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < DV / 16; i++) {
        wgmma_ss(y, dout + (i / 4 * 64 * 128 + i % 4 * 32) / 16, v + (i / 4 * BN * 128 + i % 4 * 32) / 16, i != 0);
    }
    wgmma_commit();
}

// P = 2^(x scale - lse), with a softcap times the slope of its tanh: t = tanh(z) and 1 - t^2, both from 2^-|z|, or the
// slope of a logit near the cap would be lost in the rounding of t.
DEV void probabilities(float (&x)[BN / 2], const Consumer &c, const magi_attn_backward_queries_params &p) {
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        const int h = i / 2 % 2;
#if SOFTCAP
        const float z = x[i] * p.softcap_scale, e = exp2_approx(fabsf(z) * (-2.0f * LOG2_E)), r = rcp_approx(1.0f + e);
        const float t = copysignf((1.0f - e) * r, z), slope = 4.0f * e * r * r;
        x[i] = exp2_approx(__fmaf_rn(t, p.scale_log2, -c.lse2[h])) * slope;
#else
        x[i] = exp2_approx(__fmaf_rn(x[i], p.scale_log2, -c.lse2[h]));
#endif
    }
}

// The columns that rows `row` and `row` + 8 of the tile see, as columns_below has them.
DEV void visible(u32 (&keep)[2], const Block &b, const magi_row_limits *limits, int row, int lane_col) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h;
        int lo = max(b.left, r + b.lo);
        int hi = r >= b.item_row0 && r < b.item_row1 ? min(b.right, r + b.hi + 1) : -1;
        if (b.flags & LIMITS && hi >= 0) {
            const magi_row_limits own = limits[b.limits + r];
            lo = max(lo, own.lo - b.key);
            hi = min(hi, own.hi - b.key);
        }
        keep[h] = columns_below(hi, lane_col) & ~columns_below(lo, lane_col);
    }
}

// A block of which the warpgroup's rows see nothing. dS of the block before is on its way into dQ.
DEV void leave_out(Consumer &c, int flags, int group, int lane) {
    wgmma_wait<0>();
    pin(c.dq);
    pin(c.ds);
    __syncwarp();
    mbar_arrive_warp(AT(empty) + 8 * c.k_before, lane);
    if (flags & LAST) {
        if (Q_STAGES == 1) {
            mbar_arrive_warp(AT(q_empty), lane);
        }
        mbar_arrive_warp(AT(dout_empty) + 8 * group, lane);
        c.tiles++;
    }
#pragma unroll
    for (int i = 0; i < BN / 4; i++) {
        c.ds[i / 4][i % 4] = 0;
    }
    c.before = flags;
    c.next_stages();
}

// One block of the stream. True when a tile is finished.
DEV bool step(Consumer &c, const magi_attn_backward_queries_params &p, const Shared &s, int group, int lane, int row) {
    if (EARLY) {
        add_block(c); // what the tensor cores do while this block is waited for
    }
    mbar_wait(AT(full) + 8 * c.k, c.phase);
    const int flags = __shfl_sync(~0u, s.block[c.k].flags, 0);
    if (LEAVES_OUT && flags & UNSEEN << group) {
        leave_out(c, flags, group, lane);
        return false;
    }
    if (flags & FIRST) {
        mbar_wait(AT(q_full) + 8 * c.q_stage(), c.q_phase());
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const magi_backward_pair &pair = s.rows[c.q_stage()][row / 2 + 4 * h];
            c.lse2[h] = pair.lse2[row % 2], c.delta[h] = pair.delta[row % 2];
        }
    }
    float x[BN / 2], y[BN / 2];
    scores(c, x, group);
    if (!EARLY) {
        add_block(c);
    }
    if (flags & FIRST) {
        mbar_wait(AT(dout_full) + 8 * group, c.tiles & 1);
    }
    if (SPLIT) {
        mbar_wait(AT(v_full) + 8 * c.v, c.v_phase);
    }
    slopes(c, y, group);
    if (SPLIT) {
        wgmma_wait<2>();
        pin(c.dq);
        __syncwarp();
        mbar_arrive_warp(AT(empty) + 8 * c.k_before, lane);
    }
    wgmma_wait<EARLY ? 1 : 2>();
    pin(x);
    if (Q_STAGES == 1 && flags & LAST) {
        __syncwarp();
        mbar_arrive_warp(AT(q_empty), lane);
    }
    probabilities(x, c, p);
    pin(x);
    // A branch: without one the compiler would wait for dP before the exponentials.
    u32 keep[2];
    if (flags & MASKED) {
        visible(keep, s.block[c.k], p.limits, row, 2 * (lane & 3));
    }

    wgmma_wait<0>();
    pin(y);
    pin(c.dq);
    __syncwarp();
    mbar_arrive_warp(SPLIT ? AT(v_empty) + 8 * c.v : AT(empty) + 8 * c.k_before, lane);
    if (flags & LAST) {
        mbar_arrive_warp(AT(dout_empty) + 8 * group, lane);
        c.tiles++;
    }
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        x[i] *= y[i] - c.delta[i / 2 % 2];
    }
    if (flags & MASKED) {
#pragma unroll
        for (int i = 0; i < BN / 2; i++) {
            x[i] = keep[i / 2 % 2] >> (i / 4 * 2 + i % 2) & 1 ? x[i] : 0.0f;
        }
    }
#pragma unroll
    for (int i = 0; i < BN / 4; i++) {
        c.ds[i / 4][i % 4] = pack(x[2 * i], x[2 * i + 1]);
    }
    c.before = flags;
    c.next_stages();
    return flags & (FIRST | STOP);
}

DEV void consume(const magi_attn_backward_queries_params &p, const Shared &s, int group, int tid) {
    const int lane = tid & 31, row = 64 * group + 16 * (tid / 32) + lane / 4;
    Consumer c{};
    c.k_before = K_STAGES - 1;
    c.before = FIRST;
    for (;;) {
        while (!step(c, p, s, group, lane, row)) {
        }
        // The finished tile: the block at hand may be the last of its own, too. None is finished before the first.
        const int tile = (int)c.tiles - 1 - (c.before & LAST ? 1 : 0), stage = Q_STAGES == 2 ? tile & 1 : 0;
        if (tile >= 0) {
            store_tile(c.dq, p, s.place[tile & (PLACES - 1)], AT(q) + (stage * CONSUMER_GROUPS + group) * Q_PART, row,
                       lane);
            if (Q_STAGES == 2) {
                mbar_arrive_warp(AT(q_empty) + 8 * stage, lane);
            }
        }
        if (c.before & STOP) {
            return;
        }
    }
}
