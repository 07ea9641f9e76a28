// Tensors that do not fit a call: wrong shape, dtype, stride, device, memory shared with another. Each is refused by
// name, the outputs stay untouched, and the same call works once the tensor is right again.
#include "one.h"

// Calls `call`, which reads *t, with *t changed by `change`; puts it back.
#define CHANGED(t, change, call, status, part)                                                                         \
    do {                                                                                                               \
        const magi_tensor kept = (t);                                                                                  \
        change;                                                                                                        \
        one_poison(o);                                                                                                 \
        CHECK_REFUSED(call, status, part);                                                                             \
        one_check_untouched(o);                                                                                        \
        (t) = kept;                                                                                                    \
    } while (0)

#define FORWARD(t, change, status, part)                                                                               \
    CHANGED(t, change, magi_calc_attn_forward(o->key, &o->forward, NULL), status, part);                               \
    CHANGED(t, change, magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), status, part)
#define BACKWARD(t, change, status, part)                                                                              \
    CHANGED(t, change, magi_calc_attn_backward(o->key, &o->backward, NULL), status, part);                             \
    CHANGED(t, change, magi_flex_flash_attn_backward(o->mask, &o->backward, NULL, NULL), status, part)
#define BOTH(t, change, status, part)                                                                                  \
    FORWARD(t, change, status, part);                                                                                  \
    BACKWARD(t, change, status, part)

static void shapes(one_rank *o) {
    const magi_status s = MAGI_STATUS_SHAPE_MISMATCH;
    BOTH(o->tq, o->tq.shape[0] = 5, s, "args.q has shape [5, 2, 8]; it must be [6, 2, 8]");
    CHANGED(o->tq, o->tq.shape[1] = 1, magi_calc_attn_forward(o->key, &o->forward, NULL), s, "args.q has shape");
    CHANGED(o->tq, o->tq.ndim = 2; o->tq.stride[1] = 1, magi_calc_attn_forward(o->key, &o->forward, NULL), s,
                                   "args.q has shape [6, 2]; it must be [6, 2, 8]");
    CHANGED(o->tq, o->tq.ndim = 2, magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), s, "args.q");
    BOTH(o->tk, o->tk.shape[0] = 7, s, "args.k has shape [7, 1, 8]; it must be [6, 1, 8]");
    BOTH(o->tk, o->tk.shape[2] = 4, s, "args.k");
    BOTH(o->tv, o->tv.shape[0] = 0, s, "args.v");
    BOTH(o->tout, o->tout.shape[2] = 7, s, "args.out");
    BOTH(o->tlse, o->tlse.shape[1] = 1, s, "args.lse");
    BOTH(o->tlse, o->tlse.ndim = 1; o->tlse.stride[0] = 1, s, "args.lse has shape [6]; it must be [6, 2]");
    FORWARD(o->tmax, o->tmax.shape[0] = 1, s, "args.max_logits has shape [1]; it must be [2]");
    BOTH(o->tsink, o->tsink.shape[1] = 1, s, "args.sink has shape [1, 1]; it must be [s, 2] or [6, s, 2]");
    BOTH(o->tsink, o->tsink.shape[0] = 0, s, "args.sink has 0 sinks");
    BOTH(o->tsink, o->tsink.shape[0] = 9; o->tsink.stride[0] = 0, s, "args.sink has 9 sinks");
    BOTH(o->tsink, o->tsink.ndim = 1; o->tsink.stride[0] = 1, s, "args.sink has shape [1]");
    BACKWARD(o->tdout, o->tdout.shape[0] = 1, s, "args.dout");
    BACKWARD(o->tdq, o->tdq.shape[0] = 1, s, "args.dq");
    BACKWARD(o->tdk, o->tdk.shape[2] = 2, s, "args.dk");
    BACKWARD(o->tdv, o->tdv.shape[1] = 0, s, "args.dv");
    BACKWARD(o->tdsink, o->tdsink.shape[1] = 1, s, "args.dsink");
    BOTH(o->tv, o->tv.ndim = 0, s, "args.v.ndim is 0; it must be 1 to 8");
    BOTH(o->tv, o->tv.ndim = 9, s, "args.v.ndim is 9; it must be 1 to 8");
    BOTH(o->tv, o->tv.shape[1] = -1, s, "args.v.shape[1] is -1");
}

static void dtypes(one_rank *o) {
    const magi_status s = MAGI_STATUS_DTYPE_MISMATCH;
    CHANGED(o->tq, o->tq.dtype = MAGI_DTYPE_F32, magi_calc_attn_forward(o->key, &o->forward, NULL), s,
            "args.q has dtype f32; it must be f64");
    CHANGED(o->tq, o->tq.dtype = MAGI_DTYPE_I64, magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), s,
            "i64");
    BOTH(o->tk, o->tk.dtype = MAGI_DTYPE_F32, s, "args.k has dtype f32; it must be f64");
    BOTH(o->tv, o->tv.dtype = MAGI_DTYPE_BF16, s, "args.v has dtype bf16; it must be f64");
    BOTH(o->tout, o->tout.dtype = MAGI_DTYPE_F32, s, "args.out has dtype f32; it must be f64");
    BOTH(o->tlse, o->tlse.dtype = MAGI_DTYPE_F32, s, "args.lse has dtype f32; it must be f64");
    BOTH(o->tsink, o->tsink.dtype = MAGI_DTYPE_F16, s, "args.sink has dtype f16; it must be f32");
    FORWARD(o->tmax, o->tmax.dtype = MAGI_DTYPE_I32, s, "args.max_logits has dtype i32; it must be f32");
    BACKWARD(o->tdout, o->tdout.dtype = MAGI_DTYPE_F32, s, "args.dout");
    BACKWARD(o->tdq, o->tdq.dtype = MAGI_DTYPE_F32, s, "args.dq");
    BACKWARD(o->tdk, o->tdk.dtype = MAGI_DTYPE_F32, s, "args.dk");
    BACKWARD(o->tdv, o->tdv.dtype = MAGI_DTYPE_F32, s, "args.dv");
    BACKWARD(o->tdsink, o->tdsink.dtype = MAGI_DTYPE_F32, s, "args.dsink has dtype f32; it must be f64");
}

static void strides(one_rank *o) {
    const magi_status s = MAGI_STATUS_INVALID_STRIDE;
    BOTH(o->tq, o->tq.stride[2] = 2, s, "args.q has stride 2 in its last dimension");
    BOTH(o->tk, o->tk.stride[2] = -1, s, "args.k has stride -1 in its last dimension; it must be 1");
    BOTH(o->tv, o->tv.stride[2] = 0, s, "args.v has stride 0 in its last dimension; it must be 1");
    BOTH(o->tlse, o->tlse.stride[1] = 6; o->tlse.stride[0] = 1, s, "args.lse has stride 6");
    FORWARD(o->tout, o->tout.stride[0] = 0, s, "args.out has stride [0, 8, 1], which names an element twice");
    FORWARD(o->tlse, o->tlse.stride[0] = 1, s, "args.lse");
    BACKWARD(o->tdq, o->tdq.stride[1] = 0, s, "args.dq");
    BACKWARD(o->tdk, o->tdk.stride[0] = 7, s, "args.dk");
    BACKWARD(o->tdv, o->tdv.stride[0] = 0, s, "args.dv");
    BOTH(o->tq, o->tq.stride[0] = INT64_MAX, s, "args.q");
    BOTH(o->tq, o->tq.stride[0] = INT64_MIN, s, "args.q");
}

static void devices(one_rank *o) {
    const magi_status s = MAGI_STATUS_DEVICE_MISMATCH;
    BOTH(o->tq, o->tq.device_type = MAGI_DEVICE_TYPE_CUDA; o->tq.device_index = 3, s, "args.q lies on CUDA device 3");
    FORWARD(o->tmax, o->tmax.device_type = MAGI_DEVICE_TYPE_CUDA, s, "args.max_logits");
    BACKWARD(o->tdsink, o->tdsink.device_type = MAGI_DEVICE_TYPE_CUDA, s, "args.dsink");
    const magi_stream stream = (magi_stream)(uintptr_t)64;
    one_poison(o);
    CHECK_REFUSED(magi_calc_attn_forward(o->key, &o->forward, stream), MAGI_STATUS_INVALID_ARGUMENT, "stream");
    CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, stream), MAGI_STATUS_INVALID_ARGUMENT, "stream");
    CHECK_REFUSED(magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, stream), MAGI_STATUS_INVALID_ARGUMENT,
                  "stream");
    CHECK_REFUSED(magi_key_prepare(o->key, stream), MAGI_STATUS_INVALID_ARGUMENT, "stream");
    CHECK_REFUSED(magi_undispatch(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, stream), MAGI_STATUS_INVALID_ARGUMENT,
                  "stream");
    one_check_untouched(o);
}

static void overlaps(one_rank *o) {
    const magi_status s = MAGI_STATUS_TENSOR_OVERLAP;
    double before[ONE_Q];
    memcpy(before, o->q, sizeof before);
    FORWARD(o->tout, o->tout.data = o->q, s, "args.out overlaps args.q");
    FORWARD(o->tout, o->tout.data = o->k - ONE_Q + 1, s, "args.out overlaps args.");
    FORWARD(o->tlse, o->tlse.data = o->outputs.out + ONE_Q - 1, s, "args.lse overlaps args.out");
    FORWARD(o->tmax, o->tmax.data = o->sink, s, "args.max_logits overlaps args.sink");
    BACKWARD(o->tdq, o->tdq.data = o->dout, s, "args.dq overlaps args.dout");
    BACKWARD(o->tdk, o->tdk.data = o->outputs.dq + 3, s, "args.dk overlaps args.dq");
    BACKWARD(o->tdv, o->tdv.data = o->outputs.lse, s, "args.dv overlaps args.");
    CHANGED(o->tmoved, o->tmoved.data = o->q, magi_dispatch(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL), s,
            "local_x overlaps x");
    CHANGED(o->tmoved, o->tmoved.data = o->q, magi_undispatch(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL), s,
            "x overlaps local_x");
    CHANGED(o->tmoved, o->tmoved.data = o->q, magi_dispatch_sharded(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL), s,
            "local_x overlaps share");
    CHANGED(o->tmoved, o->tmoved.data = o->q, magi_undispatch_sharded(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL), s,
            "share overlaps local_x");
    CHANGED(o->tmoved, o->tmoved.data = o->q,
            magi_undispatch_backward(o->key, MAGI_SIDE_Q, &o->tq, 1, &o->tmoved, NULL), s, "dlocal_x overlaps dx");
    CHECK(memcmp(before, o->q, sizeof before) == 0);
}

static void numbers(one_rank *o) {
    static const double wrong[] = {NAN, INFINITY, -INFINITY, -1.0};
    one_poison(o);
    for (size_t i = 0; i < 4; i++) {
        if (i < 3) {
            o->forward.softmax_scale = o->backward.softmax_scale = wrong[i];
            CHECK_REFUSED(magi_calc_attn_forward(o->key, &o->forward, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                          "args.softmax_scale is ");
            CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                          "args.softmax_scale is ");
            o->forward.softmax_scale = o->backward.softmax_scale = 0;
        }
        o->forward.softcap = o->backward.softcap = wrong[i];
        CHECK_REFUSED(magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                      "args.softcap is ");
        CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                      "args.softcap is ");
        o->forward.softcap = o->backward.softcap = 0;
    }
    o->forward.softcap = 1e-101; // queries divided by it could be infinite
    CHECK_REFUSED(magi_calc_attn_forward(o->key, &o->forward, NULL), MAGI_STATUS_INVALID_ARGUMENT, "args.softcap is ");
    o->forward.softcap = 0;
    o->backward.flags = 16;
    CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "args.flags is 0x10");
    o->backward.flags = 0;
    o->backward.reserved = 1;
    CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "args.reserved is 1");
    o->backward.reserved = 0;
    o->backward.flags = MAGI_ACCUMULATE_DSINK;
    o->backward.sink = o->backward.dsink = NULL;
    CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, NULL), MAGI_STATUS_INVALID_ARGUMENT, "args.flags");
    o->backward.flags = 0;
    o->backward.sink = &o->tsink;
    o->backward.dsink = &o->tdsink;
    CHANGED(o->tq, o->tq.data = (char *)o->q + 1, magi_calc_attn_forward(o->key, &o->forward, NULL),
            MAGI_STATUS_INVALID_ARGUMENT, "args.q.data is not aligned");
    one_check_untouched(o);
}

// The movement functions name their own parameters.
static void movement(one_rank *o) {
    const magi_status shape = MAGI_STATUS_SHAPE_MISMATCH, dtype = MAGI_STATUS_DTYPE_MISMATCH;
    const int32_t side = MAGI_SIDE_K;
    const magi_tensor *x = &o->tq, *y = &o->tmoved;
#define MOVED(t, change, status, x_name, dx_name, rest)                                                                \
    CHANGED(t, change, magi_dispatch(o->key, side, x, y, NULL), status, x_name rest);                                  \
    CHANGED(t, change, magi_undispatch_backward(o->key, side, x, 0, y, NULL), status, dx_name rest)
    MOVED(o->tq, o->tq.shape[0] = 5, shape, "x", "dx", " has 5 tokens (shape[0]); it must have 6");
    MOVED(o->tq, o->tq.stride[2] = 3, MAGI_STATUS_INVALID_STRIDE, "x", "dx", " has stride 3 in its last dimension");
    MOVED(o->tmoved, o->tmoved.shape[0] = 5, shape, "local_x", "dlocal_x", " has 5 tokens");
    MOVED(o->tmoved, o->tmoved.shape[1] = 1, shape, "local_x", "dlocal_x", " has shape [6, 1, 8]");
    MOVED(o->tmoved, o->tmoved.dtype = MAGI_DTYPE_I64, dtype, "local_x", "dlocal_x", " has dtype i64; it must be f64");
    MOVED(o->tmoved, o->tmoved.stride[0] = 0, MAGI_STATUS_INVALID_STRIDE, "local_x", "dlocal_x",
          " has stride [0, 8, 1]");
    MOVED(o->tq, o->tq.device_type = MAGI_DEVICE_TYPE_CUDA, MAGI_STATUS_DEVICE_MISMATCH, "x", "dx", " lies on");
#undef MOVED
    CHANGED(o->tmoved, o->tmoved.stride[0] = 0, magi_undispatch(o->key, side, x, y, NULL), MAGI_STATUS_INVALID_STRIDE,
            "x has stride [0, 8, 1]");
    CHANGED(o->tq, o->tq.shape[0] = 5, magi_undispatch(o->key, side, x, y, NULL), shape, "local_x has 5 tokens");
    CHANGED(o->tq, o->tq.shape[0] = 5, magi_dispatch_backward(o->key, side, x, y, NULL), shape, "dlocal_x has 5");
    CHANGED(o->tq, o->tq.shape[0] = 5, magi_dispatch_sharded(o->key, side, x, y, NULL), shape, "share has 5 tokens");
    CHANGED(o->tmoved, o->tmoved.dtype = MAGI_DTYPE_U8, magi_undispatch_sharded(o->key, side, x, y, NULL), dtype,
            "dtype");
    CHANGED(o->tq, o->tq.dtype = o->tmoved.dtype = MAGI_DTYPE_I64,
            magi_undispatch_backward(o->key, side, x, 1, y, NULL), dtype, "dx has dtype i64");
    o->tmoved.dtype = MAGI_DTYPE_F64;
    CHECK_REFUSED(magi_undispatch_backward(o->key, side, x, 2, y, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "partial is 2; it must be 0 or 1");
    int64_t extents[2] = {3, -3};
    magi_tensor t;
    CHECK_REFUSED(magi_tensor_init(NULL, MAGI_DTYPE_F32, 2, extents, &t), shape, "shape[1] is -3");
    CHECK_REFUSED(magi_tensor_init(NULL, MAGI_DTYPE_F32, 0, extents, &t), shape, "ndim is 0");
    CHECK_REFUSED(magi_tensor_init(NULL, MAGI_DTYPE_F32, 9, extents, &t), shape, "ndim is 9");
    extents[0] = extents[1] = INT64_MAX / 2;
    CHECK_REFUSED(magi_tensor_init(NULL, MAGI_DTYPE_F32, 2, extents, &t), shape, "shape[0] is");
}

// An input may name an element many times: a row that all tokens share.
static void expanded_inputs(one_rank *o) {
    const magi_tensor kept = o->tq;
    o->tq.stride[0] = 0;
    one_poison(o);
    CHECK_OK(magi_calc_attn_forward(o->key, &o->forward, NULL));
    CHECK_OK(magi_dispatch(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL));
    CHECK(memcmp(o->outputs.moved + ONE_Q - 16, o->q, 128) == 0);
    one_poison(o);
    CHECK_OK(magi_undispatch(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL));
    CHECK(memcmp(o->outputs.moved + ONE_Q - 16, o->q, 128) == 0);
    CHECK_OK(magi_dispatch_backward(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL));
    CHECK_OK(magi_dispatch_sharded(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL));
    CHECK_OK(magi_undispatch_sharded(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL));
    CHECK_OK(magi_undispatch_backward(o->key, MAGI_SIDE_Q, &o->tq, 1, &o->tmoved, NULL));
    CHECK(memcmp(o->outputs.moved + ONE_Q - 16, o->q, 128) == 0);
    o->tq = kept;
}

int main(void) {
    one_rank one;
    one_create(&one);
    shapes(&one);
    dtypes(&one);
    strides(&one);
    devices(&one);
    overlaps(&one);
    numbers(&one);
    movement(&one);
    expanded_inputs(&one);
    one_check_works(&one);
    one_destroy(&one);
    return 0;
}
