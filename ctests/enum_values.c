// Integers that stand for an enum: an unknown value is refused, with the parameter and the value in the message.
#include "one.h"

static int32_t returns_no_status(magi_comm *comm, int32_t rank, void *userdata) {
    (void)comm;
    (void)userdata;
    return rank == 0 ? 12345 : MAGI_STATUS_OK;
}

static void sides(one_rank *o) {
    static const int32_t wrong[] = {-1, 2, INT32_MAX, INT32_MIN};
    const magi_tensor *x = &o->tq, *y = &o->tmoved;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const int32_t side = wrong[i];
        int64_t tokens = -5;
        size_t count = 77;
        char part[32];
        snprintf(part, sizeof part, "side is %d;", (int)side);
        one_poison(o);
        CHECK_REFUSED(magi_key_local_tokens(o->key, side, &tokens), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_REFUSED(magi_key_position_ids(o->key, side, NULL, &count), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_REFUSED(magi_dispatch(o->key, side, x, y, NULL), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_REFUSED(magi_dispatch_backward(o->key, side, x, y, NULL), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_REFUSED(magi_undispatch(o->key, side, x, y, NULL), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_REFUSED(magi_undispatch_backward(o->key, side, x, 0, y, NULL), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_REFUSED(magi_dispatch_sharded(o->key, side, x, y, NULL), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_REFUSED(magi_undispatch_sharded(o->key, side, x, y, NULL), MAGI_STATUS_INVALID_ENUM, part);
        magi_stage_stats stage;
        stage.size = sizeof stage;
        stage.area = -5;
        snprintf(part, sizeof part, "pass is %d;", (int)side);
        CHECK_REFUSED(magi_key_get_stage_stats(o->key, side, 0, 0, &stage), MAGI_STATUS_INVALID_ENUM, part);
        CHECK_INT(stage.area, -5);
        CHECK_INT(tokens, -5);
        CHECK_INT(count, 77);
        one_check_untouched(o);
    }
}

static void tensors(one_rank *o) {
    const int64_t shape[1] = {2};
    magi_tensor t;
    memset(&t, 0x5a, sizeof t);
    const magi_tensor before = t;
    one_poison(o);
    CHECK_REFUSED(magi_tensor_init(NULL, 10, 1, shape, &t), MAGI_STATUS_INVALID_ENUM, "dtype is 10");
    CHECK_REFUSED(magi_tensor_init(NULL, -1, 1, shape, &t), MAGI_STATUS_INVALID_ENUM, "dtype is -1");
    CHECK(memcmp(&t, &before, sizeof t) == 0);
    t = o->tq;
    t.dtype = 99;
    CHECK_REFUSED(magi_dispatch(o->key, MAGI_SIDE_Q, &t, &o->tmoved, NULL), MAGI_STATUS_INVALID_ENUM, "x.dtype is 99");
    o->forward.k = &t;
    CHECK_REFUSED(magi_calc_attn_forward(o->key, &o->forward, NULL), MAGI_STATUS_INVALID_ENUM, "args.k.dtype is 99");
    t = o->tk;
    t.device_type = 2;
    CHECK_REFUSED(magi_calc_attn_forward(o->key, &o->forward, NULL), MAGI_STATUS_INVALID_ENUM,
                  "args.k.device_type is 2");
    o->forward.k = &o->tk;
    one_check_untouched(o);
}

static void settings(one_rank *o) {
    magi_attn_shape shape = shape_of(2, 1, 8, 8, 10);
    magi_config config = default_config();
    magi_key *key = NULL;
    CHECK_REFUSED(magi_key_create(o->comm, o->mask, &shape, NULL, &key), MAGI_STATUS_INVALID_ENUM, "shape.dtype is 10");
    shape.dtype = MAGI_DTYPE_F64;
    config.placement = 6;
    CHECK_REFUSED(magi_key_create(o->comm, o->mask, &shape, &config, &key), MAGI_STATUS_INVALID_ENUM,
                  "config.placement is 6");
    config = default_config();
    config.dsink_reduce = -1;
    CHECK_REFUSED(magi_key_create(o->comm, o->mask, &shape, &config, &key), MAGI_STATUS_INVALID_ENUM,
                  "config.dsink_reduce is -1");
    CHECK(key == NULL);
    CHECK_REFUSED(magi_log_set_callback(NULL, NULL, 3), MAGI_STATUS_INVALID_ENUM, "level is 3");
    CHECK_REFUSED(magi_log_set_callback(NULL, NULL, -1), MAGI_STATUS_INVALID_ENUM, "level is -1");
}

static void masks_and_options(one_rank *o) {
    magi_slice slices[2];
    magi_mask *mask = NULL;
    slices[0] = slice_of(0, 2, 0, 2, MAGI_MASK_TYPE_FULL);
    slices[1] = slice_of(2, 4, 2, 4, 4);
    CHECK_REFUSED(magi_mask_create(slices, 2, 4, 4, &mask), MAGI_STATUS_INVALID_ENUM, "slices[1].mask_type is 4");
    CHECK(mask == NULL);

    magi_flex_options options = MAGI_FLEX_OPTIONS_INIT;
    one_poison(o);
    options.backend = 3;
    CHECK_REFUSED(magi_flex_flash_attn_forward(o->mask, &o->forward, &options, NULL), MAGI_STATUS_INVALID_ENUM,
                  "options.backend is 3");
    options.backend = MAGI_BACKEND_DEFAULT;
    int32_t q_ranges[4] = {0, 3, 3, 6}, k_ranges[4] = {0, 3, 3, 6}, types[2] = {0, -7};
    magi_tensor tq = tensor_of(q_ranges, MAGI_DTYPE_I32, 2, 2, 2, 0);
    magi_tensor tk = tensor_of(k_ranges, MAGI_DTYPE_I32, 2, 2, 2, 0);
    magi_tensor tt = tensor_of(types, MAGI_DTYPE_I32, 1, 2, 0, 0);
    options.q_ranges = &tq;
    options.k_ranges = &tk;
    options.mask_types = &tt;
    CHECK_REFUSED(magi_flex_flash_attn_forward(NULL, &o->forward, &options, NULL), MAGI_STATUS_INVALID_ENUM,
                  "options.mask_types[1]");
    CHECK_HAS(magi_last_error_message(), "-7");
    one_check_untouched(o);
}

int main(void) {
    one_rank o;
    one_create(&o);
    sides(&o);
    tensors(&o);
    settings(&o);
    masks_and_options(&o);
    CHECK_REFUSED(magi_local_run(2, returns_no_status, NULL), MAGI_STATUS_INVALID_ENUM, "rank 0: run returned 12345");
    one_check_works(&o);
    one_destroy(&o);
    return 0;
}
