// What the textbook kernels have in common: a block of 16 x 16 threads owns the rows of a tile and walks the steps of
// its items. Of a matrix with a row for each row of the tile, the thread at (y, x) holds rows y * M to y * M + M - 1
// and columns x, x + 16, x + 32, ...
//
// SPDX-License-Identifier: Apache-2.0
#ifndef MAGI_ATTN_KERNELS_TEXTBOOK_TILE_CUH
#define MAGI_ATTN_KERNELS_TEXTBOOK_TILE_CUH

#include "../helper/element.cuh"
#include "../params.h"

// THREADS: of a block. SIDE: of its square. DEPTH: elements of a row that a score product stages at once. COLUMNS: of
// the result, that a pass over the items makes. TOKENS: that a weighted sum stages at once.
enum { THREADS = 256, SIDE = 16, DEPTH = 32, PITCH = DEPTH + 1, COLUMNS = 128, TOKENS = 16, EACH = COLUMNS / SIDE };

// Accumulator type, rows of a tile (as many tokens are in a step), rows and columns of a thread.
template <class T> struct Shape {
    typedef f32 A;
    enum { ROWS = MAGI_TEXTBOOK_ROWS, M = ROWS / SIDE };
};
template <> struct Shape<f64> {
    typedef f64 A;
    enum { ROWS = MAGI_TEXTBOOK_ROWS_F64, M = ROWS / SIDE };
};

// Shared memory of a block. Weights have a pitch of ROWS + 1: no two rows begin in one bank.
template <class T> struct Staging {
    typedef typename Shape<T>::A A;
    enum { ROWS = Shape<T>::ROWS };
    A own[ROWS * PITCH], other[ROWS * PITCH];
    A weights[ROWS * (ROWS + 1)];
    A values[TOKENS * COLUMNS];
};

MAGI_DEVICE int thread_x() {
    return threadIdx.x % SIDE;
}
MAGI_DEVICE int thread_y() {
    return threadIdx.x / SIDE;
}

// ---- the functions of softmax in both accumulator types; the short names would not say which is meant
MAGI_DEVICE f32 exponential(f32 x) {
    return expf(x);
}
MAGI_DEVICE f64 exponential(f64 x) {
    return exp(x);
}
MAGI_DEVICE f32 logarithm(f32 x) {
    return logf(x);
}
MAGI_DEVICE f64 logarithm(f64 x) {
    return log(x);
}
MAGI_DEVICE f32 tangent(f32 x) {
    return tanhf(x);
}
MAGI_DEVICE f64 tangent(f64 x) {
    return tanh(x);
}
MAGI_DEVICE f32 larger(f32 a, f32 b) {
    return fmaxf(a, b);
}
MAGI_DEVICE f64 larger(f64 a, f64 b) {
    return fmax(a, b);
}
MAGI_DEVICE f32 magnitude(f32 x) {
    return fabsf(x);
}
MAGI_DEVICE f64 magnitude(f64 x) {
    return fabs(x);
}
template <class A> MAGI_DEVICE bool is_finite(A x) {
    return x - x == 0;
}
template <class A> MAGI_DEVICE A minus_infinity() {
    return (A)(-1.0 / 0.0);
}

// From q . k to the logit.
template <class A> MAGI_DEVICE A logit_of(const magi_textbook_params &p, A product) {
    const A x = product * (A)p.factor;
    return p.capped ? (A)p.softcap * tangent(x) : x;
}

// Derivative of softcap * tanh(x / softcap) there: 1 - tanh^2, without cancellation where tanh is near 1.
template <class A> MAGI_DEVICE A slope_of(const magi_textbook_params &p, A product) {
    if (!p.capped) {
        return 1;
    }
    const A e = exponential(-2 * magnitude(product * (A)p.factor));
    return 4 * e / ((1 + e) * (1 + e));
}

// ---- rows of tensors
template <class T> MAGI_DEVICE T *row_of(const magi_textbook_rows &t, i64 token, i64 head) {
    return (T *)t.data + token * t.token + head * t.head;
}

// Tokens of one head, the first of which is row 0. Only rows [from, to) exist; the others count as 0.
template <class T> struct Rows {
    const T *first;
    i64 step;
    int from, to;
};

template <class T> MAGI_DEVICE Rows<T> rows_of(const magi_textbook_rows &t, i64 token, i64 head, int from, int to) {
    Rows<T> rows = {row_of<const T>(t, token, head), t.token, from, to};
    return rows;
}

template <class T> MAGI_DEVICE auto element_of(const Rows<T> &rows, int row, int column, int width) {
    const bool exists = rows.from <= row && row < rows.to && column < width;
    return exists ? widen(rows.first[row * rows.step + column]) : 0;
}

// ---- what a row of the tile sees of a step, as columns [lo, hi) counted from the step's first token
struct Seen {
    int lo, hi;
};

MAGI_DEVICE Seen seen_by(const magi_textbook_params &p, const magi_tile &tile, const magi_item &item, int row, int step,
                         int tokens) {
    Seen seen = {0, 0};
    if (row < item.row0 || row >= item.row1) {
        return seen;
    }
    int lo = max(item.run0, step), hi = min(item.run1, step + tokens);
    lo = max(lo, tile.row0 + row + item.lo);
    hi = min(hi, tile.row0 + row + item.hi + 1);
    if (item.limits >= 0) {
        const magi_row_limits limits = p.limits[item.limits + row];
        lo = max(lo, limits.lo);
        hi = min(hi, limits.hi);
    }
    if (lo < hi) {
        seen.lo = lo - step;
        seen.hi = hi - step;
    }
    return seen;
}

// ---- matrix products

// s = own . other^T over `width` elements.
template <class T, class A, int M>
MAGI_DEVICE void score_product(A (&s)[M][M], const Rows<T> &own, const Rows<T> &other, int width, Staging<T> &staging) {
    const int x = thread_x(), y = thread_y();
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < M; j++) {
            s[i][j] = 0;
        }
    }
#pragma unroll 1
    for (int column = 0; column < width; column += DEPTH) {
        __syncthreads();
#pragma unroll 4
        for (int e = threadIdx.x; e < M * SIDE * DEPTH; e += THREADS) {
            const int row = e / DEPTH, c = e % DEPTH;
            staging.own[row * PITCH + c] = element_of(own, row, column + c, width);
            staging.other[row * PITCH + c] = element_of(other, row, column + c, width);
        }
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < DEPTH; c++) {
            A a[M], b[M];
#pragma unroll
            for (int i = 0; i < M; i++) {
                a[i] = staging.own[(y * M + i) * PITCH + c];
                b[i] = staging.other[(x + i * SIDE) * PITCH + c];
            }
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int j = 0; j < M; j++) {
                    s[i][j] += a[i] * b[j];
                }
            }
        }
    }
}

// Puts the weights of this thread where weighted_sum of all threads finds them.
template <class T, class A, int M> MAGI_DEVICE void share(const A (&w)[M][M], Staging<T> &staging) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < M; j++) {
            staging.weights[(thread_y() * M + i) * (M * SIDE + 1) + thread_x() + j * SIDE] = w[i][j];
        }
    }
}

// sums += weights . other, for COLUMNS columns of `other` from `column` on. A weight of 0 does not hide an infinity or
// a NaN in a token that the row does not see, so where there is one each row adds only what it sees.
template <class T, class A, int M>
MAGI_DEVICE void weighted_sum(A (&sums)[M][EACH], const Rows<T> &other, int column, int width, const Seen (&seen)[M],
                              Staging<T> &staging) {
    const int x = thread_x(), y = thread_y(), pitch = M * SIDE + 1;
#pragma unroll 1
    for (int token = 0; token < other.to; token += TOKENS) {
        __syncthreads();
        bool odd = false;
#pragma unroll 8
        for (int e = threadIdx.x; e < TOKENS * COLUMNS; e += THREADS) {
            const A v = element_of(other, token + e / COLUMNS, column + e % COLUMNS, width);
            odd |= !is_finite(v);
            staging.values[e] = v;
        }
        const bool exact = __syncthreads_or(odd);
#pragma unroll 4
        for (int t = 0; t < TOKENS; t++) {
            A v[EACH];
#pragma unroll
            for (int c = 0; c < EACH; c++) {
                v[c] = staging.values[t * COLUMNS + x + c * SIDE];
            }
#pragma unroll
            for (int i = 0; i < M; i++) {
                if (exact && (token + t < seen[i].lo || token + t >= seen[i].hi)) {
                    continue;
                }
                const A w = staging.weights[(y * M + i) * pitch + token + t];
#pragma unroll
                for (int c = 0; c < EACH; c++) {
                    sums[i][c] += w * v[c];
                }
            }
        }
    }
}

// ---- sums over the 16 threads that hold a row
template <class A> MAGI_DEVICE A row_sum(A x) {
#pragma unroll
    for (int step = SIDE / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}
template <class A> MAGI_DEVICE A row_largest(A x) {
#pragma unroll
    for (int step = SIDE / 2; step > 0; step /= 2) {
        x = larger(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}

#endif
