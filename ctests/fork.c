// A child that is forked after the library was used is refused, and may end; one forked before may use it.
#include "ranks.h"
#include <sys/wait.h>
#include <unistd.h>

static void in_child(void (*run)(const magi_comm *comm, const magi_mask *mask, const magi_key *key),
                     const magi_comm *comm, const magi_mask *mask, const magi_key *key) {
    int outcome = -1;
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run(comm, mask, key);
        _exit(0);
    }
    CHECK(waitpid(child, &outcome, 0) == child);
    CHECK(WIFEXITED(outcome));
    CHECK_INT(WEXITSTATUS(outcome), 0);
}

static void uses_it(const magi_comm *comm, const magi_mask *mask, const magi_key *key) {
    magi_comm *own = NULL;
    (void)comm;
    (void)mask;
    (void)key;
    CHECK_OK(magi_comm_create_local(1, &own));
    magi_mask *made = causal_mask(8);
    magi_key *planned = small_key(own, made, NULL);
    CHECK_OK(magi_key_prepare(planned, NULL));
    magi_key_destroy(planned);
    magi_mask_destroy(made);
    magi_comm_destroy(own);
}

static int32_t rank_of_child(magi_comm *comm, int32_t rank, void *userdata) {
    (void)comm;
    (void)rank;
    (void)userdata;
    FAIL("a rank ran in a forked child");
    return 0;
}

static void is_refused(const magi_comm *comm, const magi_mask *mask, const magi_key *key) {
    const magi_status status = MAGI_STATUS_FORKED;
    char part[64];
    int32_t rank = -1;
    int64_t area = -1;
    magi_mask *made = NULL;
    magi_comm *own = NULL;
    magi_config config;
    snprintf(part, sizeof part, "process %ld was forked after process %ld", (long)getpid(), (long)getppid());
    CHECK_REFUSED(magi_mask_create(NULL, 0, 4, 4, &made), status, part);
    CHECK_REFUSED(magi_mask_area(mask, &area), status, part);
    CHECK_REFUSED(magi_comm_create_local(1, &own), status, part);
    CHECK_REFUSED(magi_local_run(1, rank_of_child, NULL), status, part);
    CHECK_REFUSED(magi_comm_rank(comm, &rank), status, part);
    CHECK_REFUSED(magi_comm_async_error(comm), status, part);
    CHECK_REFUSED(magi_comm_abort(comm, "from the child"), status, part);
    CHECK_REFUSED(magi_key_prepare(key, NULL), status, part);
    CHECK_REFUSED(magi_key_local_tokens(key, MAGI_SIDE_Q, &area), status, part);
    CHECK_REFUSED(magi_config_init(&config, sizeof config), status, part);
    CHECK(made == NULL && own == NULL && rank == -1 && area == -1);
    // What takes no lock works: the child can say what is wrong.
    CHECK_INT(magi_version(), MAGI_VERSION);
    CHECK_TEXT(magi_status_string(MAGI_STATUS_FORKED), "process was forked after first use");
    // Destroying does not hang, though a lock may have been held at the fork.
    magi_key_destroy((magi_key *)(uintptr_t)key);
    magi_mask_destroy((magi_mask *)(uintptr_t)mask);
    magi_comm_destroy((magi_comm *)(uintptr_t)comm);
}

int main(void) {
    in_child(uses_it, NULL, NULL, NULL);
    magi_comm *comms[2];
    struct waiting_rank waiting;
    CHECK_OK(magi_comm_create_local(2, comms));
    magi_mask *mask = causal_mask(32);
    magi_key *key = small_key(comms[0], mask, NULL), *peer = small_key(comms[1], mask, NULL);
    in_child(is_refused, comms[0], mask, key);
    start_waiting(&waiting, comms[0], key, mask);
    // A memory checker calls lost in the child what belongs to the waiting thread, which does not exist there.
    if (getenv("MAGI_TEST_MEMCHECK") == NULL) {
        in_child(is_refused, comms[0], mask, key);
    }
    // Nothing of that reached the parent.
    CHECK_OK(magi_comm_async_error(comms[0]));
    CHECK_OK(magi_key_prepare(peer, NULL));
    join_thread(waiting.thread);
    CHECK_INT(waiting.status, MAGI_STATUS_OK);
    magi_key_destroy(key);
    magi_key_destroy(peer);
    magi_mask_destroy(mask);
    magi_comm_destroy(comms[0]);
    magi_comm_destroy(comms[1]);
    return 0;
}
