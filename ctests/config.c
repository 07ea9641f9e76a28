// Settings of a key and the attention shape: defaults, limits, and what is refused.
#include "ranks.h"

static void defaults(void) {
    magi_config c;
    memset(&c, 0x5a, sizeof c);
    CHECK_OK(magi_config_init(&c, sizeof c));
    CHECK_INT(c.size, sizeof c);
    CHECK_INT(c.chunk_size, 0);
    CHECK_INT(c.min_chunks_per_rank, 8);
    CHECK_INT(c.cache_size, 100);
    CHECK_INT(c.placement, MAGI_PLACEMENT_BALANCED);
    CHECK_INT(c.effort, MAGI_EFFORT_FAST);
    CHECK_INT(c.balance_slack, 9);
    CHECK_INT(c.top_percent, 50);
    CHECK(c.forward_gflops[1] > 0 && c.backward_gflops[1] > 0 && c.link_mb_per_s > 0);
    CHECK_INT(c.degree_forward, -1);
    CHECK_INT(c.degree_backward, -1);
    CHECK_INT(c.bwd_hide_tail_reduce, -1);
    CHECK_INT(c.dsink_reduce, MAGI_DSINK_REDUCE_NONE);
    CHECK_INT(c.backward_high_precision_reduce, 0);
    CHECK_INT(c.sanity_check, 0);
    CHECK_INT(c.hierarchical_comm, 0);
    CHECK_INT(c.qo_comm, 0);
    CHECK_INT(c.forward_high_precision_reduce, 0);
    CHECK_INT(c.backend, MAGI_BACKEND_DEFAULT);
    CHECK_INT(c.deterministic, 0);
    CHECK_INT(c.forward_sm_margin, -1);
    CHECK_INT(c.backward_sm_margin, -1);
    CHECK(c.alloc == NULL && c.free == NULL && c.userdata == NULL);
}

static void *no_alloc(size_t bytes, void *userdata) {
    (void)bytes;
    (void)userdata;
    return NULL;
}

static void limits(const magi_comm *comm, const magi_mask *mask) {
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_key *key = NULL;
    magi_config c;
#define SET(field, value, part)                                                                                        \
    c = default_config();                                                                                              \
    c.field = value;                                                                                                   \
    CHECK_REFUSED(magi_key_create(comm, mask, &shape, &c, &key), MAGI_STATUS_INVALID_ARGUMENT, part)
    SET(chunk_size, -1, "config.chunk_size is -1");
    SET(chunk_size, ((int64_t)1 << 31) + 1, "config.chunk_size is 2147483649");
    SET(min_chunks_per_rank, 0, "config.min_chunks_per_rank is 0; it must be 1 to 4096");
    SET(min_chunks_per_rank, 4097, "config.min_chunks_per_rank is 4097");
    SET(cache_size, -1, "config.cache_size is -1");
    SET(cache_size, 1000001, "config.cache_size is 1000001");
    SET(degree_forward, -2, "config.degree_forward is -2; it must be");
    SET(degree_forward, 9, "config.degree_forward is 9");
    SET(degree_backward, 9, "config.degree_backward is 9");
    SET(backward_high_precision_reduce, 2, "config.backward_high_precision_reduce is 2; it must be 0 or 1");
    SET(sanity_check, -1, "config.sanity_check is -1");
    SET(hierarchical_comm, 3, "config.hierarchical_comm is 3; it must be 0 or 1");
    SET(qo_comm, 2, "config.qo_comm is 2; it must be 0 or 1");
    SET(forward_high_precision_reduce, -1, "config.forward_high_precision_reduce is -1; it must be 0 or 1");
    SET(deterministic, 2, "config.deterministic is 2; it must be 0 or 1");
    SET(forward_sm_margin, -2, "config.forward_sm_margin is -2; it must be -1 (the default) or 0 to 1024");
    SET(backward_sm_margin, 1025, "config.backward_sm_margin is 1025");
    SET(alloc, no_alloc, "config.alloc and config.free must both be set");
#undef SET
    c = default_config();
    c.backend = 3;
    CHECK_REFUSED(magi_key_create(comm, mask, &shape, &c, &key), MAGI_STATUS_INVALID_ENUM,
                  "config.backend is 3; it must be");
    c.backend = MAGI_BACKEND_FFA;
    CHECK_REFUSED(magi_key_create(comm, mask, &shape, &c, &key), MAGI_STATUS_NOT_SUPPORTED,
                  "config.backend ffa: the fast kernels need a CUDA device");
    CHECK(key == NULL);
    c = default_config();
    c.chunk_size = 3;
    c.degree_forward = c.degree_backward = 8;
    c.min_chunks_per_rank = 4096;
    c.cache_size = 1000000;
    c.sanity_check = c.backward_high_precision_reduce = 1;
    c.backend = MAGI_BACKEND_SDPA;
    c.deterministic = 1;
    c.forward_sm_margin = c.backward_sm_margin = 1024;
    c.placement = MAGI_PLACEMENT_SEQUENTIAL;
    c.bwd_hide_tail_reduce = 2;
    CHECK_OK(magi_key_create(comm, mask, &shape, &c, &key));
    magi_key_stats stats;
    stats.size = sizeof stats;
    CHECK_OK(magi_key_get_stats(key, &stats));
    CHECK_INT(stats.chunk_size, 3);
    magi_key_destroy(key);
}

static void shapes(const magi_comm *comm, const magi_mask *mask) {
    magi_key *key = NULL;
    magi_attn_shape s;
#define SHAPE(hq, hkv, d, dv, dtype, status, part)                                                                     \
    s = shape_of(hq, hkv, d, dv, dtype);                                                                               \
    CHECK_REFUSED(magi_key_create(comm, mask, &s, NULL, &key), status, part)
    const magi_status status = MAGI_STATUS_INVALID_ARGUMENT;
    SHAPE(0, 1, 8, 8, MAGI_DTYPE_F64, status, "shape.heads_q is 0; it must be 1 to 65536");
    SHAPE(65537, 1, 8, 8, MAGI_DTYPE_F64, status, "shape.heads_q is 65537");
    SHAPE(4, 3, 8, 8, MAGI_DTYPE_F64, status, "shape.heads_kv is 3; it must be a positive divisor of heads_q (4)");
    SHAPE(4, 0, 8, 8, MAGI_DTYPE_F64, status, "shape.heads_kv is 0");
    SHAPE(4, -4, 8, 8, MAGI_DTYPE_F64, status, "shape.heads_kv is -4");
    SHAPE(4, 2, 7, 8, MAGI_DTYPE_F64, status, "shape.head_dim is 7; it must be 8 to 1024");
    SHAPE(4, 2, 8, 1025, MAGI_DTYPE_F64, status, "shape.head_dim_v is 1025");
    SHAPE(4, 2, 8, 8, MAGI_DTYPE_I64, MAGI_STATUS_DTYPE_MISMATCH, "dtype is i64; it must be f64, f32, bf16 or f16");
#undef SHAPE
    s = shape_of(4, 2, 8, 8, MAGI_DTYPE_F64);
    s.reserved = 1;
    CHECK_REFUSED(magi_key_create(comm, mask, &s, NULL, &key), status, "shape.reserved is 1; it must be 0");
    CHECK(key == NULL);
}

int main(void) {
    magi_comm *comms[64];
    defaults();
    CHECK_OK(magi_comm_create_local(1, comms));
    magi_mask *mask = causal_mask(16);
    limits(comms[0], mask);
    shapes(comms[0], mask);
    magi_mask_destroy(mask);

    CHECK_REFUSED(magi_comm_set_timeout(comms[0], 0), MAGI_STATUS_INVALID_ARGUMENT, "milliseconds is 0");
    CHECK_REFUSED(magi_comm_set_timeout(comms[0], 86400001), MAGI_STATUS_INVALID_ARGUMENT,
                  "milliseconds is 86400001; it must be 1 to 86400000");
    CHECK_OK(magi_comm_set_timeout(comms[0], 86400000));
    CHECK_REFUSED(magi_comm_set_mesh(comms[0], 0, 1), MAGI_STATUS_INVALID_ARGUMENT, "inter_size is 0");
    CHECK_REFUSED(magi_comm_set_mesh(comms[0], 1, -1), MAGI_STATUS_INVALID_ARGUMENT, "intra_size is -1");
    CHECK_REFUSED(magi_comm_set_mesh(comms[0], 1, 2), MAGI_STATUS_INVALID_ARGUMENT,
                  "inter_size 1 times intra_size 2 must be the number of ranks, 1");
    CHECK_OK(magi_comm_set_mesh(comms[0], 1, 1));
    magi_comm_destroy(comms[0]);

    CHECK_REFUSED(magi_comm_create_local(0, comms), MAGI_STATUS_INVALID_ARGUMENT, "world_size is 0");
    CHECK_REFUSED(magi_comm_create_local(65, comms), MAGI_STATUS_INVALID_ARGUMENT, "world_size is 65");
    CHECK_OK(magi_comm_create_local(64, comms));
    for (int i = 0; i < 64; i++) {
        int32_t rank = -1;
        CHECK_OK(magi_comm_rank(comms[i], &rank));
        CHECK_INT(rank, i);
        CHECK_OK(magi_comm_async_error(comms[i]));
        magi_comm_destroy(comms[i]);
    }
    return 0;
}
