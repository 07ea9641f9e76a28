// Dispatch, undispatch, their gradients and the sharded forms: any dtype, any number of dimensions, any strides.
#include "ranks.h"

enum { TOTAL = 53, WIDTH = 3 };

static double part_of(int32_t rank, int64_t token, int64_t column) {
    return (double)(rank + 1) * (double)(token * 10 + column);
}

// Ids: int64 [total].
static void ids(const magi_key *key, int32_t side) {
    int64_t x[TOTAL], back[TOTAL], positions[TOTAL];
    size_t count = TOTAL;
    for (int64_t i = 0; i < TOTAL; i++) {
        x[i] = 1000 + i;
        back[i] = -1;
    }
    CHECK_OK(magi_key_position_ids(key, side, positions, &count));
    int64_t *local = (int64_t *)memory(count * sizeof *local);
    magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, TOTAL, 0, 0), tb = tensor_of(back, MAGI_DTYPE_I64, 1, TOTAL, 0, 0);
    magi_tensor tl = tensor_of(local, MAGI_DTYPE_I64, 1, (int64_t)count, 0, 0);
    CHECK_OK(magi_dispatch(key, side, &tx, &tl, NULL));
    for (size_t i = 0; i < count; i++) {
        CHECK_INT(local[i], 1000 + positions[i]);
    }
    CHECK_OK(magi_undispatch(key, side, &tl, &tb, NULL));
    CHECK(memcmp(x, back, sizeof x) == 0);
    memset(back, 0, sizeof back);
    CHECK_OK(magi_dispatch_backward(key, side, &tl, &tb, NULL));
    CHECK(memcmp(x, back, sizeof x) == 0);
    free(local);
}

// Bytes, [total, 3] in rows of 5 that run backwards.
static void bytes(const magi_key *key, int32_t side) {
    uint8_t x[TOTAL][5], back[TOTAL][WIDTH];
    for (int i = 0; i < TOTAL * 5; i++) {
        x[i / 5][i % 5] = (uint8_t)(i * 7);
    }
    const int64_t n = tokens_of(key, side);
    uint8_t *local = (uint8_t *)memory((size_t)n * 4 + 1);
    magi_tensor tx = tensor_of(x[TOTAL - 1], MAGI_DTYPE_U8, 2, TOTAL, WIDTH, 0);
    magi_tensor tl = tensor_of(local, MAGI_DTYPE_U8, 2, n, WIDTH, 0);
    magi_tensor tb = tensor_of(back, MAGI_DTYPE_U8, 2, TOTAL, WIDTH, 0);
    tx.stride[0] = -5;
    tl.stride[0] = 4;
    memset(local, 0x5a, (size_t)n * 4 + 1);
    memset(back, 0, sizeof back);
    CHECK_OK(magi_dispatch(key, side, &tx, &tl, NULL));
    CHECK_OK(magi_undispatch(key, side, &tl, &tb, NULL));
    for (int i = 0; i < TOTAL; i++) {
        CHECK(memcmp(back[i], x[TOTAL - 1 - i], WIDTH) == 0);
    }
    for (int64_t i = 0; i < n; i++) {
        CHECK_INT(local[i * 4 + 3], 0x5a); // between the rows
    }
    free(local);
}

// Gradients of undispatch, full and in parts; doubles [total, 3], and [total, 3] of bf16.
static void gradients(const magi_key *key, int32_t side, int32_t rank, int32_t size) {
    double dx[TOTAL][WIDTH];
    uint16_t half[TOTAL][WIDTH];
    int64_t positions[TOTAL];
    size_t count = TOTAL;
    CHECK_OK(magi_key_position_ids(key, side, positions, &count));
    for (int i = 0; i < TOTAL * WIDTH; i++) {
        dx[i / WIDTH][i % WIDTH] = part_of(rank, i / WIDTH, i % WIDTH);
        store(MAGI_DTYPE_BF16, half, i, (double)(rank + 1) * (i % 16));
    }
    double *local = (double *)memory(count * WIDTH * sizeof *local);
    uint16_t *short_local = (uint16_t *)memory(count * WIDTH * 2);
    magi_tensor tdx = tensor_of(dx, MAGI_DTYPE_F64, 2, TOTAL, WIDTH, 0);
    magi_tensor tl = tensor_of(local, MAGI_DTYPE_F64, 2, (int64_t)count, WIDTH, 0);
    magi_tensor th = tensor_of(half, MAGI_DTYPE_BF16, 2, TOTAL, WIDTH, 0);
    magi_tensor ts = tensor_of(short_local, MAGI_DTYPE_BF16, 2, (int64_t)count, WIDTH, 0);
    CHECK_OK(magi_undispatch_backward(key, side, &tdx, 0, &tl, NULL));
    for (size_t i = 0; i < count * WIDTH; i++) {
        CHECK_NEAR(local[i], part_of(rank, positions[i / WIDTH], (int64_t)i % WIDTH), 0);
    }
    CHECK_OK(magi_undispatch_backward(key, side, &tdx, 1, &tl, NULL));
    CHECK_OK(magi_undispatch_backward(key, side, &th, 1, &ts, NULL));
    const double ranks = size * (size + 1) / 2.0;
    for (size_t i = 0; i < count * WIDTH; i++) {
        const int64_t token = positions[i / WIDTH], column = (int64_t)i % WIDTH;
        CHECK_NEAR(local[i], ranks * part_of(0, token, column), 0);
        CHECK_NEAR(load(MAGI_DTYPE_BF16, short_local, (int64_t)i),
                   rounded(MAGI_DTYPE_BF16, ranks * (double)((token * WIDTH + column) % 16)), 0);
    }
    free(local);
    free(short_local);
}

// From contiguous shares to the layout and back; f32 [share, 3], one side of it strided.
static void shares(const magi_key *key, int32_t side, int32_t rank, int32_t size) {
    const int64_t each = TOTAL / size, extra = TOTAL % size;
    const int64_t start = rank * each + (rank < extra ? rank : extra), mine = each + (rank < extra);
    int64_t positions[TOTAL];
    size_t count = TOTAL;
    CHECK_OK(magi_key_position_ids(key, side, positions, &count));
    float *share = (float *)memory((size_t)mine * 4 * sizeof *share);
    float *back = (float *)memory((size_t)mine * WIDTH * sizeof *back);
    float *local = (float *)memory(count * WIDTH * sizeof *local);
    for (int64_t i = 0; i < mine * 4; i++) {
        share[i] = (float)((start + i / 4) * 10 + i % 4);
    }
    magi_tensor ts = tensor_of(share, MAGI_DTYPE_F32, 2, mine, WIDTH, 0);
    magi_tensor tl = tensor_of(local, MAGI_DTYPE_F32, 2, (int64_t)count, WIDTH, 0);
    magi_tensor tb = tensor_of(back, MAGI_DTYPE_F32, 2, mine, WIDTH, 0);
    ts.stride[0] = 4;
    CHECK_OK(magi_dispatch_sharded(key, side, &ts, &tl, NULL));
    for (size_t i = 0; i < count * WIDTH; i++) {
        CHECK_NEAR(local[i], (double)(positions[i / WIDTH] * 10 + (int64_t)i % WIDTH), 0);
    }
    CHECK_OK(magi_undispatch_sharded(key, side, &tl, &tb, NULL));
    for (int64_t i = 0; i < mine * WIDTH; i++) {
        CHECK_NEAR(back[i], share[i / WIDTH * 4 + i % WIDTH], 0);
    }
    free(share);
    free(back);
    free(local);
}

// Tensors of up to 8 dimensions, and rows without elements.
static void dimensions(const magi_key *key, int32_t side) {
    const int64_t n = tokens_of(key, side), shape[8] = {TOTAL, 1, 2, 1, 1, 2, 1, 1};
    int64_t local_shape[8];
    int16_t x[TOTAL * 4], back[TOTAL * 4];
    int16_t *local = (int16_t *)memory((size_t)n * 8);
    magi_tensor tx, tl, tb;
    memcpy(local_shape, shape, sizeof shape);
    local_shape[0] = n;
    for (int i = 0; i < TOTAL * 4; i++) {
        x[i] = (int16_t)i;
        back[i] = -1;
    }
    CHECK_OK(magi_tensor_init(x, MAGI_DTYPE_I16, 8, shape, &tx));
    CHECK_OK(magi_tensor_init(back, MAGI_DTYPE_I16, 8, shape, &tb));
    CHECK_OK(magi_tensor_init(local, MAGI_DTYPE_I16, 8, local_shape, &tl));
    CHECK_OK(magi_dispatch(key, side, &tx, &tl, NULL));
    CHECK_OK(magi_undispatch(key, side, &tl, &tb, NULL));
    CHECK(memcmp(x, back, sizeof x) == 0);
    free(local);
    tx = tensor_of(NULL, MAGI_DTYPE_BOOL, 2, TOTAL, 0, 0);
    tl = tensor_of(NULL, MAGI_DTYPE_BOOL, 2, n, 0, 0);
    CHECK_OK(magi_dispatch(key, side, &tx, &tl, NULL));
    CHECK_OK(magi_undispatch(key, side, &tl, &tx, NULL));
}

static void moves(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    const magi_config *config = (const magi_config *)data;
    magi_mask *mask = causal_mask(TOTAL);
    magi_key *key = small_key(comm, mask, config);
    for (int32_t side = 0; side < 2; side++) {
        ids(key, side);
        bytes(key, side);
        gradients(key, side, rank, size);
        shares(key, side, rank, size);
        dimensions(key, side);
    }
    magi_key_destroy(key);
    magi_mask_destroy(mask);
}

int main(void) {
    static const int32_t sizes[] = {1, 2, 5};
    magi_config config = default_config();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        config.chunk_size = 4;
        run_ranks(sizes[i], moves, &config);
        config.chunk_size = 32; // two chunks: with five ranks most own nothing, and pass NULL
        run_ranks(sizes[i], moves, &config);
    }
    return 0;
}
