// Scores of a block that nobody sees, and products and exponentials on S and dP: accumulators with a row for each key,
// of COLUMNS queries. SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_shape.cuh"
#include "columns.cuh"

// The queries that do not see a thread's two keys, as columns_below has them.
DEV void find_unseen(u32 (&unseen)[2], const Block &b, const magi_row_limits *limits, int row, int column) {
    const int left = b.left, right = b.right, band_lo = b.lo, band_hi = b.hi + 1;
    const int row0 = b.item_row0, row1 = b.item_row1;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h;
        int lo = max(left, r + band_lo), hi = r >= row0 && r < row1 ? min(right, r + band_hi) : -1;
        if (b.flags & LIMITS && hi >= 0) {
            const magi_row_limits own = limits[b.limits + r];
            lo = max(lo, own.lo - b.query);
            hi = min(hi, own.hi - b.query);
        }
        unseen[h] = ~columns_below(hi, column) | columns_below(lo, column);
    }
    __syncwarp(); // products want all lanes
}

// What does not see becomes 0.
template <int N> DEV void select(float (&x)[N], const u32 (&unseen)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            if (unseen[h] >> i & 1) {
                x[4 * (i / 2) + 2 * h + i % 2] = 0;
            }
        }
    }
}

// Where lse of a thread's first two columns stands in a stage, and delta. That of the next two is NEXT_PAIR further.
constexpr u32 NEXT_PAIR = 4 * PAIR;
DEV u32 lse_of(u32 stage, int lane) {
    return AT(stats) + stage * STATS_BYTES + PAIR * (lane & 3);
}
DEV u32 delta_of(u32 stage, int lane) {
    return lse_of(stage, lane) + PAIR / 2;
}

// y = -delta, which dP is added to. `delta`: of the thread's first columns, in shared memory.
template <int N> DEV void start_gradients(float (&y)[N], u32 delta) {
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        const float2 d = ld_shared_f32x2(delta + NEXT_PAIR * j);
        y[4 * j] = y[4 * j + 2] = -d.x;
        y[4 * j + 1] = y[4 * j + 3] = -d.y;
    }
}

template <int N> DEV void load_lse(float2 (&lse)[N], u32 from) {
#pragma unroll
    for (int j = 0; j < N; j++) {
        lse[j] = ld_shared_f32x2(from + NEXT_PAIR * j);
    }
}

// x = S becomes P = 2^(S * scale - lse).
template <int N> DEV void exponentials(float (&x)[N], const float2 (&lse)[N / 4], float scale) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = exp2_approx(__fmaf_rn(x[i], scale, i & 1 ? -lse[i / 4].y : -lse[i / 4].x));
    }
}

// The same, with lse read from shared memory where it is wanted: registers are short.
template <int N> DEV void late_exponentials(float (&x)[N], u32 lse, float scale) {
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        const float2 l = ld_shared_f32x2(lse + NEXT_PAIR * j);
#pragma unroll
        for (int i = 4 * j; i < 4 * j + 4; i++) {
            x[i] = exp2_approx(__fmaf_rn(x[i], scale, i & 1 ? -l.y : -l.x));
        }
    }
}

// Of a tanh of S, t = tanh(z): P as fragments, and x becomes P times the slope 1 - t^2. Both come from 2^-|z|, or the
// slope of a logit near the cap would be lost in the rounding of t. `unseen`: none without MASK.
template <bool MASK, int N>
DEV void capped_exponentials(float (&x)[N], u32 (&p)[N / 8][4], u32 lse, const u32 (&unseen)[2],
                             const magi_attn_backward_params &params) {
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        if (j % 2 == 1 && params.softcap_scale < 0) { // never; but where a block of code ends, few values are alive
            return;
        }
        const float2 l = ld_shared_f32x2(lse + NEXT_PAIR * j);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float prob[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &s = x[4 * j + 2 * h + e];
                const bool none = MASK && unseen[h] >> (2 * j + e) & 1;
                const float z = s * params.softcap_scale, a = exp2_approx(-2.0f * LOG2_E * fabsf(z));
                const float r = rcp_approx(1.0f + a), t = copysignf((1.0f - a) * r, z);
                prob[e] = none ? 0.0f : exp2_approx(__fmaf_rn(t, params.scale_log2, e ? -l.y : -l.x));
                s = none ? 0.0f : prob[e] * (4.0f * a * r * r);
            }
            p[j / 2][j % 2 * 2 + h] = pack(prob[0], prob[1]);
        }
    }
}
