// What happens to a finished tile of the dq kernel: dQ is scaled and stored, or added to what is there. Each warp does
// its 16 rows alone.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_queries_shape.cuh"
#include "row_store.cuh"

// In the input dtype through the warp's rows of `buffer`, a stage of Q: 16-byte pieces of a row, piece j of row r in
// place j ^ (r & 7) of its 128 bytes.
DEV void store_turned(const float (&dq)[D / 2], const magi_attn_backward_queries_params &p, const TilePlace &t,
                      u32 buffer, int row, int lane) {
    const u32 warp_rows = buffer + (row & 48) * 128, w_row = lane & 15;
#pragma unroll
    for (int g = 0; g < D / 16; g++) {
        const int i = 8 * g;
        stmatrix_x4(warp_rows + g / 4 * 64 * 128 + w_row * 128 + ((2 * (g % 4) + lane / 16) ^ (w_row & 7)) * 16,
                    pack(dq[i] * p.scale, dq[i + 1] * p.scale), pack(dq[i + 2] * p.scale, dq[i + 3] * p.scale),
                    pack(dq[i + 4] * p.scale, dq[i + 5] * p.scale), pack(dq[i + 6] * p.scale, dq[i + 7] * p.scale));
    }
    __syncwarp();
    const int top = row & ~15, piece = lane % 8, first = lane / 8;
    u16 *const to = (u16 *)p.dq + (i64)(t.row0 + top + first) * p.dq_token + (i64)t.unit * p.dq_head + piece * 8;
#pragma unroll
    for (int c = 0; c < D_CHUNKS; c++) {
#pragma unroll
        for (int j = 0; j < 16; j += 4) {
            u32 w[4];
            const u32 r = j + first;
            ld_shared_v4(w, warp_rows + c * 64 * 128 + r * 128 + (piece ^ (r & 7)) * 16);
            if (top + (int)r < t.rows) {
                store_piece(to + j * p.dq_token + 64 * c, w, p.head_dim - 64 * c - piece * 8);
            }
        }
    }
    fence_proxy_async(); // the copy engine writes there next
    __syncwarp();
}

// Straight from registers, in the input dtype.
DEV void store_16_bit(const float (&dq)[D / 2], const magi_attn_backward_queries_params &p, const TilePlace &t, int row,
                      int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h, column = 2 * (lane & 3);
        if (r >= t.rows) {
            continue;
        }
        u16 *const to = (u16 *)p.dq + (i64)(t.row0 + r) * p.dq_token + (i64)t.unit * p.dq_head + column;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const u32 w = pack(dq[4 * j + 2 * h] * p.scale, dq[4 * j + 2 * h + 1] * p.scale);
            if (column + 8 * j + 1 < p.head_dim) {
                *(u32 *)(to + 8 * j) = w;
            } else if (column + 8 * j < p.head_dim) {
                to[8 * j] = (u16)w;
            }
        }
    }
}

DEV void store_f32(const float (&dq)[D / 2], const magi_attn_backward_queries_params &p, const TilePlace &t, int row,
                   int lane) {
    const bool add = p.flags & MAGI_BACKWARD_QUERIES_ACCUMULATE;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h, column = 2 * (lane & 3);
        if (r >= t.rows) {
            continue;
        }
        float *const to = (float *)p.dq + (i64)(t.row0 + r) * p.dq_token + (i64)t.unit * p.dq_head + column;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const float a = dq[4 * j + 2 * h] * p.scale, b = dq[4 * j + 2 * h + 1] * p.scale;
            if (column + 8 * j + 1 < p.head_dim) {
                float2 old = {0, 0};
                if (add) {
                    old = ld_global_f32x2(to + 8 * j);
                }
                st_global_f32x2(to + 8 * j, a + old.x, b + old.y);
            } else if (column + 8 * j < p.head_dim) {
                to[8 * j] = a + (add ? to[8 * j] : 0);
            }
        }
    }
}

// Finishes a tile; `buffer`: its queries, of the warpgroup, in shared memory.
DEV void store_tile(float (&dq)[D / 2], const magi_attn_backward_queries_params &p, const TilePlace &place, u32 buffer,
                    int row, int lane) {
    // Nothing of this may be computed ahead of the stream's loop: it would hold registers there.
    asm volatile("" : "+r"(row), "+r"(lane)::"memory");
    const TilePlace t = place;
    if (t.items == 0) { // stale keys may have made anything of it
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            dq[i] = 0;
        }
    }
    if (p.flags & MAGI_BACKWARD_QUERIES_F32) {
        store_f32(dq, p, t, row, lane);
    } else if constexpr (Q_STAGES == 2) {
        store_turned(dq, p, t, buffer, row, lane);
    } else {
        store_16_bit(dq, p, t, row, lane);
    }
}
