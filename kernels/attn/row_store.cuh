// Rows of 16-bit elements on their way to memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../ptx/memory.cuh"

// 8 elements of a row of the output, of which the first `most` exist.
DEV void store_piece(u16 *out, const u32 (&w)[4], int most) {
    if (most >= 8) {
        st_global_v4(out, w[0], w[1], w[2], w[3]);
        return;
    }
    u64 lo = (u64)w[1] << 32 | w[0], hi = (u64)w[3] << 32 | w[2];
#pragma unroll 1
    for (int i = 0; i < most; i++) { // seldom: kept short rather than fast
        out[i] = (u16)lo;
        lo = lo >> 16 | hi << 48, hi >>= 16;
    }
}
