// The end of a launch whose thread blocks take their work from a counter.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../ptx/types.cuh"

// True in the last block of the launch to come here; it leaves {next work, blocks done} as it found them.
DEV bool last_block(int *counters) {
    __threadfence();
    if (atomicAdd(&counters[1], 1) != (int)gridDim.x - 1) {
        return false;
    }
    __threadfence();
    counters[0] = counters[1] = 0;
    return true;
}
