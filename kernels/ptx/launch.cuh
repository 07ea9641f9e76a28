// What a kernel knows of its launch, and how it overlaps with the one before it on its stream (programmatic dependent
// launch).
// SPDX-License-Identifier: Apache-2.0
#ifndef MAGI_ATTN_KERNELS_PTX_LAUNCH_CUH
#define MAGI_ATTN_KERNELS_PTX_LAUNCH_CUH

#include "convert.cuh"

namespace ptx {

// Returns when the kernel before this one has ended and what it wrote can be read. Nothing to wait for where a launch
// may not overlap: compute capability 8.
MAGI_DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start once all blocks have said so or ended.
MAGI_DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Thread blocks of this launch, read anew each time: no register is held for it.
MAGI_DEVICE unsigned blocks() {
    unsigned n;
    asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(n));
    return n;
}

// Whether `*word` comes to `least` or more while it is looked at so many times, each of about a microsecond. It may be
// other thread blocks that make it.
MAGI_DEVICE bool comes_to(int *word, int least, int times) {
    for (int n = 0; n < times; n++) {
        int now;
        asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
        if (now >= least) {
            return true;
        }
        asm volatile("nanosleep.u32 200;");
    }
    return false;
}

} // namespace ptx

#endif
