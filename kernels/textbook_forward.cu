// Attention as textbooks have it, for every device, dtype and shape: merges into a running (out, lse). A block owns a
// tile of queries of one head; the softmax runs along its items, and nothing is shared between blocks but max_logits,
// a maximum, so results do not depend on which block comes first.
//
// SPDX-License-Identifier: Apache-2.0
#include "textbook/tile.cuh"

// What a thread holds of its rows: contributions so far are sums * exp(largest), weighing sum * exp(largest).
template <class T> struct Running {
    typedef typename Shape<T>::A A;
    enum { M = Shape<T>::M };
    A largest[M], sum[M], sums[M][EACH];
    A top; // largest logit of all rows
};

// Takes over what earlier calls left: out is normalised, so its weight is exp(lse).
template <class T>
MAGI_DEVICE void begin(const magi_textbook_params &p, Running<T> &r, const typename Shape<T>::A (&lse)[Shape<T>::M],
                       const magi_tile &tile, int head, int column) {
    typedef typename Shape<T>::A A;
#pragma unroll
    for (int i = 0; i < Shape<T>::M; i++) {
        const int row = thread_y() * Shape<T>::M + i;
        const bool weighs = lse[i] != minus_infinity<A>();
        r.largest[i] = lse[i];
        r.sum[i] = weighs ? 1 : 0;
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            const int at = column + thread_x() + c * SIDE;
            const bool exists = weighs && row < tile.rows && at < p.head_dim_v;
            r.sums[i][c] = exists ? row_of<A>(p.out, tile.row0 + row, head)[at] : 0;
        }
    }
}

// From products to weights exp(logit - largest), 0 where nothing is seen.
template <class T>
MAGI_DEVICE void softmax(const magi_textbook_params &p, typename Shape<T>::A (&s)[Shape<T>::M][Shape<T>::M],
                         const Seen (&seen)[Shape<T>::M], Running<T> &r) {
    typedef typename Shape<T>::A A;
    enum { M = Shape<T>::M };
#pragma unroll
    for (int i = 0; i < M; i++) {
        A top = minus_infinity<A>();
#pragma unroll
        for (int j = 0; j < M; j++) {
            const int column = thread_x() + j * SIDE;
            const bool visible = seen[i].lo <= column && column < seen[i].hi;
            s[i][j] = visible ? logit_of(p, s[i][j]) : minus_infinity<A>();
            top = larger(top, s[i][j]);
        }
        top = row_largest(top);
        r.top = larger(r.top, top);
        const A largest = larger(r.largest[i], top);
        // Logits that are all -inf weigh nothing; exp(-inf - -inf) would be NaN.
        const A shift = largest == minus_infinity<A>() ? 0 : largest;
        const A factor = largest == r.largest[i] ? 1 : exponential(r.largest[i] - shift);
        A sum = 0;
#pragma unroll
        for (int j = 0; j < M; j++) {
            s[i][j] = exponential(s[i][j] - shift);
            sum += s[i][j];
        }
        r.largest[i] = largest;
        r.sum[i] = r.sum[i] * factor + row_sum(sum);
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            r.sums[i][c] *= factor;
        }
    }
}

template <class T>
MAGI_DEVICE void finish(const magi_textbook_params &p, const Running<T> &r, const magi_tile &tile, int head,
                        int column) {
    typedef typename Shape<T>::A A;
#pragma unroll
    for (int i = 0; i < Shape<T>::M; i++) {
        const int row = thread_y() * Shape<T>::M + i;
        if (row >= tile.rows) {
            continue;
        }
        // With a sum of 0 nothing was seen, now or before: (0, -inf).
        const A part = r.sum[i] == 0 ? 0 : 1 / r.sum[i];
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            const int at = column + thread_x() + c * SIDE;
            if (at < p.head_dim_v) {
                row_of<A>(p.out, tile.row0 + row, head)[at] = r.sums[i][c] * part;
            }
        }
        if (column == 0 && thread_x() == 0 && r.sum[i] != 0) {
            *row_of<A>(p.lse, tile.row0 + row, head) = r.largest[i] + logarithm(r.sum[i]);
        }
    }
}

// Bits of floats of one sign are ordered as integers are, so a maximum is one operation. There is no -0: it is below 0
// as an integer.
MAGI_DEVICE void raise(float *to, float x) {
    x += 0.0f;
    if (x >= 0) {
        atomicMax((int *)to, (int)ptx::f32_bits(x));
    } else {
        atomicMin((unsigned *)to, ptx::f32_bits(x));
    }
}

template <class T> MAGI_DEVICE void walk(const magi_textbook_params &p, const magi_tile &tile, int head) {
    typedef typename Shape<T>::A A;
    enum { M = Shape<T>::M, ROWS = Shape<T>::ROWS };
    __shared__ Staging<T> staging;
    const int head_kv = head / (p.heads_q / p.heads_kv);
    const Rows<T> own = rows_of<T>(p.q, tile.row0, head, 0, tile.rows);
    // lse is read before the first columns overwrite it.
    A lse[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = thread_y() * M + i;
        lse[i] = row < tile.rows ? *row_of<A>(p.lse, tile.row0 + row, head) : minus_infinity<A>();
    }
    Running<T> r;
    r.top = minus_infinity<A>();
#pragma unroll 1
    for (int column = 0; column < p.head_dim_v; column += COLUMNS) {
        begin(p, r, lse, tile, head, column);
#pragma unroll 1
        for (int n = 0; n < tile.items; n++) {
            const magi_item item = p.items[tile.item0 + n];
            const magi_textbook_rows &k = item.source == 0 ? p.k[0] : p.k[1];
            const magi_textbook_rows &v = item.source == 0 ? p.v[0] : p.v[1];
#pragma unroll 1
            for (int step = item.start; step < item.run1; step += ROWS) {
                const int from = max(item.run0 - step, 0), to = min(item.run1 - step, (int)ROWS);
                Seen seen[M];
#pragma unroll
                for (int i = 0; i < M; i++) {
                    seen[i] = seen_by(p, tile, item, thread_y() * M + i, step, ROWS);
                }
                A s[M][M];
                score_product(s, own, rows_of<T>(k, step, head_kv, from, to), p.head_dim, staging);
                softmax(p, s, seen, r);
                share(s, staging);
                weighted_sum(r.sums, rows_of<T>(v, step, head_kv, from, to), column, p.head_dim_v, seen, staging);
            }
        }
        finish(p, r, tile, head, column);
    }
    if (p.max_logits != nullptr) {
        // The other half of the warp holds other rows.
        const A top = larger(r.top, __shfl_xor_sync(0xffffffffu, r.top, SIDE));
        if (threadIdx.x % 32 == 0 && top != minus_infinity<A>()) {
            raise(p.max_logits + head * p.max_logits_head, (f32)top);
        }
    }
}

#define FORWARD(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        textbook_forward_##T(const __grid_constant__ magi_textbook_params p) {                                         \
        const i64 total = (i64)p.tile_count * p.heads_q;                                                               \
        for (i64 work = blockIdx.x; work < total; work += gridDim.x) {                                                 \
            const magi_tile tile = p.tiles[work / p.heads_q];                                                          \
            if (tile.items > 0) {                                                                                      \
                walk<T>(p, tile, (int)(work % p.heads_q));                                                             \
            }                                                                                                          \
        }                                                                                                              \
    }
MAGI_EACH_DTYPE(FORWARD)
