// The operating system refuses a rank its thread: no rank runs, and the call can be repeated.
#include "fault.h"

static int called;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int32_t count(magi_comm *comm, int32_t rank, void *userdata) {
    (void)comm;
    (void)rank;
    (void)userdata;
    pthread_mutex_lock(&lock);
    called++;
    pthread_mutex_unlock(&lock);
    return MAGI_STATUS_OK;
}

int main(void) {
    CHECK_OK(magi_test_fault_set("local.spawn", 2, MAGI_STATUS_RESOURCE_EXHAUSTED, 0));
    CHECK_REFUSED(magi_local_run(4, count, NULL), MAGI_STATUS_RESOURCE_EXHAUSTED, "local.spawn on rank 2");
    CHECK_INT(called, 0);
    magi_test_fault_clear();
    CHECK_OK(magi_local_run(4, count, NULL));
    CHECK_INT(called, 4);
    return 0;
}
