// The main job in f32, bf16 and f16: against dense attention in double of the same rounded inputs.
#include "job.h"

int main(void) {
    static const struct {
        const char *name;
        int32_t dtype;
        double ulp;
    } types[] = {{"f32", MAGI_DTYPE_F32, 0x1p-23}, {"bf16", MAGI_DTYPE_BF16, 0x1p-7}, {"f16", MAGI_DTYPE_F16, 0x1p-10}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        for (int acc = 0; acc < 2; acc++) {
            for (int wide = 0; wide < 2; wide++) {
                job j = job_default(types[i].name);
                j.dtype = types[i].dtype;
                j.acc_outputs = acc;
                j.config.backward_high_precision_reduce = wide;
                j.sinks = 1;
                // With sums in the accumulator type an output is off by its own rounding at most; gradients take a
                // rounded out in, and travel rounded unless the config says otherwise.
                j.bound = acc ? 1e-5 : types[i].ulp;
                j.gradient_bound = 4 * types[i].ulp + 1e-5;
                if (acc && wide) {
                    j.gradient_bound = 1e-5;
                }
                job_run(&j, 1);
                j.config.degree_forward = j.config.degree_backward = 2;
                j.flags = wide ? MAGI_ACCUMULATE_DQ | MAGI_ACCUMULATE_DK | MAGI_ACCUMULATE_DV : 0;
                j.interleaved = wide;
                j.nan_unseen = !wide;
                job_run(&j, 4);
            }
        }
    }
    return 0;
}
