// The cleaning warp of a kernel whose producer names rows that nothing sees. Included behind the shape of that kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Zeroes such rows of the stages at `at`, of BYTES each and CHUNKS of 64 columns, then says that the copy is there.
template <int CHUNKS, u32 BYTES> DEV void clean(Shared &s, u32 at, int lane) {
    for (int d = 0;; d++) {
        mbar_wait(AT(dirty_full) + 8 * (d & (DIRTY - 1)), d / DIRTY & 1);
        int stage = 0, seen = 0;
        if (lane == 0) { // which says that they have been read
            stage = s.dirty[d & (DIRTY - 1)][0], seen = s.dirty[d & (DIRTY - 1)][1];
        }
        stage = __shfl_sync(~0u, stage, 0), seen = __shfl_sync(~0u, seen, 0);
        if (stage < 0) {
            return;
        }
        for (int i = seen * 8 + lane; i < BN * 8; i += 32) { // 16 bytes of a row
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                st_shared_v4(at + stage * BYTES + c * BN * 128 + i * 16, 0, 0, 0, 0);
            }
        }
        fence_proxy_async();
        __syncwarp();
        mbar_arrive_if(AT(full) + 8 * stage, lane == 0);
    }
}
