// A panic inside the library: the rank gets MAGI_STATUS_INTERNAL and its handle is poisoned, the peers are woken with
// MAGI_STATUS_COMM_FAILED, nothing is printed, and the process goes on.
#include "fault.h"
#include <sys/wait.h>
#include <unistd.h>

enum { WORLD = 3, TOKENS = 24 };

struct outcome {
    int32_t status;
    char message[512];
};

struct rank_data {
    magi_comm *comm;
    magi_key *key;
    struct outcome outcome;
    int backward;
};

static double zeros[TOKENS * 2 * 8];

static void *attends(void *data) {
    struct rank_data *r = (struct rank_data *)data;
    double outputs[4][TOKENS * 2 * 8];
    const int64_t n = tokens_of(r->key, MAGI_SIDE_Q);
    magi_tensor q = tensor_of(zeros, MAGI_DTYPE_F64, 3, n, 2, 8), k = tensor_of(zeros, MAGI_DTYPE_F64, 3, n, 1, 8);
    magi_tensor out = tensor_of(outputs[0], MAGI_DTYPE_F64, 3, n, 2, 8),
                lse = tensor_of(zeros, MAGI_DTYPE_F64, 2, n, 2, 0);
    magi_tensor dk = tensor_of(outputs[1], MAGI_DTYPE_F64, 3, n, 1, 8),
                dv = tensor_of(outputs[2], MAGI_DTYPE_F64, 3, n, 1, 8);
    if (r->backward) {
        magi_backward_args args = MAGI_BACKWARD_ARGS_INIT;
        args.q = args.out = args.dout = &q;
        args.k = args.v = &k;
        args.lse = &lse;
        args.dq = &out;
        args.dk = &dk;
        args.dv = &dv;
        r->outcome.status = magi_calc_attn_backward(r->key, &args, NULL);
    } else {
        magi_forward_args args = MAGI_FORWARD_ARGS_INIT;
        args.q = &q;
        args.k = args.v = &k;
        args.out = &out;
        r->outcome.status = magi_calc_attn_forward(r->key, &args, NULL);
    }
    snprintf(r->outcome.message, sizeof r->outcome.message, "%s", magi_last_error_message());
    return NULL;
}

// Every function of a poisoned key says so; destroy works.
static void check_poisoned(magi_key *key) {
    const magi_status status = MAGI_STATUS_POISONED;
    const char *part = "key was poisoned by an earlier internal error; only destroy works on it";
    int64_t tokens = -5;
    size_t size = 5;
    uint64_t hash = 5;
    magi_key_stats stats;
    magi_rank_stats rank;
    const magi_forward_args forward = MAGI_FORWARD_ARGS_INIT;
    const magi_backward_args backward = MAGI_BACKWARD_ARGS_INIT;
    stats.size = sizeof stats;
    rank.size = sizeof rank;
    CHECK_REFUSED(magi_key_prepare(key, NULL), status, part);
    CHECK_REFUSED(magi_key_local_tokens(key, MAGI_SIDE_Q, &tokens), status, part);
    CHECK_REFUSED(magi_key_position_ids(key, MAGI_SIDE_Q, NULL, &size), status, part);
    CHECK_REFUSED(magi_key_get_stats(key, &stats), status, part);
    CHECK_REFUSED(magi_key_get_rank_stats(key, 0, &rank), status, part);
    CHECK_REFUSED(magi_key_workspace_size(key, &size), status, part);
    CHECK_REFUSED(magi_key_hash(key, &hash), status, part);
    CHECK_REFUSED(magi_dispatch(key, MAGI_SIDE_Q, NULL, NULL, NULL), status, part);
    CHECK_REFUSED(magi_undispatch(key, MAGI_SIDE_Q, NULL, NULL, NULL), status, part);
    CHECK_REFUSED(magi_calc_attn_forward(key, &forward, NULL), status, part);
    CHECK_REFUSED(magi_calc_attn_backward(key, &backward, NULL), status, part);
    CHECK(tokens == -5 && size == 5 && hash == 5);
}

// Rank 1 panics at `point` of an attention call.
static void panics(const char *point, int backward) {
    magi_comm *comms[WORLD];
    struct rank_data ranks[WORLD];
    pthread_t threads[WORLD];
    char text[128];
    magi_mask *mask = causal_mask(TOKENS);
    magi_config config = default_config();
    config.chunk_size = 4;
    config.degree_forward = config.degree_backward = 1;
    CHECK_OK(magi_comm_create_local(WORLD, comms));
    for (int i = 0; i < WORLD; i++) {
        memset(&ranks[i], 0, sizeof ranks[i]);
        ranks[i].comm = comms[i];
        ranks[i].key = small_key(comms[i], mask, &config);
        ranks[i].backward = backward;
    }
    CHECK_OK(magi_test_fault_set(point, 1, 0, 0));
    const double start = now_ms();
    for (int i = 0; i < WORLD; i++) {
        threads[i] = start_thread(attends, &ranks[i]);
    }
    for (int i = 0; i < WORLD; i++) {
        join_thread(threads[i]);
    }
    CHECK(now_ms() - start < 60000);
    magi_test_fault_clear();
    snprintf(text, sizeof text, "a panic: panic asked for at %s on rank 1", point);
    CHECK_INT(ranks[1].outcome.status, MAGI_STATUS_INTERNAL);
    CHECK_HAS(ranks[1].outcome.message, text);
    CHECK_HAS(ranks[1].outcome.message, backward ? "magi_calc_attn_backward: " : "magi_calc_attn_forward: ");
    check_poisoned(ranks[1].key);
    for (int i = 0; i < WORLD; i++) {
        if (i != 1) {
            CHECK_INT(ranks[i].outcome.status, MAGI_STATUS_COMM_FAILED);
            CHECK_HAS(ranks[i].outcome.message, "rank 1");
            CHECK_HAS(ranks[i].outcome.message, "panic asked for");
            CHECK_REFUSED(magi_key_prepare(ranks[i].key, NULL), MAGI_STATUS_COMM_FAILED, "panic asked for");
        }
        CHECK_REFUSED(magi_comm_async_error(comms[i]), MAGI_STATUS_COMM_FAILED, "rank 1");
        magi_key_destroy(ranks[i].key);
        magi_comm_destroy(comms[i]);
    }
    magi_mask_destroy(mask);
}

// The handle of a communicator is poisoned by a panic in a call on it.
static void poisons_comm(void) {
    magi_comm *comm = NULL;
    magi_key *key = NULL;
    int32_t number = -5;
    magi_mask *mask = causal_mask(TOKENS);
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    CHECK_OK(magi_comm_create_local(1, &comm));
    CHECK_OK(magi_test_fault_set("key_create", 0, 0, 0));
    CHECK_REFUSED(magi_key_create(comm, mask, &shape, NULL, &key), MAGI_STATUS_INTERNAL, "a panic: panic asked for");
    magi_test_fault_clear();
    const char *part = "comm was poisoned by an earlier internal error";
    CHECK_REFUSED(magi_key_create(comm, mask, &shape, NULL, &key), MAGI_STATUS_POISONED, part);
    CHECK_REFUSED(magi_comm_rank(comm, &number), MAGI_STATUS_POISONED, part);
    CHECK_REFUSED(magi_comm_size(comm, &number), MAGI_STATUS_POISONED, part);
    CHECK_REFUSED(magi_comm_set_timeout(comm, 1), MAGI_STATUS_POISONED, part);
    CHECK(key == NULL && number == -5);
    CHECK_REFUSED(magi_comm_async_error(comm), MAGI_STATUS_COMM_FAILED, "panic asked for");
    CHECK_OK(magi_comm_abort(comm, NULL));
    magi_comm_destroy(comm);
    magi_mask_destroy(mask);
}

static int32_t waits(magi_comm *comm, int32_t rank, void *userdata) {
    int32_t *status = (int32_t *)userdata;
    magi_mask *mask = causal_mask(TOKENS);
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_key *key = NULL;
    status[rank] = magi_key_create(comm, mask, &shape, NULL, &key); // the other may have failed already
    if (status[rank] == MAGI_STATUS_OK) {
        status[rank] = magi_key_prepare(key, NULL);
    }
    magi_key_destroy(key);
    magi_mask_destroy(mask);
    return status[rank];
}

// A rank of magi_local_run whose thread panics outside of any function of the header.
static void rank_panics(void) {
    int32_t status[WORLD] = {-1, -1, -1};
    CHECK_OK(magi_test_fault_set("local.rank", 2, 0, 0));
    CHECK_REFUSED(magi_local_run(WORLD, waits, status), MAGI_STATUS_INTERNAL, "rank 2 panicked: panic asked for");
    magi_test_fault_clear();
    CHECK_INT(status[0], MAGI_STATUS_COMM_FAILED);
    CHECK_INT(status[1], MAGI_STATUS_COMM_FAILED);
    CHECK_INT(status[2], -1);
    CHECK_OK(magi_local_run(WORLD, waits, status));
}

static void all(void) {
    panics("calc_attn_forward", 0);
    panics("calc_attn_backward", 1);
    panics("comm.start", 0);
    panics("comm.finish", 1);
    panics("comm.all_gather", 0);
    panics("arena.reserve", 0);
    poisons_comm();
    rank_panics();
    CHECK_REFUSED(magi_test_fault_set(NULL, 0, 0, 0), MAGI_STATUS_NULL_POINTER, "point is NULL");
    CHECK_REFUSED(magi_test_fault_set("x", 0, 12345, 0), MAGI_STATUS_INVALID_ARGUMENT, "status is 12345");
}

// A panic is a message for the caller, and nothing on the terminal: what the child writes there is read back.
int main(void) {
    char text[4096];
    int outcome = -1;
    FILE *file = tmpfile();
    CHECK(file != NULL);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(dup2(fileno(file), 2) == 2);
        all();
        _exit(0);
    }
    CHECK(waitpid(child, &outcome, 0) == child);
    rewind(file);
    const size_t length = fread(text, 1, sizeof text - 1, file);
    text[length] = 0;
    fclose(file);
    CHECK_TEXT(text, "");
    CHECK(WIFEXITED(outcome));
    CHECK_INT(WEXITSTATUS(outcome), 0);
    return 0;
}
