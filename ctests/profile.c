// Measured calls from C: times of stages, the trace, the drawing, and what is refused.
#include "job.h"
#include "one.h"

enum { TOKENS = 96, RANKS = 3, HEADS = 2, DIM = 8 };

typedef magi_status (*text_function)(const magi_key *, char *, size_t *);

// The text that `f` gives, which must contain `part`. Free it.
static char *text_of(text_function f, const magi_key *key, const char *part) {
    size_t size = 0, small;
    CHECK_OK(f(key, NULL, &size));
    CHECK(size > 1);
    char *text = (char *)memory(size + 1);
    memset(text, 0x5a, size + 1);
    small = size - 1;
    CHECK_ERROR(f(key, text, &small), MAGI_STATUS_BUFFER_TOO_SMALL, "are needed");
    CHECK_INT(small, size);
    CHECK_INT(text[0], 0x5a);
    CHECK_OK(f(key, text, &size));
    CHECK_INT(strlen(text), size - 1);
    CHECK_INT(text[size], 0x5a);
    CHECK_HAS(text, part);
    return text;
}

// Brackets of JSON whose strings contain none are balanced, and it is one object.
static void check_json(const char *text) {
    int depth = 0, strings = 0;
    for (const char *at = text; *at != 0; at++) {
        strings ^= *at == '"';
        depth += strings ? 0 : (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        CHECK(depth > 0 || strcmp(at, "}\n") == 0 || strcmp(at, "\n") == 0);
    }
    CHECK(depth == 0 && strings == 0 && text[0] == '{');
}

static magi_stage_times times_of(const magi_key *key, int32_t pass, int32_t stage) {
    magi_stage_times t;
    t.size = sizeof t;
    CHECK_OK(magi_key_get_stage_times(key, pass, stage, &t));
    return t;
}

// Stages follow each other; transfers are where the plan has some; waiting is no more than what computing leaves.
static void check_pass(const magi_key *key, int32_t pass, int32_t rank, int64_t stages) {
    int64_t free_at = 0, computing = 0, waiting = 0, all = 0;
    for (int32_t i = 0; i < stages; i++) {
        const magi_stage_times t = times_of(key, pass, i);
        magi_stage_stats s;
        s.size = sizeof s;
        CHECK_OK(magi_key_get_stage_stats(key, pass, rank, i, &s));
        CHECK_INT(t.size, sizeof t);
        CHECK_INT(t.fetch_end_ns > 0, s.tokens_received + s.tokens_sent > 0);
        CHECK_INT(t.reduce_end_ns > 0, pass == MAGI_PASS_BACKWARD && s.tokens_received + s.tokens_sent > 0);
        CHECK(t.fetch_start_ns >= 0 && t.fetch_start_ns <= t.fetch_end_ns && t.fetch_end_ns <= t.compute_start_ns);
        CHECK(t.compute_start_ns >= free_at && t.compute_end_ns >= t.compute_start_ns);
        CHECK(t.reduce_end_ns == 0 || t.reduce_start_ns >= t.compute_end_ns);
        CHECK(t.reduce_end_ns >= t.reduce_start_ns && t.reduce_end_ns <= t.pass_ns);
        CHECK(t.compute_end_ns <= t.pass_ns && (i == 0 || t.pass_ns == all));
        CHECK(t.fetch_wait_ns >= 0 && t.reduce_wait_ns >= 0);
        computing += t.compute_end_ns - t.compute_start_ns;
        waiting += t.fetch_wait_ns + t.reduce_wait_ns;
        free_at = t.compute_end_ns;
        all = t.pass_ns;
    }
    CHECK(all > 0 && computing + waiting <= all);
}

static magi_key *key_of(const magi_comm *comm, int32_t profile) {
    magi_mask *mask = causal_mask(TOKENS);
    magi_config config = default_config();
    config.chunk_size = 8;
    config.degree_forward = 1;
    config.degree_backward = 2;
    config.profile = profile;
    magi_key *key = small_key(comm, mask, &config);
    magi_mask_destroy(mask);
    return key;
}

static void refused(const magi_key *key, magi_status status, const char *part) {
    magi_stage_times t;
    size_t size = 0;
    t.size = sizeof t;
    t.pass_ns = -5;
    CHECK_REFUSED(magi_key_get_stage_times(key, MAGI_PASS_FORWARD, 0, &t), status, part);
    CHECK_REFUSED(magi_key_trace(key, NULL, &size), status, part);
    CHECK_REFUSED(magi_key_draw_profile(key, NULL, &size), status, part);
    CHECK_INT(t.pass_ns, -5);
    CHECK_INT(size, 0);
}

static void ranks(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    magi_key *plain = key_of(comm, 0), *key = key_of(comm, 1);
    uint64_t hashes[2] = {0, 1};
    CHECK_OK(magi_key_hash(plain, &hashes[0]));
    CHECK_OK(magi_key_hash(key, &hashes[1]));
    CHECK(hashes[0] == hashes[1]);
    refused(key, MAGI_STATUS_INVALID_ARGUMENT, "call on this key has come to its end");
    refused(plain, MAGI_STATUS_INVALID_ARGUMENT, "config.profile");
    const int64_t n = tokens_of(key, MAGI_SIDE_Q);
    magi_tensor q = job_tensor(MAGI_DTYPE_F64, n, HEADS, DIM), k = job_tensor(MAGI_DTYPE_F64, n, 1, DIM);
    magi_tensor out = job_tensor(MAGI_DTYPE_F64, n, HEADS, DIM), lse = job_tensor(MAGI_DTYPE_F64, n, HEADS, 0);
    magi_tensor dq = job_tensor(MAGI_DTYPE_F64, n, HEADS, DIM), dk = job_tensor(MAGI_DTYPE_F64, n, 1, DIM);
    magi_tensor dv = job_tensor(MAGI_DTYPE_F64, n, 1, DIM);
    memset(q.data, 0, (size_t)(n * HEADS * DIM) * sizeof(double));
    memset(k.data, 0, (size_t)(n * DIM) * sizeof(double));
    magi_forward_args forward = MAGI_FORWARD_ARGS_INIT;
    forward.q = &q;
    forward.k = forward.v = &k;
    forward.out = &out;
    forward.lse = &lse;
    CHECK_OK(magi_calc_attn_forward(key, &forward, NULL));
    check_pass(key, MAGI_PASS_FORWARD, rank, 2);
    magi_stage_times t;
    t.size = sizeof t;
    CHECK_REFUSED(magi_key_get_stage_times(key, MAGI_PASS_BACKWARD, 0, &t), MAGI_STATUS_INVALID_ARGUMENT,
                  "no backward call on this key has come to its end");
    char *text = text_of(magi_key_trace, key, "forward stage 1: compute");
    CHECK(strstr(text, "backward") == NULL);
    free(text);
    magi_backward_args backward = MAGI_BACKWARD_ARGS_INIT;
    backward.q = backward.dout = &q;
    backward.k = backward.v = &k;
    backward.out = &out;
    backward.lse = &lse;
    backward.dq = &dq;
    backward.dk = &dk;
    backward.dv = &dv;
    CHECK_OK(magi_calc_attn_backward(key, &backward, NULL));
    check_pass(key, MAGI_PASS_FORWARD, rank, 2);
    check_pass(key, MAGI_PASS_BACKWARD, rank, 3);
    CHECK_REFUSED(magi_key_get_stage_times(key, MAGI_PASS_FORWARD, 2, &t), MAGI_STATUS_INVALID_ARGUMENT,
                  "stage is 2; it must be 0 to 1");
    CHECK_REFUSED(magi_key_get_stage_times(key, 2, 0, &t), MAGI_STATUS_INVALID_ENUM, "pass is 2; it must be 0");
    char part[64];
    snprintf(part, sizeof part, "\"name\":\"rank %d\"", (int)rank);
    text = text_of(magi_key_trace, key, part);
    CHECK_HAS(text, "backward stage 2: compute");
    check_json(text);
    free(text);
    snprintf(part, sizeof part, "rank %d of %d, measured above predicted", (int)rank, (int)size);
    text = text_of(magi_key_draw_profile, key, part);
    CHECK_HAS(text, "</svg>");
    free(text);
    magi_tensor *all[] = {&q, &k, &out, &lse, &dq, &dk, &dv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]->data);
    }
    magi_key_destroy(plain);
    magi_key_destroy(key);
}

// Nothing to give where nothing may be asked.
static void one_key(void) {
    one_rank o;
    one_create(&o);
    magi_key *key = key_of(o.comm, 1);
    magi_stage_times t;
    size_t size = 0;
    t.size = sizeof t;
    CHECK_REFUSED(magi_key_get_stage_times(NULL, MAGI_PASS_FORWARD, 0, &t), MAGI_STATUS_NULL_POINTER, "key is NULL");
    CHECK_REFUSED(magi_key_get_stage_times(key, MAGI_PASS_FORWARD, 0, NULL), MAGI_STATUS_NULL_POINTER, "times is NULL");
    t.size = 8;
    CHECK_REFUSED(magi_key_get_stage_times(key, MAGI_PASS_FORWARD, 0, &t), MAGI_STATUS_STRUCT_SIZE, "times.size is 8");
    CHECK_REFUSED(magi_key_trace(NULL, NULL, &size), MAGI_STATUS_NULL_POINTER, "key is NULL");
    CHECK_REFUSED(magi_key_draw_profile(NULL, NULL, &size), MAGI_STATUS_NULL_POINTER, "key is NULL");
    magi_config config = default_config();
    magi_key *none = NULL;
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    config.profile = 2;
    CHECK_REFUSED(magi_key_create(o.comm, o.mask, &shape, &config, &none), MAGI_STATUS_INVALID_ARGUMENT,
                  "config.profile is 2; it must be 0 or 1");
    // A call that is refused leaves what was measured.
    config.profile = 1;
    magi_key *measured = small_key(o.comm, o.mask, &config), *before = o.key;
    o.key = measured;
    CHECK_OK(magi_calc_attn_forward(o.key, &o.forward, NULL));
    o.forward.q = NULL;
    CHECK_REFUSED(magi_calc_attn_forward(o.key, &o.forward, NULL), MAGI_STATUS_NULL_POINTER, "args.q is NULL");
    CHECK_REFUSED(magi_key_trace(o.key, NULL, NULL), MAGI_STATUS_NULL_POINTER, "size is NULL");
    CHECK(times_of(o.key, MAGI_PASS_FORWARD, 0).pass_ns > 0);
    o.key = before;
    magi_comm_destroy(o.comm);
    o.comm = NULL;
    refused(measured, MAGI_STATUS_COMM_DESTROYED, "the communicator was destroyed");
    magi_key_destroy(measured);
    magi_key_destroy(key);
    one_destroy(&o);
}

int main(void) {
    run_ranks(RANKS, ranks, NULL);
    one_key();
    return 0;
}
