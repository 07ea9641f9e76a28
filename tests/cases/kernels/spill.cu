// For scripts/check_kernels.sh to find: more values at once than a thread of this kernel has registers.
extern "C" __global__ void __launch_bounds__(1024, 2) spill(float *x, int n) {
    float held[64];
#pragma unroll
    for (int i = 0; i < 64; i++) {
        held[i] = x[i * n];
    }
    for (int step = 0; step < n; step++) {
#pragma unroll
        for (int i = 0; i < 64; i++) {
            held[i] = held[i] * held[(i + 7) % 64] + x[step];
        }
    }
#pragma unroll
    for (int i = 0; i < 64; i++) {
        x[i * n] = held[i];
    }
}
