// Several masks on one placement: balanced for all together, one key each, all or none.
#include "ranks.h"

enum { TOKENS = 1024, WORLD = 4, MASKS = 2 };

static int64_t weighted_area(magi_key *const *keys, const int64_t *weights, int32_t rank) {
    int64_t sum = 0;
    for (int i = 0; i < MASKS; i++) {
        magi_rank_stats one;
        one.size = sizeof one;
        CHECK_OK(magi_key_get_rank_stats(keys[i], rank, &one));
        sum += one.area * weights[i];
    }
    return sum;
}

static void same_positions(const magi_key *a, const magi_key *b) {
    int64_t x[TOKENS], y[TOKENS];
    size_t nx = TOKENS, ny = TOKENS;
    CHECK_OK(magi_key_position_ids(a, MAGI_SIDE_Q, x, &nx));
    CHECK_OK(magi_key_position_ids(b, MAGI_SIDE_Q, y, &ny));
    CHECK_INT(nx, ny);
    CHECK(memcmp(x, y, nx * sizeof *x) == 0);
}

static uint64_t hash_of(const magi_key *key) {
    uint64_t hash = 0;
    CHECK_OK(magi_key_hash(key, &hash));
    return hash;
}

// A full and a windowed layer: causal work grows along the sequence, windowed work does not.
static void joint(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)rank;
    static const int64_t weights[MASKS] = {1, 12};
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_mask *window = NULL;
    magi_config config = default_config();
    magi_key *keys[MASKS], *again[MASKS], *last = NULL;
    (void)data;
    CHECK_OK(magi_mask_create_from_sliding_window(TOKENS, TOKENS, 31, 0, 0, &window));
    magi_mask *causal = causal_mask(TOKENS);
    const magi_mask *const masks[MASKS] = {causal, window};
    config.chunk_size = 16;
    CHECK_OK(magi_key_create_joint(comm, masks, weights, MASKS, &shape, &config, keys));
    same_positions(keys[0], keys[1]);
    CHECK(hash_of(keys[0]) != hash_of(keys[1]));
    int64_t most = 0, sum = 0;
    for (int32_t r = 0; r < size; r++) {
        const int64_t area = weighted_area(keys, weights, r);
        most = area > most ? area : most;
        sum += area;
    }
    CHECK((double)most * size / (double)sum < 1.02);
    CHECK_OK(magi_comm_last_key(comm, &last));
    CHECK(hash_of(last) == hash_of(keys[1]));
    magi_key_destroy(last);

    CHECK_OK(magi_key_create_joint(comm, masks, weights, MASKS, &shape, &config, again));
    for (int i = 0; i < MASKS; i++) {
        CHECK(hash_of(keys[i]) == hash_of(again[i]));
        magi_key_destroy(again[i]);
    }
    // Each key computes like any other: what is dispatched for one fits the other.
    int64_t x[TOKENS], local[TOKENS], back[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        x[i] = i * 7;
    }
    magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, TOKENS, 0, 0);
    magi_tensor tl = tensor_of(local, MAGI_DTYPE_I64, 1, tokens_of(keys[0], MAGI_SIDE_Q), 0, 0);
    magi_tensor tb = tensor_of(back, MAGI_DTYPE_I64, 1, TOKENS, 0, 0);
    CHECK_OK(magi_dispatch(keys[0], MAGI_SIDE_Q, &tx, &tl, NULL));
    CHECK_OK(magi_undispatch(keys[1], MAGI_SIDE_Q, &tl, &tb, NULL));
    CHECK(memcmp(x, back, sizeof x) == 0);

    magi_key_destroy(keys[0]);
    magi_key_destroy(keys[1]);
    magi_mask_destroy(causal);
    magi_mask_destroy(window);
}

// Ranks that weigh masks differently place tokens differently, and learn it.
static void mismatch(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    const int64_t weights[MASKS] = {1, rank == 2 ? 1 : 12};
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_mask *window = NULL;
    magi_config config = default_config();
    magi_key *keys[MASKS];
    (void)size;
    (void)data;
    CHECK_OK(magi_mask_create_from_sliding_window(TOKENS, TOKENS, 31, 0, 0, &window));
    magi_mask *causal = causal_mask(TOKENS);
    const magi_mask *const masks[MASKS] = {causal, window};
    config.chunk_size = 16;
    CHECK_OK(magi_key_create_joint(comm, masks, weights, MASKS, &shape, &config, keys));
    for (int i = 0; i < MASKS; i++) {
        CHECK_REFUSED(magi_key_prepare(keys[i], NULL), MAGI_STATUS_PLAN_MISMATCH, "rank 2 compared plan 0x");
        magi_key_destroy(keys[i]);
    }
    magi_mask_destroy(causal);
    magi_mask_destroy(window);
}

// What cannot be placed together makes no key at all.
static void refused(void) {
    magi_comm *comm = NULL;
    magi_key *keys[MASKS] = {NULL, NULL};
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    const int64_t weights[MASKS] = {1, 0}, huge[MASKS] = {INT64_MAX, 1};
    const int64_t heavy[MASKS] = {1, (int64_t)1 << 40};
    CHECK_OK(magi_comm_create_local(1, &comm));
    magi_mask *a = causal_mask(64), *b = causal_mask(65);
    const magi_mask *const equal[MASKS] = {a, a}, *const differ[MASKS] = {a, b}, *const hole[MASKS] = {a, NULL};
    const magi_status argument = MAGI_STATUS_INVALID_ARGUMENT, null = MAGI_STATUS_NULL_POINTER;
    CHECK_REFUSED(magi_key_create_joint(comm, equal, NULL, 0, &shape, NULL, keys), argument, "n is 0; it must be 1 to");
    CHECK_REFUSED(magi_key_create_joint(comm, equal, NULL, 4097, &shape, NULL, keys), argument, "n is 4097");
    CHECK_REFUSED(magi_key_create_joint(comm, differ, NULL, MASKS, &shape, NULL, keys), argument,
                  "masks[1] has totals");
    CHECK_REFUSED(magi_key_create_joint(comm, equal, weights, MASKS, &shape, NULL, keys), argument,
                  "the weight of masks[1] is 0");
    CHECK_REFUSED(magi_key_create_joint(comm, equal, huge, MASKS, &shape, NULL, keys), argument, "2^62");
    CHECK_REFUSED(magi_key_create_joint(comm, equal, heavy, MASKS, &shape, NULL, keys), argument, "2^42");
    CHECK_REFUSED(magi_key_create_joint(NULL, equal, NULL, MASKS, &shape, NULL, keys), null, "comm is NULL");
    CHECK_REFUSED(magi_key_create_joint(comm, NULL, NULL, MASKS, &shape, NULL, keys), null, "masks is NULL");
    CHECK_REFUSED(magi_key_create_joint(comm, hole, NULL, MASKS, &shape, NULL, keys), null, "masks[1] is NULL");
    CHECK_REFUSED(magi_key_create_joint(comm, equal, NULL, MASKS, NULL, NULL, keys), null, "shape is NULL");
    CHECK_REFUSED(magi_key_create_joint(comm, equal, NULL, MASKS, &shape, NULL, NULL), null, "keys is NULL");
    CHECK(keys[0] == NULL && keys[1] == NULL);
    // A mask may be named twice, and no weights are weights of 1.
    CHECK_OK(magi_key_create_joint(comm, equal, NULL, MASKS, &shape, NULL, keys));
    CHECK(keys[0] != keys[1] && hash_of(keys[0]) == hash_of(keys[1]));
    magi_key_destroy(keys[0]);
    magi_key_destroy(keys[1]);
    magi_mask_destroy(a);
    magi_mask_destroy(b);
    magi_comm_destroy(comm);
}

int main(void) {
    run_ranks(WORLD, joint, NULL);
    run_ranks(WORLD, mismatch, NULL);
    refused();
    return 0;
}
