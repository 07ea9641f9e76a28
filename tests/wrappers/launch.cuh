// kernels/ptx/launch.cuh for the processor: launches do not overlap.
#pragma once
namespace ptx {
static void wait_for_previous() {}
static void let_next_start() {}
static unsigned blocks() {
    return gridDim.x;
}
// Blocks run one after the other: what is not there does not come. One alone has nobody to wait for.
static bool comes_to(const int *word, int least, int) {
    if (gridDim.x == 1 && *word != least) {
        fail("a thread block that is alone waits for others");
    }
    return *word >= least;
}
} // namespace ptx
