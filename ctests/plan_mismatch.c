// Ranks that do not mean the same plan all learn it before anything moves, and can go on with one that matches.
#include "ranks.h"

enum { MOST_RANKS = 8 };

typedef struct {
    int64_t tokens;
    int32_t degree, heads;
    int64_t chunk;
} request;

// What the odd rank asks for; the others ask for the first.
static const request requests[] = {{40, 1, 2, 4}, {41, 1, 2, 4}, {40, 2, 2, 4}, {40, 1, 4, 4}, {40, 1, 2, 5}};

static magi_key *requested(const magi_comm *comm, const request *r) {
    magi_mask *mask = causal_mask(r->tokens);
    const magi_attn_shape shape = shape_of(r->heads, 1, 8, 8, MAGI_DTYPE_F64);
    magi_config config = default_config();
    magi_key *key = NULL;
    config.degree_forward = r->degree;
    config.degree_backward = 1;
    config.chunk_size = r->chunk;
    CHECK_OK(magi_key_create(comm, mask, &shape, &config, &key));
    magi_mask_destroy(mask);
    return key;
}

// The message names this rank's hash, the odd rank, and all others together.
static void check_mismatch(const magi_key *key, int32_t odd, int32_t size) {
    uint64_t hash = 0;
    char part[96], *end = part;
    CHECK_OK(magi_key_hash(key, &hash));
    CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_PLAN_MISMATCH, "ranks disagree on the plan");
    snprintf(part, sizeof part, "rank %d compared plan 0x", (int)odd);
    CHECK_HAS(magi_last_error_message(), part);
    snprintf(part, sizeof part, "%016llx", (unsigned long long)hash);
    CHECK_HAS(magi_last_error_message(), part);
    end += snprintf(end, sizeof part, size == 2 ? "rank" : "ranks");
    for (int32_t r = 0, listed = 0; r < size; r++) {
        if (r != odd) {
            end += snprintf(end, sizeof part - (size_t)(end - part), listed++ == 0 ? " %d" : ", %d", (int)r);
        }
    }
    snprintf(end, sizeof part - (size_t)(end - part), " compared plan 0x");
    CHECK_HAS(magi_last_error_message(), part);
}

static void plans(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    magi_key *common = requested(comm, &requests[0]);
    for (size_t i = 1; i < sizeof requests / sizeof *requests; i++) {
        const int32_t odd = (int32_t)i % size;
        magi_key *key = requested(comm, &requests[rank == odd ? i : 0]);
        check_mismatch(key, odd, size);
        CHECK_OK(magi_comm_async_error(comm));
        magi_key_destroy(key);
    }
    // The first collective call on a key compares too, and leaves its output alone.
    int64_t x[41], local[41];
    magi_key *key = requested(comm, &requests[rank == 1 ? 1 : 0]);
    const int64_t total = rank == 1 ? 41 : 40, n = tokens_of(key, MAGI_SIDE_Q);
    memset(x, 0x5a, sizeof x);
    memset(local, 0, sizeof local);
    magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, total, 0, 0), tl = tensor_of(local, MAGI_DTYPE_I64, 1, n, 0, 0);
    CHECK_REFUSED(magi_undispatch(key, MAGI_SIDE_Q, &tl, &tx, NULL), MAGI_STATUS_PLAN_MISMATCH, "rank 1");
    for (int i = 0; i < 41; i++) {
        CHECK_INT(x[i], 0x5a5a5a5a5a5a5a5a);
    }
    magi_key_destroy(key);
    CHECK_OK(magi_key_prepare(common, NULL));
    magi_key_destroy(common);
}

// The same keys in another order are another plan at the same call; the communicator stays good.
static void orders(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    magi_key *a = requested(comm, &requests[0]), *b = requested(comm, &requests[1]);
    CHECK_REFUSED(magi_key_prepare(rank == 0 ? a : b, NULL), MAGI_STATUS_PLAN_MISMATCH, "order of calls");
    CHECK_REFUSED(magi_key_prepare(rank == 0 ? b : a, NULL), MAGI_STATUS_PLAN_MISMATCH, "as number 2");
    CHECK_OK(magi_key_prepare(a, NULL));
    CHECK_OK(magi_key_prepare(b, NULL));
    magi_key_destroy(a);
    magi_key_destroy(b);
    // Calls of two kinds, on keys that nobody prepared: neither writes anything.
    a = requested(comm, &requests[2]), b = requested(comm, &requests[4]);
    int64_t x[40], local[40];
    memset(x, 0x5a, sizeof x);
    memset(local, 0x5a, sizeof local);
    const int gathers = rank == size - 1;
    const magi_key *key = gathers ? a : b;
    magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, 40, 0, 0);
    magi_tensor tl = tensor_of(local, MAGI_DTYPE_I64, 1, tokens_of(key, MAGI_SIDE_Q), 0, 0);
    magi_tensor ty = tensor_of(x, MAGI_DTYPE_I64, 1, tokens_of(key, MAGI_SIDE_Q), 0, 0);
    const magi_status mismatch = MAGI_STATUS_PLAN_MISMATCH;
    if (gathers) {
        CHECK_REFUSED(magi_undispatch(a, MAGI_SIDE_Q, &tl, &tx, NULL), mismatch, "order of calls");
    } else {
        CHECK_REFUSED(magi_roll(b, MAGI_SIDE_Q, &tl, 1, -1, &ty, NULL), mismatch, "order of calls");
    }
    for (int i = 0; i < 40; i++) {
        CHECK_INT(x[i], 0x5a5a5a5a5a5a5a5a);
    }
    CHECK_OK(magi_comm_async_error(comm));
    CHECK_OK(magi_key_prepare(b, NULL));
    magi_key_destroy(a);
    magi_key_destroy(b);
}

int main(void) {
    for (int32_t size = 2; size <= MOST_RANKS; size++) {
        run_ranks(size, plans, NULL);
        run_ranks(size, orders, NULL);
    }
    return 0;
}
