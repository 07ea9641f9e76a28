// For scripts/check_kernels.sh to find: an array whose index is known at run time only lies on the stack.
extern "C" __global__ void stack(float *x, const int *at) {
    float held[32];
    for (int i = 0; i < 32; i++) {
        held[i] = x[i];
    }
    for (int i = 0; i < 32; i++) {
        held[at[i] & 31] += held[at[i + 1] & 31];
    }
    x[threadIdx.x] = held[at[threadIdx.x] & 31];
}
