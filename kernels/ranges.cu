// Rows of one tensor inside ranges against consecutive rows of another.
//
// SPDX-License-Identifier: Apache-2.0
#include "helper/walk.cuh"

template <int N> struct Ranges {
    magi_range of[N];
};

// The row of the spread tensor that lies at row `packed` of the other.
template <int N> MAGI_DEVICE i64 spread_row(const Ranges<N> &ranges, int count, i64 packed) {
    int low = 0, high = count;
#pragma unroll 1
    while (high - low > 1) {
        const int middle = (low + high) >> 1;
        if (ranges.of[middle].packed <= packed) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return ranges.of[low].start + (packed - ranges.of[low].packed);
}

// Bytes from the first elements of both tensors to those of unit `index` of the launch.
template <int N>
MAGI_DEVICE void row_offsets(const magi_walk &w, const magi_rows &r, const Ranges<N> &ranges, i64 index, i64 &spread,
                             i64 &packed) {
    const i64 row = divide(index, w.units);
    offsets(w, index - row * w.units, spread, packed);
    spread += spread_row(ranges, r.count, row) * r.spread_step;
    packed += row * r.packed_step;
}

template <int N>
MAGI_DEVICE void copy_rows(const magi_walk &w, const magi_rows &r, const Ranges<N> &ranges, char *spread,
                           char *packed) {
    const i64 total = r.rows * w.units;
    for (i64 index = first_index(); index < total; index += index_step()) {
        i64 a, b;
        row_offsets(w, r, ranges, index, a, b);
        if (r.scatter) {
            copy_unit(w.unit, packed + b, spread + a);
        } else {
            copy_unit(w.unit, spread + a, packed + b);
        }
    }
}

#define COPY(name, N)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        range_copy_##name(const __grid_constant__ magi_walk w, const __grid_constant__ magi_rows r, char *spread,      \
                          char *packed, const __grid_constant__ Ranges<N> ranges) {                                    \
        copy_rows(w, r, ranges, spread, packed);                                                                       \
    }
COPY(few, MAGI_RANGES_FEW)
COPY(many, MAGI_RANGES_MANY)

// spread += packed. Rows of one launch are all different.
template <class From, class To>
MAGI_DEVICE void reduce_rows(const magi_walk &w, const magi_rows &r, const Ranges<MAGI_RANGES_FEW> &ranges,
                             char *spread, const char *packed) {
    const i64 total = r.rows * w.units;
    for (i64 index = first_index(); index < total; index += index_step()) {
        i64 a, b;
        row_offsets(w, r, ranges, index, a, b);
        if (w.unit == WIDE) {
            convert_unit<From, To, WIDE>(packed + b, spread + a, true);
        } else {
            convert_unit<From, To, 1>(packed + b, spread + a, true);
        }
    }
}

#define REDUCE(From, To)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) range_reduce_##From##_##To(                                      \
        const __grid_constant__ magi_walk w, const __grid_constant__ magi_rows r, char *spread, const char *packed,    \
        const __grid_constant__ Ranges<MAGI_RANGES_FEW> ranges) {                                                      \
        reduce_rows<From, To>(w, r, ranges, spread, packed);                                                           \
    }
MAGI_EACH_PAIR(REDUCE)

// Between a stored f64 and everything else: f64 takes part as f64, the others as f32.
template <class A, class B> struct Wider {
    typedef f32 type;
};
template <class B> struct Wider<f64, B> {
    typedef f64 type;
};
template <class A> struct Wider<A, f64> {
    typedef f64 type;
};
template <> struct Wider<f64, f64> {
    typedef f64 type;
};

#define MINUS_INFINITY (-1.0 / 0.0)

// Merges packed rows of (out, lse) into spread rows, a warp for each row and head.
template <class From, class To>
MAGI_DEVICE void merge_rows(const magi_rows &r, const magi_view &out_src, const magi_view &lse_src,
                            const magi_view &out_dst, const magi_view &lse_dst, int heads, int width,
                            const Ranges<MAGI_RANGES_FEW> &ranges) {
    typedef typename Wider<From, To>::type W;
    const i64 total = r.rows * heads;
    for (i64 index = warp_index(); index < total; index += warp_count()) {
        const i64 row = divide(index, heads), head = index - row * heads;
        const i64 token = spread_row(ranges, r.count, row);
        char *const lse_at = lse_dst.data + token * lse_dst.token + head * lse_dst.head;
        const f64 fresh = load(lse_src.dtype, lse_src.data + row * lse_src.token + head * lse_src.head);
        const f64 old = load(lse_dst.dtype, lse_at);
        __syncwarp();
        if (fresh == MINUS_INFINITY) {
            continue;
        }
        const From *const from = (const From *)(out_src.data + row * out_src.token + head * out_src.head);
        To *const to = (To *)(out_dst.data + token * out_dst.token + head * out_dst.head);
        f64 merged = fresh;
        if (old == MINUS_INFINITY) {
            for (int i = lane(); i < width; i += 32) {
                assign(to[i], from[i]);
            }
        } else {
            // The difference alone enters the weights, so that they sum to 1 however large the lse are.
            merged = (fresh > old ? fresh : old) + log1p(exp(-fabs(fresh - old)));
            const W weight = (W)(1.0 / (1.0 + exp(old - fresh)));
            for (int i = lane(); i < width; i += 32) {
                const W a = (W)widen(to[i]), b = (W)widen(from[i]);
                narrow(to[i], a + weight * (b - a));
            }
        }
        if (lane() == 0) {
            store(lse_dst.dtype, lse_at, merged);
        }
    }
}

#define MERGE(From, To)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        lse_reduce_##From##_##To(const __grid_constant__ magi_rows r, const __grid_constant__ magi_view out_src,       \
                                 const __grid_constant__ magi_view lse_src, const __grid_constant__ magi_view out_dst, \
                                 const __grid_constant__ magi_view lse_dst, int heads, int width,                      \
                                 const __grid_constant__ Ranges<MAGI_RANGES_FEW> ranges) {                             \
        merge_rows<From, To>(r, out_src, lse_src, out_dst, lse_dst, heads, width, ranges);                             \
    }
MAGI_EACH_PAIR(MERGE)
