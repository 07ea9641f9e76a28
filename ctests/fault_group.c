// A rank that fails in the middle of a group collective: a panic poisons its plan, an error ends the communicator, and
// the other ranks learn of either at once: in the same call if they still wait for something, in their next one if the
// failing rank had already sent all that they asked for.
#include "fault.h"
#include "group.h"

enum { WORLD = 3 };

struct outcome {
    magi_group_plan *plan;
    group_memory m;
    int reduces;
    int32_t status;
    char message[512];
};

static void *calls(void *data) {
    struct outcome *o = (struct outcome *)data;
    o->status = o->reduces ? magi_group_reduce(o->plan, MAGI_GROUP_OP_SUM, o->m.t_received, 0, o->m.t_local, 2, NULL)
                           : magi_group_cast(o->plan, o->m.t_local, o->m.t_received, 2, NULL);
    snprintf(o->message, sizeof o->message, "%s", magi_last_error_message());
    return NULL;
}

// Rank 1 fails at `point` with `status`, 0 for a panic; at "comm.finish" its own rows are on their way already.
static void fails(const char *point, int32_t status, int reduces) {
    static struct outcome ranks[WORLD];
    const int sent = strcmp(point, "comm.finish") == 0;
    magi_comm *comms[WORLD];
    pthread_t threads[WORLD];
    all_to_all g;
    CHECK_OK(magi_comm_create_local(WORLD, comms));
    all_to_all_init(&g, WORLD, MAGI_DTYPE_F64);
    for (int i = 0; i < WORLD; i++) {
        ranks[i].plan = plan_of(comms[i], &g.args);
        ranks[i].reduces = reduces;
        group_memory_init(&ranks[i].m, i, WORLD);
    }
    CHECK_OK(magi_test_fault_set(point, 1, status, 0));
    const double start = now_ms();
    for (int i = 0; i < WORLD; i++) {
        threads[i] = start_thread(calls, &ranks[i]);
    }
    for (int i = 0; i < WORLD; i++) {
        join_thread(threads[i]);
    }
    CHECK(now_ms() - start < 60000);
    magi_test_fault_clear();
    for (int i = 0; i < WORLD; i++) {
        const int panics = i == 1 && status == 0;
        if (i == 1 || !sent || ranks[i].status != MAGI_STATUS_OK) {
            CHECK_INT(ranks[i].status, panics ? MAGI_STATUS_INTERNAL : MAGI_STATUS_COMM_FAILED);
            CHECK_HAS(ranks[i].message, status == 0 ? "panic asked for" : "failure asked for");
        }
        CHECK_REFUSED(magi_group_plan_prepare(ranks[i].plan, NULL),
                      panics ? MAGI_STATUS_POISONED : MAGI_STATUS_COMM_FAILED,
                      panics ? "plan was poisoned by an earlier internal error" : "rank 1");
        magi_group_plan_destroy(ranks[i].plan);
        magi_comm_destroy(comms[i]);
    }
}

int main(void) {
    fails("group_cast", 0, 0);
    fails("group_reduce", 0, 1);
    fails("comm.start", 0, 1);
    fails("comm.finish", 0, 0);
    fails("comm.finish", MAGI_STATUS_OUT_OF_MEMORY, 0);
    fails("comm.finish", MAGI_STATUS_OUT_OF_MEMORY, 1);
    return 0;
}
