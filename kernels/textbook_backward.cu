// Gradients of attention as textbooks have them, in two sweeps that compute the scores anew: a block of the first owns
// queries and makes their dq, a block of the second owns keys and makes their dk and dv. So nothing is added to by two
// blocks, and every sum has one order.
//
// SPDX-License-Identifier: Apache-2.0
#include "textbook/tile.cuh"

// From the products q . k in s and dout . v in dp to the gradient of the logit (in s) and the probability (in dp).
template <class A> MAGI_DEVICE void gradient(const magi_textbook_params &p, A &s, A &dp, bool visible, A lse, A delta) {
    const A slope = slope_of(p, s);
    // A query that sees only logits of -inf has lse = -inf and no probabilities.
    const bool weighs = visible && lse != minus_infinity<A>();
    const A probability = weighs ? exponential(logit_of(p, s) - lse) : 0;
    s = weighs ? probability * (dp - delta) * slope : 0;
    dp = probability;
}

// to += factor * sums
template <class T, class A, int M>
MAGI_DEVICE void add_rows(const magi_textbook_rows &to, const A (&sums)[M][EACH], A factor, const magi_tile &tile,
                          int head, int column, int width) {
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = thread_y() * M + i;
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            const int at = column + thread_x() + c * SIDE;
            if (row < tile.rows && at < width) {
                row_of<A>(to, tile.row0 + row, head)[at] += factor * sums[i][c];
            }
        }
    }
}

template <class A, int M> MAGI_DEVICE void clear(A (&sums)[M][EACH]) {
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            sums[i][c] = 0;
        }
    }
}

// dq of a tile of queries, COLUMNS columns in each pass over its items.
template <class T> MAGI_DEVICE void walk_queries(const magi_textbook_params &p, const magi_tile &tile, int head) {
    typedef typename Shape<T>::A A;
    enum { M = Shape<T>::M, ROWS = Shape<T>::ROWS };
    __shared__ Staging<T> staging;
    const int head_kv = head / (p.heads_q / p.heads_kv);
    const Rows<T> q = rows_of<T>(p.q, tile.row0, head, 0, tile.rows);
    const Rows<T> dout = rows_of<T>(p.dout, tile.row0, head, 0, tile.rows);
    A lse[M], delta[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = thread_y() * M + i;
        lse[i] = row < tile.rows ? *row_of<A>(p.lse, tile.row0 + row, head) : minus_infinity<A>();
        delta[i] = row < tile.rows ? *row_of<A>(p.delta, tile.row0 + row, head) : 0;
    }
#pragma unroll 1
    for (int column = 0; column < p.head_dim; column += COLUMNS) {
        A sums[M][EACH];
        clear(sums);
#pragma unroll 1
        for (int n = 0; n < tile.items; n++) {
            const magi_item item = p.items[tile.item0 + n];
            const magi_textbook_rows &k = item.source == 0 ? p.k[0] : p.k[1];
            const magi_textbook_rows &v = item.source == 0 ? p.v[0] : p.v[1];
#pragma unroll 1
            for (int step = item.start; step < item.run1; step += ROWS) {
                const int from = max(item.run0 - step, 0), to = min(item.run1 - step, (int)ROWS);
                const Rows<T> keys = rows_of<T>(k, step, head_kv, from, to);
                A s[M][M], dp[M][M];
                score_product(s, q, keys, p.head_dim, staging);
                score_product(dp, dout, rows_of<T>(v, step, head_kv, from, to), p.head_dim_v, staging);
                Seen seen[M];
#pragma unroll
                for (int i = 0; i < M; i++) {
                    seen[i] = seen_by(p, tile, item, thread_y() * M + i, step, ROWS);
#pragma unroll
                    for (int j = 0; j < M; j++) {
                        const int at = thread_x() + j * SIDE;
                        gradient(p, s[i][j], dp[i][j], seen[i].lo <= at && at < seen[i].hi, lse[i], delta[i]);
                    }
                }
                share(s, staging);
                weighted_sum(sums, keys, column, p.head_dim, seen, staging);
            }
        }
        add_rows<T>(p.dq, sums, (A)p.scale, tile, head, column, p.head_dim);
    }
}

// Sums of dk and dv over the queries of one head that the items show.
template <class T>
MAGI_DEVICE void add_queries(const magi_textbook_params &p, const magi_tile &tile, const Rows<T> &k, const Rows<T> &v,
                             int head, int column, typename Shape<T>::A (&dk)[Shape<T>::M][EACH],
                             typename Shape<T>::A (&dv)[Shape<T>::M][EACH], Staging<T> &staging) {
    typedef typename Shape<T>::A A;
    enum { M = Shape<T>::M, ROWS = Shape<T>::ROWS };
#pragma unroll 1
    for (int n = 0; n < tile.items; n++) {
        const magi_item item = p.items[tile.item0 + n];
#pragma unroll 1
        for (int step = item.start; step < item.run1; step += ROWS) {
            const int from = max(item.run0 - step, 0), to = min(item.run1 - step, (int)ROWS);
            const Rows<T> q = rows_of<T>(p.q, step, head, from, to);
            const Rows<T> dout = rows_of<T>(p.dout, step, head, from, to);
            A s[M][M], dp[M][M];
            score_product(s, k, q, p.head_dim, staging);
            score_product(dp, v, dout, p.head_dim_v, staging);
            Seen seen[M];
#pragma unroll
            for (int i = 0; i < M; i++) {
                seen[i] = seen_by(p, tile, item, thread_y() * M + i, step, ROWS);
            }
#pragma unroll
            for (int j = 0; j < M; j++) {
                const int at = thread_x() + j * SIDE;
                const bool exists = from <= at && at < to;
                const A lse = exists ? *row_of<A>(p.lse, step + at, head) : minus_infinity<A>();
                const A delta = exists ? *row_of<A>(p.delta, step + at, head) : 0;
#pragma unroll
                for (int i = 0; i < M; i++) {
                    gradient(p, s[i][j], dp[i][j], seen[i].lo <= at && at < seen[i].hi, lse, delta);
                }
            }
            if (column < p.head_dim) {
                share(s, staging);
                weighted_sum(dk, q, column, p.head_dim, seen, staging);
            }
            if (column < p.head_dim_v) {
                share(dp, staging);
                weighted_sum(dv, dout, column, p.head_dim_v, seen, staging);
            }
        }
    }
}

// dk and dv of a tile of keys, COLUMNS columns of both in each pass over its items, for all query heads of the key
// head.
template <class T> MAGI_DEVICE void walk_keys(const magi_textbook_params &p, const magi_tile &tile, int head_kv) {
    typedef typename Shape<T>::A A;
    __shared__ Staging<T> staging;
    const int group = p.heads_q / p.heads_kv;
    const Rows<T> k = rows_of<T>(tile.source == 0 ? p.k[0] : p.k[1], tile.row0, head_kv, 0, tile.rows);
    const Rows<T> v = rows_of<T>(tile.source == 0 ? p.v[0] : p.v[1], tile.row0, head_kv, 0, tile.rows);
#pragma unroll 1
    for (int column = 0; column < max(p.head_dim, p.head_dim_v); column += COLUMNS) {
        A dk[Shape<T>::M][EACH], dv[Shape<T>::M][EACH];
        clear(dk);
        clear(dv);
#pragma unroll 1
        for (int head = head_kv * group; head < (head_kv + 1) * group; head++) {
            add_queries(p, tile, k, v, head, column, dk, dv, staging);
        }
        const magi_textbook_rows &to_dk = tile.source == 0 ? p.dk[0] : p.dk[1];
        const magi_textbook_rows &to_dv = tile.source == 0 ? p.dv[0] : p.dv[1];
        add_rows<T>(to_dk, dk, (A)p.scale, tile, head_kv, column, p.head_dim);
        add_rows<T>(to_dv, dv, (A)1, tile, head_kv, column, p.head_dim_v);
    }
}

#define BACKWARD(T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        textbook_queries_##T(const __grid_constant__ magi_textbook_params p) {                                         \
        const i64 total = (i64)p.tile_count * p.heads_q;                                                               \
        for (i64 work = blockIdx.x; work < total; work += gridDim.x) {                                                 \
            const magi_tile tile = p.tiles[work / p.heads_q];                                                          \
            if (tile.items > 0) {                                                                                      \
                walk_queries<T>(p, tile, (int)(work % p.heads_q));                                                     \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        textbook_keys_##T(const __grid_constant__ magi_textbook_params p) {                                            \
        const i64 total = (i64)p.tile_count * p.heads_kv;                                                              \
        for (i64 work = blockIdx.x; work < total; work += gridDim.x) {                                                 \
            const magi_tile tile = p.tiles[work / p.heads_kv];                                                         \
            if (tile.items > 0) {                                                                                      \
                walk_keys<T>(p, tile, (int)(work % p.heads_kv));                                                       \
            }                                                                                                          \
        }                                                                                                              \
    }
MAGI_EACH_DTYPE(BACKWARD)
