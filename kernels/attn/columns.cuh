// Which columns of an accumulator of a warpgroup product a row sees.
//
// A thread has rows `row` and `row + 8`; element i stands in column 8 (i / 4) + 2 (lane % 4) + i % 2 of row
// row + 8 (i / 2 % 2).
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../ptx/types.cuh"

// The columns below `limit` as bits: bit 2 j + e stands for column 8 j + lane_col + e of 128, lane_col = 2 (lane % 4).
DEV u32 columns_below(int limit, int lane_col) {
    const int x = limit - lane_col, n = 2 * (x >> 3) + min(x & 7, 2);
    return n <= 0 ? 0u : n >= 32 ? ~0u : (1u << n) - 1;
}
