// A rank that fails in the middle of a group collective: a panic poisons its plan, an error ends the communicator, and
// the other ranks learn of either at once: in the same call if they still wait for something, in their next one if the
// failing rank had already sent all that they asked for.
#include "fault.h"
#include "group.h"

enum { RANKS = 4 };

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

// One of `size` ranks, rank 1, fails when it comes to `point` for the time `after`, from 0, with `status`, 0 for a
// panic. `hosts`: 0, or rows go over a mesh of so many. `sent`: its own rows for some of the others are on their way
// already.
static void fails_over(int size, int hosts, const char *point, uint32_t after, int32_t status, int reduces, int sent) {
    static struct outcome ranks[RANKS];
    magi_comm *comms[RANKS];
    pthread_t threads[RANKS];
    all_to_all g;
    magi_config config = default_config();
    config.hierarchical_comm = hosts > 0;
    CHECK_OK(magi_comm_create_local(size, comms));
    all_to_all_init(&g, size, MAGI_DTYPE_F64);
    for (int i = 0; i < size; i++) {
        if (hosts > 0) {
            CHECK_OK(magi_comm_set_mesh(comms[i], hosts, size / hosts));
        }
        CHECK_OK(magi_group_plan_create(comms[i], &g.args, &config, &ranks[i].plan));
        ranks[i].reduces = reduces;
        group_memory_init(&ranks[i].m, i, size);
    }
    CHECK_OK(magi_test_fault_set(point, 1, status, after));
    const double start = now_ms();
    for (int i = 0; i < size; i++) {
        threads[i] = start_thread(calls, &ranks[i]);
    }
    for (int i = 0; i < size; i++) {
        join_thread(threads[i]);
    }
    CHECK(now_ms() - start < 60000);
    magi_test_fault_clear();
    for (int i = 0; i < size; i++) {
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

static void fails(const char *point, int32_t status, int reduces) {
    fails_over(3, 0, point, 0, status, reduces, strcmp(point, "comm.finish") == 0);
}

int main(void) {
    fails("group_cast", 0, 0);
    fails("group_reduce", 0, 1);
    fails("comm.start", 0, 1);
    fails("comm.finish", 0, 0);
    fails("comm.finish", MAGI_STATUS_OUT_OF_MEMORY, 0);
    fails("comm.finish", MAGI_STATUS_OUT_OF_MEMORY, 1);
    // Over a mesh: ranks tell each other what leaves their hosts, and whether they have workspace; a gateway that has
    // taken rows in does not pass them on, or does not send its sums.
    for (int reduces = 0; reduces < 2; reduces++) {
        for (uint32_t gather = 1; gather < 3; gather++) {
            fails_over(4, 2, "comm.all_gather", gather, MAGI_STATUS_OUT_OF_MEMORY, reduces, 0);
        }
        fails_over(4, 2, "comm.start", 1, MAGI_STATUS_OUT_OF_MEMORY, reduces, 1);
        fails_over(4, 2, "comm.start", 1, 0, reduces, 1);
        fails_over(4, 2, "comm.finish", 1, MAGI_STATUS_OUT_OF_MEMORY, reduces, 1);
    }
    return 0;
}
