// Textbook attention on a CUDA device gives what the same calls give in host memory, forward and backward: every dtype,
// kind of mask, shape and option.
// timeout: 300
// memcheck off: the driver maps memory that checkers do not know
#include "cuda.h"
#include "ranks.h"

enum { MOST_SLICES = 16 };

typedef struct {
    const char *name;
    int64_t tq, tk, hq, hkv, d, dv;
    double scale, softcap; // 0: the default, none
    int64_t sinks;
    int sink_per_token;
    int64_t gap;    // unused elements behind every token
    int nan_unseen; // NaN in every token that sees nothing, or that nothing sees
    int acc;        // out and gradients in the accumulator type
    uint32_t flags;
    magi_slice slices[MOST_SLICES];
    size_t n;
} problem;

// What one call of either pass names.
enum { Q, K, V, SINK, OUT, LSE, MAX, DOUT, DQ, DK, DV, DSINK, TENSORS };
static const char *const names[TENSORS] = {"q",          "k",    "v",  "sink", "out", "lse",
                                           "max_logits", "dout", "dq", "dk",   "dv",  "dsink"};

typedef struct {
    const problem *p;
    int32_t dtype, acc;
    magi_mask *mask;
    cuda_pair t[TENSORS];
    magi_stream stream;
} run;

// ------------------------------------------------------------------------------------------------------------ masks
static void add(problem *p, int64_t qs, int64_t qe, int64_t ks, int64_t ke, int32_t type) {
    CHECK(p->n < MOST_SLICES);
    p->slices[p->n++] = slice_of(qs, qe, ks, ke, type);
}

static problem plain(const char *name, int64_t tq, int64_t tk) {
    problem p;
    memset(&p, 0, sizeof p);
    p.name = name;
    p.tq = tq;
    p.tk = tk;
    p.hq = 4;
    p.hkv = 2;
    p.d = 64;
    p.dv = 48;
    return p;
}

static problem of_type(const char *name, int64_t tq, int64_t tk, int32_t type) {
    problem p = plain(name, tq, tk);
    add(&p, 0, tq, 0, tk, type);
    return p;
}

// Documents of different lengths one after the other.
static problem packed_documents(void) {
    static const int64_t ends[] = {3, 40, 41, 130, 194, 256, 300};
    problem p = plain("packed documents", 300, 300);
    int64_t start = 0;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        add(&p, start, ends[i], start, ends[i], i % 2 ? MAGI_MASK_TYPE_CAUSAL : MAGI_MASK_TYPE_FULL);
        start = ends[i];
    }
    return p;
}

// Every block sees all blocks before it, and itself.
static problem block_causal(void) {
    problem p = plain("block causal", 320, 320);
    for (int64_t i = 0; i < 5; i++) {
        add(&p, i * 64, i * 64 + 64, 0, i * 64 + 64, MAGI_MASK_TYPE_FULL);
    }
    return p;
}

// Answers that share a question, and do not see each other.
static problem shared_question(void) {
    problem p = plain("shared question", 280, 280);
    add(&p, 0, 100, 0, 100, MAGI_MASK_TYPE_CAUSAL);
    for (int64_t i = 0; i < 3; i++) {
        const int64_t start = 100 + i * 60;
        add(&p, start, start + 60, 0, 100, MAGI_MASK_TYPE_FULL);
        add(&p, start, start + 60, start, start + 60, MAGI_MASK_TYPE_CAUSAL);
    }
    return p;
}

// A window of 50 keys before each query: whole rows of it, and its beginning.
static problem window(void) {
    problem p = plain("sliding window", 400, 400);
    add(&p, 0, 50, 0, 50, MAGI_MASK_TYPE_CAUSAL);
    add(&p, 50, 400, 1, 400, MAGI_MASK_TYPE_BI_CAUSAL);
    return p;
}

// Tokens on both sides that have no part in it.
static problem with_gaps(void) {
    problem p = plain("gaps", 260, 330);
    add(&p, 10, 90, 30, 100, MAGI_MASK_TYPE_INV_CAUSAL);
    add(&p, 100, 201, 150, 300, MAGI_MASK_TYPE_CAUSAL);
    add(&p, 220, 250, 30, 77, MAGI_MASK_TYPE_BI_CAUSAL);
    p.nan_unseen = 1;
    return p;
}

// ---------------------------------------------------------------------------------------------------------- tensors
static int64_t elements(const magi_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) {
        n *= t->shape[i];
    }
    return n;
}

// Where element i of a row-major numbering lies.
static int64_t place(const magi_tensor *t, int64_t i) {
    int64_t at = 0;
    for (int d = t->ndim - 1; d >= 0; d--) {
        at += i % t->shape[d] * t->stride[d];
        i /= t->shape[d];
    }
    return at;
}

static cuda_pair make(int32_t dtype, int32_t ndim, int64_t a, int64_t b, int64_t c, int64_t gap) {
    magi_tensor t = tensor_of(NULL, dtype, ndim, 0, b, c);
    t.shape[0] = a;
    t.stride[0] = (ndim == 1 ? 1 : b) * (ndim == 3 ? c : 1) + gap;
    t.data = memory(cuda_span(&t));
    if (t.data != NULL) {
        memset(t.data, 0xff, cuda_span(&t));
    }
    return cuda_pair_of(&t);
}

static void fill(const run *r, int which, uint64_t *seed, double size) {
    const magi_tensor *t = &r->t[which].host;
    for (int64_t i = 0; i < elements(t); i++) {
        store(t->dtype, t->data, place(t, i), size * draw(seed));
    }
}

// NaN in the rows of `which` that no slice names on their side. The masks here show every token that a slice names.
static void spoil(const run *r, int which, int keys) {
    const magi_tensor *t = &r->t[which].host;
    const int64_t row = t->shape[1] * t->shape[2];
    for (int64_t token = 0; token < t->shape[0]; token++) {
        int named = 0;
        for (size_t i = 0; i < r->p->n; i++) {
            const magi_slice *s = &r->p->slices[i];
            named |= keys ? s->k.start <= token && token < s->k.end : s->q.start <= token && token < s->q.end;
        }
        for (int64_t e = 0; !named && e < row; e++) {
            store(t->dtype, t->data, place(t, token * row + e), NAN);
        }
    }
}

static void set_up(run *r, const problem *p, int32_t dtype) {
    r->p = p;
    r->dtype = dtype;
    r->acc = dtype == MAGI_DTYPE_F64 ? MAGI_DTYPE_F64 : MAGI_DTYPE_F32;
    r->stream = cuda_stream();
    const int32_t result = p->acc ? r->acc : dtype;
    r->t[Q] = make(dtype, 3, p->tq, p->hq, p->d, p->gap);
    r->t[K] = make(dtype, 3, p->tk, p->hkv, p->d, p->gap);
    r->t[V] = make(dtype, 3, p->tk, p->hkv, p->dv, p->gap);
    r->t[DOUT] = make(dtype, 3, p->tq, p->hq, p->dv, p->gap);
    r->t[OUT] = make(result, 3, p->tq, p->hq, p->dv, p->gap);
    r->t[LSE] = make(r->acc, 2, p->tq, p->hq, 0, p->gap);
    r->t[MAX] = make(MAGI_DTYPE_F32, 1, p->hq, 0, 0, 0);
    r->t[DQ] = make(result, 3, p->tq, p->hq, p->d, p->gap);
    r->t[DK] = make(result, 3, p->tk, p->hkv, p->d, p->gap);
    r->t[DV] = make(result, 3, p->tk, p->hkv, p->dv, p->gap);
    const int64_t sinks = p->sinks > 0 ? p->sinks : 1;
    for (int i = SINK; i <= DSINK; i += DSINK - SINK) {
        const int32_t type = i == SINK ? MAGI_DTYPE_F32 : r->acc;
        r->t[i] = p->sink_per_token ? make(type, 3, p->tq, sinks, p->hq, 0) : make(type, 2, sinks, p->hq, 0, 0);
    }
    uint64_t seed = 5;
    fill(r, Q, &seed, 2);
    fill(r, K, &seed, 2);
    fill(r, V, &seed, 1);
    fill(r, DOUT, &seed, 1);
    fill(r, SINK, &seed, 3);
    if (p->nan_unseen) {
        spoil(r, Q, 0);
        spoil(r, DOUT, 0);
        spoil(r, K, 1);
        spoil(r, V, 1);
    }
    CHECK_OK(magi_mask_create(p->slices, p->n, p->tq, p->tk, &r->mask));
}

static void tear_down(run *r) {
    for (int i = 0; i < TENSORS; i++) {
        cuda_pair_free(&r->t[i]);
    }
    magi_mask_destroy(r->mask);
    cuda_stream_destroy(r->stream);
}

// -------------------------------------------------------------------------------------------------------- the calls
static const magi_tensor *side(const run *r, int which, int on_device) {
    return on_device ? &r->t[which].device : &r->t[which].host;
}

static magi_forward_args forward_args(const run *r, int on_device) {
    magi_forward_args a = MAGI_FORWARD_ARGS_INIT;
    a.q = side(r, Q, on_device);
    a.k = side(r, K, on_device);
    a.v = side(r, V, on_device);
    a.sink = r->p->sinks > 0 ? side(r, SINK, on_device) : NULL;
    a.softmax_scale = r->p->scale;
    a.softcap = r->p->softcap;
    a.out = side(r, OUT, on_device);
    a.lse = side(r, LSE, on_device);
    a.max_logits = side(r, MAX, on_device);
    return a;
}

static magi_backward_args backward_args(const run *r, int on_device) {
    magi_backward_args a = MAGI_BACKWARD_ARGS_INIT;
    a.q = side(r, Q, on_device);
    a.k = side(r, K, on_device);
    a.v = side(r, V, on_device);
    a.out = side(r, OUT, on_device);
    a.lse = side(r, LSE, on_device);
    a.dout = side(r, DOUT, on_device);
    a.softmax_scale = r->p->scale;
    a.softcap = r->p->softcap;
    a.dq = side(r, DQ, on_device);
    a.dk = side(r, DK, on_device);
    a.dv = side(r, DV, on_device);
    a.sink = r->p->sinks > 0 ? side(r, SINK, on_device) : NULL;
    a.dsink = r->p->sinks > 0 ? side(r, DSINK, on_device) : NULL;
    a.flags = r->p->flags;
    return a;
}

// Workspace of exactly the size that a call asks for, where its tensors lie.
static void take_workspace(magi_flex_options *o, int on_device) {
    // In host memory a multiple of the alignment is taken, as aligned_alloc wants it.
    o->workspace = on_device ? cuda_memory(o->workspace_size) : aligned_alloc(256, (o->workspace_size | 255) + 1);
    CHECK(o->workspace != NULL || o->workspace_size == 0);
}

static void give_workspace(magi_flex_options *o, int on_device) {
    if (on_device) {
        cuda_free(o->workspace);
    } else {
        free(o->workspace);
    }
}

static void forward(const run *r, int on_device) {
    const magi_forward_args a = forward_args(r, on_device);
    magi_flex_options o = MAGI_FLEX_OPTIONS_INIT;
    o.backend = MAGI_BACKEND_SDPA;
    CHECK_OK(magi_flex_flash_attn_forward_workspace_size(&a, &o, &o.workspace_size));
    take_workspace(&o, on_device);
    CHECK_OK(magi_flex_flash_attn_forward(r->mask, &a, &o, on_device ? r->stream : NULL));
    cuda_stream_wait(r->stream);
    give_workspace(&o, on_device);
}

static void backward(const run *r, int on_device) {
    const magi_backward_args a = backward_args(r, on_device);
    magi_flex_options o = MAGI_FLEX_OPTIONS_INIT;
    o.backend = MAGI_BACKEND_SDPA;
    CHECK_OK(magi_flex_flash_attn_backward_workspace_size(&a, &o, &o.workspace_size));
    take_workspace(&o, on_device);
    CHECK_OK(magi_flex_flash_attn_backward(r->mask, &a, &o, on_device ? r->stream : NULL));
    cuda_stream_wait(r->stream);
    give_workspace(&o, on_device);
}

// --------------------------------------------------------------------------------------------------------- comparison

// The device's side equals the host's within `bound` times the largest, what lies between the elements is untouched,
// and `again` holds the same bytes.
static void compare(const run *r, int which, double bound, const void *again) {
    const cuda_pair *pair = &r->t[which];
    const magi_tensor *t = &pair->host;
    if (pair->bytes == 0) {
        return;
    }
    const int64_t n = elements(t);
    char *bytes = (char *)memory(pair->bytes);
    cuda_download(bytes, pair->device.data, pair->bytes);
    if (memcmp(bytes, again, pair->bytes) != 0) {
        FAIL("%s: %s differs between two runs", r->p->name, names[which]);
    }
    double *have = (double *)memory((size_t)n * 8), *want = (double *)memory((size_t)n * 8);
    for (int64_t i = 0; i < n; i++) {
        have[i] = load(t->dtype, bytes, place(t, i));
        want[i] = load(t->dtype, t->data, place(t, i));
    }
    char what[96];
    snprintf(what, sizeof what, "%s, dtype %d: %s", r->p->name, (int)r->dtype, names[which]);
    check_close(what, have, want, n, bound);
    for (int64_t i = 0; i + 1 < t->shape[0] && t->ndim > 1; i++) {
        const int64_t row = t->shape[1] * (t->ndim == 3 ? t->shape[2] : 1);
        for (int64_t e = i * t->stride[0] + row; e < (i + 1) * t->stride[0]; e++) {
            if (!isnan(load(t->dtype, bytes, e))) {
                FAIL("%s: element %lld was written, which is not part of it", what, (long long)e);
            }
        }
    }
    free(have);
    free(want);
    free(bytes);
}

// What a result holds before a call: NaN, or what gradients are added to.
static void reset(const run *r, int which) {
    const magi_tensor *t = &r->t[which].host;
    if (r->t[which].bytes > 0) {
        memset(t->data, 0xff, r->t[which].bytes);
    }
    for (int64_t e = 0; r->p->flags != 0 && which >= DQ && which != DSINK && e < elements(t); e++) {
        store(t->dtype, t->data, place(t, e), 0.25);
    }
}

// Runs a pass twice on the device and once in host memory, and compares what it writes.
static void both(const run *r, void (*pass)(const run *, int), const int *results, int count, double bound) {
    void *once[4];
    CHECK(count <= 4);
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < count; i++) {
            reset(r, results[i]);
            cuda_pair_upload(&r->t[results[i]]);
        }
        pass(r, 1);
        for (int i = 0; !again && i < count; i++) {
            const cuda_pair *t = &r->t[results[i]];
            once[i] = memory(t->bytes);
            cuda_download(once[i], t->device.data, t->bytes);
        }
    }
    pass(r, 0);
    for (int i = 0; i < count; i++) {
        compare(r, results[i], bound, once[i]);
        free(once[i]);
    }
}

static void check(const problem *p, int32_t dtype) {
    static const int inputs[] = {Q, K, V, SINK, DOUT}, made[] = {OUT, LSE, MAX}, gradients[] = {DQ, DK, DV, DSINK};
    run r;
    set_up(&r, p, dtype);
    for (int i = 0; i < 5; i++) {
        cuda_pair_upload(&r.t[inputs[i]]);
    }
    // Sums differ in their order; results of a narrow dtype may round to either neighbour.
    double bound = dtype == MAGI_DTYPE_F64 ? 1e-11 : 2e-5;
    if (!p->acc) {
        bound = dtype == MAGI_DTYPE_BF16 ? 0x1p-7 : dtype == MAGI_DTYPE_F16 ? 0x1p-10 : bound;
    }
    both(&r, forward, made, 3, bound);
    // Both backward passes take in the out and lse that the host made.
    cuda_pair_upload(&r.t[OUT]);
    cuda_pair_upload(&r.t[LSE]);
    both(&r, backward, gradients, p->sinks > 0 ? 4 : 3, bound);
    tear_down(&r);
}

static const int32_t dtypes[] = {MAGI_DTYPE_F64, MAGI_DTYPE_F32, MAGI_DTYPE_BF16, MAGI_DTYPE_F16};

// Half of them with results in the accumulator type.
static void on_all_dtypes(problem p) {
    for (int i = 0; i < 4; i++) {
        p.acc = (i + (int)p.n) % 2;
        check(&p, dtypes[i]);
    }
}

static void masks(void) {
    on_all_dtypes(of_type("full", 300, 280, MAGI_MASK_TYPE_FULL));
    on_all_dtypes(of_type("causal", 257, 257, MAGI_MASK_TYPE_CAUSAL));
    on_all_dtypes(of_type("causal, more keys", 70, 300, MAGI_MASK_TYPE_CAUSAL));
    on_all_dtypes(of_type("causal, fewer keys", 200, 70, MAGI_MASK_TYPE_CAUSAL));
    on_all_dtypes(of_type("inv_causal", 190, 250, MAGI_MASK_TYPE_INV_CAUSAL));
    on_all_dtypes(packed_documents());
    on_all_dtypes(block_causal());
    on_all_dtypes(shared_question());
    on_all_dtypes(window());
    on_all_dtypes(with_gaps());
    on_all_dtypes(plain("nothing visible", 70, 40));
    on_all_dtypes(plain("no queries", 0, 40));
    on_all_dtypes(plain("no keys", 40, 0));
}

static void shapes(void) {
    static const int64_t heads[][2] = {{1, 1}, {6, 1}, {6, 3}, {5, 5}};
    static const int64_t dims[][2] = {{8, 8}, {9, 33}, {128, 128}, {192, 128}, {256, 256}, {512, 512}};
    for (int i = 0; i < 4; i++) {
        problem p = of_type("heads", 130, 150, MAGI_MASK_TYPE_CAUSAL);
        p.hq = heads[i][0];
        p.hkv = heads[i][1];
        p.d = p.dv = 32;
        on_all_dtypes(p);
    }
    for (int i = 0; i < 6; i++) {
        problem p = of_type("head dims", 100, 120, MAGI_MASK_TYPE_CAUSAL);
        p.hq = 2;
        p.hkv = 1;
        p.d = dims[i][0];
        p.dv = dims[i][1];
        p.gap = i % 2 ? 5 : 0;
        on_all_dtypes(p);
    }
}

static void options(void) {
    problem p = packed_documents();
    p.name = "softcap";
    p.softcap = 1.5;
    p.scale = 0.5;
    on_all_dtypes(p);
    p.name = "negative scale";
    p.softcap = 0;
    p.scale = -0.3;
    on_all_dtypes(p);
    p = shared_question();
    p.name = "shared sinks";
    p.sinks = 3;
    on_all_dtypes(p);
    p.name = "sinks of each query";
    p.sink_per_token = 1;
    on_all_dtypes(p);
    p = block_causal();
    p.name = "added to";
    p.flags = MAGI_ACCUMULATE_DQ | MAGI_ACCUMULATE_DK | MAGI_ACCUMULATE_DV;
    p.gap = 3;
    on_all_dtypes(p);
}

int main(void) {
    cuda_begin(0);
    masks();
    shapes();
    options();
    cuda_end();
    return 0;
}
