/*
 * Draws masks, and plans of them, as SVG: draw FOLDER
 *
 * Each picture is one of the masks that training code asks for by name. No GPU, no other library.
 */
#include <magi_attn.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANKS 8

/* Where pictures go, and what is drawn. */
struct job {
    const char *folder;
    const char *name;
    const magi_mask *mask;
};

static void check(magi_status status) {
    if (status != MAGI_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", magi_status_string(status), magi_last_error_message());
        exit(1);
    }
}

static void save(const char *folder, const char *name, const char *kind, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s_%s", folder, kind, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(text, 1, strlen(text), file) != strlen(text) || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

static void draw_mask(const struct job *job) {
    char name[256];
    size_t size = 0;
    check(magi_mask_draw(job->mask, NULL, &size));
    char *svg = malloc(size);
    check(magi_mask_draw(job->mask, svg, &size));
    snprintf(name, sizeof name, "%s.svg", job->name);
    save(job->folder, name, "mask", svg);
    free(svg);
}

/* Runs on every rank; all ranks make the same plan, so one of them draws it. */
static int32_t draw_key(magi_comm *comm, int32_t rank, void *userdata) {
    const struct job *job = userdata;
    if (rank != 0) {
        return MAGI_STATUS_OK;
    }
    magi_attn_shape shape = MAGI_ATTN_SHAPE_INIT;
    shape.heads_q = 8;
    shape.heads_kv = 2;
    shape.head_dim = 128;
    shape.head_dim_v = 128;
    shape.dtype = MAGI_DTYPE_BF16;
    magi_config config;
    check(magi_config_init(&config, sizeof config));
    config.degree_forward = 2;
    magi_key *key = NULL;
    check(magi_key_create(comm, job->mask, &shape, &config, &key));

    char name[256];
    size_t size = 0;
    check(magi_key_draw(key, NULL, &size));
    char *text = malloc(size);
    check(magi_key_draw(key, text, &size));
    snprintf(name, sizeof name, "%s.svg", job->name);
    save(job->folder, name, "plan", text);

    size = 0;
    check(magi_key_explain(key, NULL, &size));
    text = realloc(text, size);
    check(magi_key_explain(key, text, &size));
    snprintf(name, sizeof name, "%s.txt", job->name);
    save(job->folder, name, "plan", text);
    free(text);
    magi_key_destroy(key);
    return MAGI_STATUS_OK;
}

/* Draws the mask, and its plan for RANKS ranks, and frees it. */
static void draw(const char *folder, const char *name, magi_mask *mask, int with_plan) {
    struct job job = {folder, name, mask};
    draw_mask(&job);
    if (with_plan) {
        check(magi_local_run(RANKS, draw_key, &job));
    }
    magi_mask_destroy(mask);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    const char *folder = argv[1];
    magi_mask *mask = NULL;

    const magi_slice four[] = {
        {{0, 8}, {0, 12}, MAGI_MASK_TYPE_FULL, 0},
        {{8, 16}, {0, 12}, MAGI_MASK_TYPE_CAUSAL, 0},
        {{16, 24}, {8, 24}, MAGI_MASK_TYPE_INV_CAUSAL, 0},
        {{24, 32}, {16, 32}, MAGI_MASK_TYPE_BI_CAUSAL, 0},
    };
    check(magi_mask_create(four, 4, 32, 32, &mask));
    draw(folder, "four_slices", mask, 0);

    const int64_t whole[] = {0, 16384};
    check(magi_mask_create_from_cu_seqlens(whole, whole, 2, 1, -1, -1, 0, &mask));
    draw(folder, "causal", mask, 1);

    const int64_t packed[] = {0, 1300, 1900, 6100, 6900, 7000, 11800, 14900, 16384};
    check(magi_mask_create_from_cu_seqlens(packed, packed, 9, 1, -1, -1, 0, &mask));
    draw(folder, "packed", mask, 1);

    check(magi_mask_create_from_cu_seqlens(whole, whole, 2, 1, 2047, 0, 256, &mask));
    draw(folder, "window", mask, 1);

    const int64_t answers[] = {1500, 900, 2100, 1400, 1900};
    check(magi_mask_create_from_share_question(3000, answers, 5, &mask));
    draw(folder, "share_question", mask, 1);

    const int64_t parents[] = {-1, 0, 1, 1, 0, 4, 4, -1, 7};
    const int64_t lengths[] = {2000, 1200, 700, 900, 1500, 600, 800, 1100, 1700};
    check(magi_mask_create_from_prefix_tree(parents, lengths, 9, &mask));
    draw(folder, "prefix_tree", mask, 0);

    check(magi_mask_create_from_video(24, 512, 2, 1, 0, &mask));
    draw(folder, "video", mask, 0);
    return 0;
}
