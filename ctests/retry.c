// A collective call that is refused on one rank for its arguments may be repeated while the others wait.
#include "ranks.h"

enum { WORLD = 3, TOKENS = 24 };

static double whole[WORLD][TOKENS * 16];

static void retries(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    double q[TOKENS * 16], k[TOKENS * 8], out[TOKENS * 16], lse[TOKENS * 2];
    uint64_t seed = (uint64_t)rank;
    (void)size;
    magi_mask *mask = causal_mask(TOKENS);
    magi_config config = default_config();
    config.chunk_size = 3;
    config.degree_forward = 1;
    config.sanity_check = 1;
    magi_key *key = small_key(comm, mask, &config);
    const int64_t n = tokens_of(key, MAGI_SIDE_Q);
    for (int i = 0; i < TOKENS * 16; i++) {
        q[i] = k[i / 2] = draw(&seed);
    }
    magi_tensor tq = tensor_of(q, MAGI_DTYPE_F64, 3, n, 2, 8), tk = tensor_of(k, MAGI_DTYPE_F64, 3, n, 1, 8);
    magi_tensor tout = tensor_of(out, MAGI_DTYPE_F64, 3, n, 2, 8), tlse = tensor_of(lse, MAGI_DTYPE_F64, 2, n, 2, 0);
    magi_tensor twhole = tensor_of(whole[rank], MAGI_DTYPE_F64, 3, TOKENS, 2, 8);
    magi_forward_args args = MAGI_FORWARD_ARGS_INIT;
    args.q = &tq;
    args.k = args.v = &tk;
    args.out = &tout;
    args.lse = &tlse;
    memset(out, 0x5a, sizeof out);
    memset(lse, 0x5a, sizeof lse);
    if (data != NULL && rank == 1) {
        char before[sizeof out];
        memcpy(before, out, sizeof out);
        tlse.dtype = MAGI_DTYPE_F32;
        CHECK_REFUSED(magi_calc_attn_forward(key, &args, NULL), MAGI_STATUS_DTYPE_MISMATCH, "args.lse");
        tlse.dtype = MAGI_DTYPE_F64;
        args.out = NULL;
        CHECK_REFUSED(magi_calc_attn_forward(key, &args, NULL), MAGI_STATUS_NULL_POINTER, "args.out");
        args.out = &tout;
        const double kept = k[9];
        k[9] = NAN;
        CHECK_REFUSED(magi_calc_attn_forward(key, &args, NULL), MAGI_STATUS_INVALID_ARGUMENT, "args.k holds a NaN");
        k[9] = kept;
        CHECK(memcmp(before, out, sizeof out) == 0);
        tout.shape[0]--;
        CHECK_REFUSED(magi_undispatch(key, MAGI_SIDE_Q, &tout, &twhole, NULL), MAGI_STATUS_SHAPE_MISMATCH, "local_x");
        tout.shape[0]++;
        CHECK_OK(magi_comm_async_error(comm));
    }
    CHECK_OK(magi_calc_attn_forward(key, &args, NULL));
    CHECK_OK(magi_undispatch(key, MAGI_SIDE_Q, &tout, &twhole, NULL));
    magi_key_destroy(key);
    magi_mask_destroy(mask);
}

int main(void) {
    double first[TOKENS * 16];
    run_ranks(WORLD, retries, NULL);
    memcpy(first, whole[0], sizeof first);
    memset(whole, 0, sizeof whole);
    run_ranks(WORLD, retries, first);
    for (int rank = 0; rank < WORLD; rank++) {
        CHECK(memcmp(first, whole[rank], sizeof first) == 0);
    }
    return 0;
}
