/*
 * Attention over the GPUs of several processes: a block-causal mask with a sink, 32,768 tokens, 48 query and 8 key
 * heads of dimension 128, bf16, forward and backward. Rank 0 then computes the same on its GPU alone, and compares.
 *
 *   cc -std=c11 -O2 -Iinclude examples/context_parallel.c -o context_parallel -lmagi_attn -lm -ldl
 *   torchrun --no-python --nproc-per-node 4 ./context_parallel      (or: mpirun -n 4 ./context_parallel)
 *
 * Without a launcher, or without a GPU, four threads are the ranks: on the processor, with 512 tokens.
 * Exit code 1 when anything fails or differs.
 */
#include "cuda_driver.h"
#include <magi_attn.h>
#include <math.h>
#include <time.h>

/* Largest difference that is allowed, as a part of the largest value: rounding in another order, and bf16 has 8 bits.
 * lse is f32: 1e-4. */
static const double BF16_BOUND = 2e-2, LSE_BOUND = 1e-4;

struct job {
    int64_t total, block, sinks; /* tokens, tokens of a block, sinks */
    magi_attn_shape shape;
};
static const struct job on_gpus = {32768, 4096, 4, {sizeof(magi_attn_shape), 48, 8, 128, 128, MAGI_DTYPE_BF16, 0}};
static const struct job on_processor = {512, 64, 4, {sizeof(magi_attn_shape), 6, 1, 32, 32, MAGI_DTYPE_BF16, 0}};

/* The call succeeds, or the process ends: the other ranks then get an error. */
#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != MAGI_STATUS_OK) {                                                                                \
            stop(#call, magi_last_error_message());                                                                    \
        }                                                                                                              \
    } while (0)

static double now_ms(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* ---- tensors ---- */

/* Those of tokens first, inputs before outputs; the sink and its gradient are one for all ranks. */
enum which { Q, K, V, DOUT, OUT, LSE, DQ, DK, DV, SINK, DSINK, TENSORS };
static const char *const names[TENSORS] = {"q", "k", "v", "dout", "out", "lse", "dq", "dk", "dv", "sink", "dsink"};
static const int32_t side_of[] = {
    MAGI_SIDE_Q, MAGI_SIDE_K, MAGI_SIDE_K, MAGI_SIDE_Q, MAGI_SIDE_Q, MAGI_SIDE_Q, MAGI_SIDE_Q, MAGI_SIDE_K, MAGI_SIDE_K,
};

struct tensors {
    magi_tensor t[TENSORS];
};

static void make(struct place *p, const struct job *job, enum which w, int64_t tokens, magi_tensor *t) {
    const int32_t two = w == LSE || w == SINK || w == DSINK; /* f32, without head_dim */
    const int64_t heads = w == K || w == V || w == DK || w == DV ? job->shape.heads_kv : job->shape.heads_q;
    const int64_t shape[3] = {w >= SINK ? job->sinks : tokens, heads, two ? 1 : job->shape.head_dim};
    void *const data = take(p, (size_t)(shape[0] * shape[1] * shape[2]) * (two ? 4 : 2));
    MUST(magi_tensor_init(data, two ? MAGI_DTYPE_F32 : MAGI_DTYPE_BF16, two ? 2 : 3, shape, t));
    t->device_type = p->cuda != NULL ? MAGI_DEVICE_TYPE_CUDA : MAGI_DEVICE_TYPE_CPU;
    t->device_index = p->device;
}

static size_t elements(const magi_tensor *t) {
    return (size_t)(t->shape[0] * t->shape[1] * (t->ndim == 3 ? t->shape[2] : 1));
}

static size_t bytes_of(const magi_tensor *t) {
    return elements(t) * (t->dtype == MAGI_DTYPE_F32 ? 4 : 2);
}

static double element(const magi_tensor *t, const void *data, size_t i) {
    if (t->dtype == MAGI_DTYPE_F32) {
        return (double)((const float *)data)[i];
    }
    const uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* Nearly normal numbers, the same on every rank: four uniform ones added. */
static void fill(const struct place *p, magi_tensor *t, uint64_t seed) {
    void *const data = host_memory(bytes_of(t));
    for (size_t i = 0; i < elements(t); i++) {
        uint64_t x = (seed << 40) + i;
        x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
        x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
        x ^= x >> 32;
        const int sum = (int)((x & 0xffff) + ((x >> 16) & 0xffff) + ((x >> 32) & 0xffff) + (x >> 48));
        const float normal = (float)(sum - 131070) / 37837.0f;
        uint32_t bits;
        memcpy(&bits, &normal, sizeof bits);
        if (t->dtype == MAGI_DTYPE_F32) {
            ((float *)data)[i] = normal;
        } else {
            ((uint16_t *)data)[i] = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
        }
    }
    write_to(p, t->data, data, bytes_of(t));
    free(data);
}

static magi_forward_args forward_args(const struct tensors *x) {
    const magi_tensor *t = x->t;
    magi_forward_args args = MAGI_FORWARD_ARGS_INIT; /* scale 1 / sqrt(head_dim), no softcap */
    args.q = &t[Q], args.k = &t[K], args.v = &t[V], args.sink = &t[SINK], args.out = &t[OUT], args.lse = &t[LSE];
    return args;
}

static magi_backward_args backward_args(const struct tensors *x) {
    const magi_tensor *t = x->t;
    magi_backward_args args = MAGI_BACKWARD_ARGS_INIT;
    args.q = &t[Q], args.k = &t[K], args.v = &t[V], args.sink = &t[SINK], args.out = &t[OUT], args.lse = &t[LSE];
    args.dout = &t[DOUT], args.dq = &t[DQ], args.dk = &t[DK], args.dv = &t[DV], args.dsink = &t[DSINK];
    return args;
}

/* ---- attention on all ranks, and on one ---- */

/* `whole` has the inputs of all tokens and gets their outputs. */
static void attend_on_all(struct place *p, const magi_key *key, const struct job *job, struct tensors *whole,
                          double ms[2]) {
    struct tensors local = *whole; /* the sink and its gradient stay */
    for (int w = Q; w <= DV; w++) {
        int64_t tokens = 0;
        MUST(magi_key_local_tokens(key, side_of[w], &tokens));
        make(p, job, (enum which)w, tokens, &local.t[w]);
    }
    for (int w = Q; w <= DOUT; w++) {
        MUST(magi_dispatch(key, side_of[w], &whole->t[w], &local.t[w], p->stream));
    }
    const magi_forward_args forward = forward_args(&local);
    const magi_backward_args backward = backward_args(&local);
    for (int turn = 0; turn < 2; turn++) { /* the first loads kernels and connects ranks */
        wait_for(p);
        const double start = now_ms();
        MUST(magi_calc_attn_forward(key, &forward, p->stream));
        wait_for(p);
        const double middle = now_ms();
        MUST(magi_calc_attn_backward(key, &backward, p->stream));
        wait_for(p);
        ms[0] = middle - start, ms[1] = now_ms() - middle;
    }
    for (int w = OUT; w <= DV; w++) {
        MUST(magi_undispatch(key, side_of[w], &local.t[w], &whole->t[w], p->stream));
    }
    wait_for(p);
}

static void attend_alone(struct place *p, const magi_mask *mask, const struct tensors *x) {
    const magi_forward_args forward = forward_args(x);
    const magi_backward_args backward = backward_args(x);
    magi_flex_options options = MAGI_FLEX_OPTIONS_INIT;
    size_t bytes[2];
    MUST(magi_flex_flash_attn_forward_workspace_size(&forward, &options, &bytes[0]));
    MUST(magi_flex_flash_attn_backward_workspace_size(&backward, &options, &bytes[1]));
    options.workspace_size = bytes[0] > bytes[1] ? bytes[0] : bytes[1];
    options.workspace = options.workspace_size > 0 ? take(p, options.workspace_size) : NULL;
    MUST(magi_flex_flash_attn_forward(mask, &forward, &options, p->stream));
    MUST(magi_flex_flash_attn_backward(mask, &backward, &options, p->stream));
    wait_for(p);
}

/* Whether `have` is `want`, but for rounding; prints how far they are apart. */
static int compare(const struct place *p, enum which w, const magi_tensor *have, const magi_tensor *want) {
    void *const a = read_from(p, have->data, bytes_of(have)), *const b = read_from(p, want->data, bytes_of(want));
    double worst = 0, largest = 0;
    for (size_t i = 0; i < elements(want); i++) {
        const double difference = fabs(element(have, a, i) - element(want, b, i));
        worst = isfinite(difference) ? fmax(worst, difference) : INFINITY;
        largest = fmax(largest, fabs(element(want, b, i)));
    }
    free(a), free(b);
    const int good = worst <= (w == LSE ? LSE_BOUND : BF16_BOUND) * largest;
    printf("  %-5s %8.1e of %8.1e%s\n", names[w], worst, largest, good ? "" : "   too far");
    return good;
}

/* One rank: returns 0, or 1 when rank 0 found a difference. */
static int run_rank(const magi_comm *comm, const struct job *job, struct place *p) {
    const int64_t documents[2] = {0, job->total};
    int32_t rank = 0, world = 0, good = 1;
    magi_mask *mask = NULL;
    magi_key *key = NULL;
    magi_config config;
    struct tensors whole;
    double ms[2];
    MUST(magi_comm_rank(comm, &rank));
    MUST(magi_comm_size(comm, &world));
    MUST(magi_mask_create_from_block_causal(documents, 2, job->block, &mask));
    MUST(magi_config_init(&config, sizeof config));
    config.dsink_reduce = MAGI_DSINK_REDUCE_SUM;
    MUST(magi_key_create(comm, mask, &job->shape, &config, &key));
    MUST(magi_key_prepare(key, p->stream)); /* later calls neither allocate nor compare plans */
    for (int w = Q; w < TENSORS; w++) {
        make(p, job, (enum which)w, job->total, &whole.t[w]);
        if (w <= DOUT || w == SINK) {
            fill(p, &whole.t[w], (uint64_t)w + 1);
        }
    }
    attend_on_all(p, key, job, &whole, ms);
    if (rank == 0) {
        struct tensors alone = whole;
        for (int w = OUT; w < TENSORS; w++) {
            if (w != SINK) {
                make(p, job, (enum which)w, job->total, &alone.t[w]);
            }
        }
        attend_alone(p, mask, &alone);
        printf("%d ranks on %s, %lld tokens: forward %.2f ms, backward %.2f ms\n", (int)world,
               p->cuda != NULL ? "GPUs" : "the processor", (long long)job->total, ms[0], ms[1]);
        printf("difference from one rank, largest:\n");
        for (int w = OUT; w < TENSORS; w++) {
            good &= w == SINK || compare(p, (enum which)w, &whole.t[w], &alone.t[w]);
        }
        printf(good ? "they agree\n" : "FAILED: they differ\n");
    }
    magi_key_destroy(key);
    magi_mask_destroy(mask);
    give_back(p);
    return !good;
}

/* ---- ranks: processes with a GPU each, or threads ---- */

static int32_t run_thread(magi_comm *comm, int32_t rank, void *differs) {
    struct place host = {0};
    const int found = run_rank(comm, &on_processor, &host);
    if (rank == 0) {
        *(int *)differs = found;
    }
    return MAGI_STATUS_OK;
}

static int on_local_ranks(const char *why) {
    int differs = 0;
    printf("%s: four threads are the ranks. For GPUs: torchrun --no-python --nproc-per-node 4 ./context_parallel\n",
           why);
    MUST(magi_local_run(4, run_thread, &differs));
    return differs;
}

int main(void) {
    cuda_driver cuda;
    struct place gpu = {0};
    int32_t type = 0;
    magi_comm *comm = NULL;
    if (getenv("RANK") == NULL && getenv("OMPI_COMM_WORLD_RANK") == NULL && getenv("PMI_RANK") == NULL &&
        getenv("SLURM_PROCID") == NULL) {
        return on_local_ranks("One process, without a launcher");
    }
    if (cuda_open(&cuda) == 0) {
        return on_local_ranks("No GPU");
    }
    MUST(magi_comm_create_from_env(NULL, &comm)); /* waits until all processes are there */
    MUST(magi_comm_device(comm, &type, &gpu.device));
    use_device(&gpu, &cuda);
    const int differs = run_rank(comm, &on_gpus, &gpu);
    magi_comm_destroy(comm);
    return differs;
}
