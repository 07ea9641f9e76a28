// What ranks of a group do to each other: lists that do not fit, memory that one of them does not get, absence, abort.
#include "group.h"

enum { WORLD = 3 };

// Lists of which one rank's differ, one after the other; the communicator stays good, and nothing is written.
static void mismatch(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    static const char *const parts[] = {"rank 1 sends 3 rows in 1 pieces to rank 0, which expects 4 in 1",
                                        "rank 0 sends 4 rows in 1 pieces to rank 1, which expects 4 in 2",
                                        "rank 0 sends 4 rows in 1 pieces to rank 1, which expects 0 in 0",
                                        "rank 1 has other tensors or flags than rank 0",
                                        "rank 1 has other tensors or flags than rank 0"};
    all_to_all g;
    group_memory m;
    group_memory_init(&m, rank, size);
    const group_memory before = m;
    for (int i = 0; i < 5; i++) {
        all_to_all_init(&g, size, MAGI_DTYPE_F64);
        if (rank == 1 && i == 0) {
            g.sends[0].rows.end = 3;
        } else if (rank == 1 && i == 1) {
            g.receives[0] = piece_of(0, 0, 1);
            g.receives[size] = piece_of(0, 1, GROUP_ROWS);
            g.args.n_receives++;
        } else if (rank == 1 && i == 2) {
            g.args.n_receives = 0;
        } else if (rank == 1 && i == 3) {
            g.tensors[1].row_elements = 3;
        } else if (rank == 1 && i == 4) {
            g.args.flags = 0;
        }
        magi_group_plan *plan = plan_of(comm, &g.args);
        CHECK_REFUSED(magi_group_plan_prepare(plan, NULL), MAGI_STATUS_PLAN_MISMATCH, parts[i]);
        if (i != 3) { // the first call compares too
            CHECK_REFUSED(magi_group_cast(plan, m.t_local, m.t_received, 2, NULL), MAGI_STATUS_PLAN_MISMATCH, parts[i]);
        }
        CHECK_OK(magi_comm_async_error(comm));
        magi_group_plan_destroy(plan);
    }
    CHECK(memcmp(m.received, before.received, sizeof m.received) == 0);
    all_to_all_init(&g, size, MAGI_DTYPE_F64);
    magi_group_plan *plan = plan_of(comm, &g.args);
    CHECK_OK(magi_group_cast(plan, m.t_local, m.t_received, 2, NULL));
    group_check_received(&m, size);
    magi_group_plan_destroy(plan);
}

// A plan of tokens on one rank and a group on another: calls are out of step, which ends the communicator.
static void out_of_step(void) {
    magi_comm *comms[2];
    CHECK_OK(magi_comm_create_local(2, comms));
    magi_mask *mask = causal_mask(16);
    magi_key *key = small_key(comms[0], mask, NULL);
    all_to_all g;
    all_to_all_init(&g, 2, MAGI_DTYPE_F64);
    magi_group_plan *plan = plan_of(comms[1], &g.args);
    struct waiting_rank waiting;
    start_waiting(&waiting, comms[0], key, mask);
    CHECK_REFUSED(magi_group_plan_prepare(plan, NULL), MAGI_STATUS_COMM_FAILED, "compare");
    join_thread(waiting.thread);
    CHECK_INT(waiting.status, MAGI_STATUS_COMM_FAILED);
    magi_key_destroy(key);
    magi_group_plan_destroy(plan);
    magi_mask_destroy(mask);
    magi_comm_destroy(comms[0]);
    magi_comm_destroy(comms[1]);
}

static void *no_memory(size_t bytes, void *userdata) {
    (void)bytes;
    ++*(int *)userdata;
    return NULL;
}

static void frees_nothing(void *pointer, size_t bytes, void *userdata) {
    (void)bytes;
    (void)userdata;
    CHECK(pointer == NULL);
}

// The allocator of rank 2 has nothing: every rank gets it, with a communicator that is still good.
static void out_of_memory(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    int calls = 0;
    all_to_all g;
    magi_config config = default_config();
    config.alloc = rank == 2 ? no_memory : NULL;
    config.free = rank == 2 ? frees_nothing : NULL;
    config.userdata = &calls;
    all_to_all_init(&g, size, MAGI_DTYPE_F64);
    magi_group_plan *plan = NULL;
    CHECK_OK(magi_group_plan_create(comm, &g.args, &config, &plan));
    CHECK_REFUSED(magi_group_plan_prepare(plan, NULL), MAGI_STATUS_OUT_OF_MEMORY,
                  rank == 2 ? "was refused by the caller's allocator" : "rank 2 could not take its workspace");
    CHECK_INT(calls, rank == 2);
    magi_group_plan_destroy(plan);
    plan = plan_of(comm, &g.args);
    CHECK_OK(magi_group_plan_prepare(plan, NULL));
    magi_group_plan_destroy(plan);
}

struct caller {
    magi_comm *comm;
    magi_group_plan *plan;
    group_memory m;
    int32_t status;
    char message[512];
};

static void *casts(void *data) {
    struct caller *c = (struct caller *)data;
    c->status = magi_group_cast(c->plan, c->m.t_local, c->m.t_received, 2, NULL);
    snprintf(c->message, sizeof c->message, "%s", magi_last_error_message());
    return NULL;
}

// Ranks 0 and 1 wait for rank 2 in the middle of a call, which then aborts or never comes.
static void absent(int aborts) {
    static struct caller callers[WORLD];
    magi_comm *comms[WORLD];
    pthread_t threads[WORLD];
    all_to_all g;
    CHECK_OK(magi_comm_create_local(WORLD, comms));
    all_to_all_init(&g, WORLD, MAGI_DTYPE_F64);
    for (int i = 0; i < WORLD; i++) {
        callers[i].comm = comms[i];
        callers[i].plan = plan_of(comms[i], &g.args);
        group_memory_init(&callers[i].m, i, WORLD);
    }
    for (int i = 0; i < WORLD; i++) { // once together, so that plans are compared
        threads[i] = start_thread(casts, &callers[i]);
    }
    for (int i = 0; i < WORLD; i++) {
        join_thread(threads[i]);
        CHECK_INT(callers[i].status, MAGI_STATUS_OK);
    }
    CHECK_OK(magi_comm_set_timeout(comms[0], aborts ? 60000 : 100));
    const double start = now_ms();
    threads[0] = start_thread(casts, &callers[0]);
    threads[1] = start_thread(casts, &callers[1]);
    if (aborts) {
        sleep_ms(50);
        CHECK_OK(magi_comm_abort(comms[2], "enough"));
    }
    for (int i = 0; i < 2; i++) {
        join_thread(threads[i]);
    }
    CHECK(now_ms() - start < 30000);
    CHECK_INT(callers[0].status, aborts ? MAGI_STATUS_ABORTED : MAGI_STATUS_TIMEOUT);
    CHECK_INT(callers[1].status, aborts ? MAGI_STATUS_ABORTED : MAGI_STATUS_COMM_FAILED);
    CHECK_HAS(callers[0].message, aborts ? "enough" : "rank 0 waited 100ms for rank 2");
    CHECK_REFUSED(magi_group_plan_prepare(callers[1].plan, NULL), callers[1].status, "");
    magi_comm_destroy(comms[2]);
    CHECK_REFUSED(magi_group_cast(callers[2].plan, callers[2].m.t_local, callers[2].m.t_received, 2, NULL),
                  MAGI_STATUS_COMM_DESTROYED, "the communicator was destroyed");
    size_t bytes = 0;
    CHECK_REFUSED(magi_group_plan_workspace_size(callers[2].plan, &bytes), MAGI_STATUS_COMM_DESTROYED, "destroyed");
    for (int i = 0; i < WORLD; i++) {
        magi_group_plan_destroy(callers[i].plan);
    }
    magi_comm_destroy(comms[0]);
    magi_comm_destroy(comms[1]);
}

// A second call on a communicator is refused while one waits.
static void busy(void) {
    magi_comm *comms[2];
    CHECK_OK(magi_comm_create_local(2, comms));
    magi_mask *mask = causal_mask(16);
    magi_key *key = small_key(comms[0], mask, NULL), *peer = small_key(comms[1], mask, NULL);
    all_to_all g;
    group_memory m;
    all_to_all_init(&g, 2, MAGI_DTYPE_F64);
    group_memory_init(&m, 0, 2);
    magi_group_plan *plan = plan_of(comms[0], &g.args);
    struct waiting_rank waiting;
    start_waiting(&waiting, comms[0], key, mask);
    CHECK_REFUSED(magi_group_plan_prepare(plan, NULL), MAGI_STATUS_HANDLE_BUSY, "another call");
    CHECK_REFUSED(magi_group_cast(plan, m.t_local, m.t_received, 2, NULL), MAGI_STATUS_HANDLE_BUSY, "another call");
    CHECK_OK(magi_key_prepare(peer, NULL));
    join_thread(waiting.thread);
    CHECK_INT(waiting.status, MAGI_STATUS_OK);
    magi_group_plan_destroy(plan);
    magi_key_destroy(key);
    magi_key_destroy(peer);
    magi_mask_destroy(mask);
    magi_comm_destroy(comms[0]);
    magi_comm_destroy(comms[1]);
}

int main(void) {
    for (int32_t size = 2; size < GROUP_RANKS; size++) {
        run_ranks(size, mismatch, NULL);
    }
    run_ranks(WORLD, out_of_memory, NULL);
    out_of_step();
    absent(1);
    absent(0);
    busy();
    return 0;
}
