// One call at a time on a communicator: a second one is refused while a rank waits, and changes nothing for it.
#include "ranks.h"

int main(void) {
    magi_comm *comms[2];
    CHECK_OK(magi_comm_create_local(2, comms));
    magi_mask *mask = causal_mask(32);
    magi_key *key = small_key(comms[0], mask, NULL), *other = small_key(comms[0], mask, NULL);
    magi_key *peer = small_key(comms[1], mask, NULL);
    struct waiting_rank waiting;
    start_waiting(&waiting, comms[0], key, mask);

    const magi_status busy = MAGI_STATUS_HANDLE_BUSY;
    const char *part = "another call on this communicator, its keys or its group plans is running";
    int64_t x[32], local[32];
    const int64_t n = tokens_of(key, MAGI_SIDE_Q); // queries of a key are for any thread at any time
    memset(local, 0x5a, sizeof local);
    memset(x, 0, sizeof x);
    magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, 32, 0, 0), tl = tensor_of(local, MAGI_DTYPE_I64, 1, n, 0, 0);
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_key *made = NULL;
    CHECK_REFUSED(magi_key_prepare(key, NULL), busy, part);
    CHECK_REFUSED(magi_key_prepare(other, NULL), busy, part);
    CHECK_REFUSED(magi_dispatch(key, MAGI_SIDE_Q, &tx, &tl, NULL), busy, part);
    CHECK_REFUSED(magi_undispatch_backward(other, MAGI_SIDE_Q, &tx, 0, &tl, NULL), busy, part);
    CHECK_REFUSED(magi_undispatch(key, MAGI_SIDE_Q, &tl, &tx, NULL), busy, part);
    CHECK_REFUSED(magi_key_create(comms[0], mask, &shape, NULL, &made), busy, part);
    CHECK(made == NULL && x[0] == 0);
    CHECK_INT(local[0], 0x5a5a5a5a5a5a5a5a);
    CHECK_OK(magi_comm_async_error(comms[0]));

    // The peer comes, both are done, and what was refused works.
    CHECK_OK(magi_key_prepare(peer, NULL));
    join_thread(waiting.thread);
    CHECK_INT(waiting.status, MAGI_STATUS_OK);
    CHECK_OK(magi_dispatch(key, MAGI_SIDE_Q, &tx, &tl, NULL));
    CHECK_INT(local[0], 0);
    CHECK_OK(magi_key_create(comms[0], mask, &shape, NULL, &made));
    magi_key_destroy(made);
    magi_key_destroy(key);
    magi_key_destroy(other);
    magi_key_destroy(peer);
    magi_mask_destroy(mask);
    magi_comm_destroy(comms[0]);
    magi_comm_destroy(comms[1]);
    return 0;
}
