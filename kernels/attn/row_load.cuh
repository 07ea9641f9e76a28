// Rows of one head of a tensor, brought to shared memory by the copy engine.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../ptx/memory.cuh"

// One copy brings all columns, or one for each 64, which can end where the columns of a padded head dimension do.
template <u32 CHUNK_BYTES> DEV void load_rows(u32 dst, const TensorMap *m, u32 bar, int row, int head, int copies) {
    tma_load_4d(dst, m, bar, 0, row, 0, head);
#pragma unroll 1
    for (int c = 1; c < copies; c++) {
        tma_load_4d(dst + c * CHUNK_BYTES, m, bar, 64 * c, row, 0, head);
    }
}
