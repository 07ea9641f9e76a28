/*
 * Draws masks, and plans of them, as SVG: draw FOLDER
 *
 * Each picture is one of the masks that training code asks for by name. No GPU, no other library.
 */
#include <magi_attn.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where pictures go, and what is drawn. */
struct job {
    const char *folder;
    const char *name;
    const magi_mask *mask;
};

/* What a mask is planned for. */
struct plan {
    struct job job;
    magi_attn_shape shape;
    int64_t chunk_size;
    int32_t degree;
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
    const struct plan *plan = userdata;
    const struct job *job = &plan->job;
    if (rank != 0) {
        return MAGI_STATUS_OK;
    }
    magi_config config;
    check(magi_config_init(&config, sizeof config));
    config.chunk_size = plan->chunk_size;
    config.degree_forward = plan->degree;
    config.degree_backward = plan->degree;
    magi_key *key = NULL;
    check(magi_key_create(comm, job->mask, &plan->shape, &config, &key));

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

/* Draws the mask, with `ranks` also its plan in `degree` remote stages, and frees it. */
static void draw(const char *folder, const char *name, magi_mask *mask, int32_t ranks, int32_t degree,
                 int64_t chunk_size) {
    struct plan plan = {
        {folder, name, mask}, {sizeof(magi_attn_shape), 48, 8, 128, 128, MAGI_DTYPE_BF16, 0}, chunk_size, degree};
    draw_mask(&plan.job);
    if (ranks > 0) {
        check(magi_local_run(ranks, draw_key, &plan));
    }
    magi_mask_destroy(mask);
}

/* The masks of docs/masks.md, and the plans of docs/planning.md. */
static void pages(const char *folder) {
    magi_mask *mask = NULL;
    const magi_slice four[] = {
        {{0, 8}, {0, 12}, MAGI_MASK_TYPE_FULL, 0},
        {{8, 16}, {0, 12}, MAGI_MASK_TYPE_CAUSAL, 0},
        {{16, 24}, {8, 24}, MAGI_MASK_TYPE_INV_CAUSAL, 0},
        {{24, 32}, {16, 32}, MAGI_MASK_TYPE_BI_CAUSAL, 0},
    };
    check(magi_mask_create(four, 4, 32, 32, &mask));
    draw(folder, "four_slices", mask, 0, 0, 0);

    const int64_t whole[] = {0, 65536};
    check(magi_mask_create_from_cu_seqlens(whole, whole, 2, 1, -1, -1, 0, &mask));
    draw(folder, "causal", mask, 8, 2, 0);

    const int64_t packed[] = {0, 5200, 7600, 24400, 27600, 28000, 47200, 59600, 65536};
    check(magi_mask_create_from_cu_seqlens(packed, packed, 9, 1, -1, -1, 0, &mask));
    draw(folder, "packed", mask, 8, 2, 0);

    check(magi_mask_create_from_cu_seqlens(whole, whole, 2, 1, 8191, 0, 1024, &mask));
    draw(folder, "window", mask, 8, 2, 0);

    const int64_t answers[] = {6000, 3600, 8400, 5600, 7600};
    check(magi_mask_create_from_share_question(12000, answers, 5, &mask));
    draw(folder, "share_question", mask, 8, 2, 0);

    const int64_t parents[] = {-1, 0, 1, 1, 0, 4, 4, -1, 7};
    const int64_t lengths[] = {2000, 1200, 700, 900, 1500, 600, 800, 1100, 1700};
    check(magi_mask_create_from_prefix_tree(parents, lengths, 9, &mask));
    draw(folder, "prefix_tree", mask, 0, 0, 0);

    check(magi_mask_create_from_video(24, 512, 2, 1, 0, &mask));
    draw(folder, "video", mask, 0, 0, 0);
}

/* The two masks of the README, as quickstart.c plans them. */
static void readme(const char *folder) {
    magi_mask *mask = NULL;
    const int64_t whole[] = {0, 32768};
    check(magi_mask_create_from_block_causal(whole, 2, 4096, &mask));
    draw(folder, "blocks", mask, 4, 1, 512);

    const int64_t documents[] = {0,      63549,  64963,  186960, 228429, 266205, 335891, 377443,  468413,
                                 468861, 518397, 591270, 710774, 742168, 815268, 933918, 1034570, 1048576};
    check(magi_mask_create_from_cu_seqlens(documents, documents, sizeof documents / sizeof *documents, 1, -1, -1, 0,
                                           &mask));
    draw(folder, "documents", mask, 4, 1, 0);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    pages(argv[1]);
    readme(argv[1]);
    return 0;
}
