// Tensors on a CUDA device where there is no driver, or no such device: the answer says what was looked for.
#include "one.h"

int main(void) {
    one_rank ranks, *o = &ranks;
    one_create(o);
    magi_tensor *const operands[] = {&o->tq, &o->tk, &o->tv, &o->tout, &o->tlse};
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) {
        operands[i]->device_type = MAGI_DEVICE_TYPE_CUDA;
        operands[i]->device_index = 1000; // no machine has so many
    }
    one_poison(o);
    const magi_status status = MAGI_STATUS_NO_DEVICE;
    CHECK_REFUSED(magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), status, "CUDA");
    const char *message = magi_last_error_message();
    const int no_driver = strstr(message, "libcuda.so.1") != NULL && strstr(message, "LD_LIBRARY_PATH") != NULL;
    const int no_such = strstr(message, "no CUDA device 1000") != NULL;
    const int broken = strstr(message, "cuInit") != NULL || strstr(message, "too old") != NULL;
    CHECK(no_driver || no_such || broken);
    CHECK_REFUSED(magi_flex_flash_attn_backward(o->mask, &o->backward, NULL, NULL), status, "CUDA");
    one_check_untouched(o);
    one_destroy(o);
    return 0;
}
