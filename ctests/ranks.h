// Ranks, threads, masks and keys in one line each.
#ifndef MAGI_CTEST_RANKS_H
#define MAGI_CTEST_RANKS_H

#include "tensor.h"
#include <pthread.h>
#include <time.h>

typedef void (*rank_function)(magi_comm *comm, int32_t rank, int32_t size, void *data);

struct rank_call {
    rank_function run;
    void *data;
    int32_t size;
};

static inline int32_t rank_call_run(magi_comm *comm, int32_t rank, void *userdata) {
    const struct rank_call *call = (const struct rank_call *)userdata;
    int32_t have_rank = -1, have_size = -1;
    CHECK_OK(magi_comm_rank(comm, &have_rank));
    CHECK_OK(magi_comm_size(comm, &have_size));
    CHECK_INT(have_rank, rank);
    CHECK_INT(have_size, call->size);
    call->run(comm, rank, have_size, call->data);
    return MAGI_STATUS_OK;
}

// Calls `run` on every rank of a communicator of `size`; it must not fail.
static inline void run_ranks(int32_t size, rank_function run, void *data) {
    struct rank_call call;
    call.run = run;
    call.data = data;
    call.size = size;
    CHECK_OK(magi_local_run(size, rank_call_run, &call));
}

static inline magi_attn_shape shape_of(int64_t heads_q, int64_t heads_kv, int64_t d, int64_t dv, int32_t dtype) {
    magi_attn_shape s = MAGI_ATTN_SHAPE_INIT;
    s.heads_q = heads_q;
    s.heads_kv = heads_kv;
    s.head_dim = d;
    s.head_dim_v = dv;
    s.dtype = dtype;
    return s;
}

static inline magi_config default_config(void) {
    magi_config c;
    CHECK_OK(magi_config_init(&c, sizeof c));
    return c;
}

static inline magi_slice slice_of(int64_t qs, int64_t qe, int64_t ks, int64_t ke, int32_t mask_type) {
    magi_slice s;
    s.q.start = qs;
    s.q.end = qe;
    s.k.start = ks;
    s.k.end = ke;
    s.mask_type = mask_type;
    s.reserved = 0;
    return s;
}

// One causal sequence.
static inline magi_mask *causal_mask(int64_t tokens) {
    magi_slice s = slice_of(0, tokens, 0, tokens, MAGI_MASK_TYPE_CAUSAL);
    magi_mask *mask = NULL;
    CHECK_OK(magi_mask_create(&s, 1, tokens, tokens, &mask));
    return mask;
}

// A key of `mask` with 2 query heads, 1 key head, dimensions 8, f64; `config` may be NULL.
static inline magi_key *small_key(const magi_comm *comm, const magi_mask *mask, const magi_config *config) {
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    magi_key *key = NULL;
    CHECK_OK(magi_key_create(comm, mask, &shape, config, &key));
    return key;
}

static inline int64_t tokens_of(const magi_key *key, int32_t side) {
    int64_t tokens = -1;
    CHECK_OK(magi_key_local_tokens(key, side, &tokens));
    return tokens;
}

static inline pthread_t start_thread(void *(*run)(void *), void *data) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, data) == 0);
    return thread;
}

static inline void join_thread(pthread_t thread) {
    CHECK(pthread_join(thread, NULL) == 0);
}

static inline void sleep_ms(long milliseconds) {
    struct timespec t;
    t.tv_sec = milliseconds / 1000;
    t.tv_nsec = milliseconds % 1000 * 1000000;
    nanosleep(&t, NULL);
}

static inline double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

// A rank's prepare on a thread of its own, which is to wait for a peer.
struct waiting_rank {
    const magi_comm *comm;
    const magi_key *key;
    pthread_t thread;
    int32_t status;
    char message[512];
};

static inline void *waiting_rank_run(void *data) {
    struct waiting_rank *w = (struct waiting_rank *)data;
    do {
        // Whoever looks whether this call has begun takes turns with it.
        w->status = magi_key_prepare(w->key, NULL);
    } while (w->status == MAGI_STATUS_HANDLE_BUSY);
    snprintf(w->message, sizeof w->message, "%s", magi_last_error_message());
    return NULL;
}

// Returns when the rank waits inside the library.
static inline void start_waiting(struct waiting_rank *w, const magi_comm *comm, const magi_key *key,
                                 const magi_mask *mask) {
    w->comm = comm;
    w->key = key;
    w->status = -1;
    w->thread = start_thread(waiting_rank_run, w);
    const magi_attn_shape shape = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    int32_t status;
    do {
        magi_key *probe = NULL;
        status = magi_key_create(comm, mask, &shape, NULL, &probe);
        magi_key_destroy(probe);
        sleep_ms(1);
    } while (status == MAGI_STATUS_OK);
    CHECK_INT(status, MAGI_STATUS_HANDLE_BUSY);
}

#endif
