// Every pointer that must not be NULL, of every function and argument struct, is refused by name when it is.
#include "one.h"

#define REFUSES_NULL(call, part) CHECK_REFUSED(call, MAGI_STATUS_NULL_POINTER, part " is NULL")

static void handles(void) {
    int32_t word = 0;
    int64_t wide = 0;
    size_t size = 0;
    uint64_t hash = 0;
    magi_key_stats stats;
    magi_rank_stats rank_stats;
    magi_stage_stats stage_stats;
    stats.size = sizeof stats;
    rank_stats.size = sizeof rank_stats;
    stage_stats.size = sizeof stage_stats;
    REFUSES_NULL(magi_comm_rank(NULL, &word), "comm");
    REFUSES_NULL(magi_comm_size(NULL, &word), "comm");
    REFUSES_NULL(magi_comm_set_timeout(NULL, 1), "comm");
    REFUSES_NULL(magi_comm_set_mesh(NULL, 1, 1), "comm");
    REFUSES_NULL(magi_comm_async_error(NULL), "comm");
    REFUSES_NULL(magi_comm_abort(NULL, NULL), "comm");
    REFUSES_NULL(magi_mask_totals(NULL, &wide, &wide), "mask");
    REFUSES_NULL(magi_mask_area(NULL, &wide), "mask");
    REFUSES_NULL(magi_mask_slices(NULL, NULL, &size), "mask");
    REFUSES_NULL(magi_key_prepare(NULL, NULL), "key");
    REFUSES_NULL(magi_key_local_tokens(NULL, MAGI_SIDE_Q, &wide), "key");
    REFUSES_NULL(magi_key_position_ids(NULL, MAGI_SIDE_Q, NULL, &size), "key");
    REFUSES_NULL(magi_key_get_stats(NULL, &stats), "key");
    REFUSES_NULL(magi_key_get_rank_stats(NULL, 0, &rank_stats), "key");
    REFUSES_NULL(magi_key_get_stage_stats(NULL, MAGI_PASS_FORWARD, 0, 0, &stage_stats), "key");
    REFUSES_NULL(magi_key_workspace_size(NULL, &size), "key");
    REFUSES_NULL(magi_key_hash(NULL, &hash), "key");
    magi_comm_destroy(NULL);
    magi_mask_destroy(NULL);
    magi_key_destroy(NULL);
}

static void plain_outputs(const one_rank *o) {
    const int64_t shape[1] = {4};
    magi_tensor t;
    REFUSES_NULL(magi_tensor_init(NULL, MAGI_DTYPE_F32, 1, NULL, &t), "shape");
    REFUSES_NULL(magi_tensor_init(NULL, MAGI_DTYPE_F32, 1, shape, NULL), "tensor");
    CHECK_OK(magi_tensor_init(NULL, MAGI_DTYPE_F32, 1, shape, &t));
    REFUSES_NULL(magi_config_init(NULL, sizeof(magi_config)), "config");
    REFUSES_NULL(magi_comm_create_local(1, NULL), "comms");
    REFUSES_NULL(magi_local_run(1, NULL, NULL), "run");
    REFUSES_NULL(magi_comm_rank(o->comm, NULL), "rank");
    REFUSES_NULL(magi_comm_size(o->comm, NULL), "size");
    REFUSES_NULL(magi_mask_area(o->mask, NULL), "area");
    CHECK_OK(magi_mask_totals(o->mask, NULL, NULL));
    REFUSES_NULL(magi_mask_slices(o->mask, NULL, NULL), "count");
    REFUSES_NULL(magi_key_local_tokens(o->key, MAGI_SIDE_Q, NULL), "tokens");
    REFUSES_NULL(magi_key_position_ids(o->key, MAGI_SIDE_Q, NULL, NULL), "count");
    REFUSES_NULL(magi_key_get_stats(o->key, NULL), "stats");
    REFUSES_NULL(magi_key_get_rank_stats(o->key, 0, NULL), "stats");
    REFUSES_NULL(magi_key_get_stage_stats(o->key, MAGI_PASS_FORWARD, 0, 0, NULL), "stats");
    REFUSES_NULL(magi_key_workspace_size(o->key, NULL), "bytes");
    REFUSES_NULL(magi_key_hash(o->key, NULL), "hash");
}

static void creators(const one_rank *o) {
    const int64_t cu[2] = {0, 4};
    const magi_slice slice = slice_of(0, 4, 0, 4, MAGI_MASK_TYPE_FULL);
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_mask *mask = NULL;
    magi_key *key = NULL;
    REFUSES_NULL(magi_mask_create(NULL, 1, 4, 4, &mask), "slices");
    REFUSES_NULL(magi_mask_create(&slice, 1, 4, 4, NULL), "mask");
    REFUSES_NULL(magi_mask_create_from_cu_seqlens(NULL, cu, 2, 1, -1, 0, 0, &mask), "cu_seqlens_q");
    REFUSES_NULL(magi_mask_create_from_cu_seqlens(cu, NULL, 2, 1, -1, 0, 0, &mask), "cu_seqlens_k");
    REFUSES_NULL(magi_mask_create_from_cu_seqlens(cu, cu, 2, 1, -1, 0, 0, NULL), "mask");
    REFUSES_NULL(magi_mask_create_from_sliding_window(4, 4, 1, 0, 0, NULL), "mask");
    REFUSES_NULL(magi_mask_create_from_block_causal(NULL, 2, 2, &mask), "cu_seqlens");
    REFUSES_NULL(magi_mask_create_from_block_causal(cu, 2, 2, NULL), "mask");
    REFUSES_NULL(magi_key_create(NULL, o->mask, &shape, NULL, &key), "comm");
    REFUSES_NULL(magi_key_create(o->comm, NULL, &shape, NULL, &key), "mask");
    REFUSES_NULL(magi_key_create(o->comm, o->mask, NULL, NULL, &key), "shape");
    REFUSES_NULL(magi_key_create(o->comm, o->mask, &shape, NULL, NULL), "key");
    const magi_mask *const masks[1] = {o->mask}, *const none[1] = {NULL};
    REFUSES_NULL(magi_key_create_joint(NULL, masks, NULL, 1, &shape, NULL, &key), "comm");
    REFUSES_NULL(magi_key_create_joint(o->comm, NULL, NULL, 1, &shape, NULL, &key), "masks");
    REFUSES_NULL(magi_key_create_joint(o->comm, none, NULL, 1, &shape, NULL, &key), "masks[0]");
    REFUSES_NULL(magi_key_create_joint(o->comm, masks, NULL, 1, NULL, NULL, &key), "shape");
    REFUSES_NULL(magi_key_create_joint(o->comm, masks, NULL, 1, &shape, NULL, NULL), "keys");
    CHECK(mask == NULL && key == NULL);
}

static void movement(one_rank *o) {
    magi_tensor empty = o->tq;
    empty.data = NULL;
    const magi_tensor *x = &o->tq, *y = &o->tmoved;
    one_poison(o);
    REFUSES_NULL(magi_dispatch(NULL, MAGI_SIDE_Q, x, y, NULL), "key");
    REFUSES_NULL(magi_dispatch(o->key, MAGI_SIDE_Q, NULL, y, NULL), "x");
    REFUSES_NULL(magi_dispatch(o->key, MAGI_SIDE_Q, x, NULL, NULL), "local_x");
    REFUSES_NULL(magi_dispatch(o->key, MAGI_SIDE_Q, &empty, y, NULL), "x.data");
    REFUSES_NULL(magi_dispatch_backward(NULL, MAGI_SIDE_Q, x, y, NULL), "key");
    REFUSES_NULL(magi_dispatch_backward(o->key, MAGI_SIDE_Q, NULL, y, NULL), "dlocal_x");
    REFUSES_NULL(magi_dispatch_backward(o->key, MAGI_SIDE_Q, x, NULL, NULL), "dx");
    REFUSES_NULL(magi_undispatch(NULL, MAGI_SIDE_Q, x, y, NULL), "key");
    REFUSES_NULL(magi_undispatch(o->key, MAGI_SIDE_Q, NULL, y, NULL), "local_x");
    REFUSES_NULL(magi_undispatch(o->key, MAGI_SIDE_Q, x, NULL, NULL), "x");
    REFUSES_NULL(magi_undispatch_backward(NULL, MAGI_SIDE_Q, x, 0, y, NULL), "key");
    REFUSES_NULL(magi_undispatch_backward(o->key, MAGI_SIDE_Q, NULL, 0, y, NULL), "dx");
    REFUSES_NULL(magi_undispatch_backward(o->key, MAGI_SIDE_Q, x, 1, NULL, NULL), "dlocal_x");
    REFUSES_NULL(magi_dispatch_sharded(NULL, MAGI_SIDE_Q, x, y, NULL), "key");
    REFUSES_NULL(magi_dispatch_sharded(o->key, MAGI_SIDE_Q, NULL, y, NULL), "share");
    REFUSES_NULL(magi_dispatch_sharded(o->key, MAGI_SIDE_Q, x, NULL, NULL), "local_x");
    REFUSES_NULL(magi_undispatch_sharded(NULL, MAGI_SIDE_Q, x, y, NULL), "key");
    REFUSES_NULL(magi_undispatch_sharded(o->key, MAGI_SIDE_Q, NULL, y, NULL), "local_x");
    REFUSES_NULL(magi_undispatch_sharded(o->key, MAGI_SIDE_Q, x, NULL, NULL), "share");
    one_check_untouched(o);
}

// Calls with the pointer at `*field` taken away, and puts it back.
#define WITHOUT(args, field, part)                                                                                     \
    do {                                                                                                               \
        const magi_tensor *kept = (args).field;                                                                        \
        (args).field = NULL;                                                                                           \
        CALL(part);                                                                                                    \
        (args).field = kept;                                                                                           \
    } while (0)

static void forward(one_rank *o) {
    size_t bytes = 0;
    one_poison(o);
    REFUSES_NULL(magi_calc_attn_forward(NULL, &o->forward, NULL), "key");
    REFUSES_NULL(magi_calc_attn_forward(o->key, NULL, NULL), "args");
    REFUSES_NULL(magi_flex_flash_attn_forward(o->mask, NULL, NULL, NULL), "args");
    REFUSES_NULL(magi_flex_flash_attn_forward_workspace_size(NULL, NULL, &bytes), "args");
    REFUSES_NULL(magi_flex_flash_attn_forward_workspace_size(&o->forward, NULL, NULL), "bytes");
#define CALL(part)                                                                                                     \
    REFUSES_NULL(magi_calc_attn_forward(o->key, &o->forward, NULL), part);                                             \
    REFUSES_NULL(magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), part);                                \
    REFUSES_NULL(magi_flex_flash_attn_forward_workspace_size(&o->forward, NULL, &bytes), part)
    WITHOUT(o->forward, q, "args.q");
    WITHOUT(o->forward, k, "args.k");
    WITHOUT(o->forward, v, "args.v");
    WITHOUT(o->forward, out, "args.out");
    magi_tensor *const given[] = {&o->tq, &o->tk, &o->tv, &o->tsink, &o->tout, &o->tlse, &o->tmax};
    const char *const names[] = {"args.q.data is NULL",         "args.k.data is NULL",   "args.v.data is NULL",
                                 "args.sink.data is NULL",      "args.out.data is NULL", "args.lse.data is NULL",
                                 "args.max_logits.data is NULL"};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        void *data = given[i]->data;
        given[i]->data = NULL;
        CHECK_REFUSED(magi_calc_attn_forward(o->key, &o->forward, NULL), MAGI_STATUS_NULL_POINTER, names[i]);
        CHECK_REFUSED(magi_flex_flash_attn_forward(o->mask, &o->forward, NULL, NULL), MAGI_STATUS_NULL_POINTER,
                      names[i]);
        given[i]->data = data;
    }
#undef CALL
    one_check_untouched(o);
}

static void backward(one_rank *o) {
    size_t bytes = 0;
    one_poison(o);
    REFUSES_NULL(magi_calc_attn_backward(NULL, &o->backward, NULL), "key");
    REFUSES_NULL(magi_calc_attn_backward(o->key, NULL, NULL), "args");
    REFUSES_NULL(magi_flex_flash_attn_backward(o->mask, NULL, NULL, NULL), "args");
    REFUSES_NULL(magi_flex_flash_attn_backward_workspace_size(NULL, NULL, &bytes), "args");
    REFUSES_NULL(magi_flex_flash_attn_backward_workspace_size(&o->backward, NULL, NULL), "bytes");
#define CALL(part)                                                                                                     \
    REFUSES_NULL(magi_calc_attn_backward(o->key, &o->backward, NULL), part);                                           \
    REFUSES_NULL(magi_flex_flash_attn_backward(o->mask, &o->backward, NULL, NULL), part)
    WITHOUT(o->backward, q, "args.q");
    WITHOUT(o->backward, k, "args.k");
    WITHOUT(o->backward, v, "args.v");
    WITHOUT(o->backward, out, "args.out");
    WITHOUT(o->backward, lse, "args.lse");
    WITHOUT(o->backward, dout, "args.dout");
    WITHOUT(o->backward, dq, "args.dq");
    WITHOUT(o->backward, dk, "args.dk");
    WITHOUT(o->backward, dv, "args.dv");
    WITHOUT(o->backward, dsink, "args.dsink");
    magi_tensor *const given[] = {&o->tq,    &o->tk,  &o->tv,  &o->tsink, &o->tout,  &o->tlse,
                                  &o->tdout, &o->tdq, &o->tdk, &o->tdv,   &o->tdsink};
    const char *const names[] = {"args.q.data",   "args.k.data",   "args.v.data",    "args.sink.data",
                                 "args.out.data", "args.lse.data", "args.dout.data", "args.dq.data",
                                 "args.dk.data",  "args.dv.data",  "args.dsink.data"};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        void *data = given[i]->data;
        given[i]->data = NULL;
        CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, NULL), MAGI_STATUS_NULL_POINTER, names[i]);
        CHECK_REFUSED(magi_flex_flash_attn_backward(o->mask, &o->backward, NULL, NULL), MAGI_STATUS_NULL_POINTER,
                      names[i]);
        given[i]->data = data;
    }
#undef CALL
    // A gradient without its sink is no NULL, but as wrong.
    o->backward.sink = NULL;
    CHECK_REFUSED(magi_calc_attn_backward(o->key, &o->backward, NULL), MAGI_STATUS_INVALID_ARGUMENT, "args.dsink");
    o->backward.sink = &o->tsink;
    one_check_untouched(o);
}

int main(void) {
    one_rank o;
    CHECK_TEXT(magi_last_error_message(), "");
    one_create(&o);
    handles();
    plain_outputs(&o);
    creators(&o);
    movement(&o);
    forward(&o);
    backward(&o);
    one_check_works(&o);
    one_destroy(&o);
    return 0;
}
