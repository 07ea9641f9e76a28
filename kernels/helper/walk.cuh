// Walking over strided tensors.
//
// SPDX-License-Identifier: Apache-2.0
#ifndef MAGI_ATTN_KERNELS_HELPER_WALK_CUH
#define MAGI_ATTN_KERNELS_HELPER_WALK_CUH

#include "element.cuh"
#include "walk.h"

// Both are at least 0; the short division is several times as fast.
MAGI_DEVICE i64 divide(i64 a, i64 b) {
    if (((a | b) >> 32) == 0) {
        return (unsigned)a / (unsigned)b;
    }
    return a / b;
}

// Bytes from the first elements of both tensors to those of unit `index`.
MAGI_DEVICE void offsets(const magi_walk &w, i64 index, i64 &first, i64 &second) {
    first = second = 0;
#pragma unroll 1
    for (int d = 0; d + 1 < w.dims; d++) {
        const i64 above = divide(index, w.extent[d]), here = index - above * w.extent[d];
        first += here * w.first[d];
        second += here * w.second[d];
        index = above;
    }
    first += index * w.first[w.dims - 1];
    second += index * w.second[w.dims - 1];
}

MAGI_DEVICE i64 first_index() {
    return blockIdx.x * (i64)blockDim.x + threadIdx.x;
}
MAGI_DEVICE i64 index_step() {
    return gridDim.x * (i64)blockDim.x;
}

// `count` warps or threads of the launch, this one's number.
MAGI_DEVICE i64 warp_index() {
    return first_index() >> 5;
}
MAGI_DEVICE i64 warp_count() {
    return index_step() >> 5;
}
MAGI_DEVICE int lane() {
    return threadIdx.x & 31;
}

// Elements of a unit where they are converted: 8 that are read at once, or 1.
enum { WIDE = 8 };

// dst = src, or dst += src.
template <class From, class To, int N> MAGI_DEVICE void convert_unit(const char *src, char *dst, bool accumulate) {
    const Pack<From, N> from = *(const Pack<From, N> *)src;
    Pack<To, N> to;
    if (accumulate) {
        to = *(const Pack<To, N> *)dst;
#pragma unroll
        for (int i = 0; i < N; i++) {
            add(to.x[i], from.x[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            assign(to.x[i], from.x[i]);
        }
    }
    *(Pack<To, N> *)dst = to;
}

// Copies `unit` bytes, all aligned to it.
MAGI_DEVICE void copy_unit(int unit, const char *src, char *dst) {
    switch (unit) {
    case 16:
        *(Pack<unsigned, 4> *)dst = *(const Pack<unsigned, 4> *)src;
        break;
    case 8:
        *(Pack<unsigned, 2> *)dst = *(const Pack<unsigned, 2> *)src;
        break;
    case 4:
        *(unsigned *)dst = *(const unsigned *)src;
        break;
    case 2:
        *(unsigned short *)dst = *(const unsigned short *)src;
        break;
    default:
        *dst = *src;
        break;
    }
}

#endif
