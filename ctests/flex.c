// Attention on one device: with a mask, with range lists, piece by piece into one result, with the caller's workspace.
#include "dense.h"
#include "ranks.h"

enum {
    TQ = 21,
    TK = 26,
    HQ = 4,
    HKV = 2,
    D = 9,
    DV = 8,
    SINKS = 2,
    NQ = TQ * HQ * D,
    NO = TQ * HQ * DV,
    NK = TK * HKV * D
};
enum { NV = TK * HKV * DV, NL = TQ * HQ, NS = SINKS * HQ };

static double q[NQ], k[NK], v[NV], dout[NO], sink[NS];
static float sink32[NS];
static double want_out[NO], want_lse[NL], want_max[HQ], want_dq[NQ], want_dk[NK], want_dv[NV], want_dsink[NS];
static double out[NO], lse[NL], dq[NQ], dk[NK], dv[NV], dsink[NS];
static float max_logits[HQ];
static magi_slice slices[4];
static unsigned char cells[TQ * TK];
static magi_tensor tq, tk, tv, tsink, tout, tlse, tmax, tdout, tdq, tdk, tdv, tdsink;
static magi_forward_args forward_args;
static magi_backward_args backward_args;
// Workspace aligned to 256 bytes, large enough for any call here.
static char buffer[1 << 16];
static char *workspace;

static dense_problem problem(void) {
    dense_problem p;
    p.tq = TQ;
    p.tk = TK;
    p.hq = HQ;
    p.hkv = HKV;
    p.d = D;
    p.dv = DV;
    p.scale = 0.4;
    p.softcap = 3;
    p.cells = cells;
    p.sink = sink;
    p.sinks = SINKS;
    p.sink_per_token = 0;
    return p;
}

static void set_up(void) {
    uint64_t seed = 3;
    double *const all[] = {q, k, v, dout, sink};
    const int counts[] = {NQ, NK, NV, NO, NS};
    for (size_t i = 0; i < 5; i++) {
        for (int e = 0; e < counts[i]; e++) {
            all[i][e] = (float)draw(&seed);
        }
    }
    for (int i = 0; i < NS; i++) {
        sink32[i] = (float)sink[i];
    }
    slices[0] = slice_of(0, 9, 0, 12, MAGI_MASK_TYPE_CAUSAL);
    slices[1] = slice_of(9, 15, 3, 20, MAGI_MASK_TYPE_BI_CAUSAL);
    slices[2] = slice_of(17, 21, 0, 26, MAGI_MASK_TYPE_INV_CAUSAL);
    slices[3] = slice_of(9, 15, 20, 25, MAGI_MASK_TYPE_FULL);
    fill_cells(slices, 4, TQ, TK, cells);
    tq = tensor_of(q, MAGI_DTYPE_F64, 3, TQ, HQ, D);
    tk = tensor_of(k, MAGI_DTYPE_F64, 3, TK, HKV, D);
    tv = tensor_of(v, MAGI_DTYPE_F64, 3, TK, HKV, DV);
    tsink = tensor_of(sink32, MAGI_DTYPE_F32, 2, SINKS, HQ, 0);
    tout = tensor_of(out, MAGI_DTYPE_F64, 3, TQ, HQ, DV);
    tlse = tensor_of(lse, MAGI_DTYPE_F64, 2, TQ, HQ, 0);
    tmax = tensor_of(max_logits, MAGI_DTYPE_F32, 1, HQ, 0, 0);
    tdout = tensor_of(dout, MAGI_DTYPE_F64, 3, TQ, HQ, DV);
    tdq = tensor_of(dq, MAGI_DTYPE_F64, 3, TQ, HQ, D);
    tdk = tensor_of(dk, MAGI_DTYPE_F64, 3, TK, HKV, D);
    tdv = tensor_of(dv, MAGI_DTYPE_F64, 3, TK, HKV, DV);
    tdsink = tensor_of(dsink, MAGI_DTYPE_F64, 2, SINKS, HQ, 0);
    const magi_forward_args f = MAGI_FORWARD_ARGS_INIT;
    const magi_backward_args b = MAGI_BACKWARD_ARGS_INIT;
    forward_args = f;
    forward_args.q = &tq;
    forward_args.k = &tk;
    forward_args.v = &tv;
    forward_args.sink = &tsink;
    forward_args.softmax_scale = 0.4;
    forward_args.softcap = 3;
    forward_args.out = &tout;
    forward_args.lse = &tlse;
    forward_args.max_logits = &tmax;
    backward_args = b;
    backward_args.q = &tq;
    backward_args.k = &tk;
    backward_args.v = &tv;
    backward_args.sink = &tsink;
    backward_args.out = &tout;
    backward_args.lse = &tlse;
    backward_args.dout = &tdout;
    backward_args.softmax_scale = 0.4;
    backward_args.softcap = 3;
    backward_args.dq = &tdq;
    backward_args.dk = &tdk;
    backward_args.dv = &tdv;
    backward_args.dsink = &tdsink;
    workspace = buffer + (256 - (uintptr_t)buffer % 256) % 256;
}

static void poison(void) {
    memset(out, 0xff, sizeof out);
    memset(lse, 0xff, sizeof lse);
    memset(max_logits, 0xff, sizeof max_logits);
    memset(dq, 0xff, sizeof dq);
    memset(dk, 0xff, sizeof dk);
    memset(dv, 0xff, sizeof dv);
    memset(dsink, 0xff, sizeof dsink);
    memset(buffer, 0xff, sizeof buffer);
}

static magi_flex_options with_workspace(void) {
    magi_flex_options o = MAGI_FLEX_OPTIONS_INIT;
    o.workspace = workspace;
    o.workspace_size = sizeof buffer - 256;
    return o;
}

static void check_forward(void) {
    const dense_problem p = problem();
    double have[HQ];
    dense_forward(&p, q, k, v, want_out, want_lse, want_max);
    check_close("out", out, want_out, NO, 1e-10);
    check_close("lse", lse, want_lse, NL, 1e-10);
    for (int h = 0; h < HQ; h++) {
        have[h] = max_logits[h];
    }
    check_close("max_logits", have, want_max, HQ, 1e-6);
}

static void check_backward(double added) {
    const dense_problem p = problem();
    dense_backward(&p, q, k, v, dout, want_dq, want_dk, want_dv, want_dsink);
    double *const all[] = {dq, dk, dv, dsink};
    const int counts[] = {NQ, NK, NV, NS};
    for (size_t i = 0; i < 4; i++) {
        for (int e = 0; e < counts[i]; e++) {
            all[i][e] -= added;
        }
    }
    check_close("dq", dq, want_dq, NQ, 1e-10);
    check_close("dk", dk, want_dk, NK, 1e-10);
    check_close("dv", dv, want_dv, NV, 1e-10);
    check_close("dsink", dsink, want_dsink, NS, 1e-10);
}

static void fill(double *x, int n, double value) {
    for (int i = 0; i < n; i++) {
        x[i] = value;
    }
}

static void with_mask(const magi_mask *mask) {
    const magi_flex_options options = with_workspace();
    poison();
    CHECK_OK(magi_flex_flash_attn_forward(mask, &forward_args, NULL, NULL)); // out and lse serve as running ones
    check_forward();
    CHECK_OK(magi_flex_flash_attn_backward(mask, &backward_args, &options, NULL));
    check_backward(0);
    backward_args.flags = MAGI_ACCUMULATE_DQ | MAGI_ACCUMULATE_DK | MAGI_ACCUMULATE_DV | MAGI_ACCUMULATE_DSINK;
    fill(dq, NQ, 2);
    fill(dk, NK, 2);
    fill(dv, NV, 2);
    fill(dsink, NS, 2);
    CHECK_OK(magi_flex_flash_attn_backward(mask, &backward_args, &options, NULL));
    check_backward(2);
    backward_args.flags = 0;
}

// The same mask as lists, with ends beyond the totals where clamping restores them.
static void with_ranges(void) {
    int32_t q_ranges[4][2], k_ranges[4][2], types[4];
    for (int i = 0; i < 4; i++) {
        q_ranges[i][0] = (int32_t)slices[i].q.start;
        q_ranges[i][1] = (int32_t)slices[i].q.end;
        k_ranges[i][0] = (int32_t)slices[i].k.start;
        k_ranges[i][1] = (int32_t)slices[i].k.end;
        types[i] = slices[i].mask_type;
    }
    q_ranges[2][1] = 1000;
    k_ranges[2][0] = -9;
    k_ranges[2][1] = INT32_MAX;
    magi_tensor tqr = tensor_of(q_ranges, MAGI_DTYPE_I32, 2, 4, 2, 0),
                tkr = tensor_of(k_ranges, MAGI_DTYPE_I32, 2, 4, 2, 0);
    magi_tensor tt = tensor_of(types, MAGI_DTYPE_I32, 1, 4, 0, 0);
    magi_flex_options options = with_workspace();
    options.q_ranges = &tqr;
    options.k_ranges = &tkr;
    options.mask_types = &tt;
    poison();
    CHECK_OK(magi_flex_flash_attn_forward(NULL, &forward_args, &options, NULL));
    check_forward();
    CHECK_OK(magi_flex_flash_attn_backward(NULL, &backward_args, &options, NULL));
    check_backward(0);

    // A cell that is covered twice counts twice: everything twice over adds ln 2 to lse and changes out nowhere.
    const magi_slice everything = slice_of(0, TQ, 0, TK, MAGI_MASK_TYPE_FULL);
    unsigned char kept[TQ * TK];
    memcpy(kept, cells, sizeof cells);
    fill_cells(&everything, 1, TQ, TK, cells);
    for (int i = 0; i < 2; i++) {
        q_ranges[i][0] = k_ranges[i][0] = 0;
        q_ranges[i][1] = TQ;
        k_ranges[i][1] = TK;
        types[i] = MAGI_MASK_TYPE_FULL;
    }
    tqr.shape[0] = tkr.shape[0] = tt.shape[0] = 2;
    forward_args.sink = NULL;
    dense_problem p = problem();
    p.sink = NULL;
    dense_forward(&p, q, k, v, want_out, want_lse, want_max);
    CHECK_OK(magi_flex_flash_attn_forward(NULL, &forward_args, &options, NULL));
    check_close("out", out, want_out, NO, 1e-10);
    for (int i = 0; i < NL; i++) {
        CHECK_NEAR(lse[i] - want_lse[i], log(2), 1e-10);
    }
    forward_args.sink = &tsink;
    memcpy(cells, kept, sizeof cells);
}

static void wrong_ranges(const magi_mask *mask) {
    int32_t ranges[4] = {0, 4, 0, 4}, types[2] = {0, 0};
    magi_tensor tr = tensor_of(ranges, MAGI_DTYPE_I32, 2, 2, 2, 0), tt = tensor_of(types, MAGI_DTYPE_I32, 1, 2, 0, 0);
    magi_flex_options o = with_workspace();
    poison();
#define FORWARD(mask, status, part)                                                                                    \
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &forward_args, &o, NULL), status, part);                          \
    CHECK_REFUSED(magi_flex_flash_attn_backward(mask, &backward_args, &o, NULL), status, part)
    FORWARD(NULL, MAGI_STATUS_NULL_POINTER, "mask is NULL");
    o.q_ranges = &tr;
    FORWARD(NULL, MAGI_STATUS_NULL_POINTER, "q_ranges, k_ranges and mask_types");
    o.k_ranges = &tr;
    FORWARD(NULL, MAGI_STATUS_NULL_POINTER, "q_ranges, k_ranges and mask_types");
    o.mask_types = &tt;
    FORWARD(mask, MAGI_STATUS_INVALID_ARGUMENT, "mask is given and options holds ranges");
    tt.shape[0] = 1;
    FORWARD(NULL, MAGI_STATUS_SHAPE_MISMATCH, "options.mask_types has shape [1]; it must be [2]");
    tt.shape[0] = 2;
    tr.ndim = 1;
    tr.stride[0] = 1;
    FORWARD(NULL, MAGI_STATUS_SHAPE_MISMATCH, "options.q_ranges has shape [2]; it must be [2, 2]");
    tr.ndim = 2;
    tr.stride[0] = 2;
    tr.dtype = MAGI_DTYPE_F32;
    FORWARD(NULL, MAGI_STATUS_DTYPE_MISMATCH, "options.q_ranges has dtype f32; it must be i32");
    tr.dtype = MAGI_DTYPE_I32;
    tt.device_type = MAGI_DEVICE_TYPE_CUDA;
    FORWARD(NULL, MAGI_STATUS_DEVICE_MISMATCH, "options.mask_types lies on");
    tt.device_type = MAGI_DEVICE_TYPE_CPU;
    tr.stride[1] = 2;
    tr.shape[0] = 1;
    tt.shape[0] = 1;
    FORWARD(NULL, MAGI_STATUS_INVALID_STRIDE, "options.q_ranges has stride 2 in its last dimension");
    CHECK(isnan(out[0]) && isnan(dq[0]));
}

// Two halves of a mask, one after the other into the same out and lse.
static void accumulate(void) {
    magi_mask *first = NULL, *second = NULL;
    magi_flex_options o = with_workspace();
    CHECK_OK(magi_mask_create(slices, 2, TQ, TK, &first));
    CHECK_OK(magi_mask_create(slices + 2, 2, TQ, TK, &second));
    poison();
    CHECK_OK(magi_flex_flash_attn_forward(first, &forward_args, NULL, NULL));
    o.accumulate = 1;
    double before[NO];
    memcpy(before, out, sizeof out);
    CHECK_REFUSED(magi_flex_flash_attn_forward(second, &forward_args, &o, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "args.sink is given with options.accumulate");
    forward_args.sink = NULL;
    forward_args.lse = NULL;
    CHECK_REFUSED(magi_flex_flash_attn_forward(second, &forward_args, &o, NULL), MAGI_STATUS_NULL_POINTER,
                  "args.lse is NULL");
    forward_args.lse = &tlse;
    CHECK_REFUSED(magi_flex_flash_attn_backward(second, &backward_args, &o, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "options.accumulate");
    o.accumulate = 2;
    CHECK_REFUSED(magi_flex_flash_attn_forward(second, &forward_args, &o, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "options.accumulate is 2; it must be 0 or 1");
    CHECK(memcmp(before, out, sizeof out) == 0);
    o.accumulate = 1;
    CHECK_OK(magi_flex_flash_attn_forward(second, &forward_args, &o, NULL));
    check_forward();
    forward_args.sink = &tsink;
    magi_mask_destroy(first);
    magi_mask_destroy(second);
}

// bf16 tensors need running sums of f32 in the workspace: sizes, and workspaces that do not do.
static void workspaces(const magi_mask *mask) {
    uint16_t q16[NQ], k16[NK], v16[NV], out16[NO];
    magi_tensor t[4];
    magi_forward_args args = forward_args;
    magi_flex_options o = with_workspace();
    size_t bytes = 0;
    for (int i = 0; i < NQ; i++) {
        store(MAGI_DTYPE_BF16, q16, i, q[i]);
    }
    for (int i = 0; i < NK; i++) {
        store(MAGI_DTYPE_BF16, k16, i, k[i]);
    }
    for (int i = 0; i < NV; i++) {
        store(MAGI_DTYPE_BF16, v16, i, v[i]);
    }
    memset(out16, 0xff, sizeof out16);
    t[0] = tensor_of(q16, MAGI_DTYPE_BF16, 3, TQ, HQ, D);
    t[1] = tensor_of(k16, MAGI_DTYPE_BF16, 3, TK, HKV, D);
    t[2] = tensor_of(v16, MAGI_DTYPE_BF16, 3, TK, HKV, DV);
    t[3] = tensor_of(out16, MAGI_DTYPE_BF16, 3, TQ, HQ, DV);
    args.q = &t[0];
    args.k = &t[1];
    args.v = &t[2];
    args.out = &t[3];
    args.lse = NULL;
    CHECK_OK(magi_flex_flash_attn_forward_workspace_size(&args, NULL, &bytes));
    CHECK(bytes >= sizeof(float) * (NO + NL) && bytes < sizeof buffer - 256);
    const magi_status small = MAGI_STATUS_BUFFER_TOO_SMALL;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &args, NULL, NULL), small,
                  "options.workspace_size is 0; this call needs");
    o.workspace_size = bytes - 1;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &args, &o, NULL), small, "options.workspace_size is");
    o.workspace_size = bytes;
    o.workspace = workspace + 8;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &args, &o, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "options.workspace");
    o.workspace = NULL;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &args, &o, NULL), MAGI_STATUS_NULL_POINTER, "options.workspace");
    CHECK(out16[0] == 0xffff && out16[NO - 1] == 0xffff);
    o.workspace = workspace;
    // Running sums over a tensor of the call would be wrong without a word.
    const magi_status overlap = MAGI_STATUS_TENSOR_OVERLAP;
    t[1].data = memcpy(workspace + bytes - 256, k16, sizeof k16);
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &args, &o, NULL), overlap,
                  "options.workspace overlaps args.k in memory");
    t[1].data = memcpy(workspace + bytes, k16, sizeof k16);
    CHECK_OK(magi_flex_flash_attn_forward(mask, &args, &o, NULL));
    t[1].data = k16;
    t[3].data = workspace;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &args, &o, NULL), overlap,
                  "options.workspace overlaps args.out in memory");
    t[3].data = out16;
    memset(buffer, 0x5a, sizeof buffer);
    CHECK_OK(magi_flex_flash_attn_forward(mask, &args, &o, NULL));
    for (size_t i = bytes; i < 4096; i++) {
        CHECK_INT(workspace[i], 0x5a); // no more than was said
    }
    const dense_problem p = problem();
    dense_forward(&p, q, k, v, want_out, want_lse, want_max);
    for (int i = 0; i < NO; i++) {
        CHECK_NEAR(load(MAGI_DTYPE_BF16, out16, i), want_out[i], 0.05); // the inputs were rounded
    }
}

static void choices(const magi_mask *mask) {
    magi_flex_options o = with_workspace();
    size_t bytes = 0;
    double before[NO];
    poison();
    o.backend = MAGI_BACKEND_FFA;
    const magi_status status = MAGI_STATUS_NOT_SUPPORTED;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &forward_args, &o, NULL), status, "options.backend ffa");
    CHECK_HAS(magi_last_error_message(), "CUDA");
    CHECK_REFUSED(magi_flex_flash_attn_backward(mask, &backward_args, &o, NULL), status, "options.backend ffa");
    CHECK_REFUSED(magi_flex_flash_attn_forward_workspace_size(&forward_args, &o, &bytes), status, "ffa");
    CHECK_REFUSED(magi_flex_flash_attn_backward_workspace_size(&backward_args, &o, &bytes), status, "ffa");
    CHECK(isnan(out[0]) && isnan(dq[0]) && bytes == 0);
    o.backend = MAGI_BACKEND_DEFAULT;
    o.deterministic = 2;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &forward_args, &o, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "options.deterministic is 2");
    o.deterministic = 1;
    o.sm_margin = -1;
    CHECK_REFUSED(magi_flex_flash_attn_forward(mask, &forward_args, &o, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "options.sm_margin is -1");
    o.sm_margin = 0;
    CHECK_OK(magi_flex_flash_attn_forward(mask, &forward_args, &o, NULL));
    check_forward();
    memcpy(before, out, sizeof out);
    o.backend = MAGI_BACKEND_SDPA;
    CHECK_OK(magi_flex_flash_attn_forward(mask, &forward_args, &o, NULL));
    CHECK(memcmp(before, out, sizeof out) == 0);
}

// Preparing checks what a call checks, writes nothing, and the CPU has nothing else to prepare.
static void prepares(const magi_mask *mask) {
    magi_flex_options o = with_workspace();
    poison();
    CHECK_OK(magi_flex_flash_attn_forward_prepare(mask, &forward_args, &o, NULL));
    CHECK_OK(magi_flex_flash_attn_backward_prepare(mask, &backward_args, &o, NULL));
    CHECK_OK(magi_flex_flash_attn_forward_prepare(mask, &forward_args, NULL, NULL));
    o.backend = MAGI_BACKEND_FFA;
    const magi_status status = MAGI_STATUS_NOT_SUPPORTED;
    CHECK_REFUSED(magi_flex_flash_attn_forward_prepare(mask, &forward_args, &o, NULL), status, "options.backend ffa");
    CHECK_REFUSED(magi_flex_flash_attn_backward_prepare(mask, &backward_args, &o, NULL), status, "options.backend ffa");
    o.backend = MAGI_BACKEND_DEFAULT;
    o.accumulate = 1;
    CHECK_REFUSED(magi_flex_flash_attn_forward_prepare(mask, &forward_args, &o, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "args.sink is given with options.accumulate");
    tk.shape[0]--;
    CHECK_REFUSED(magi_flex_flash_attn_forward_prepare(mask, &forward_args, NULL, NULL), MAGI_STATUS_SHAPE_MISMATCH,
                  "args.k has shape");
    CHECK_REFUSED(magi_flex_flash_attn_backward_prepare(mask, &backward_args, NULL, NULL), MAGI_STATUS_SHAPE_MISMATCH,
                  "args.k has shape");
    tk.shape[0]++;
    CHECK(isnan(out[0]) && isnan(lse[0]) && isnan(dq[0]));
}

int main(void) {
    magi_mask *mask = NULL;
    set_up();
    CHECK_OK(magi_mask_create(slices, 4, TQ, TK, &mask));
    with_mask(mask);
    with_ranges();
    wrong_ranges(mask);
    accumulate();
    workspaces(mask);
    choices(mask);
    prepares(mask);
    magi_mask_destroy(mask);
    return 0;
}
