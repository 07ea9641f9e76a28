// Per-row work around the backward kernels: delta, lse to base 2, dsink and zeros for dq before them, the conversion of
// dq behind them.
//
// SPDX-License-Identifier: Apache-2.0
#include "helper/backward_rows.h"
#include "helper/walk.cuh"
#include "ptx/launch.cuh"

// ROW_LANES threads share a row, and each of them a sink.
enum {
    ROW_THREADS = MAGI_BACKWARD_ROWS_THREADS,
    ROW_LANES = MAGI_BACKWARD_ROWS_SINKS,
    ROW_WARPS = ROW_THREADS / 32,
    ROWS_AT_ONCE = ROW_THREADS / ROW_LANES
};

#define ROW_LOG2_E 1.4426950408889634f

MAGI_DEVICE f32 row_infinity() {
    return ptx::bits_f32(0x7f800000);
}

MAGI_DEVICE int row_lane() {
    return threadIdx.x % ROW_LANES;
}

// This lane's part of the sum of out * dout.
template <class A, class B> MAGI_DEVICE f32 row_products(const A *out, const B *dout, int width) {
    f32 sum = 0;
#pragma unroll 2
    for (int i = row_lane(); i < width / WIDE; i += ROW_LANES) {
        const Pack<A, WIDE> x = ((const Pack<A, WIDE> *)out)[i];
        const Pack<B, WIDE> y = ((const Pack<B, WIDE> *)dout)[i];
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            sum += product(widen(x.x[j]), widen(y.x[j]));
        }
    }
    for (int i = width / WIDE * WIDE + row_lane(); i < width; i += ROW_LANES) {
        sum += product(widen(out[i]), widen(dout[i]));
    }
    return sum;
}

// The same value in every element of a row of f32.
MAGI_DEVICE void row_fill(f32 *row, int width, f32 value) {
    const Pack<f32, 4> four = {{value, value, value, value}};
    for (int i = row_lane(); i < width / 4; i += ROW_LANES) {
        ((Pack<f32, 4> *)row)[i] = four;
    }
    for (int i = width / 4 * 4 + row_lane(); i < width; i += ROW_LANES) {
        row[i] = value;
    }
}

// -exp(sink - lse) * delta. A sink of -inf weighs nothing, even where the query sees nothing else (lse = -inf).
MAGI_DEVICE f64 row_sink_gradient(f32 sink, f32 lse, f32 delta) {
    return sink == -row_infinity() ? 0.0 : -exp((f64)sink - (f64)lse) * (f64)delta;
}

// lse2 and delta of a token: lanes 0 and 1 write them as first of a pair, 2 and 3 as second of the pair before. Behind
// the last token there is none to write the second of its pair: 4 and 5 do. So no two threads write the same.
MAGI_DEVICE void row_pairs(const magi_backward_rows &p, i64 token, i64 head, f32 lse2, f32 delta) {
    enum { FIRST, SECOND, BEHIND };
    const int of_delta = row_lane() % 2, part = row_lane() / 2;
    const i64 first = part == SECOND ? token - 1 : token;
    if (part > BEHIND || first < 0 || (part == BEHIND && token < p.padded - 1)) {
        return;
    }
    if (part == BEHIND) {
        lse2 = row_infinity(), delta = 0;
    }
    magi_backward_pair &pair = p.stats[(2 * head + (first & 1)) * (p.padded / 2) + first / 2];
    (of_delta ? pair.delta : pair.lse2)[part == FIRST ? 0 : 1] = of_delta ? delta : lse2;
}

// One token of one head. Returns this lane's part of the gradient of a shared sink; all threads of the block call it.
template <class A, class B> MAGI_DEVICE f64 row_prepare(const magi_backward_rows &p, i64 token, i64 head, f32 fill) {
    const bool inside = token < p.tokens;
    f32 lse = row_infinity(), sum = 0;
    if (inside) {
        lse = p.lse[token * p.lse_token + head * p.lse_head];
        if (p.flags & MAGI_BACKWARD_ROWS_GIVEN) {
            sum = row_lane() == 0 ? ((const f32 *)p.out)[token * p.out_token + head * p.out_head] : 0.0f;
        } else {
            sum = row_products((const A *)p.out + token * p.out_token + head * p.out_head,
                               (const B *)p.dout + token * p.dout_token + head * p.dout_head, p.width);
        }
        if (p.dq != nullptr && (p.flags & MAGI_BACKWARD_ROWS_CLEAR || fill != 0)) {
            row_fill(p.dq + token * p.dq_token + head * p.dq_head, p.dq_width, fill);
        }
    }
    for (int step = ROW_LANES / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (token < p.padded) {
        // A row that sees nothing has probabilities of 0.
        row_pairs(p, token, head, lse == -row_infinity() ? row_infinity() : lse * ROW_LOG2_E, sum);
    }
    if (!inside || row_lane() >= p.sinks) {
        return 0;
    }
    const f32 sink = p.sink[token * p.sink_token + row_lane() * p.sink_row + head * p.sink_head];
    const f64 gradient = row_sink_gradient(sink, lse, sum);
    if ((p.flags & MAGI_BACKWARD_ROWS_SHARED) == 0) {
        f32 *const to = p.dsink + token * p.dsink_token + row_lane() * p.dsink_row + head * p.dsink_head;
        *to = (f32)((p.flags & MAGI_BACKWARD_ROWS_ADD_DSINK ? (f64)*to : 0.0) + gradient);
    }
    return gradient;
}

// The sum of what lanes with the same sink have, for the first ROW_LANES threads of the block; all threads call it.
MAGI_DEVICE f64 row_block_sum(f64 x) {
    __shared__ f64 warps[ROW_WARPS][ROW_LANES];
    for (int step = 16; step >= ROW_LANES; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    if (lane() < ROW_LANES) {
        warps[threadIdx.x / 32][lane()] = x;
    }
    __syncthreads();
    x = 0;
    if (threadIdx.x < ROW_LANES) {
        for (int w = 0; w < ROW_WARPS; w++) {
            x += warps[w][threadIdx.x];
        }
    }
    __syncthreads();
    return x;
}

// Leaves a chunk's part of the gradients of shared sinks; the block that brings the last of a head adds up all of them,
// always in the same order.
MAGI_DEVICE void row_shared_sinks(const magi_backward_rows &p, i64 chunk, i64 head, f64 mine) {
    __shared__ int last;
    mine = row_block_sum(mine);
    if (threadIdx.x < ROW_LANES) {
        p.parts[(chunk * p.heads + head) * ROW_LANES + threadIdx.x] = mine;
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&p.done[head], 1u) == (unsigned)p.chunks - 1;
    }
    __syncthreads();
    if (!last) {
        return;
    }
    __threadfence();
    f64 sum = 0;
    for (i64 c = threadIdx.x / ROW_LANES; c < p.chunks; c += ROWS_AT_ONCE) {
        sum += *(volatile f64 *)&p.parts[(c * p.heads + head) * ROW_LANES + row_lane()];
    }
    sum = row_block_sum(sum);
    if ((int)threadIdx.x < p.sinks) {
        f32 *const to = p.dsink + threadIdx.x * p.dsink_row + head * p.dsink_head;
        *to = (f32)((p.flags & MAGI_BACKWARD_ROWS_ADD_DSINK ? (f64)*to : 0.0) + sum);
    }
    if (threadIdx.x == 0) {
        p.done[head] = 0;
    }
}

template <class A, class B> MAGI_DEVICE void rows_prepare(const magi_backward_rows &p) {
    const bool failed = p.failed != nullptr && *(const volatile int *)p.failed != 0;
    const f32 fill = failed ? ptx::bits_f32(0x7fffffff) : 0.0f;
    const i64 units = (i64)p.chunks * p.heads;
    // Heads of a token lie side by side in memory, so blocks that run together take the same tokens.
    for (i64 unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const i64 chunk = divide(unit, p.heads), head = unit - chunk * p.heads;
        f64 mine = 0;
        for (int row = 0; row < p.chunk; row += ROWS_AT_ONCE) {
            mine += row_prepare<A, B>(p, chunk * p.chunk + row + threadIdx.x / ROW_LANES, head, fill);
        }
        if (p.flags & MAGI_BACKWARD_ROWS_SHARED) {
            row_shared_sinks(p, chunk, head, mine);
        }
    }
}

#define BACKWARD_ROWS(A, B)                                                                                            \
    extern "C" __global__ void __launch_bounds__(MAGI_BACKWARD_ROWS_THREADS, 4)                                        \
        backward_rows_##A##_##B(const __grid_constant__ magi_backward_rows p) {                                        \
        ptx::let_next_start();                                                                                         \
        rows_prepare<A, B>(p);                                                                                         \
    }
BACKWARD_ROWS(f32, bf16)
BACKWARD_ROWS(bf16, bf16)
BACKWARD_ROWS(f32, f16)
BACKWARD_ROWS(f16, f16)

template <class T> MAGI_DEVICE void dq_element(T &to, f32 sum, const magi_backward_dq &p) {
    narrow(to, p.add ? widen(to) + sum : sum);
}

// A thread for eight columns of a row.
template <class T> MAGI_DEVICE void dq_convert(const magi_backward_dq &p) {
    const i64 units = (p.width + WIDE - 1) / WIDE, total = p.tokens * p.heads * units;
    for (i64 index = first_index(); index < total; index += index_step()) {
        const i64 row = divide(index, units), token = divide(row, p.heads);
        const i64 column = (index - row * units) * WIDE, head = row - token * p.heads;
        const f32 *const from = p.from + token * p.from_token + head * p.from_head + column;
        T *const to = (T *)p.to + token * p.to_token + head * p.to_head + column;
        if (column + WIDE <= p.width) {
            const Pack<f32, WIDE> sums = *(const Pack<f32, WIDE> *)from;
            Pack<T, WIDE> all = {};
            if (p.add) {
                all = *(const Pack<T, WIDE> *)to;
            }
#pragma unroll
            for (int i = 0; i < WIDE; i++) {
                dq_element(all.x[i], sums.x[i], p);
            }
            *(Pack<T, WIDE> *)to = all;
        } else {
            for (int i = 0; i < p.width - column; i++) {
                dq_element(to[i], from[i], p);
            }
        }
    }
}

#define BACKWARD_DQ(T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(MAGI_BACKWARD_ROWS_THREADS)                                           \
        backward_dq_##T(const __grid_constant__ magi_backward_dq p) {                                                  \
        ptx::wait_for_previous();                                                                                      \
        dq_convert<T>(p);                                                                                              \
    }
BACKWARD_DQ(f32)
BACKWARD_DQ(bf16)
BACKWARD_DQ(f16)
