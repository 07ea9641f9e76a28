// Element by element: casts, division, zeros, the search for NaN.
//
// SPDX-License-Identifier: Apache-2.0
#include "helper/walk.cuh"

extern "C" __global__ void __launch_bounds__(256) fill_zero(const __grid_constant__ magi_walk w, char *dst) {
    for (i64 index = first_index(); index < w.units; index += index_step()) {
        i64 at, unused;
        offsets(w, index, at, unused);
        switch (w.unit) {
        case 16:
            *(Pack<unsigned, 4> *)(dst + at) = Pack<unsigned, 4>{};
            break;
        case 8:
            *(Pack<unsigned, 2> *)(dst + at) = Pack<unsigned, 2>{};
            break;
        case 4:
            *(unsigned *)(dst + at) = 0;
            break;
        case 2:
            *(unsigned short *)(dst + at) = 0;
            break;
        default:
            dst[at] = 0;
            break;
        }
    }
}

template <class From, class To> MAGI_DEVICE void cast(const magi_walk &w, const char *src, char *dst, bool accumulate) {
    for (i64 index = first_index(); index < w.units; index += index_step()) {
        i64 from, to;
        offsets(w, index, from, to);
        if (w.unit == WIDE) {
            convert_unit<From, To, WIDE>(src + from, dst + to, accumulate);
        } else {
            convert_unit<From, To, 1>(src + from, dst + to, accumulate);
        }
    }
}

#define CAST(From, To)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        cast_##From##_##To(const __grid_constant__ magi_walk w, const char *src, char *dst, int accumulate) {          \
        cast<From, To>(w, src, dst, accumulate != 0);                                                                  \
    }
MAGI_EACH_PAIR(CAST)

template <class T, int N> MAGI_DEVICE void divide_unit(char *at, f64 by) {
    Pack<T, N> p = *(const Pack<T, N> *)at;
#pragma unroll
    for (int i = 0; i < N; i++) {
        narrow(p.x[i], (f64)widen(p.x[i]) / by);
    }
    *(Pack<T, N> *)at = p;
}

#define DIVIDE(T)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        divide_##T(const __grid_constant__ magi_walk w, char *dst, double by) {                                        \
        for (i64 index = first_index(); index < w.units; index += index_step()) {                                      \
            i64 at, unused;                                                                                            \
            offsets(w, index, at, unused);                                                                             \
            if (w.unit == WIDE) {                                                                                      \
                divide_unit<T, WIDE>(dst + at, by);                                                                    \
            } else {                                                                                                   \
                divide_unit<T, 1>(dst + at, by);                                                                       \
            }                                                                                                          \
        }                                                                                                              \
    }
MAGI_EACH_DTYPE(DIVIDE)

template <class T, int N> MAGI_DEVICE bool unit_has_nan(const char *at) {
    const Pack<T, N> p = *(const Pack<T, N> *)at;
    bool found = false;
#pragma unroll
    for (int i = 0; i < N; i++) {
        found |= is_nan(widen(p.x[i]));
    }
    return found;
}

// Sets *found to 1 when there is a NaN; whoever finds one writes the same.
#define HAS_NAN(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        has_nan_##T(const __grid_constant__ magi_walk w, const char *src, int *found) {                                \
        bool mine = false;                                                                                             \
        for (i64 index = first_index(); index < w.units; index += index_step()) {                                      \
            i64 at, unused;                                                                                            \
            offsets(w, index, at, unused);                                                                             \
            mine |= w.unit == WIDE ? unit_has_nan<T, WIDE>(src + at) : unit_has_nan<T, 1>(src + at);                   \
        }                                                                                                              \
        if (mine) {                                                                                                    \
            *found = 1;                                                                                                \
        }                                                                                                              \
    }
MAGI_EACH_DTYPE(HAS_NAN)
