// The whole job from C, on every rank: plan, dispatch, forward, backward, undispatch; then compare with dense
// attention.
#ifndef MAGI_CTEST_JOB_H
#define MAGI_CTEST_JOB_H

#include "dense.h"
#include "ranks.h"

enum { JOB_MOST_RANKS = 8, JOB_MOST_SLICES = 12 };

typedef struct {
    const char *name;
    int64_t tq, tk, hq, hkv, d, dv;
    int32_t dtype;
    double scale, softcap; // as in the arguments: 0 for the default, for none
    int64_t sinks;         // 0: no sink
    int sink_per_token;
    int interleaved;              // q, k, v in one buffer, and their gradients in another; needs tq == tk
    int acc_outputs;              // out and gradients in the accumulator type
    uint32_t flags;               // MAGI_ACCUMULATE_*
    int no_optional;              // no lse, no max_logits in a second forward, which has to give the same out
    int hosts;                    // with config.hierarchical_comm: ranks lie on so many hosts
    int nan_unseen;               // NaN in every token that sees nothing, or that nothing sees
    double bound, gradient_bound; // relative
    magi_slice slices[JOB_MOST_SLICES];
    size_t n;
    magi_config config;

    // Made by job_run: global tensors in double, rounded to the dtype, and what they lead to.
    double *q, *k, *v, *dout, *sink, *out, *lse, *dq, *dk, *dv_out, *dsink;
    double max_logits[64];
    double *dsink_parts[JOB_MOST_RANKS]; // what each rank returned
} job;

// Gradients that are added to hold this before.
static const double JOB_BEFORE = 0.25;

static inline int32_t job_acc(const job *j) {
    return j->dtype == MAGI_DTYPE_F64 ? MAGI_DTYPE_F64 : MAGI_DTYPE_F32;
}

// Packs `n` doubles in `dtype`.
static inline void *packed(const double *x, int64_t n, int32_t dtype) {
    void *data = memory((size_t)n * element_size(dtype));
    for (int64_t i = 0; i < n; i++) {
        store(dtype, data, i, x[i]);
    }
    return data;
}

// Dense memory for a local tensor [tokens, b, c] (c 0: two dimensions), poisoned with NaN.
static inline magi_tensor job_tensor(int32_t dtype, int64_t tokens, int64_t b, int64_t c) {
    const int64_t n = tokens * b * (c == 0 ? 1 : c);
    void *data = memory((size_t)n * element_size(dtype));
    for (int64_t i = 0; i < n; i++) {
        store(dtype, data, i, NAN);
    }
    return tensor_of(data, dtype, c == 0 ? 2 : 3, tokens, b, c);
}

// q, k, v or their gradients: three tensors of their own, or interleaved rows of one buffer.
static inline void job_triple(const job *j, int32_t dtype, int64_t nq, int64_t nk, magi_tensor t[3]) {
    if (!j->interleaved) {
        t[0] = job_tensor(dtype, nq, j->hq, j->d);
        t[1] = job_tensor(dtype, nk, j->hkv, j->d);
        t[2] = job_tensor(dtype, nk, j->hkv, j->dv);
        return;
    }
    CHECK_INT(nq, nk);
    const int64_t row = j->hq * j->d + j->hkv * (j->d + j->dv) + 3; // three elements that belong to nobody
    const magi_tensor whole = job_tensor(dtype, nq, row, 0);
    char *data = (char *)whole.data;
    const size_t size = element_size(dtype);
    for (int i = 0; i < 3; i++) {
        t[i] = tensor_of(data, dtype, 3, nq, i == 0 ? j->hq : j->hkv, i == 2 ? j->dv : j->d);
        t[i].stride[0] = row;
        data = data == NULL ? NULL : data + (size_t)(t[i].shape[1] * t[i].shape[2]) * size;
    }
}

static inline void job_free_triple(const job *j, magi_tensor t[3]) {
    free(t[0].data);
    if (!j->interleaved) {
        free(t[1].data);
        free(t[2].data);
    }
}

// A global tensor's rows on this rank.
static inline void job_dispatch(const magi_key *key, int32_t side, const double *x, const magi_tensor *local,
                                int64_t total) {
    magi_tensor t = *local;
    int64_t elements = 1;
    t.shape[0] = total;
    for (int i = t.ndim - 1; i >= 0; i--) {
        t.stride[i] = elements;
        elements *= t.shape[i] > 0 ? t.shape[i] : 1;
    }
    t.data = packed(x, total == 0 ? 0 : elements, t.dtype);
    CHECK_OK(magi_dispatch(key, side, &t, local, NULL));
    free(t.data);
}

// Gathers `local` and compares with `want`.
static inline void job_compare(const job *j, const magi_key *key, int32_t side, const char *what,
                               const magi_tensor *local, const double *want, double added, double bound) {
    const int64_t total = side == MAGI_SIDE_Q ? j->tq : j->tk;
    magi_tensor t = job_tensor(local->dtype, total, local->shape[1], local->ndim == 3 ? local->shape[2] : 0);
    CHECK_OK(magi_undispatch(key, side, local, &t, NULL));
    const int64_t n = total * t.shape[1] * (t.ndim == 3 ? t.shape[2] : 1);
    double *have = (double *)memory((size_t)n * sizeof *have);
    for (int64_t i = 0; i < n; i++) {
        have[i] = load(t.dtype, t.data, i) - added;
    }
    char name[96];
    snprintf(name, sizeof name, "%s: %s", j->name, what);
    check_close(name, have, want, n, bound);
    free(have);
    free(t.data);
}

static inline void job_before(const job *j, uint32_t flag, const magi_tensor *t) {
    if (!(j->flags & flag)) {
        return;
    }
    const int64_t inner = t->ndim == 3 ? t->shape[2] : 1;
    for (int64_t i = 0; i < t->shape[0] * t->shape[1] * inner; i++) {
        const int64_t at = i / inner / t->shape[1] * t->stride[0] + i / inner % t->shape[1] * t->stride[1] + i % inner;
        store(t->dtype, t->data, at, JOB_BEFORE);
    }
}

// What a rank holds.
struct job_local {
    magi_tensor in[3], grads[3], sink, out, lse, max_logits, dout, dsink;
    float max_data[64];
    int64_t nq, nk;
};

static inline void job_forward(const job *j, const magi_key *key, struct job_local *l) {
    magi_forward_args args = MAGI_FORWARD_ARGS_INIT;
    args.q = &l->in[0];
    args.k = &l->in[1];
    args.v = &l->in[2];
    args.sink = j->sinks > 0 ? &l->sink : NULL;
    args.softmax_scale = j->scale;
    args.softcap = j->softcap;
    args.out = &l->out;
    if (j->no_optional) {
        CHECK_OK(magi_calc_attn_forward(key, &args, NULL));
        job_compare(j, key, MAGI_SIDE_Q, "out without lse", &l->out, j->out, 0, j->bound);
    }
    args.lse = &l->lse;
    args.max_logits = &l->max_logits;
    CHECK_OK(magi_calc_attn_forward(key, &args, NULL));
    job_compare(j, key, MAGI_SIDE_Q, "out", &l->out, j->out, 0, j->bound);
    job_compare(j, key, MAGI_SIDE_Q, "lse", &l->lse, j->lse, 0, j->bound < 1e-5 ? j->bound : 1e-5);
    for (int64_t h = 0; h < j->hq; h++) {
        const double have = l->max_data[h], want = j->max_logits[h];
        if (!(have == want || fabs(have - want) <= 1e-5 * fmax(1, fabs(want)))) {
            FAIL("%s: max_logits[%d] is %g, must be %g", j->name, (int)h, have, want);
        }
    }
}

static inline void job_backward(const job *j, const magi_key *key, struct job_local *l) {
    magi_backward_args args = MAGI_BACKWARD_ARGS_INIT;
    args.q = &l->in[0];
    args.k = &l->in[1];
    args.v = &l->in[2];
    args.sink = j->sinks > 0 ? &l->sink : NULL;
    args.out = &l->out;
    args.lse = &l->lse;
    args.dout = &l->dout;
    args.softmax_scale = j->scale;
    args.softcap = j->softcap;
    args.dq = &l->grads[0];
    args.dk = &l->grads[1];
    args.dv = &l->grads[2];
    args.dsink = j->sinks > 0 ? &l->dsink : NULL;
    args.flags = j->flags;
    job_before(j, MAGI_ACCUMULATE_DQ, &l->grads[0]);
    job_before(j, MAGI_ACCUMULATE_DK, &l->grads[1]);
    job_before(j, MAGI_ACCUMULATE_DV, &l->grads[2]);
    if (j->sinks > 0) {
        job_before(j, MAGI_ACCUMULATE_DSINK, &l->dsink);
    }
    CHECK_OK(magi_calc_attn_backward(key, &args, NULL));
    const double bound = j->gradient_bound;
    job_compare(j, key, MAGI_SIDE_Q, "dq", &l->grads[0], j->dq, j->flags & MAGI_ACCUMULATE_DQ ? JOB_BEFORE : 0, bound);
    job_compare(j, key, MAGI_SIDE_K, "dk", &l->grads[1], j->dk, j->flags & MAGI_ACCUMULATE_DK ? JOB_BEFORE : 0, bound);
    job_compare(j, key, MAGI_SIDE_K, "dv", &l->grads[2], j->dv_out, j->flags & MAGI_ACCUMULATE_DV ? JOB_BEFORE : 0,
                bound);
}

static inline void job_sinks(job *j, const magi_key *key, struct job_local *l, int32_t rank) {
    const double added = j->flags & MAGI_ACCUMULATE_DSINK ? JOB_BEFORE : 0;
    if (j->sink_per_token) {
        job_compare(j, key, MAGI_SIDE_Q, "dsink", &l->dsink, j->dsink, added, j->gradient_bound);
        return;
    }
    j->dsink_parts[rank] = (double *)memory((size_t)(j->sinks * j->hq) * sizeof(double));
    for (int64_t i = 0; i < j->sinks * j->hq; i++) {
        j->dsink_parts[rank][i] = load(l->dsink.dtype, l->dsink.data, i) - added;
    }
}

static inline void job_rank(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    job *j = (job *)data;
    struct job_local l;
    const int32_t acc = job_acc(j), outputs = j->acc_outputs ? acc : j->dtype;
    magi_mask *mask = NULL;
    magi_key *key = NULL;
    const magi_attn_shape shape = shape_of(j->hq, j->hkv, j->d, j->dv, j->dtype);
    if (j->hosts > 0) {
        CHECK_OK(magi_comm_set_mesh(comm, j->hosts, size / j->hosts));
    }
    CHECK_OK(magi_mask_create(j->slices, j->n, j->tq, j->tk, &mask));
    CHECK_OK(magi_key_create(comm, mask, &shape, &j->config, &key));
    magi_mask_destroy(mask);
    l.nq = tokens_of(key, MAGI_SIDE_Q);
    l.nk = tokens_of(key, MAGI_SIDE_K);
    job_triple(j, j->dtype, l.nq, l.nk, l.in);
    job_triple(j, outputs, l.nq, l.nk, l.grads);
    l.out = job_tensor(outputs, l.nq, j->hq, j->dv);
    l.dout = job_tensor(j->dtype, l.nq, j->hq, j->dv);
    l.lse = job_tensor(acc, l.nq, j->hq, 0);
    memset(l.max_data, 0xff, sizeof l.max_data);
    l.max_logits = tensor_of(l.max_data, MAGI_DTYPE_F32, 1, j->hq, 0, 0);
    job_dispatch(key, MAGI_SIDE_Q, j->q, &l.in[0], j->tq);
    job_dispatch(key, MAGI_SIDE_K, j->k, &l.in[1], j->tk);
    job_dispatch(key, MAGI_SIDE_K, j->v, &l.in[2], j->tk);
    job_dispatch(key, MAGI_SIDE_Q, j->dout, &l.dout, j->tq);
    l.sink.data = l.dsink.data = NULL;
    if (j->sinks > 0 && j->sink_per_token) {
        l.sink = job_tensor(MAGI_DTYPE_F32, l.nq, j->sinks, j->hq);
        l.dsink = job_tensor(acc, l.nq, j->sinks, j->hq);
        job_dispatch(key, MAGI_SIDE_Q, j->sink, &l.sink, j->tq);
    } else if (j->sinks > 0) {
        l.sink = tensor_of(packed(j->sink, j->sinks * j->hq, MAGI_DTYPE_F32), MAGI_DTYPE_F32, 2, j->sinks, j->hq, 0);
        l.dsink = job_tensor(acc, j->sinks, j->hq, 0);
    }
    job_forward(j, key, &l);
    job_backward(j, key, &l);
    if (j->sinks > 0) {
        job_sinks(j, key, &l, rank);
    }
    job_free_triple(j, l.in);
    job_free_triple(j, l.grads);
    free(l.out.data);
    free(l.dout.data);
    free(l.lse.data);
    free(l.sink.data);
    free(l.dsink.data);
    magi_key_destroy(key);
}

static inline double *job_random(int64_t n, int32_t dtype, double by, uint64_t *seed) {
    double *x = (double *)memory((size_t)(n > 0 ? n : 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = rounded(dtype, by * draw(seed));
    }
    return x;
}

// NaN in the rows of `x` whose tokens have no visible cell.
static inline void job_spoil(const unsigned char *cells, const job *j, int32_t side, double *x, int64_t row) {
    const int64_t n = side == MAGI_SIDE_Q ? j->tq : j->tk, others = side == MAGI_SIDE_Q ? j->tk : j->tq;
    for (int64_t t = 0; t < n; t++) {
        int seen = 0;
        for (int64_t o = 0; o < others; o++) {
            seen |= side == MAGI_SIDE_Q ? cells[t * j->tk + o] : cells[o * j->tk + t];
        }
        for (int64_t e = 0; !seen && e < row; e++) {
            x[t * row + e] = NAN;
        }
    }
}

// Fills in the global tensors and what dense attention makes of them.
static inline void job_prepare(job *j) {
    uint64_t seed = 7;
    dense_problem p;
    const int64_t nsink = (j->sink_per_token ? j->tq : 1) * j->sinks * j->hq;
    j->q = job_random(j->tq * j->hq * j->d, j->dtype, 2, &seed);
    j->k = job_random(j->tk * j->hkv * j->d, j->dtype, 2, &seed);
    j->v = job_random(j->tk * j->hkv * j->dv, j->dtype, 1, &seed);
    j->dout = job_random(j->tq * j->hq * j->dv, j->dtype, 1, &seed);
    j->sink = j->sinks > 0 ? job_random(nsink, MAGI_DTYPE_F32, 2, &seed) : NULL;
    j->out = job_random(j->tq * j->hq * j->dv, MAGI_DTYPE_F64, 1, &seed);
    j->lse = job_random(j->tq * j->hq, MAGI_DTYPE_F64, 1, &seed);
    j->dq = job_random(j->tq * j->hq * j->d, MAGI_DTYPE_F64, 1, &seed);
    j->dk = job_random(j->tk * j->hkv * j->d, MAGI_DTYPE_F64, 1, &seed);
    j->dv_out = job_random(j->tk * j->hkv * j->dv, MAGI_DTYPE_F64, 1, &seed);
    j->dsink = job_random(nsink, MAGI_DTYPE_F64, 1, &seed);
    unsigned char *cells = (unsigned char *)memory((size_t)(j->tq * j->tk) + 1);
    fill_cells(j->slices, j->n, j->tq, j->tk, cells);
    if (j->nan_unseen) {
        job_spoil(cells, j, MAGI_SIDE_Q, j->q, j->hq * j->d);
        if (j->sinks == 0) { // every query sees a sink
            job_spoil(cells, j, MAGI_SIDE_Q, j->dout, j->hq * j->dv);
        }
        job_spoil(cells, j, MAGI_SIDE_K, j->k, j->hkv * j->d);
        job_spoil(cells, j, MAGI_SIDE_K, j->v, j->hkv * j->dv);
    }
    p.tq = j->tq;
    p.tk = j->tk;
    p.hq = j->hq;
    p.hkv = j->hkv;
    p.d = j->d;
    p.dv = j->dv;
    p.scale = j->scale != 0 ? j->scale : 1 / sqrt((double)j->d);
    p.softcap = j->softcap;
    p.cells = cells;
    p.sink = j->sink;
    p.sinks = j->sinks;
    p.sink_per_token = j->sink_per_token;
    dense_forward(&p, j->q, j->k, j->v, j->out, j->lse, j->max_logits);
    dense_backward(&p, j->q, j->k, j->v, j->dout, j->dq, j->dk, j->dv_out, j->dsink);
    free(cells);
}

static inline void job_cleanup(job *j) {
    double *all[] = {j->q, j->k, j->v, j->dout, j->sink, j->out, j->lse, j->dq, j->dk, j->dv_out, j->dsink};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
}

// What the ranks returned for a shared sink, against the whole gradient.
static inline void job_check_shared_sink(job *j, int32_t size) {
    const int64_t n = j->sinks * j->hq;
    double *sum = (double *)memory((size_t)n * sizeof *sum);
    const int32_t reduce = j->config.dsink_reduce;
    for (int32_t r = 0; r < size; r++) {
        const double *part = j->dsink_parts[r];
        for (int64_t i = 0; i < n; i++) {
            if (reduce == MAGI_DSINK_REDUCE_NONE) {
                sum[i] = (r == 0 ? 0 : sum[i]) + part[i];
            } else {
                sum[i] = part[i] * (reduce == MAGI_DSINK_REDUCE_AVG ? size : 1);
            }
        }
        if (reduce != MAGI_DSINK_REDUCE_NONE || r == size - 1) {
            check_close("dsink", sum, j->dsink, n, j->gradient_bound);
        }
    }
    for (int32_t r = 0; r < size; r++) {
        free(j->dsink_parts[r]);
    }
    free(sum);
}

// Runs the job on `size` ranks.
static inline void job_run(job *j, int32_t size) {
    job_prepare(j);
    run_ranks(size, job_rank, j);
    if (j->sinks > 0 && !j->sink_per_token) {
        job_check_shared_sink(j, size);
    }
    job_cleanup(j);
}

// 61 tokens with every type, documents, shared rows and columns; queries 30 to 34 see nothing, key 61 nobody.
static inline void job_irregular(job *j) {
    j->tq = j->tk = 62;
    j->slices[0] = slice_of(0, 13, 0, 13, MAGI_MASK_TYPE_CAUSAL);
    j->slices[1] = slice_of(13, 30, 5, 20, MAGI_MASK_TYPE_FULL);
    j->slices[2] = slice_of(13, 30, 20, 40, MAGI_MASK_TYPE_INV_CAUSAL);
    j->slices[3] = slice_of(35, 50, 0, 30, MAGI_MASK_TYPE_BI_CAUSAL);
    j->slices[4] = slice_of(50, 62, 3, 61, MAGI_MASK_TYPE_CAUSAL);
    j->n = 5;
}

// 40 queries over 67 keys.
static inline void job_cross(job *j) {
    j->tq = 40;
    j->tk = 67;
    j->slices[0] = slice_of(0, 11, 0, 30, MAGI_MASK_TYPE_CAUSAL);
    j->slices[1] = slice_of(11, 25, 10, 67, MAGI_MASK_TYPE_FULL);
    j->slices[2] = slice_of(27, 40, 40, 50, MAGI_MASK_TYPE_INV_CAUSAL);
    j->slices[3] = slice_of(27, 40, 51, 66, MAGI_MASK_TYPE_FULL);
    j->n = 4;
}

static inline job job_default(const char *name) {
    job j;
    memset(&j, 0, sizeof j);
    j.name = name;
    j.hq = 4;
    j.hkv = 2;
    j.d = 8;
    j.dv = 12;
    j.dtype = MAGI_DTYPE_F64;
    j.bound = j.gradient_bound = 1e-10;
    j.config = default_config();
    j.config.chunk_size = 5;
    j.config.degree_forward = j.config.degree_backward = 1;
    j.config.bwd_hide_tail_reduce = 0;
    job_irregular(&j);
    return j;
}

#endif
