// A rank that never shows up: whoever waits for it gets a timeout that names it, and the communicator is finished.
#include "ranks.h"

int main(void) {
    magi_comm *comms[3];
    CHECK_OK(magi_comm_create_local(3, comms));
    magi_mask *mask = causal_mask(32);
    magi_key *keys[3];
    for (int i = 0; i < 3; i++) {
        keys[i] = small_key(comms[i], mask, NULL);
    }
    CHECK_OK(magi_comm_set_timeout(comms[0], 100));
    struct waiting_rank peer;
    start_waiting(&peer, comms[1], keys[1], mask);
    const double start = now_ms();
    CHECK_REFUSED(magi_key_prepare(keys[0], NULL), MAGI_STATUS_TIMEOUT, "rank 0 waited 100ms for rank 2");
    const double waited = now_ms() - start;
    CHECK(waited >= 99 && waited < 20000);

    // The rank that waited with it is woken, without waiting for its own timeout.
    join_thread(peer.thread);
    CHECK_INT(peer.status, MAGI_STATUS_COMM_FAILED);
    CHECK_HAS(peer.message, "rank 0 waited 100ms for rank 2");

    // Everybody learns of it, the late one too, from then on and in every call.
    CHECK_REFUSED(magi_comm_async_error(comms[0]), MAGI_STATUS_TIMEOUT, "rank 2");
    CHECK_REFUSED(magi_comm_async_error(comms[2]), MAGI_STATUS_COMM_FAILED, "rank 0 waited");
    CHECK_REFUSED(magi_key_prepare(keys[2], NULL), MAGI_STATUS_COMM_FAILED, "rank 0 waited");
    CHECK_REFUSED(magi_key_prepare(keys[0], NULL), MAGI_STATUS_TIMEOUT, "rank 2");
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_key *made = NULL;
    CHECK_REFUSED(magi_key_create(comms[2], mask, &shape, NULL, &made), MAGI_STATUS_COMM_FAILED, "rank 0 waited");
    CHECK_OK(magi_comm_abort(comms[1], "too late to matter"));
    CHECK_REFUSED(magi_comm_async_error(comms[1]), MAGI_STATUS_COMM_FAILED, "rank 0 waited");
    for (int i = 0; i < 3; i++) {
        magi_key_destroy(keys[i]);
        magi_comm_destroy(comms[i]);
    }

    // A new communicator in the same process goes on.
    CHECK_OK(magi_comm_create_local(1, comms));
    keys[0] = small_key(comms[0], mask, NULL);
    CHECK_OK(magi_key_prepare(keys[0], NULL));
    magi_key_destroy(keys[0]);
    magi_comm_destroy(comms[0]);
    magi_mask_destroy(mask);
    return 0;
}
