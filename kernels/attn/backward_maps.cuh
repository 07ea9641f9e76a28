// What the copy engine knows of the tensors.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../ptx/types.cuh"

// One parameter of the kernel, so that a source picks its map by address. Index: the source.
struct BackwardMaps {
    TensorMap q, dout, k[2], v[2], stats, dq;
};
