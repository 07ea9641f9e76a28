// One rank with everything that a call of any function needs: where errors in arguments are provoked one by one.
#ifndef MAGI_CTEST_ONE_H
#define MAGI_CTEST_ONE_H

#include "ranks.h"

enum { ONE_TOKENS = 6, ONE_HEADS = 2, ONE_DIM = 8 };
enum { ONE_Q = ONE_TOKENS * ONE_HEADS * ONE_DIM, ONE_K = ONE_TOKENS * ONE_DIM };

// Everything that is written.
struct one_outputs {
    double out[ONE_Q], lse[ONE_TOKENS * ONE_HEADS], dq[ONE_Q], dk[ONE_K], dv[ONE_K], dsink[ONE_HEADS], moved[ONE_Q];
    float max_logits[ONE_HEADS];
};

// Six tokens, causal, 2 query heads over 1 key head, head_dim 8, f64, one shared sink.
typedef struct {
    magi_comm *comm;
    magi_mask *mask;
    magi_key *key;
    double q[ONE_Q], k[ONE_K], v[ONE_K], dout[ONE_Q];
    float sink[ONE_HEADS];
    struct one_outputs outputs;
    magi_tensor tq, tk, tv, tsink, tout, tlse, tmax, tdout, tdq, tdk, tdv, tdsink, tmoved;
    magi_forward_args forward;
    magi_backward_args backward;
} one_rank;

static inline void one_create(one_rank *o) {
    uint64_t seed = 1;
    memset(o, 0, sizeof *o);
    CHECK_OK(magi_comm_create_local(1, &o->comm));
    o->mask = causal_mask(ONE_TOKENS);
    o->key = small_key(o->comm, o->mask, NULL);
    for (int i = 0; i < ONE_Q; i++) {
        o->q[i] = draw(&seed);
        o->dout[i] = draw(&seed);
        o->k[i % ONE_K] = draw(&seed);
        o->v[i % ONE_K] = draw(&seed);
    }
    o->tq = tensor_of(o->q, MAGI_DTYPE_F64, 3, ONE_TOKENS, ONE_HEADS, ONE_DIM);
    o->tk = tensor_of(o->k, MAGI_DTYPE_F64, 3, ONE_TOKENS, 1, ONE_DIM);
    o->tv = tensor_of(o->v, MAGI_DTYPE_F64, 3, ONE_TOKENS, 1, ONE_DIM);
    o->tsink = tensor_of(o->sink, MAGI_DTYPE_F32, 2, 1, ONE_HEADS, 0);
    o->tout = tensor_of(o->outputs.out, MAGI_DTYPE_F64, 3, ONE_TOKENS, ONE_HEADS, ONE_DIM);
    o->tlse = tensor_of(o->outputs.lse, MAGI_DTYPE_F64, 2, ONE_TOKENS, ONE_HEADS, 0);
    o->tmax = tensor_of(o->outputs.max_logits, MAGI_DTYPE_F32, 1, ONE_HEADS, 0, 0);
    o->tdout = tensor_of(o->dout, MAGI_DTYPE_F64, 3, ONE_TOKENS, ONE_HEADS, ONE_DIM);
    o->tdq = tensor_of(o->outputs.dq, MAGI_DTYPE_F64, 3, ONE_TOKENS, ONE_HEADS, ONE_DIM);
    o->tdk = tensor_of(o->outputs.dk, MAGI_DTYPE_F64, 3, ONE_TOKENS, 1, ONE_DIM);
    o->tdv = tensor_of(o->outputs.dv, MAGI_DTYPE_F64, 3, ONE_TOKENS, 1, ONE_DIM);
    o->tdsink = tensor_of(o->outputs.dsink, MAGI_DTYPE_F64, 2, 1, ONE_HEADS, 0);
    o->tmoved = tensor_of(o->outputs.moved, MAGI_DTYPE_F64, 3, ONE_TOKENS, ONE_HEADS, ONE_DIM);
    const magi_forward_args forward = MAGI_FORWARD_ARGS_INIT;
    o->forward = forward;
    o->forward.q = &o->tq;
    o->forward.k = &o->tk;
    o->forward.v = &o->tv;
    o->forward.sink = &o->tsink;
    o->forward.out = &o->tout;
    o->forward.lse = &o->tlse;
    o->forward.max_logits = &o->tmax;
    const magi_backward_args backward = MAGI_BACKWARD_ARGS_INIT;
    o->backward = backward;
    o->backward.q = &o->tq;
    o->backward.k = &o->tk;
    o->backward.v = &o->tv;
    o->backward.sink = &o->tsink;
    o->backward.out = &o->tout;
    o->backward.lse = &o->tlse;
    o->backward.dout = &o->tdout;
    o->backward.dq = &o->tdq;
    o->backward.dk = &o->tdk;
    o->backward.dv = &o->tdv;
    o->backward.dsink = &o->tdsink;
}

static inline void one_destroy(one_rank *o) {
    magi_key_destroy(o->key);
    magi_mask_destroy(o->mask);
    magi_comm_destroy(o->comm);
}

// Fills every output with a pattern that no result has.
static inline void one_poison(one_rank *o) {
    memset(&o->outputs, 0x5a, sizeof o->outputs);
}

// The pattern is still there, in every byte.
static inline void one_check_untouched(const one_rank *o) {
    const unsigned char *bytes = (const unsigned char *)&o->outputs;
    for (size_t i = 0; i < sizeof o->outputs; i++) {
        if (bytes[i] != 0x5a) {
            FAIL("byte %zu of the outputs was written by a call that failed", i);
        }
    }
}

// The calls work as they stand, and write all that they say.
static inline void one_check_works(one_rank *o) {
    one_poison(o);
    CHECK_OK(magi_calc_attn_forward(o->key, &o->forward, NULL));
    CHECK_OK(magi_calc_attn_backward(o->key, &o->backward, NULL));
    CHECK_OK(magi_dispatch(o->key, MAGI_SIDE_Q, &o->tq, &o->tmoved, NULL));
    CHECK(memcmp(o->outputs.moved, o->q, sizeof o->q) == 0);
    CHECK(fabs(o->outputs.out[0]) <= 1 && fabs(o->outputs.dq[0]) < 100 && fabs(o->outputs.dsink[1]) < 100);
}

#endif
