// What leaves registers: dQ of a block, and dK and dV of a finished tile.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_shape.cuh"
#include "row_store.cuh"

#if DQ
// Leaves a part of dQ, columns 32 BOXES PART and on of the warpgroup's, in shared memory, from where the copy engine
// adds it to memory. `row`: the thread's first query of the block.
template <int PART, int N> DEV void leave_queries(float (&dq)[N], float scale, int group, int row, int lane) {
    // Odd rows store column eights in another order, so that a store meets all banks.
    const bool odd = lane & 4;
    const u32 piece = (lane & 3) / 2 ^ (row & 7);
    const u32 first =
        AT(out) + group * (BOXES * BOX_BYTES) + row * 128 + (16 * piece + 8 * (lane & 1) ^ (odd ? 64 : 0));
#pragma unroll
    for (int i = 0; i < 2 * BOXES; i++) {
        // Eights of the first and the second store of even rows.
        const int j = 4 * BOXES * PART + i / 2 * 4 + i % 2, k = j + 2;
        const u32 at = (first ^ 32 * (i % 2)) + i / 2 * BOX_BYTES;
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
    mbar_arrive_warp(AT(dq_full) + 8 * group, lane);
}

// The same of a transposed product: `row` is the thread's first column of the warpgroup's.
template <int N> DEV void leave_transposed(float (&dq)[N], float scale, int group, int row, int lane) {
    // The lanes of a store have four queries and two of the eight pieces of their rows: together they meet all banks.
    const u32 query = 2 * (lane & 3), piece = row % 32 / 4;
    const u32 first = AT(out) + group * (BOXES * BOX_BYTES) + row / 32 * BOX_BYTES + query * 128 +
                      ((piece ^ query) * 16) + row % 4 * 4;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const u32 at = (first ^ (16 * (i & 1) + 32 * (i / 2 % 2))) + i / 4 * 8 * 128 + (i & 1) * 128;
        st_shared_f32(at, dq[i] * scale);
    }
    fence_proxy_async();
    __syncwarp();
    mbar_arrive_warp(AT(dq_full) + 8 * group, lane);
}
#endif

// After the last block, when all of the first warpgroup's dQ is on its way.
DEV void end_adding(Shared &s, int group, int lane) {
    if (DQ && group == 0) {
        s.no_more_dq = 1;
        __syncwarp();
        mbar_arrive_warp(AT(dq_full), lane);
    }
}

// 64 columns of 16 rows of a warp are put together in shared memory: CHUNKS of them at once.
constexpr int CHUNKS = WIDE ? 1 : BOXES * BOX_BYTES / 4 / 2048;

// 16 rows of a warp in the input dtype, put together in `buffer`, stored in 16-byte pieces.
template <int N>
DEV void store_16_bit(const float (&x)[N], u32 buffer, u16 *out, i64 token, int rows, int width, int lane) {
    const u32 w_row = lane & 15, piece = lane & 7, first = lane / 8;
    constexpr int ALL = (2 * N + 63) / 64, AT_ONCE = ALL < CHUNKS ? ALL : CHUNKS;
#pragma unroll
    for (int c = 0; c < ALL; c += AT_ONCE) {
#pragma unroll
        for (int g = 4 * c; g < 4 * (c + AT_ONCE) && 16 * g < 2 * N; g++) {
            const int i = 8 * g;
            stmatrix_x4(buffer + (g / 4 - c) * 2048 + w_row * 128 + (((g % 4 * 2 + lane / 16) ^ (w_row & 7)) * 16),
                        pack(x[i], x[i + 1]), pack(x[i + 2], x[i + 3]), pack(x[i + 4], x[i + 5]),
                        pack(x[i + 6], x[i + 7]));
        }
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 16 * AT_ONCE; j += 4) {
            const u32 r = j % 16 + first, column = 64 * (c + j / 16) + piece * 8;
            u32 w[4];
            ld_shared_v4(w, buffer + j / 16 * 2048 + r * 128 + ((piece ^ (r & 7)) * 16));
            if ((int)r < rows && 64 * (c + j / 16) < 2 * N) {
                store_piece(out + r * token + column, w, width - (int)column);
            }
        }
        __syncwarp();
    }
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
            if (column + 8 * j < width) {
                to[8 * j] = a + (add ? to[8 * j] : 0.0f);
            }
            if (column + 8 * j + 1 < width) {
                to[8 * j + 1] = b + (add ? to[8 * j + 1] : 0.0f);
            }
        }
    }
}

// Of a source; an index would want the address of the parameters in registers.
template <class T> DEV T of_source(const T (&pair)[2], int source) {
    return source ? pair[1] : pair[0];
}

// Where dK or dV of a tile is stored: elements from the tensor's begin to the tile's first row of its head.
struct KeyRows {
    void *data;
    i64 offset, token;
    int width;
};
DEV KeyRows rows_of_k(const magi_attn_backward_params &p, const TilePlace &t) {
    const i64 token = of_source(p.dk_token, t.source);
    return {of_source(p.dk, t.source), t.row0 * token + t.head * of_source(p.dk_head, t.source), token, p.head_dim};
}
DEV KeyRows rows_of_v(const magi_attn_backward_params &p, const TilePlace &t) {
    const i64 token = of_source(p.dv_token, t.source);
    return {of_source(p.dv, t.source), t.row0 * token + t.head * of_source(p.dv_head, t.source), token, p.head_dim_v};
}

// A tile's rows.
template <int N>
DEV void store(const float (&x)[N], const KeyRows &to, const magi_attn_backward_params &p, u32 buffer, int row,
               int rows, int lane) {
    const int top = row & ~15;
    if (p.flags & MAGI_BACKWARD_OUT_F32) {
        store_f32(x, (float *)to.data + to.offset + row * to.token, to.token, rows - row, to.width, 2 * (lane & 3),
                  p.flags & MAGI_BACKWARD_ACCUMULATE);
    } else {
        store_16_bit(x, buffer, (u16 *)to.data + to.offset + top * to.token, to.token, rows - top, to.width, lane);
    }
}

// A split's sums in the workspace, in the order of registers: 32 threads side by side, 16 bytes each.
template <int N> DEV void leave_piece(const float (&x)[N], float *to) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        st_global_f32x4(to + 128 * i, x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    }
}

// The sum over all splits, in their order.
template <int N> DEV void join_pieces(float (&x)[N], const float *from, i64 next, int splits) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = 0;
    }
#pragma unroll 1
    for (int s = 0; s < splits; s++, from += next) {
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            const float4 y = ld_global_f32x4(from + 128 * i);
            x[4 * i] += y.x, x[4 * i + 1] += y.y, x[4 * i + 2] += y.z, x[4 * i + 3] += y.w;
        }
    }
}

// Leaves the warp's sums of a split tile in the workspace; true, with the sums of all splits, for the last to come.
template <int... N>
DEV bool join_splits(const magi_attn_backward_params &p, const TilePlace &t, int warp, int lane, float (&...x)[N]) {
    // A wide kernel's warpgroups have unlike numbers of columns: the second one's lie at the end.
    constexpr int PIECE = BK * (D + DV), WARP = 32 * (N + ...);
    const int place = (warp < 4 ? 0 : PIECE - 4 * WARP) + warp % 4 * WARP + 4 * lane;
    float *const first = p.piece + (i64)t.work * p.splits * PIECE + place;
    float *const own = first + (i64)t.split * PIECE;
    int at = 0;
    ((leave_piece(x, own + at), at += 32 * N), ...);
    __threadfence();
    __syncwarp();
    int *const done = p.piece_done + (i64)t.work * CONSUMER_WARPS + warp;
    int before = 0;
    if (lane == 0) {
        before = atomicAdd(done, 1);
    }
    const bool last = __shfl_sync(~0u, before, 0) == p.splits - 1;
    __threadfence();
    if (last) {
        if (lane == 0) {
            *done = 0;
        }
        at = 0;
        ((join_pieces(x, first + at, PIECE, p.splits), at += 32 * N), ...);
    }
    return last;
}

// Stores a finished tile. `row`: the thread's first key of the tile, which stands in `stage`; `warp`: of the consumers.
template <int NK, int NV>
DEV void store_keys(float (&dk)[NK], float (&dv)[NV], const magi_attn_backward_params &p, const Shared &s, int stage,
                    int row, int warp, int lane) {
    // Nothing of this may be computed ahead of the loop: it would hold registers there.
    asm volatile("" : "+r"(row), "+r"(warp), "+r"(lane), "+r"(stage)::"memory");
    const TilePlace &t = s.place[stage];
    if (p.splits > 1 && !join_splits(p, t, warp, lane, dk, dv)) {
        return;
    }
    const u32 buffer = AT(out) + warp * (BOXES * BOX_BYTES / 4);
    store(dv, rows_of_v(p, t), p, buffer, row, t.rows, lane);
#pragma unroll
    for (int j = 0; j < NK; j++) {
        dk[j] *= p.scale;
    }
    store(dk, rows_of_k(p, t), p, buffer, row, t.rows, lane);
}

// Row `row` of a tile that nothing sees, of dK or (of_v) of dV.
DEV void store_zeros(const magi_attn_backward_params &p, const TilePlace &t, int row, bool of_v) {
    if (row >= t.rows || t.split > 0 || p.flags & MAGI_BACKWARD_ACCUMULATE) {
        return;
    }
    const KeyRows to = of_v ? rows_of_v(p, t) : rows_of_k(p, t);
    const i64 first = to.offset + row * to.token;
#pragma unroll 1
    for (int j = 0; j < to.width; j++) { // seldom: kept short rather than fast
        if (p.flags & MAGI_BACKWARD_OUT_F32) {
            ((float *)to.data)[first + j] = 0;
        } else {
            ((u16 *)to.data)[first + j] = 0;
        }
    }
}
