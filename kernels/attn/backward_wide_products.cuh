// What the warpgroups of wide heads share: products of a block of 64 queries with a tile of 64 keys, the named barriers
// between warpgroups, the end of a tile. SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_epilogue.cuh"
#include "backward_mask.cuh"

// P of a block goes from the first warpgroup to the second, dS from the second to the third: named barriers for what is
// there and for what has been read. A warpgroup waits for the latter before it writes again and at the end of a tile,
// whose rows leave by the same place.
enum { P_FULL = 1, P_EMPTY, DS_FULL, DS_EMPTY, ROWS_STORED };

// Where they lie, and bytes of P of a warp, of which 32 threads side by side have 16 at a time.
#define P_AT AT(ds)
#define DS_AT (AT(ds) + 2 * DS_BYTES)
constexpr u32 P_WARP = DS_BYTES / 2;
static_assert(P_WARP == BQ / 2 * 32 * 4, "P of a warp is as large as its share of two slots");

// x += A B^T, in flight; rows of A are keys, those of B queries, each of WIDTH columns.
template <int WIDTH> DEV void multiply(float (&x)[BQ / 2], u32 a, u32 b, int keep) {
    const u64 da = smem_desc(a, 16, 1024), db = smem_desc(b, 16, 1024);
    pin(x);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < WIDTH / 16; j++) {
        wgmma_ss(x, da + (j / 4 * BK * 128 + j % 4 * 32) / 16, db + (j / 4 * BQ * 128 + j % 4 * 32) / 16,
                 j != 0 || keep);
    }
    wgmma_commit();
}

// acc += P or dS, as fragments, times the rows of a block, in flight. A product of 256 columns has more accumulators
// than a thread of this kernel has registers at launch, which ptxas refuses: it is done by halves.
template <int N> DEV void add_product(float (&acc)[N], const u32 (&a)[BQ / 16][4], u32 b, int keep) {
    constexpr int PART = N > 96 ? N / 2 : N;
    const u64 db = smem_desc(b, BQ * 128, 1024);
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < N; i += PART) {
        float (&part)[PART] = reinterpret_cast<float (&)[PART]>(acc[i]);
#pragma unroll
        for (int j = 0; j < BQ / 16; j++) {
            wgmma_rs_t(part, a[j], db + (2 * i / 64 * BQ * 128 + j * 16 * 128) / 16, j != 0 || keep);
        }
    }
    wgmma_commit();
}

// Waits for dO of block n; that is done with it.
DEV void wait_for_gradients(u32 n) {
    wait_for(AT(dout_full) + 8 * (n % DO_STAGES), n / DO_STAGES & 1);
}
DEV void release_gradients(u32 n, int lane) {
    mbar_arrive_warp(AT(dout_empty) + 8 * (n % DO_STAGES), lane);
}
DEV u32 gradients_of(u32 n) {
    return AT(dout) + n % DO_STAGES * DO_BYTES;
}

// Waits for Q, lse and delta of block n; what it needs.
DEV int wait_for_queries(const Shared &s, u32 n) {
    wait_for(AT(full) + 8 * (n & 1), n >> 1 & 1);
    return __shfl_sync(~0u, s.block[n & 1].flags, 0);
}

// Stores dK or dV of a finished tile by way of `buffer`, the warp's own 2 KB.
template <bool OF_V, int N>
DEV void store_rows(float (&x)[N], const magi_attn_backward_params &p, const Shared &s, int place, u32 buffer, int row,
                    int lane) {
    // Nothing of this may be computed ahead of the loop: it would hold registers there.
    asm volatile("" : "+r"(row), "+r"(lane), "+r"(place)::"memory");
    const TilePlace &t = s.place[place];
    const int warp = row / 16;
    if (p.splits > 1 && !join_splits(p, t, OF_V ? warp : 4 + warp, lane, x)) {
        return;
    }
#pragma unroll
    for (int j = 0; j < (OF_V ? 0 : N); j++) {
        x[j] *= p.scale;
    }
    store(x, OF_V ? rows_of_v(p, t) : rows_of_k(p, t), p, buffer, row, t.rows, lane);
}
