/*
 * The whole way once, on a machine without a GPU: a mask is planned for four ranks, its tokens are dispatched,
 * attention is computed forward and backward with real transfers between the ranks, and the gathered result is compared
 * with what one rank alone computes. First for a block-causal mask, then for a batch of packed documents.
 *
 * scripts/quickstart.sh builds and runs it. Exit code 1 when anything fails or differs.
 */
#include <magi_attn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RANKS = 4, MAX_DOCUMENTS = 1024 };
/* What 4 ranks may differ from one: rounding in another order. bf16 has 8 bits. */
static const double F64_BOUND = 1e-10, BF16_BOUND = 2e-2;

/* The call succeeds, or the program ends with the library's message: other ranks may wait for this one. */
#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != MAGI_STATUS_OK) {                                                                                \
            die(magi_last_error_message());                                                                            \
        }                                                                                                              \
    } while (0)

/* ---- small things: errors, time, random numbers, printing, memory ---- */

static void die(const char *message) {
    fflush(stdout);
    fprintf(stderr, "quickstart: %s\n", message);
    _Exit(1);
}

static double now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Uniform in (0, 1): a counter, scrambled. */
static double uniform(uint64_t *counter) {
    uint64_t x = (*counter += 0x9e3779b97f4a7c15u);
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    return ((double)((x ^ (x >> 32)) >> 11) + 0.5) / 9007199254740992.0;
}

static double normal(uint64_t *counter) {
    const double radius = sqrt(-2.0 * log(uniform(counter)));
    return radius * cos(6.283185307179586 * uniform(counter));
}

/* 1234567 as "1,234,567". Good until the eighth call after it; for the main thread. */
static const char *grouped(int64_t n) {
    static char texts[8][32];
    static int turn = 0;
    char digits[24], *out = texts[turn = (turn + 1) % 8];
    const int length = snprintf(digits, sizeof digits, "%lld", (long long)n);
    int at = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            out[at++] = ',';
        }
        out[at++] = digits[i];
    }
    out[at] = '\0';
    return out;
}

/* Blocks that are freed together, aligned to 256 as workspace must be. */
struct bag {
    void *blocks[48];
    size_t count;
};

static void *take(struct bag *bag, size_t bytes) {
    const size_t rounded = (bytes + 255) / 256 * 256;
    void *block = bag->count < 48 ? aligned_alloc(256, rounded ? rounded : 256) : NULL;
    if (block == NULL) {
        die("out of memory");
    }
    return bag->blocks[bag->count++] = block;
}

static void empty(struct bag *bag) {
    while (bag->count > 0) {
        free(bag->blocks[--bag->count]);
    }
}

/* ---- the tensors of one attention layer ---- */

enum which { Q, K, V, DOUT, OUT, LSE, DQ, DK, DV, TENSORS };

static const int32_t side_of[TENSORS] = {
    MAGI_SIDE_Q, MAGI_SIDE_K, MAGI_SIDE_K, MAGI_SIDE_Q, MAGI_SIDE_Q, MAGI_SIDE_Q, MAGI_SIDE_Q, MAGI_SIDE_K, MAGI_SIDE_K,
};

struct tensors {
    magi_tensor t[TENSORS];
};

static void make(struct bag *bag, const magi_attn_shape *s, enum which w, int64_t tokens, magi_tensor *t) {
    const int key = w == K || w == V || w == DK || w == DV, value = w == V || w == DV || w == OUT || w == DOUT;
    const int64_t shape[3] = {tokens, key ? s->heads_kv : s->heads_q, value ? s->head_dim_v : s->head_dim};
    /* lse is [tokens, heads_q] in the accumulator type. */
    const int32_t accumulator = s->dtype == MAGI_DTYPE_F64 ? MAGI_DTYPE_F64 : MAGI_DTYPE_F32;
    void *data = take(bag, (size_t)(shape[0] * shape[1] * shape[2]) * sizeof(double));
    MUST(magi_tensor_init(data, w == LSE ? accumulator : s->dtype, w == LSE ? 2 : 3, shape, t));
}

static size_t elements(const magi_tensor *t) {
    return (size_t)(t->shape[0] * t->shape[1] * (t->ndim == 3 ? t->shape[2] : 1));
}

static uint16_t to_bf16(double x) {
    const float single = (float)x;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static double from_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float single;
    memcpy(&single, &bits, sizeof single);
    return (double)single;
}

static double element(const magi_tensor *t, size_t i) {
    return t->dtype == MAGI_DTYPE_F64   ? ((const double *)t->data)[i]
           : t->dtype == MAGI_DTYPE_F32 ? (double)((const float *)t->data)[i]
                                        : from_bf16(((const uint16_t *)t->data)[i]);
}

/* Largest difference, as a part of the largest value. Infinite when something is not finite. */
static double difference(const magi_tensor *have, const magi_tensor *want) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < elements(want); i++) {
        const double a = element(have, i), b = element(want, i);
        if (!isfinite(a) || !isfinite(b)) {
            return INFINITY;
        }
        worst = fmax(worst, fabs(a - b));
        largest = fmax(largest, fabs(b));
    }
    return largest > 0 ? worst / largest : worst;
}

/* ---- forward and backward, on one rank and on four ---- */

static magi_forward_args forward_args(const struct tensors *x) {
    const magi_tensor *t = x->t;
    const magi_forward_args args = {
        .size = sizeof args, .q = &t[Q], .k = &t[K], .v = &t[V], .out = &t[OUT], .lse = &t[LSE]};
    return args; /* the rest is 0: no sink, no softcap, scale 1 / sqrt(head_dim) */
}

static magi_backward_args backward_args(const struct tensors *x) {
    const magi_tensor *t = x->t;
    magi_backward_args args = {.size = sizeof args, .q = &t[Q], .k = &t[K], .v = &t[V], .out = &t[OUT]};
    args.lse = &t[LSE], args.dout = &t[DOUT], args.dq = &t[DQ], args.dk = &t[DK], args.dv = &t[DV];
    return args;
}

/* One rank alone: no plan, no communicator. */
static void attend_alone(struct bag *bag, const magi_mask *mask, const struct tensors *x, double seconds[2]) {
    const magi_forward_args forward = forward_args(x);
    const magi_backward_args backward = backward_args(x);
    magi_flex_options options = MAGI_FLEX_OPTIONS_INIT;
    size_t bytes[2];
    MUST(magi_flex_flash_attn_forward_workspace_size(&forward, &options, &bytes[0]));
    MUST(magi_flex_flash_attn_backward_workspace_size(&backward, &options, &bytes[1]));
    options.workspace_size = bytes[0] > bytes[1] ? bytes[0] : bytes[1];
    options.workspace = take(bag, options.workspace_size);
    const double start = now();
    MUST(magi_flex_flash_attn_forward(mask, &forward, &options, NULL));
    const double middle = now();
    MUST(magi_flex_flash_attn_backward(mask, &backward, &options, NULL));
    seconds[0] = middle - start;
    seconds[1] = now() - middle;
}

/* What the ranks share: inputs that all of them read, outputs that rank 0 writes, times. */
struct job {
    const magi_mask *mask;
    const magi_attn_shape *shape;
    const magi_config *config;
    const struct tensors *global;
    struct tensors *result;
    double seconds[RANKS][2];
};

static void attend_local(struct bag *bag, const magi_key *key, int32_t rank, struct job *job) {
    struct tensors local, whole;
    for (int w = Q; w < TENSORS; w++) {
        int64_t tokens = 0;
        MUST(magi_key_local_tokens(key, side_of[w], &tokens));
        make(bag, job->shape, (enum which)w, tokens, &local.t[w]);
    }
    for (int w = Q; w <= DOUT; w++) {
        MUST(magi_dispatch(key, side_of[w], &job->global->t[w], &local.t[w], NULL));
    }
    const magi_forward_args forward = forward_args(&local);
    const magi_backward_args backward = backward_args(&local);
    const double start = now();
    MUST(magi_calc_attn_forward(key, &forward, NULL));
    const double middle = now();
    MUST(magi_calc_attn_backward(key, &backward, NULL));
    const double end = now();
    for (int w = OUT; w < TENSORS; w++) {
        if (rank == 0) {
            whole.t[w] = job->result->t[w];
        } else {
            make(bag, job->shape, (enum which)w, job->result->t[w].shape[0], &whole.t[w]);
        }
        MUST(magi_undispatch(key, side_of[w], &local.t[w], &whole.t[w], NULL));
    }
    job->seconds[rank][0] = middle - start, job->seconds[rank][1] = end - middle;
}

/* Runs on a thread of its own for every rank. */
static int32_t run_rank(magi_comm *comm, int32_t rank, void *userdata) {
    struct job *job = userdata;
    struct bag bag = {0};
    magi_key *key = NULL;
    MUST(magi_key_create(comm, job->mask, job->shape, job->config, &key));
    MUST(magi_key_prepare(key, NULL)); /* compares plans over ranks, takes workspace */
    attend_local(&bag, key, rank, job);
    magi_key_destroy(key);
    empty(&bag);
    return MAGI_STATUS_OK;
}

/* Four ranks with `dtype` against `want`. The inputs are numbers that bf16 holds exactly: every dtype reads the same.
 */
static void check(struct bag *bag, struct job job, int32_t dtype, const struct tensors *want, int *good) {
    const int exact = dtype == MAGI_DTYPE_F64;
    magi_attn_shape shape = *job.shape;
    shape.dtype = dtype;
    struct tensors global = *want, result;
    for (int w = Q; w < TENSORS; w++) {
        make(bag, &shape, (enum which)w, want->t[w].shape[0], w <= DOUT ? &global.t[w] : &result.t[w]);
        for (size_t i = 0; w <= DOUT && i < elements(&global.t[w]); i++) {
            if (exact) {
                ((double *)global.t[w].data)[i] = element(&want->t[w], i);
            } else {
                ((uint16_t *)global.t[w].data)[i] = to_bf16(element(&want->t[w], i));
            }
        }
    }
    job.shape = &shape, job.global = &global, job.result = &result;
    MUST(magi_local_run(RANKS, run_rank, &job));
    printf("    4 ranks, %-4s", exact ? "f64" : "bf16");
    for (int w = OUT; w < TENSORS; w++) {
        const double error = difference(&result.t[w], &want->t[w]);
        *good &= error <= (exact ? F64_BOUND : BF16_BOUND);
        printf("%10.1e", error);
    }
    printf("%9.2f s%9.2f s\n", job.seconds[0][0], job.seconds[0][1]);
}

/* Computes `mask` on one rank and on four, and prints how far they are apart. `good` becomes 0 when that is too far. */
static void compute(struct bag *bag, const magi_mask *mask, const magi_config *config, int *good) {
    const magi_attn_shape shape = {sizeof shape, 6, 1, 128, 128, MAGI_DTYPE_F64, 0};
    int64_t totals[2] = {0, 0};
    MUST(magi_mask_totals(mask, &totals[MAGI_SIDE_Q], &totals[MAGI_SIDE_K]));
    struct tensors alone;
    uint64_t counter = 1;
    for (int w = Q; w < TENSORS; w++) {
        make(bag, &shape, (enum which)w, totals[side_of[w]], &alone.t[w]);
        for (size_t i = 0; w <= DOUT && i < elements(&alone.t[w]); i++) {
            ((double *)alone.t[w].data)[i] = from_bf16(to_bf16(normal(&counter)));
        }
    }
    printf("\n  computed: %s tokens, chunks of %s, heads 6:1, head_dim 128; error = max difference / max value\n",
           grouped(totals[MAGI_SIDE_Q]), grouped(config->chunk_size));
    printf("    %-13s%10s%10s%10s%10s%10s%11s%11s\n", "", "out", "lse", "dq", "dk", "dv", "forward", "backward");
    double seconds[2];
    attend_alone(bag, mask, &alone, seconds);
    printf("    %-63s%9.2f s%9.2f s\n", "1 rank, f64", seconds[0], seconds[1]);
    const struct job job = {mask, &shape, config, NULL, NULL, {{0}}};
    check(bag, job, MAGI_DTYPE_F64, &alone, good);
    check(bag, job, MAGI_DTYPE_BF16, &alone, good);
}

/* ---- the plan and its statistics ---- */

/* Adds the keys that the rank of `key` must receive, what its queries see without its own, counted token by token. For
 * masks of full and causal slices. */
static void count_needed(struct bag *bag, const magi_key *key, const magi_mask *mask, int64_t *needed) {
    int64_t total = 0;
    size_t owned = 0, slices = 0;
    MUST(magi_mask_totals(mask, NULL, &total));
    MUST(magi_key_position_ids(key, MAGI_SIDE_Q, NULL, &owned));
    MUST(magi_mask_slices(mask, NULL, &slices));
    int64_t *own = take(bag, owned * sizeof *own);
    magi_slice *slice = take(bag, slices * sizeof *slice);
    unsigned char *seen = take(bag, (size_t)total);
    MUST(magi_key_position_ids(key, MAGI_SIDE_Q, own, &owned));
    MUST(magi_mask_slices(mask, slice, &slices));
    memset(seen, 0, (size_t)total);
    for (size_t s = 0; s < slices; s++) {
        int64_t end = slice[s].k.start;
        for (size_t i = 0; i < owned; i++) {
            if (slice[s].q.start <= own[i] && own[i] < slice[s].q.end) {
                const int64_t diagonal = own[i] + slice[s].k.end - slice[s].q.end + 1;
                end = slice[s].mask_type == MAGI_MASK_TYPE_FULL ? slice[s].k.end : diagonal;
            }
        }
        memset(seen + slice[s].k.start, 1, (size_t)(end - slice[s].k.start));
    }
    for (size_t i = 0; i < owned; i++) {
        seen[own[i]] = 0;
    }
    for (int64_t i = 0; i < total; i++) {
        *needed += seen[i];
    }
}

/* Plans `mask` for four ranks in the shape of a real model, prints what came of it, and gives the tokens of a chunk. */
static int64_t plan(struct bag *bag, const magi_mask *mask, const magi_config *config, int *good) {
    const magi_attn_shape shape = {sizeof shape, 48, 8, 128, 128, MAGI_DTYPE_BF16, 0};
    magi_comm *comms[RANKS];
    magi_key *keys[RANKS];
    MUST(magi_comm_create_local(RANKS, comms));
    double fastest = INFINITY;
    for (int r = 0; r < RANKS; r++) {
        const double start = now();
        MUST(magi_key_create(comms[r], mask, &shape, config, &keys[r]));
        fastest = fmin(fastest, now() - start);
    }
    magi_key_stats s = {.size = sizeof s};
    MUST(magi_key_get_stats(keys[0], &s));
    printf("  plan           %.2f ms (fastest of %d ranks), chunks of %s\n", 1e3 * fastest, RANKS,
           grouped(s.chunk_size));
    printf("  balance        %.4f; no placement of these chunks has less than %.4f\n", s.balance, s.balance_bound);
    printf("    %-6s%16s%10s%11s%11s%11s%15s%20s\n", "rank", "visible cells", "of mean", "tokens", "sends", "receives",
           "workspace", "hash");
    int64_t needed = 0;
    uint64_t hash[RANKS];
    for (int r = 0; r < RANKS; r++) {
        magi_rank_stats rank = {.size = sizeof rank};
        size_t workspace = 0;
        MUST(magi_key_get_rank_stats(keys[0], r, &rank));
        MUST(magi_key_workspace_size(keys[r], &workspace));
        MUST(magi_key_hash(keys[r], &hash[r]));
        count_needed(bag, keys[r], mask, &needed);
        *good &= hash[r] == hash[0];
        printf("    %-6d%16s%10.4f%11s%11s%11s%11s MiB    %016llx\n", r, grouped(rank.area),
               (double)rank.area * RANKS / (double)s.area, grouped(rank.tokens_q), grouped(rank.tokens_sent),
               grouped(rank.tokens_received), grouped((int64_t)(workspace >> 20)), (unsigned long long)hash[r]);
    }
    *good &= s.tokens_moved == needed;
    printf("  tokens moved   %s; %s are needed on this placement; all-gather moves %s\n", grouped(s.tokens_moved),
           grouped(needed), grouped(s.tokens_all_gather));
    for (int r = 0; r < RANKS; r++) {
        magi_key_destroy(keys[r]);
        magi_comm_destroy(comms[r]);
    }
    return s.chunk_size;
}

/* Plans `full`, computes `reduced` with chunks that are smaller by `scale`, and destroys both. */
static void show(magi_mask *full, magi_mask *reduced, int64_t chunk_size, int64_t scale, int *good) {
    struct bag bag = {0};
    magi_config config;
    MUST(magi_config_init(&config, sizeof config));
    config.chunk_size = chunk_size;
    config.chunk_size = plan(&bag, full, &config, good) / scale;
    empty(&bag);
    compute(&bag, reduced, &config, good);
    empty(&bag);
    magi_mask_destroy(full);
    magi_mask_destroy(reduced);
}

/* ---- the two masks ---- */

/* Query block i sees all keys up to the end of block i: one full slice a block. */
static void block_causal(int64_t total, int64_t block, magi_mask **mask) {
    magi_slice slices[8] = {{{0, 0}, {0, 0}, 0, 0}};
    for (int64_t i = 0; i < 8; i++) {
        slices[i].q.start = i * block;
        slices[i].q.end = slices[i].k.end = (i + 1) * block;
        slices[i].mask_type = MAGI_MASK_TYPE_FULL;
    }
    MUST(magi_mask_create(slices, 8, total, total, mask));
}

/* Lengths as they are found in long-context training data: 16% of documents are under 2k tokens, ... 40% are 64k or
 * more. Inside a class the logarithm is uniform. Documents are drawn until `total` is full; the last one is cut to fit.
 */
static size_t draw_documents(int64_t total, int64_t *lengths) {
    static const int percent[] = {16, 5, 4, 6, 8, 21, 40};
    static const double from[] = {256, 2048, 4096, 8192, 16384, 32768, 65536, 131072};
    uint64_t counter = 2026;
    size_t n = 0;
    for (int64_t left = total; left > 0 && n < MAX_DOCUMENTS; left -= lengths[n++]) {
        double point = 100.0 * uniform(&counter);
        int class = 0;
        while (class < 6 && point >= percent[class]) {
            point -= percent[class++];
        }
        const int64_t length = (int64_t)(from[class] * pow(from[class + 1] / from[class], uniform(&counter)));
        lengths[n] = length < left ? length : left;
    }
    return n;
}

/* Documents packed one after the other, causal in themselves, each shorter by `scale` but never empty. */
static void packed(const int64_t *lengths, size_t n, int64_t scale, magi_mask **mask) {
    int64_t ends[MAX_DOCUMENTS + 1] = {0};
    for (size_t i = 0; i < n; i++) {
        ends[i + 1] = ends[i] + (lengths[i] + scale - 1) / scale;
    }
    MUST(magi_mask_create_from_cu_seqlens(ends, ends, n + 1, 1, -1, -1, 0, mask));
}

int main(void) {
    const int64_t total = 32768, block = 4096, batch = 1048576;
    const double start = now();
    magi_mask *full = NULL, *reduced = NULL;
    int64_t lengths[MAX_DOCUMENTS];
    int good = 1;

    printf("libmagi_attn %s, %d ranks of one process; plans are for heads 48:8, head_dim 128, bf16\n\n",
           magi_version_string(), RANKS);
    printf("1. Block-causal mask, %s tokens in blocks of %s\n", grouped(total), grouped(block));
    block_causal(total, block, &full);
    block_causal(total / 16, block / 16, &reduced);
    show(full, reduced, 512, 16, &good);

    const size_t n = draw_documents(batch, lengths);
    printf("\n2. Packed documents, causal, %s tokens in %d documents\n", grouped(batch), (int)n);
    packed(lengths, n, 1, &full);
    packed(lengths, n, 128, &reduced);
    show(full, reduced, 0, 128, &good);

    if (!good) {
        printf("\nFAILED: an error above %g (f64) or %g (bf16), or ranks or counts that do not agree\n", F64_BOUND,
               BF16_BOUND);
        return 1;
    }
    printf("\n4 ranks agree with one within %g (f64) and %g (bf16); %.1f s\n", F64_BOUND, BF16_BOUND, now() - start);
    return 0;
}
