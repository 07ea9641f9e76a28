// The consumer warpgroups: 64 rows each. The key blocks of all the tiles that a thread block handles form one stream:
// scores of a tile's first block are computed beside the last P V of the tile before it, so that the tensor cores see
// no tile boundary. There is one kind of step; the stream begins and ends with a step half unused.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "forward_epilogue.cuh"

// Exponentials of a row are taken relative to a reference (base 2): the row's maximum in the first block where it
// sees a key. The steady step computes no maximum and rescales nothing; it only looks whether a thread's sum passed
// LIMIT. Then, and in blocks marked EXACT, the block is done with the exact maximum. Range would allow 2^40 (f16:
// 2^15); accuracy wants less: P of a key that outweighs all others is rounded unless it is a power of two, by up to
// half a unit of the dtype. An output in that dtype is rounded as much anyway, so there the limit only keeps rare rows
// exact that would carry both errors. An f32 output shows it: below its limit the others must weigh enough to be
// rounded too.
#ifdef DTYPE_F16
constexpr float LIMIT = 512.0f;
#else
constexpr float LIMIT = GENERAL ? 128.0f : 1024.0f;
#endif

// The reference of a row that saw nothing yet: its exponentials are 0 whatever the scores. No score comes near it.
constexpr float UNSEEN = 3e38f;

struct Consumer {
    float o[DV / 2];
    float ref[2], l[2]; // of row h: the reference; this thread's share of the sum
    // What the step leaves for O: of a finished tile, its references and shares; else what a new reference makes of O.
    float left[2], left_l[2];
#if MAX_LOGITS
    float most[2], left_most[2];
#endif
    u32 p[2][BN / 16][4]; // P of this block and of the one before
    u32 tiles;            // tiles whose last block went by: stage and phase of Q
    u32 phase;            // of the barriers of K and V; flips every two steps
    int flags, before;    // of this block, if known; of the one before, with EVEN after the first of the two steps
    bool known;

    MEMBER u32 q_stage() const { return Q_STAGES == 2 ? tiles & 1 : 0; }
    MEMBER u32 q_phase() const { return Q_STAGES == 2 ? tiles >> 1 & 1 : tiles & 1; }
    // Of the finished tile, after a step that began another one: its block may be that tile's last, too.
    MEMBER u32 place() const { return tiles - 1 - (before & LAST ? 1 : 0) & (PLACES - 1); }
};

// S = Q K^T of this block beside O += P V of the one before, or, where that one began a tile, beside storing the
// finished tile before it.
template <int I>
DEV void products(Consumer &c, float (&x)[BN / 2], const ForwardMaps &maps, const magi_attn_forward_params &p,
                  const Shared &s, int group, int lane, int row) {
    const u64 q = smem_desc(AT(q) + c.q_stage() * Q_BYTES + group * 64 * 128, 16, 1024);
    const u64 k = smem_desc(AT(k) + I * K_BYTES, 16, 1024), v = smem_desc(AT(v) + I * V_BYTES, BN * 128, 1024);
    pin(x);
    pin(c.o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        wgmma_ss(x, q + (i / 4 * BM * 128 + i % 4 * 32) / 16, k + (i / 4 * BN * 128 + i % 4 * 32) / 16, i != 0);
    }
    wgmma_commit();
    if (STORE_EARLY && c.before & FIRST) {
        store_tile<OUT_COLUMNS>(c.o, c.left, c.left_l, maps, p, s.place[c.place()], row, lane);
    }
    if (STORE_EARLY) {
        pin(c.o);
        wgmma_fence();
    }
#pragma unroll
    for (int i = 0; i < BN / 16; i++) {
        wgmma_rs_t(c.o, c.p[I ^ 1][i], v + i * 16 * 128 / 16, i != 0 || !(c.before & FIRST));
    }
    wgmma_commit();
}

// Sets aside what belongs to the finished tile.
DEV void leave_tile(Consumer &c) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        c.left[h] = c.ref[h], c.left_l[h] = c.l[h];
        c.l[h] = 0;
#if MAX_LOGITS
        c.left_most[h] = c.most[h];
        c.most[h] = NEG_INFINITY;
#endif
    }
}

// One block of the stream. True when O needs more: it belongs to a finished tile, or its references have changed.
template <int I>
DEV bool step(Consumer &c, const ForwardMaps &maps, const magi_attn_forward_params &p, const Shared &s, int group,
              int lane, int row) {
    if (!c.known) {
        mbar_wait(AT(full) + 8 * I, c.phase);
        c.flags = __shfl_sync(~0u, s.block[I].flags, 0);
    }
    const int flags = c.flags;
    if (flags & FIRST) {
        mbar_wait(AT(q_full) + 8 * c.q_stage(), c.q_phase());
    }
    float x[BN / 2];
    products<I>(c, x, maps, p, s, group, lane, row);
    const u32 next_phase = c.phase ^ I;
    wgmma_wait<1>();
    pin(x);

#if SOFTCAP
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        x[i] = tanh_exact(x[i] * p.softcap_scale);
    }
#endif
    if (flags & MASKED) {
        const int token[2] = {token_of(row, p), token_of(row + 8, p)};
        apply_mask(x, s.block[I], p.limits, token, 2 * (lane & 3));
    }
    __syncwarp();
    mbar_arrive_warp(AT(k_empty) + 8 * I, lane);
    if (flags & LAST) {
        mbar_arrive_warp(AT(q_empty) + 8 * c.q_stage(), lane);
        c.tiles++;
    }

    // One instance of the exponentials serves both ways: what runs seldom must not push the step out of the
    // instruction cache.
    float sum[2] = {0, 0};
    bool exact = flags & (FIRST | STOP | EXACT);
#if MAX_LOGITS
    const float most[2] = {thread_max(x, 0), thread_max(x, 1)};
#endif
    for (;;) {
        if (exact) {
            if (flags & (FIRST | STOP)) {
                leave_tile(c);
            }
            if (flags & STOP) {
                break;
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float old = flags & FIRST || c.ref[h] == UNSEEN ? NEG_INFINITY : c.ref[h];
                const float m = fmaxf(old, quad_max(thread_max(x, h)) * p.scale_log2);
                if (!(flags & FIRST)) {
                    c.left[h] = exp2_approx(old - (m == NEG_INFINITY ? 0.0f : m));
                    c.l[h] *= c.left[h];
                }
                c.ref[h] = m == NEG_INFINITY ? UNSEEN : m;
            }
        }
        exponentials(x, c.p[I], p.scale_log2, c.ref, sum);
        if (exact || !__any_sync(~0u, !(sum[0] + sum[1] < LIMIT))) {
            break;
        }
        exact = true;
    }
    c.known = mbar_test(AT(full) + 8 * (I ^ 1), next_phase);
    if (c.known) {
        c.flags = __shfl_sync(~0u, s.block[I ^ 1].flags, 0);
    }

    pin(x);
    wgmma_wait<0>();
    pin(c.o);
    __syncwarp();
    mbar_arrive_warp(AT(v_empty) + 8 * I, lane);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        c.l[h] += sum[h];
#if MAX_LOGITS
        c.most[h] = fmaxf(c.most[h], most[h]);
#endif
    }
    c.before = flags | (I == 0 ? EVEN : 0);
    c.phase = next_phase;
    return exact;
}

// What a step leaves to be done with O; true at the end of the stream.
DEV bool between_steps(Consumer &c, const ForwardMaps &maps, const magi_attn_forward_params &p, const Shared &s,
                       int lane, int row) {
    if (STORE_EARLY && c.before & FIRST) {
        return false;
    }
    if (c.before & (FIRST | STOP)) {
        store_tile<OUT_COLUMNS>(c.o, c.left, c.left_l, maps, p, s.place[c.place()], row, lane);
#if MAX_LOGITS
        store_maxima(c.left_most, p, s.place[c.place()], row, lane);
#endif
        return c.before & STOP;
    }
#pragma unroll
    for (int i = 0; i < DV / 2; i++) {
        c.o[i] *= c.left[i / 2 % 2];
    }
    return false;
}

DEV void consume(const ForwardMaps &maps, const magi_attn_forward_params &p, const Shared &s, int group, int tid) {
    const int lane = tid & 31, row = 64 * group + 16 * (tid / 32) + lane / 4;
    Consumer c{};
    c.before = FIRST; // the place before the first has no rows: nothing is stored for it
#if MAX_LOGITS
    c.most[0] = c.most[1] = NEG_INFINITY;
#endif
    // The two steps follow each other directly; only now and then the way leads through the one instance of what is
    // between steps, and back to the step that is next.
    for (;;) {
        for (;;) {
            if (step<0>(c, maps, p, s, group, lane, row)) {
                break;
            }
        second:
            if (step<1>(c, maps, p, s, group, lane, row)) {
                break;
            }
        }
        if (between_steps(c, maps, p, s, lane, row)) {
            bulk_wait_read();
            return;
        }
        if (c.before & EVEN) {
            goto second;
        }
    }
}
