// A rank is its handle, not a thread: forward on one thread, backward on another, masks shared by many, messages of
// each thread its own, and calls from a thread that is ending.
#include "one.h"

static void *forward(void *data) {
    one_rank *o = (one_rank *)data;
    CHECK_OK(magi_calc_attn_forward(o->key, &o->forward, NULL));
    return NULL;
}

static void *backward(void *data) {
    one_rank *o = (one_rank *)data;
    CHECK_OK(magi_calc_attn_backward(o->key, &o->backward, NULL));
    return NULL;
}

static void *ask(void *data) {
    const magi_mask *mask = (const magi_mask *)data;
    for (int i = 0; i < 200; i++) {
        magi_slice slices[4];
        size_t count = 4;
        int64_t area = 0;
        CHECK_OK(magi_mask_area(mask, &area));
        CHECK_INT(area, ONE_TOKENS * (ONE_TOKENS + 1) / 2);
        CHECK_OK(magi_mask_slices(mask, slices, &count));
        CHECK_INT(count, 1);
        CHECK_REFUSED(magi_mask_area(mask, NULL), MAGI_STATUS_NULL_POINTER, "area is NULL");
    }
    return NULL;
}

static void *fails(void *data) {
    (void)data;
    CHECK_REFUSED(magi_mask_area(NULL, NULL), MAGI_STATUS_NULL_POINTER, "is NULL");
    return NULL;
}

static pthread_key_t at_exit;
static int ended;

// Runs when the thread's own variables may be gone already.
static void end_of_thread(void *data) {
    CHECK_INT(magi_comm_rank(NULL, NULL), MAGI_STATUS_NULL_POINTER);
    CHECK(magi_last_error_message() != NULL);
    magi_key_destroy((magi_key *)data);
    ended++;
}

static void *ends(void *data) {
    CHECK(pthread_setspecific(at_exit, data) == 0);
    fails(NULL);
    return NULL;
}

int main(void) {
    one_rank o;
    pthread_t threads[8];
    struct one_outputs kept;
    one_create(&o);
    one_check_works(&o);
    kept = o.outputs;
    one_poison(&o);
    join_thread(start_thread(forward, &o));
    join_thread(start_thread(backward, &o));
    CHECK(memcmp(kept.out, o.outputs.out, sizeof kept.out) == 0);
    CHECK(memcmp(kept.dq, o.outputs.dq, sizeof kept.dq) == 0);
    CHECK(memcmp(kept.dk, o.outputs.dk, sizeof kept.dk) == 0);

    for (int i = 0; i < 8; i++) {
        threads[i] = start_thread(ask, o.mask);
    }
    for (int i = 0; i < 8; i++) {
        join_thread(threads[i]);
    }
    CHECK_REFUSED(magi_comm_set_timeout(o.comm, 0), MAGI_STATUS_INVALID_ARGUMENT, "milliseconds is 0");
    join_thread(start_thread(fails, NULL));
    CHECK_HAS(magi_last_error_message(), "milliseconds is 0");

    CHECK(pthread_key_create(&at_exit, end_of_thread) == 0);
    join_thread(start_thread(ends, small_key(o.comm, o.mask, NULL)));
    CHECK_INT(ended, 1);
    one_destroy(&o);
    return 0;
}
