// What leaves registers: dQ of a block is added to memory, dK and dV of a finished tile are stored.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_shape.cuh"
#include "columns.cuh"

// The queries that do not see a thread's two keys, as columns_below has them.
DEV void find_unseen(u32 (&unseen)[2], const Block &b, const magi_row_limits *limits, int row, int lane_col) {
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
        unseen[h] = ~columns_below(hi, lane_col) | columns_below(lo, lane_col);
    }
}

// Leaves the warpgroup's columns of dQ in shared memory, from where the copy engine adds them to memory. `row`: the
// thread's first of the block.
DEV void leave_queries(float (&dq)[D / 4], float scale, int group, int row, int lane) {
    // Odd rows store column eights in another order, so that a store meets all banks.
    const bool odd = lane & 4;
    const u32 piece = (lane & 3) / 2 ^ (row & 7);
    const u32 first = AT(dq) + group * (D_CHUNKS * BQ * 128) + row * 128 + (16 * piece + 8 * (lane & 1) ^ (odd ? 64 : 0));
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        const int j = i / 2 * 4 + i % 2, k = j + 2; // eights of the first and the second store of even rows
        const u32 at = (first ^ 32 * (i % 2)) + i / 2 * (BQ * 128);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float a = dq[4 * j + 2 * h] * scale, b = dq[4 * j + 2 * h + 1] * scale;
            const float c = dq[4 * k + 2 * h] * scale, d = dq[4 * k + 2 * h + 1] * scale;
            st_shared_f32x2(at + h * 1024, odd ? c : a, odd ? d : b);
            st_shared_f32x2((at ^ 64) + h * 1024, odd ? a : c, odd ? b : d);
        }
    }
    fence_proxy_async();
    __syncwarp();
    mbar_arrive_if(AT(dq_full) + 8 * group, lane == 0);
}

// 8 elements of a row, of which the first `most` exist.
DEV void store_piece(u16 *out, const u32 (&w)[4], int most) {
    if (most >= 8) {
        st_global_v4(out, w[0], w[1], w[2], w[3]);
        return;
    }
    u64 lo = (u64)w[1] << 32 | w[0], hi = (u64)w[3] << 32 | w[2];
#pragma unroll 1
    for (int i = 0; i < most; i++) { // seldom: kept short rather than fast
        out[i] = (u16)lo;
        lo = lo >> 16 | hi << 48, hi >>= 16;
    }
}

// 16 rows of a warp in the input dtype: put together in `buffer`, stored in 16-byte pieces of whole rows.
template <int N>
DEV void store_16_bit(const float (&x)[N], u32 buffer, u16 *out, i64 token, int rows, int width, int lane) {
    constexpr int COLUMNS = 2 * N, PIECES = COLUMNS / 8;
    const u32 w_row = lane & 15;
#pragma unroll
    for (int g = 0; g < COLUMNS / 16; g++) {
        const int i = 8 * g;
        stmatrix_x4(buffer + w_row * COLUMNS * 2 + (((2 * g + lane / 16) ^ (w_row & 7)) * 16), pack(x[i], x[i + 1]),
                    pack(x[i + 2], x[i + 3]), pack(x[i + 4], x[i + 5]), pack(x[i + 6], x[i + 7]));
    }
    __syncwarp();
#pragma unroll
    for (int j = lane; j < 16 * PIECES; j += 32) {
        const u32 r = j / PIECES, piece = j % PIECES;
        u32 w[4];
        ld_shared_v4(w, buffer + r * COLUMNS * 2 + ((piece ^ (r & 7)) * 16));
        if ((int)r < rows) {
            store_piece(out + r * token + piece * 8, w, width - piece * 8);
        }
    }
    __syncwarp();
}

// A thread's rows in f32, added to what is there with `add`. `out` is the first of them, `rows` counts from it.
template <int N>
DEV void store_f32(const float (&x)[N], float *out, i64 token, int rows, int width, int column, bool add) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float *const to = out + 8 * h * token + column;
        if (8 * h >= rows) {
            continue;
        }
#pragma unroll
        for (int j = 0; j < N / 4; j++) {
            const float a = x[4 * j + 2 * h], b = x[4 * j + 2 * h + 1];
            if (column + 8 * j + 1 < width) {
                float2 old = {0, 0};
                if (add) {
                    old = ld_global_f32x2(to + 8 * j);
                }
                st_global_f32x2(to + 8 * j, a + old.x, b + old.y);
            } else if (column + 8 * j < width) {
                to[8 * j] = a + (add ? to[8 * j] : 0.0f);
            }
        }
    }
}

template <int N>
DEV void store(const float (&x)[N], void *out, i64 offset, i64 token, int width, const magi_attn_backward_params &p,
               u32 buffer, int row, int rows, int lane) {
    const int top = row & ~15;
    if (GENERAL && p.flags & MAGI_BACKWARD_OUT_F32) {
        store_f32(x, (float *)out + offset + row * token, token, rows - row, width, 2 * (lane & 3),
                  p.flags & MAGI_BACKWARD_ACCUMULATE);
    } else {
        store_16_bit(x, buffer + top * N * 4, (u16 *)out + offset + top * token, token, rows - top, width, lane);
    }
}

// Stores a finished tile; `buffer` is shared memory that nobody reads any more.
DEV void store_keys(float (&dk)[D / 2], float (&dv)[DV / 2], const magi_attn_backward_params &p, const TilePlace &place,
                    u32 buffer, int row, int lane) {
    // Nothing of this may be computed ahead of the loop: it would hold registers there.
    asm volatile("" : "+r"(row), "+r"(lane)::"memory");
    const TilePlace t = place;
    const int i = t.source;
    store(dv, p.dv[i], t.row0 * p.dv_token[i] + t.head * p.dv_head[i], p.dv_token[i], p.head_dim_v, p, buffer, row, t.rows,
          lane);
#pragma unroll
    for (int j = 0; j < D / 2; j++) {
        dk[j] *= p.scale;
    }
    store(dk, p.dk[i], t.row0 * p.dk_token[i] + t.head * p.dk_head[i], p.dk_token[i], p.head_dim, p, buffer, row, t.rows,
          lane);
}

// The warpgroup's 64 rows of a tile that nothing sees.
DEV void store_zeros(const magi_attn_backward_params &p, const TilePlace &t, int group, int tid) {
    const int width[2] = {p.head_dim, p.head_dim_v}, rows = min(64, t.rows - 64 * group);
    if (GENERAL && p.flags & MAGI_BACKWARD_ACCUMULATE) {
        return;
    }
#pragma unroll 1
    for (int j = tid; j < rows * (width[0] + width[1]); j += 128) {
        const int of_v = j >= rows * width[0], at = j - (of_v ? rows * width[0] : 0), w = of_v ? width[1] : width[0];
        const int row = t.row0 + 64 * group + at / w;
        const i64 offset = of_v ? row * p.dv_token[t.source] + t.head * p.dv_head[t.source]
                                : row * p.dk_token[t.source] + t.head * p.dk_head[t.source];
        void *const out = of_v ? p.dv[t.source] : p.dk[t.source];
        if (GENERAL && p.flags & MAGI_BACKWARD_OUT_F32) {
            ((float *)out)[offset + at % w] = 0;
        } else {
            ((u16 *)out)[offset + at % w] = 0;
        }
    }
}
