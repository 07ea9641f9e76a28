// magi_comm_abort from another thread wakes every rank that waits, with the reason; it may be called again and again.
#include "ranks.h"

static void abort_while_waiting(const char *reason, const char *part) {
    magi_comm *comms[3];
    magi_key *keys[3];
    struct waiting_rank waiting[2];
    magi_mask *mask = causal_mask(32);
    CHECK_OK(magi_comm_create_local(3, comms));
    for (int i = 0; i < 3; i++) {
        keys[i] = small_key(comms[i], mask, NULL);
    }
    for (int i = 0; i < 2; i++) {
        start_waiting(&waiting[i], comms[i], keys[i], mask);
    }
    const double start = now_ms();
    CHECK_OK(magi_comm_abort(comms[2], reason));
    for (int i = 0; i < 2; i++) {
        join_thread(waiting[i].thread);
        CHECK_INT(waiting[i].status, MAGI_STATUS_ABORTED);
        CHECK_HAS(waiting[i].message, part);
        CHECK_HAS(waiting[i].message, "rank 2 aborted the communicator");
    }
    CHECK(now_ms() - start < 20000);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(magi_comm_abort(comms[i], "again"));
        CHECK_REFUSED(magi_comm_async_error(comms[i]), MAGI_STATUS_ABORTED, part);
        CHECK_REFUSED(magi_key_prepare(keys[i], NULL), MAGI_STATUS_ABORTED, part);
        magi_key_destroy(keys[i]);
        magi_comm_destroy(comms[i]);
    }
    magi_mask_destroy(mask);
}

int main(void) {
    abort_while_waiting("enough is enough", "enough is enough");
    abort_while_waiting(NULL, "no reason given");
    return 0;
}
