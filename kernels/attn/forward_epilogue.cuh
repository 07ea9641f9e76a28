// What happens to a finished tile: rows are divided by their sums, joined with sinks, pieces and earlier results, and
// stored. Each warp does its 16 rows alone.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "row_store.cuh"
#include "softmax.cuh"

// Row r of a tile: token r / pack of the tile, head r % pack of the unit. Exact for r < 65536 / pack. Without GENERAL,
// pack is 1.
DEV int token_of(int r, const magi_attn_forward_params &p) {
    return GENERAL ? r * p.pack_inverse >> 16 : r;
}
DEV int head_of(int r, int token, int unit, const magi_attn_forward_params &p) {
    return GENERAL ? unit * p.pack + r - token * p.pack : unit;
}

#if GENERAL
// log2 of the sum of the exponentials of a row's sinks.
DEV float sinks_log2(const magi_attn_forward_params &p, i64 token, int head) {
    const float *z = p.sink + token * p.sink_token + head * p.sink_head;
    float most = NEG_INFINITY, sum = 0;
    for (int i = 0; i < p.sinks; i++) {
        const float x = z[i * p.sink_row] * LOG2_E;
        if (x == NEG_INFINITY) {
            continue;
        }
        const float m = fmaxf(most, x);
        sum = sum * exp2_approx(most - m) + exp2_approx(x - m);
        most = m;
    }
    return most + log2_approx(sum);
}
#endif

// x * factor, and 0 for a factor of 0 whatever x is.
DEV float times(float x, float factor) {
    return factor == 0 ? 0.0f : x * factor;
}

// Turns 4 words of each of the quad's 4 threads: word j of thread t goes to word t of thread j.
DEV void quad_turn(u32 (&w)[4], int lane) {
#pragma unroll
    for (int d = 1; d <= 2; d *= 2) {
        const bool upper = lane & d;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (!(i & d)) {
                const u32 give = upper ? w[i] : w[i + d];
                const u32 got = __shfl_xor_sync(~0u, give, d);
                w[i] = upper ? got : w[i];
                w[i + d] = upper ? w[i + d] : got;
            }
        }
    }
}

DEV i64 out_offset(const magi_attn_forward_params &p, const TilePlace &t, int r, int token) {
    return (i64)(t.row0 + token) * p.out_token + (i64)head_of(r, token, t.unit, p) * p.out_head;
}

// Columns c to c + CHUNK of the thread's rows in the input dtype, turned in registers.
constexpr int CHUNK = 32;
DEV void store_chunk_16_bit(const float (&x)[CHUNK / 2], const magi_attn_forward_params &p, const TilePlace &t, int c,
                            int row, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h, token = token_of(r, p), column = c + 8 * (lane & 3);
        u32 w[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[j] = pack(x[4 * j + 2 * h], x[4 * j + 2 * h + 1]);
        }
        quad_turn(w, lane);
        if (token < t.rows && column < p.head_dim_v) {
            store_piece((u16 *)p.out + out_offset(p, t, r, token) + column, w, p.head_dim_v - column);
        }
    }
}

// Which 16-byte piece of a row in shared memory piece 0 is swapped with, so that a warp meets all banks.
DEV u32 turn(u32 r) {
    return OUT_COLUMNS >= 64 ? r & 7 : r >> 1 & 3;
}

// Rows of one head in the input dtype go through 16-byte pieces of rows that the warp puts together in its part of
// shared memory, COLUMNS at a time: `turn_columns` brings columns c and on there, `store_columns` from there to memory.
template <int COLUMNS>
DEV void turn_columns(const float (&o)[DV / 2], const float (&factor)[2], int c, int row, int lane) {
    const u32 buffer = AT(o) + (row & ~15) * COLUMNS * 2, w_row = lane & 15;
#pragma unroll
    for (int g = 0; g < COLUMNS / 16; g++) {
        const int i = c / 2 + 8 * g;
        stmatrix_x4(buffer + w_row * COLUMNS * 2 + (((2 * g + lane / 16) ^ turn(w_row)) * 16),
                    pack(o[i] * factor[0], o[i + 1] * factor[0]), pack(o[i + 2] * factor[1], o[i + 3] * factor[1]),
                    pack(o[i + 4] * factor[0], o[i + 5] * factor[0]), pack(o[i + 6] * factor[1], o[i + 7] * factor[1]));
    }
    __syncwarp();
}

template <int COLUMNS>
DEV void store_columns(const magi_attn_forward_params &p, const TilePlace &t, int c, int row, int lane) {
    constexpr int PIECES = COLUMNS / 8, ROWS = 32 / PIECES; // of a row; rows a warp reads at once
    const int top = row & ~15, piece = lane % PIECES, first = lane / PIECES, most = p.head_dim_v - c - piece * 8;
    const u32 buffer = AT(o) + top * COLUMNS * 2;
    u16 *to = (u16 *)p.out + out_offset(p, t, top + first, top + first) + c + piece * 8;
#pragma unroll
    for (int j = 0; j < 16; j += ROWS, to += ROWS * p.out_token) {
        u32 w[4];
        const u32 r = j + first;
        ld_shared_v4(w, buffer + r * COLUMNS * 2 + ((piece ^ turn(r)) * 16));
        if (top + (int)r < t.rows) {
            store_piece(to, w, most);
        }
    }
    __syncwarp();
}

#if GENERAL
// Where a thread's part of a piece lies in the workspace: its output, 32 threads side by side, and its rows' sums.
struct PiecePlace {
    float *out, *log2_sum;
};
DEV PiecePlace piece_place(const magi_attn_forward_params &p, const TilePlace &t, int piece, int row, int lane) {
    const i64 tile = (i64)(t.slot + piece) * p.units + t.unit;
    return {p.piece_out + (tile * CONSUMER_WARPS + row / 16) * (16 * DV) + 4 * lane, p.piece_lse + tile * BM + row};
}

// Leaves a piece of a tile, divided by its sums, in the workspace. True for the last of the tile's pieces to come.
DEV bool leave_piece(const float (&o)[DV / 2], const float (&factor)[2], const float (&log2_sum)[2],
                     const magi_attn_forward_params &p, const TilePlace &t, int row, int lane) {
    const PiecePlace to = piece_place(p, t, t.pieces & 0xFFFF, row, lane);
#pragma unroll
    for (int i = 0; i < DV / 8; i++) {
        st_global_f32x4(to.out + 128 * i, times(o[4 * i], factor[0]), times(o[4 * i + 1], factor[0]),
                        times(o[4 * i + 2], factor[1]), times(o[4 * i + 3], factor[1]));
    }
    if ((lane & 3) == 0) {
        to.log2_sum[0] = log2_sum[0];
        to.log2_sum[8] = log2_sum[1];
    }
    __threadfence();
    __syncwarp();
    int *const done = p.piece_done + ((i64)t.slot * p.units + t.unit) * CONSUMER_WARPS + row / 16;
    int before = 0;
    if (lane == 0) {
        before = atomicAdd(done, 1);
    }
    const bool last = __shfl_sync(~0u, before, 0) == (t.pieces >> 16) - 1;
    __threadfence();
    if (last && lane == 0) {
        *done = 0;
    }
    return last;
}

// log2 of the sum of all pieces' sums, in their order.
DEV void join_sums(float (&log2_sum)[2], const magi_attn_forward_params &p, const TilePlace &t, int row, int lane) {
    log2_sum[0] = log2_sum[1] = NEG_INFINITY;
    for (int i = 0; i < t.pieces >> 16; i++) {
        const float *const l = piece_place(p, t, i, row, lane).log2_sum;
        log2_sum[0] = log2_add(log2_sum[0], __ldcg(l));
        log2_sum[1] = log2_add(log2_sum[1], __ldcg(l + 8));
    }
}

// Columns c to c + CHUNK of the output: those of all pieces, in their order, weighed by their sums.
DEV void join_chunk(float (&x)[CHUNK / 2], const float (&log2_sum)[2], const magi_attn_forward_params &p,
                    const TilePlace &t, int c, int row, int lane) {
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) {
        x[i] = 0;
    }
#pragma unroll 1
    for (int i = 0; i < t.pieces >> 16; i++) {
        const PiecePlace from = piece_place(p, t, i, row, lane);
        float weight[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            weight[h] = log2_sum[h] == NEG_INFINITY ? 0.0f : exp2_approx(__ldcg(from.log2_sum + 8 * h) - log2_sum[h]);
        }
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j++) {
            const float4 y = ld_global_f32x4(from.out + 128 * (c / 8 + j));
            x[4 * j] += y.x * weight[0];
            x[4 * j + 1] += y.y * weight[0];
            x[4 * j + 2] += y.z * weight[1];
            x[4 * j + 3] += y.w * weight[1];
        }
    }
}

// Adds the earlier result to columns c to c + CHUNK; `theirs`: its weight, 0 where there is none.
DEV void add_earlier(float (&x)[CHUNK / 2], const float (&theirs)[2], const magi_attn_forward_params &p,
                     const TilePlace &t, int c, int row, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h, token = token_of(r, p), column = c + 2 * (lane & 3);
        if (theirs[h] == 0) {
            continue;
        }
        const float *const from = p.earlier + (i64)(t.row0 + token) * p.earlier_token +
                                  (i64)head_of(r, token, t.unit, p) * p.earlier_head + column;
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j++) {
            if (column + 8 * j + 1 < p.head_dim_v) {
                const float2 old = ld_global_f32x2(from + 8 * j);
                x[4 * j + 2 * h] += old.x * theirs[h];
                x[4 * j + 2 * h + 1] += old.y * theirs[h];
            } else if (column + 8 * j < p.head_dim_v) {
                x[4 * j + 2 * h] += from[8 * j] * theirs[h];
            }
        }
    }
}

// Columns c to c + CHUNK in f32.
DEV void store_chunk_f32(const float (&x)[CHUNK / 2], const magi_attn_forward_params &p, const TilePlace &t, int c,
                         int row, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h, token = token_of(r, p), column = c + 2 * (lane & 3);
        if (token >= t.rows) {
            continue;
        }
        float *const to = (float *)p.out + out_offset(p, t, r, token) + column;
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j++) {
            const float a = x[4 * j + 2 * h], b = x[4 * j + 2 * h + 1];
            if (column + 8 * j + 1 < p.head_dim_v) {
                st_global_f32x2(to + 8 * j, a, b);
            } else if (column + 8 * j < p.head_dim_v) {
                to[8 * j] = a;
            }
        }
    }
}

DEV void store_chunk(float (&x)[CHUNK / 2], const float (&factor)[2], const float (&theirs)[2],
                     const magi_attn_forward_params &p, const TilePlace &t, int c, int row, int lane) {
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) {
        x[i] = times(x[i], factor[i / 2 % 2]);
    }
    if (p.flags & MAGI_FORWARD_ACCUMULATE) {
        add_earlier(x, theirs, p, t, c, row, lane);
    }
    if (p.flags & MAGI_FORWARD_OUT_F32) {
        store_chunk_f32(x, p, t, c, row, lane);
    } else {
        store_chunk_16_bit(x, p, t, c, row, lane);
    }
}

// Joins the row sums with the sinks and the earlier result and stores them. factor becomes what O is to be multiplied
// with, theirs the weight of the earlier output.
DEV void store_sums(float (&factor)[2], float (&theirs)[2], const float (&log2_sum)[2],
                    const magi_attn_forward_params &p, const TilePlace &t, int row, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h, token = token_of(r, p), head = head_of(r, token, t.unit, p);
        theirs[h] = 0;
        if (token >= t.rows) {
            continue;
        }
        float total = log2_sum[h];
        if (p.sink) {
            total = log2_add(total, sinks_log2(p, t.row0 + token, head));
        }
        float *const lse = p.lse + (i64)(t.row0 + token) * p.lse_token + (i64)head * p.lse_head;
        if (p.flags & MAGI_FORWARD_ACCUMULATE) {
            const float old = *lse * LOG2_E;
            total = log2_add(total, old);
            theirs[h] = old == NEG_INFINITY ? 0.0f : exp2_approx(old - total);
            __syncwarp(0xFu << (lane & 28)); // every thread of the row has read the old one
        }
        if (total != log2_sum[h]) {
            factor[h] = log2_sum[h] == NEG_INFINITY ? 0.0f : factor[h] * exp2_approx(log2_sum[h] - total);
        }
        if (p.lse && (lane & 3) == 0) {
            *lse = total * LN_2;
        }
    }
}

#endif

#if MAX_LOGITS
// The bits of a float as an unsigned number of the same order, all above 0, which stands for nothing seen.
DEV u32 ordered_bits(float x) {
    const u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEV float from_ordered_bits(u32 x) {
    return x == 0 ? NEG_INFINITY : __uint_as_float(x & 0x80000000u ? x & 0x7FFFFFFFu : ~x);
}

// Raises the maxima of the tile's heads in the workspace. Rows behind the end of the tensor, zeros, have logits of 0 in
// blocks that no limits touch; they count for nothing.
DEV void store_maxima(const float (&most)[2], const magi_attn_forward_params &p, const TilePlace &t, int row,
                      int lane) {
    asm volatile("" : "+r"(row), "+r"(lane)::"memory"); // as in store_tile
    if (p.pack == 1) {
        const float upper = row < t.rows ? most[0] : NEG_INFINITY, lower = row + 8 < t.rows ? most[1] : NEG_INFINITY;
        float m = quad_max(fmaxf(upper, lower));
#pragma unroll
        for (int d = 4; d < 32; d *= 2) {
            m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
        }
        if (lane == 0 && m != NEG_INFINITY) {
            atomicMax(p.maxima + t.unit, ordered_bits(m * p.scale_log2 * LN_2));
        }
        return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float m = quad_max(most[h]);
        const int r = row + 8 * h, token = token_of(r, p);
        if ((lane & 3) == 0 && token < t.rows && m != NEG_INFINITY) {
            atomicMax(p.maxima + head_of(r, token, t.unit, p), ordered_bits(m * p.scale_log2 * LN_2));
        }
    }
}
#endif

#if !GENERAL
// The thread's rows, in the input dtype, by the copy engine, which leaves out what lies behind the end of the output.
DEV void copy_rows(const float (&o)[DV / 2], const float (&factor)[2], const ForwardMaps &maps,
                   const magi_attn_forward_params &p, const TilePlace &t, int row, int lane) {
    const int top = row & ~15, w_row = lane & 15;
    const u32 buffer = AT(o) + top / 16 * OUT_BYTES;
    bulk_wait_read();
    __syncwarp();
#pragma unroll
    for (int g = 0; g < DV / 16; g++) {
        const int i = 8 * g, piece = 2 * g + lane / 16;
        stmatrix_x4(buffer + g / 4 * 16 * 128 + w_row * 128 + (((piece & 7) ^ (w_row & 7)) * 16),
                    pack(o[i] * factor[0], o[i + 1] * factor[0]), pack(o[i + 2] * factor[1], o[i + 3] * factor[1]),
                    pack(o[i + 4] * factor[0], o[i + 5] * factor[0]), pack(o[i + 6] * factor[1], o[i + 7] * factor[1]));
    }
    fence_proxy_async();
    __syncwarp();
    if (lane == 0 && t.rows > 0) {
#pragma unroll 1
        for (int c = 0; c < p.copies_v; c++) {
            tma_store_4d(&maps.out, buffer + c * 16 * 128, 64 * c, t.row0 + top, 0, t.unit);
        }
        bulk_commit();
    }
}
#endif

// Finishes a tile: o and l (shares of the row sums) relative to 2^ref.
template <int COLUMNS>
DEV void store_tile(float (&o)[DV / 2], const float (&ref)[2], const float (&l)[2], const ForwardMaps &maps,
                    const magi_attn_forward_params &p, const TilePlace &place, int row, int lane) {
    // Nothing of this may be computed ahead of the stream's loop: it would hold registers there.
    asm volatile("" : "+r"(row), "+r"(lane)::"memory");
#if GENERAL
    const TilePlace &t = place; // read again where needed: registers are short
#else
    const TilePlace t = place;
#endif
    float factor[2], log2_sum[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float sum = quad_sum(l[h]);
        factor[h] = sum == 0 ? 0.0f : rcp_approx(sum); // NaN stays
        log2_sum[h] = sum == 0 ? NEG_INFINITY : ref[h] + log2_approx(sum);
    }
#if GENERAL
    float theirs[2];
    if (t.pieces >> 16 > 1) {
        if (leave_piece(o, factor, log2_sum, p, t, row, lane)) {
            join_sums(log2_sum, p, t, row, lane);
            factor[0] = factor[1] = 1;
            store_sums(factor, theirs, log2_sum, p, t, row, lane);
#pragma unroll 1
            for (int c = 0; c < DV; c += CHUNK) {
                float x[CHUNK / 2];
                join_chunk(x, log2_sum, p, t, c, row, lane);
                store_chunk(x, factor, theirs, p, t, c, row, lane);
            }
        }
        return;
    }
    store_sums(factor, theirs, log2_sum, p, t, row, lane);
#pragma unroll
    for (int c = 0; c < DV; c += CHUNK) {
        float x[CHUNK / 2];
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
            x[i] = o[c / 2 + i];
        }
        asm volatile("" : "+r"(row), "+r"(lane)::"memory"); // addresses of one chunk at a time
        store_chunk(x, factor, theirs, p, t, c, row, lane);
    }
#else
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (p.lse && (lane & 3) == 0 && row + 8 * h < t.rows) {
            p.lse[(i64)(t.row0 + row + 8 * h) * p.lse_token + (i64)t.unit * p.lse_head] = log2_sum[h] * LN_2;
        }
    }
    if (STORE_EARLY) {
        wgmma_wait<0>(); // else ptxas puts more than one here, as if O were still being computed
    }
    // Rows that saw nothing have 0 whatever stale values made of O.
    if (__any_sync(~0u, factor[0] == 0 || factor[1] == 0)) {
#pragma unroll
        for (int i = 0; i < DV / 2; i++) {
            o[i] = times(o[i], factor[i / 2 % 2] == 0 ? 0.0f : 1.0f);
        }
    }
    if constexpr (COPY_OUT) {
        copy_rows(o, factor, maps, p, t, row, lane);
    } else if constexpr (COLUMNS > 0) {
#pragma unroll
        for (int c = 0; c < DV; c += COLUMNS) {
            turn_columns<COLUMNS>(o, factor, c, row, lane);
            store_columns<COLUMNS>(p, t, c, row, lane);
        }
    } else {
#pragma unroll
        for (int c = 0; c < DV; c += CHUNK) {
            float x[CHUNK / 2];
#pragma unroll
            for (int i = 0; i < CHUNK / 2; i++) {
                x[i] = o[c / 2 + i] * factor[i / 2 % 2];
            }
            store_chunk_16_bit(x, p, t, c, row, lane);
        }
    }
#endif
}
