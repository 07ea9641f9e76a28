// Scores of a block that nobody sees, and products and exponentials on S and dP: accumulators with a row for each key, of
// COLUMNS queries.
// SPDX-License-Identifier: Apache-2.0
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

// y = -delta, which dP is added to. `delta`: of the thread's first column, in shared memory.
template <int N> DEV void start_gradients(float (&y)[N], u32 delta) {
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        const float2 d = ld_shared_f32x2(delta + 32 * j);
        y[4 * j] = y[4 * j + 2] = -d.x;
        y[4 * j + 1] = y[4 * j + 3] = -d.y;
    }
}

template <int N> DEV void load_lse(float2 (&lse)[N], u32 from) {
#pragma unroll
    for (int j = 0; j < N; j++) {
        lse[j] = ld_shared_f32x2(from + 32 * j);
    }
}

// x = S becomes P = 2^(S * scale - lse).
template <int N> DEV void exponentials(float (&x)[N], const float2 (&lse)[N / 4], float scale) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = exp2_approx(__fmaf_rn(x[i], scale, i & 1 ? -lse[i / 4].y : -lse[i / 4].x));
    }
}

// The same of a tanh of S, whose slope y = dP - delta is multiplied with: t = tanh(z) and 1 - t^2, both from 2^-|z|, or
// the slope of a logit near the cap would be lost in the rounding of t.
template <int N>
DEV void capped_exponentials(float (&x)[N], float (&y)[N], const float2 (&lse)[N / 4],
                             const magi_attn_backward_params &p) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float z = x[i] * p.softcap_scale, e = exp2_approx(-2.0f * LOG2_E * fabsf(z)), r = rcp_approx(1.0f + e);
        const float t = copysignf((1.0f - e) * r, z);
        x[i] = exp2_approx(__fmaf_rn(t, p.scale_log2, i & 1 ? -lse[i / 4].y : -lse[i / 4].x));
        y[i] *= 4.0f * e * r * r;
    }
}
