// Memory that runs out inside the library: before anything moves the call may be repeated; in the middle of a
// collective call the communicator ends, rather than ranks going on out of step.
#include "fault.h"

enum { WORLD = 3, TOKENS = 24 };

static magi_key *key_of(magi_comm *comm) {
    magi_mask *mask = causal_mask(TOKENS);
    magi_config config = default_config();
    config.chunk_size = 2;
    config.degree_forward = config.degree_backward = 3;
    magi_key *key = small_key(comm, mask, &config);
    magi_mask_destroy(mask);
    return key;
}

// The system has no workspace for rank 0.
static void no_workspace(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)size;
    (void)data;
    magi_key *key = key_of(comm);
    CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_OUT_OF_MEMORY,
                  rank == 0 ? "failure asked for at arena.reserve on rank 0" : "rank 0 could not take its workspace");
    if (rank == 0) {
        magi_test_fault_clear();
    }
    CHECK_OK(magi_key_prepare(key, NULL));
    magi_key_destroy(key);
}

// Rank 0 has no memory for what it would tell the others, who wait until it asks again.
static void no_word(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)size;
    (void)data;
    magi_key *key = key_of(comm);
    if (rank == 0) {
        CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_OUT_OF_MEMORY, "comm.all_gather on rank 0");
        magi_test_fault_clear();
    }
    CHECK_OK(magi_key_prepare(key, NULL));
    magi_key_destroy(key);
}

static int32_t statuses[WORLD];
static pthread_barrier_t prepared;

// Rank 1 cannot start its second exchange, after the first has begun.
static int32_t no_message(magi_comm *comm, int32_t rank, void *userdata) {
    double q[TOKENS * 16], k[TOKENS * 8], out[TOKENS * 16];
    (void)userdata;
    magi_key *key = key_of(comm);
    CHECK_OK(magi_key_prepare(key, NULL));
    pthread_barrier_wait(&prepared); // what fails below is not to reach a rank that still prepares
    const int64_t n = tokens_of(key, MAGI_SIDE_Q);
    memset(q, 0, sizeof q);
    memset(k, 0, sizeof k);
    magi_tensor tq = tensor_of(q, MAGI_DTYPE_F64, 3, n, 2, 8), tk = tensor_of(k, MAGI_DTYPE_F64, 3, n, 1, 8);
    magi_tensor tout = tensor_of(out, MAGI_DTYPE_F64, 3, n, 2, 8);
    magi_forward_args args = MAGI_FORWARD_ARGS_INIT;
    args.q = &tq;
    args.k = args.v = &tk;
    args.out = &tout;
    statuses[rank] = magi_calc_attn_forward(key, &args, NULL);
    CHECK_INT(statuses[rank], MAGI_STATUS_COMM_FAILED);
    CHECK_HAS(magi_last_error_message(), "failure asked for at comm.start on rank 1");
    CHECK_REFUSED(magi_comm_async_error(comm), MAGI_STATUS_COMM_FAILED, "rank 1");
    CHECK_REFUSED(magi_calc_attn_forward(key, &args, NULL), MAGI_STATUS_COMM_FAILED, "rank 1");
    magi_key_destroy(key);
    return statuses[rank];
}

int main(void) {
    CHECK_OK(magi_test_fault_set("arena.reserve", 0, MAGI_STATUS_OUT_OF_MEMORY, 0));
    run_ranks(WORLD, no_workspace, NULL);
    CHECK_OK(magi_test_fault_set("comm.all_gather", 0, MAGI_STATUS_OUT_OF_MEMORY, 0));
    run_ranks(WORLD, no_word, NULL);
    CHECK(pthread_barrier_init(&prepared, NULL, WORLD) == 0);
    CHECK_OK(magi_test_fault_set("comm.start", 1, MAGI_STATUS_OUT_OF_MEMORY, 1));
    const double start = now_ms();
    CHECK_REFUSED(magi_local_run(WORLD, no_message, NULL), MAGI_STATUS_COMM_FAILED, "comm.start on rank 1");
    CHECK(now_ms() - start < 60000); // nobody waited for a timeout
    magi_test_fault_clear();
    pthread_barrier_destroy(&prepared);
    return 0;
}
