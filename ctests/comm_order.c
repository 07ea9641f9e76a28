// Ranks whose collective calls are of different kinds: nobody computes with the other's bytes.
#include "ranks.h"

// Rank 0 gathers tokens, rank 1 compares a second plan, on a communicator where the first is prepared on both.
static int32_t different_calls(magi_comm *comm, int32_t rank, void *userdata) {
    (void)userdata;
    magi_mask *mask = causal_mask(32), *second = causal_mask(33);
    magi_key *key = small_key(comm, mask, NULL), *other = small_key(comm, second, NULL);
    CHECK_OK(magi_key_prepare(key, NULL));
    int32_t status;
    if (rank == 0) {
        int64_t x[32], local[32];
        memset(local, 0, sizeof local);
        magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, 32, 0, 0);
        magi_tensor tl = tensor_of(local, MAGI_DTYPE_I64, 1, tokens_of(key, MAGI_SIDE_Q), 0, 0);
        status = magi_undispatch(key, MAGI_SIDE_Q, &tl, &tx, NULL);
    } else {
        status = magi_key_prepare(other, NULL);
    }
    CHECK_HAS(magi_last_error_message(), "ranks disagree on the order of calls");
    CHECK_INT(magi_comm_async_error(comm), status);
    magi_key_destroy(key);
    magi_key_destroy(other);
    magi_mask_destroy(mask);
    magi_mask_destroy(second);
    return status;
}

int main(void) {
    // Bytes were under way already, so unlike a plan mismatch this ends the communicator.
    CHECK_REFUSED(magi_local_run(2, different_calls, NULL), MAGI_STATUS_COMM_FAILED, "order of calls");
    return 0;
}
