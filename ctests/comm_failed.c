// A rank that fails, or leaves while others wait for it: they get MAGI_STATUS_COMM_FAILED at once, naming it.
#include "ranks.h"

static int32_t seen;
static char message[512];

static void wait_for_the_others(magi_comm *comm, const char *part) {
    magi_mask *mask = causal_mask(32);
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_key *key = NULL;
    // The other rank may have failed before this one plans, while it plans, or while it waits.
    seen = magi_key_create(comm, mask, &shape, NULL, &key);
    if (seen == MAGI_STATUS_OK) {
        seen = magi_key_prepare(key, NULL);
    }
    snprintf(message, sizeof message, "%s", magi_last_error_message());
    CHECK_HAS(message, part);
    magi_key_destroy(key);
    magi_mask_destroy(mask);
}

static int32_t one_returns_an_error(magi_comm *comm, int32_t rank, void *userdata) {
    (void)userdata;
    if (rank == 1) {
        return MAGI_STATUS_RESOURCE_EXHAUSTED; // of its own, with no message of the library
    }
    wait_for_the_others(comm, "rank 1 failed with ResourceExhausted");
    return seen;
}

static int32_t one_fails_in_a_call(magi_comm *comm, int32_t rank, void *userdata) {
    (void)userdata;
    if (rank == 1) {
        return magi_comm_set_timeout(comm, -4);
    }
    wait_for_the_others(comm, "milliseconds is -4");
    return seen;
}

static int32_t one_leaves(magi_comm *comm, int32_t rank, void *userdata) {
    (void)userdata;
    if (rank == 1) {
        return MAGI_STATUS_OK;
    }
    wait_for_the_others(comm, "rank 1 left the communicator");
    return seen;
}

static void one_is_destroyed(void) {
    magi_comm *comms[2];
    struct waiting_rank waiting;
    magi_mask *mask = causal_mask(32);
    CHECK_OK(magi_comm_create_local(2, comms));
    magi_key *key = small_key(comms[0], mask, NULL);
    start_waiting(&waiting, comms[0], key, mask);
    magi_comm_destroy(comms[1]);
    join_thread(waiting.thread);
    CHECK_INT(waiting.status, MAGI_STATUS_COMM_FAILED);
    CHECK_HAS(waiting.message, "magi_key_prepare: rank 1 left the communicator while rank 0 was waiting for it");
    CHECK_REFUSED(magi_comm_async_error(comms[0]), MAGI_STATUS_COMM_FAILED, "rank 1 left");
    magi_key_destroy(key);
    magi_mask_destroy(mask);
    magi_comm_destroy(comms[0]);
}

int main(void) {
    const double start = now_ms();
    CHECK_REFUSED(magi_local_run(2, one_returns_an_error, NULL), MAGI_STATUS_RESOURCE_EXHAUSTED, "rank 1");
    CHECK_INT(seen, MAGI_STATUS_COMM_FAILED);
    CHECK_REFUSED(magi_local_run(2, one_fails_in_a_call, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "rank 1: magi_comm_set_timeout: milliseconds is -4");
    CHECK_INT(seen, MAGI_STATUS_COMM_FAILED);
    CHECK_REFUSED(magi_local_run(2, one_leaves, NULL), MAGI_STATUS_COMM_FAILED,
                  "rank 0: magi_key_prepare: rank 1 left the communicator while rank 0 was ");
    CHECK_INT(seen, MAGI_STATUS_COMM_FAILED);
    one_is_destroyed();
    CHECK(now_ms() - start < 60000); // nobody waited for the timeout of five minutes
    return 0;
}
