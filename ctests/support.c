// What can be computed where, in words: the CPU, and what no device does. A CUDA device is asked where there is one.
#include "test.h"

enum { ALL_FLAGS = 4095 };

static magi_attn_shape shape = {sizeof(magi_attn_shape), 8, 2, 128, 128, MAGI_DTYPE_BF16, 0};

static magi_status ask(int32_t device_type, int32_t backend, uint32_t flags, char *text, size_t *size) {
    return magi_explain_support(device_type, 0, &shape, backend, 0.0, 0.0, flags, text, size);
}

static magi_status on_cpu(int32_t backend, uint32_t flags) {
    char text[4096];
    size_t size = sizeof text;
    return ask(MAGI_DEVICE_TYPE_CPU, backend, flags, text, &size);
}

static void words(void) {
    size_t size = 0, less;
    CHECK_OK(ask(MAGI_DEVICE_TYPE_CPU, MAGI_BACKEND_DEFAULT, MAGI_WITH_BACKWARD | MAGI_WITH_SINK, NULL, &size));
    char *text = (char *)malloc(size);
    CHECK(text != NULL);
    CHECK_OK(ask(MAGI_DEVICE_TYPE_CPU, MAGI_BACKEND_SDPA, MAGI_WITH_BACKWARD, text, &size));
    CHECK_INT(strlen(text) + 1, size);
    const char *const parts[] = {"forward: the CPU", "backward: the CPU", "dropout",           "ALiBi", "fp8",
                                 "paged keys",       "per-head",          "gradients into lse"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        CHECK_HAS(text, parts[i]);
    }
    less = size - 1;
    memset(text, '#', size);
    CHECK_ERROR(ask(MAGI_DEVICE_TYPE_CPU, MAGI_BACKEND_DEFAULT, 0, text, &less), MAGI_STATUS_BUFFER_TOO_SMALL,
                "room for");
    CHECK_INT(less, size);
    CHECK_INT(text[0], '#');
    free(text);
}

static void refusals(void) {
    char text[8] = "#";
    size_t size = sizeof text;
    const magi_status no = MAGI_STATUS_NOT_SUPPORTED;
    // Every reason at once, and nothing written.
    CHECK_ERROR(ask(MAGI_DEVICE_TYPE_CPU, MAGI_BACKEND_FFA, ALL_FLAGS, text, &size), no, "backend ffa");
    const char *const reasons[] = {"dropout", "bias", "fp8", "paged keys", "per-head masks", "lse", "accumulate"};
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        CHECK_HAS(magi_last_error_message(), reasons[i]);
    }
    CHECK(text[0] == '#' && size == sizeof text);
    CHECK_ERROR(on_cpu(MAGI_BACKEND_FFA, 0), no, "CUDA device");
    CHECK(strstr(magi_last_error_message(), "dropout") == NULL);
    const uint32_t never[] = {MAGI_WITH_DROPOUT,    MAGI_WITH_BIAS,       MAGI_WITH_FP8,
                              MAGI_WITH_PAGED_KEYS, MAGI_WITH_HEAD_MASKS, MAGI_WITH_LSE_GRADIENT};
    for (size_t i = 0; i < sizeof never / sizeof *never; i++) {
        CHECK_ERROR(on_cpu(MAGI_BACKEND_DEFAULT, never[i]), no, reasons[i]);
    }
    CHECK_ERROR(on_cpu(MAGI_BACKEND_DEFAULT, MAGI_WITH_SINK | MAGI_WITH_ACCUMULATE), no, "accumulate");
    CHECK_OK(on_cpu(MAGI_BACKEND_DEFAULT, MAGI_WITH_BACKWARD | MAGI_WITH_MAX_LOGITS | MAGI_WITH_ACC_OUT |
                                              MAGI_WITH_ACCUMULATE | MAGI_WITH_DEVICE_RANGES));
}

static void wrong_questions(void) {
    char text[4096];
    size_t size = sizeof text;
    magi_attn_shape other = shape;
    CHECK_ERROR(magi_explain_support(0, 0, NULL, 0, 0, 0, 0, text, &size), MAGI_STATUS_NULL_POINTER, "shape");
    CHECK_ERROR(magi_explain_support(0, 0, &shape, 0, 0, 0, 0, text, NULL), MAGI_STATUS_NULL_POINTER, "size");
    CHECK_ERROR(magi_explain_support(2, 0, &shape, 0, 0, 0, 0, text, &size), MAGI_STATUS_INVALID_ENUM,
                "device_type is 2");
    CHECK_ERROR(magi_explain_support(0, 1, &shape, 0, 0, 0, 0, text, &size), MAGI_STATUS_INVALID_ARGUMENT,
                "device_index is 1");
    CHECK_ERROR(on_cpu(3, 0), MAGI_STATUS_INVALID_ENUM, "backend is 3");
    CHECK_ERROR(on_cpu(0, ALL_FLAGS + 1), MAGI_STATUS_INVALID_ARGUMENT, "flags is 0x1000");
    CHECK_ERROR(magi_explain_support(0, 0, &shape, 0, NAN, 0, 0, text, &size), MAGI_STATUS_INVALID_ARGUMENT,
                "softmax_scale");
    CHECK_ERROR(magi_explain_support(0, 0, &shape, 0, 0, -1, 0, text, &size), MAGI_STATUS_INVALID_ARGUMENT, "softcap");
    other.size--;
    CHECK_ERROR(magi_explain_support(0, 0, &other, 0, 0, 0, 0, text, &size), MAGI_STATUS_STRUCT_SIZE, "shape.size");
    other = shape;
    other.heads_kv = 3;
    CHECK_ERROR(magi_explain_support(0, 0, &other, 0, 0, 0, 0, text, &size), MAGI_STATUS_INVALID_ARGUMENT, "heads_kv");
    other = shape;
    other.dtype = MAGI_DTYPE_I32;
    CHECK_ERROR(magi_explain_support(0, 0, &other, 0, 0, 0, 0, text, &size), MAGI_STATUS_DTYPE_MISMATCH, "i32");
    CHECK_ERROR(magi_explain_support(1, 1000, &shape, 0, 0, 0, 0, text, &size), MAGI_STATUS_NO_DEVICE, "CUDA");
}

// Where there is a CUDA device the answer must agree with itself: the default takes what the fast kernels compute.
static void on_cuda(void) {
    char text[8192];
    size_t size = sizeof text;
    const magi_status status = ask(MAGI_DEVICE_TYPE_CUDA, MAGI_BACKEND_SDPA, MAGI_WITH_BACKWARD, text, &size);
    if (status == MAGI_STATUS_NO_DEVICE) {
        printf("no CUDA device: not asked about\n");
        return;
    }
    CHECK_OK(status);
    CHECK_HAS(text, "forward: textbook kernels, on CUDA device 0");
    CHECK_HAS(text, "backward: textbook kernels, on CUDA device 0");
    const uint32_t flags = MAGI_WITH_BACKWARD | MAGI_WITH_DEVICE_RANGES;
    size = sizeof text;
    if (ask(MAGI_DEVICE_TYPE_CUDA, MAGI_BACKEND_FFA, flags, text, &size) == MAGI_STATUS_OK) {
        size = sizeof text;
        CHECK_OK(ask(MAGI_DEVICE_TYPE_CUDA, MAGI_BACKEND_DEFAULT, flags, text, &size));
        CHECK_HAS(text, "forward: the fast kernel attn_forward_bf16_128,");
        CHECK_HAS(text, "backward: the fast kernel attn_backward_bf16_128,");
    } else {
        CHECK_HAS(magi_last_error_message(), "compute capability");
        size = sizeof text;
        CHECK_ERROR(ask(MAGI_DEVICE_TYPE_CUDA, MAGI_BACKEND_DEFAULT, flags, text, &size), MAGI_STATUS_NOT_SUPPORTED,
                    "ranges on the device need the fast kernels");
    }
}

int main(void) {
    words();
    refusals();
    wrong_questions();
    on_cuda();
    return 0;
}
