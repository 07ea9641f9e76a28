// Row limits, exponentials and maxima on an accumulator of a warpgroup product.
//
// A thread has rows `row` and `row + 8`; element i stands in column 8 (i / 4) + 2 (lane % 4) + i % 2 of row
// row + 8 (i / 2 % 2).
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "columns.cuh"
#include "forward_shape.cuh"

// What rows do not see becomes -inf. `token[h]`: which of the tile's tokens row h of the thread belongs to.
DEV void apply_mask(float (&x)[BN / 2], const Block &b, const magi_row_limits *limits, const int (&token)[2],
                    int lane_col) {
    const int left = b.left, right = b.right, band_lo = b.lo, band_hi = b.hi + 1;
    const int row0 = b.item_row0, row1 = b.item_row1;
    int lo[2], hi[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = token[h];
        lo[h] = max(left, t + band_lo);
        hi[h] = t >= row0 && t < row1 ? min(right, t + band_hi) : -1;
    }
    if (b.flags & LIMITS) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (hi[h] >= 0) {
                const magi_row_limits own = limits[b.limits + token[h]];
                lo[h] = max(lo[h], own.lo - b.key);
                hi[h] = min(hi[h], own.hi - b.key);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const u32 keep = columns_below(hi[h], lane_col) & ~columns_below(lo[h], lane_col);
#pragma unroll
        for (int i = 0; i < BN / 4; i++) {
            if (!(keep >> i & 1)) {
                x[4 * (i / 2) + 2 * h + i % 2] = NEG_INFINITY;
            }
        }
    }
}

// P = 2^(x * scale - ref) as A fragments of the next product; sum: of each row's share in this thread.
DEV void exponentials(const float (&x)[BN / 2], u32 (&p)[BN / 16][4], float scale, const float (&ref)[2],
                      float (&sum)[2]) {
    float part[2][2] = {{0, 0}, {0, 0}};
#pragma unroll
    for (int i = 0; i < BN / 4; i++) {
        const int h = i % 2;
        const float a = exp2_approx(__fmaf_rn(x[2 * i], scale, -ref[h]));
        const float b = exp2_approx(__fmaf_rn(x[2 * i + 1], scale, -ref[h]));
        part[h][0] += a;
        part[h][1] += b;
        p[i / 4][i % 4] = pack(a, b);
    }
    sum[0] = part[0][0] + part[0][1];
    sum[1] = part[1][0] + part[1][1];
}

// The maximum of row h over this thread's columns.
DEV float thread_max(const float (&x)[BN / 2], int h) {
    float a = fmaxf(x[2 * h], x[2 * h + 1]), b = fmaxf(x[2 * h + 4], x[2 * h + 5]);
#pragma unroll
    for (int i = 8; i < BN / 2; i += 8) {
        a = fmaxf(fmaxf(a, x[i + 2 * h]), x[i + 2 * h + 1]);
        b = fmaxf(fmaxf(b, x[i + 4 + 2 * h]), x[i + 5 + 2 * h]);
    }
    return fmaxf(a, b);
}

// The maximum over the four threads that share a row.
DEV float quad_max(float a) {
    a = fmaxf(a, __shfl_xor_sync(~0u, a, 1));
    return fmaxf(a, __shfl_xor_sync(~0u, a, 2));
}

DEV float quad_sum(float a) {
    a += __shfl_xor_sync(~0u, a, 1);
    return a + __shfl_xor_sync(~0u, a, 2);
}

// log2(2^a + 2^b); -inf is 2^a = 0. NaN stays, which a maximum and a minimum would drop.
DEV float log2_add(float a, float b) {
    const float most = fmaxf(a, b);
    return most == NEG_INFINITY ? a + b : most + log2_approx(1.0f + exp2_approx(-fabsf(a - b)));
}
