/*
 * Measures attention of four ranks, threads of this process, and keeps what came of it: profile FOLDER
 *
 * Writes profile.svg, rank 1's forward and backward pass above what was predicted of them, and profile_0.json to
 * profile_3.json for chrome://tracing or ui.perfetto.dev. No GPU, no other library.
 */
#include <magi_attn.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 4096, RANKS = 4, HEADS_Q = 4, HEADS_KV = 1, DIM = 64 };

static void check(magi_status status) {
    if (status != MAGI_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", magi_status_string(status), magi_last_error_message());
        exit(1);
    }
}

/* A tensor of floats from -0.5 to 0.5, which nobody frees before the end. */
static magi_tensor tensor(int64_t tokens, int64_t heads) {
    const int64_t shape[3] = {tokens, heads, DIM};
    const size_t n = (size_t)(tokens * heads * DIM);
    float *x = malloc(n * sizeof *x);
    uint32_t seed = 1;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / (1 << 24) - 0.5f;
    }
    magi_tensor t;
    check(magi_tensor_init(x, MAGI_DTYPE_F32, 3, shape, &t));
    return t;
}

static void save(const char *folder, const char *name, magi_status (*text_of)(const magi_key *, char *, size_t *),
                 const magi_key *key) {
    char path[512];
    size_t size = 0;
    check(text_of(key, NULL, &size));
    char *text = malloc(size);
    check(text_of(key, text, &size));
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(text, 1, size - 1, file) != size - 1 || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
    free(text);
}

/* One rank's passes, twice: the first call makes what later ones find. */
static int32_t run(magi_comm *comm, int32_t rank, void *userdata) {
    const char *folder = userdata;
    const magi_slice causal = {{0, TOKENS}, {0, TOKENS}, MAGI_MASK_TYPE_CAUSAL, 0};
    magi_attn_shape shape = MAGI_ATTN_SHAPE_INIT;
    magi_config config;
    magi_mask *mask = NULL;
    magi_key *key = NULL;
    int64_t tokens = 0;
    shape.heads_q = HEADS_Q;
    shape.heads_kv = HEADS_KV;
    shape.head_dim = shape.head_dim_v = DIM;
    shape.dtype = MAGI_DTYPE_F32;
    check(magi_config_init(&config, sizeof config));
    config.profile = 1;
    config.chunk_size = 64;
    config.degree_forward = config.degree_backward = 2;
    /* Contiguous blocks of a causal mask: the first ranks have less to compute, and wait for the others. */
    config.placement = MAGI_PLACEMENT_SEQUENTIAL;
    /* What one of these threads does in a second, instead of a GPU. */
    for (int i = 0; i < 3; i++) {
        config.forward_gflops[i] = 3;
        config.backward_gflops[i] = 2;
    }
    check(magi_mask_create(&causal, 1, TOKENS, TOKENS, &mask));
    check(magi_key_create(comm, mask, &shape, &config, &key));
    check(magi_key_local_tokens(key, MAGI_SIDE_Q, &tokens));

    magi_tensor q = tensor(tokens, HEADS_Q), k = tensor(tokens, HEADS_KV), v = tensor(tokens, HEADS_KV);
    magi_tensor out = tensor(tokens, HEADS_Q), dout = tensor(tokens, HEADS_Q), dq = tensor(tokens, HEADS_Q);
    magi_tensor dk = tensor(tokens, HEADS_KV), dv = tensor(tokens, HEADS_KV), lse;
    const int64_t rows[2] = {tokens, HEADS_Q};
    check(magi_tensor_init(malloc((size_t)(tokens * HEADS_Q) * sizeof(float)), MAGI_DTYPE_F32, 2, rows, &lse));
    magi_forward_args forward = MAGI_FORWARD_ARGS_INIT;
    forward.q = &q;
    forward.k = &k;
    forward.v = &v;
    forward.out = &out;
    forward.lse = &lse;
    magi_backward_args backward = MAGI_BACKWARD_ARGS_INIT;
    backward.q = &q;
    backward.k = &k;
    backward.v = &v;
    backward.out = &out;
    backward.lse = &lse;
    backward.dout = &dout;
    backward.dq = &dq;
    backward.dk = &dk;
    backward.dv = &dv;
    for (int i = 0; i < 2; i++) {
        check(magi_calc_attn_forward(key, &forward, NULL));
        check(magi_calc_attn_backward(key, &backward, NULL));
    }

    char name[32];
    snprintf(name, sizeof name, "profile_%d.json", (int)rank);
    save(folder, name, magi_key_trace, key);
    if (rank == 1) {
        save(folder, "profile.svg", magi_key_draw_profile, key);
    }
    magi_key_destroy(key);
    magi_mask_destroy(mask);
    return MAGI_STATUS_OK;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    check(magi_local_run(RANKS, run, argv[1]));
    return 0;
}
