// For scripts/check_kernels.sh to find: an accumulator is changed while a product into it may be under way, so the
// compiler waits after each product.
extern "C" __global__ void __launch_bounds__(128) serial(float *x, unsigned long long a, unsigned long long b, int n) {
    float d[4] = {x[0], x[1], x[2], x[3]};
    for (int i = 0; i < n; i++) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int j = 0; j < 2; j++) {
            asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
                         : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                         : "l"(a), "l"(b));
            d[0] *= x[i];
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    x[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
