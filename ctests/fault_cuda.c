// What the CUDA driver or a kernel's compiler refuses comes out as it is, before anything is written.
#include "fault.h"
#include "one.h"

int main(void) {
    one_rank ranks, *o = &ranks;
    one_create(o);
    magi_tensor *const operands[] = {&o->tq, &o->tk, &o->tv};
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) {
        operands[i]->device_type = MAGI_DEVICE_TYPE_CUDA;
    }
    one_poison(o);
    CHECK_OK(magi_test_fault_set("cuda.open", 0, MAGI_STATUS_CUDA_FAILED, 0));
    CHECK_REFUSED(magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), MAGI_STATUS_CUDA_FAILED, "cuda.open");
    CHECK_OK(magi_test_fault_set("cuda.open", 0, MAGI_STATUS_COMPILE_FAILED, 0));
    CHECK_REFUSED(magi_flex_flash_attn_backward(o->mask, &o->backward, NULL, NULL), MAGI_STATUS_COMPILE_FAILED,
                  "cuda.open");
    magi_test_fault_clear();
    one_check_untouched(o);
    one_destroy(o);
    return 0;
}
