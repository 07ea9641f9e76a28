// Group collectives: several tensors at once, repeated and own rows, every kind of sum, strides, ranks without rows.
#include "group.h"

static void everybody(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    all_to_all g;
    group_memory m;
    size_t bytes = 1;
    all_to_all_init(&g, size, MAGI_DTYPE_F64);
    group_memory_init(&m, rank, size);
    magi_group_plan *plan = plan_of(comm, &g.args);
    CHECK_OK(magi_group_plan_workspace_size(plan, &bytes));
    CHECK((bytes > 0) == (size > 1));
    CHECK_OK(magi_group_cast(plan, m.t_local, m.t_received, 2, NULL));
    group_check_received(&m, size);
    // Every row comes back from every rank as it was.
    memset(m.local, 0x5a, sizeof m.local);
    CHECK_OK(magi_group_reduce(plan, MAGI_GROUP_OP_SUM, m.t_received, 0, m.t_local, 2, NULL));
    for (int i = 0; i < GROUP_ROWS * (GROUP_KEYS + GROUP_VALUES); i++) {
        CHECK(m.local[i] == size * group_value(rank, i));
        m.local[i] = 7;
    }
    CHECK_OK(magi_group_reduce(plan, MAGI_GROUP_OP_SUM, m.t_received, 1, m.t_local, 2, NULL));
    for (int i = 0; i < GROUP_ROWS * (GROUP_KEYS + GROUP_VALUES); i++) {
        CHECK(m.local[i] == 7 + size * group_value(rank, i));
    }
    CHECK_OK(magi_group_reduce(plan, MAGI_GROUP_OP_AVG, m.t_received, 0, m.t_local, 2, NULL));
    for (int i = 0; i < GROUP_ROWS * (GROUP_KEYS + GROUP_VALUES); i++) {
        CHECK(m.local[i] == group_value(rank, i));
        m.local[i] = -1 - size;
    }
    CHECK_OK(magi_group_reduce(plan, MAGI_GROUP_OP_AVG, m.t_received, 1, m.t_local, 2, NULL));
    for (int i = 0; i < GROUP_ROWS * (GROUP_KEYS + GROUP_VALUES); i++) {
        CHECK(m.local[i] == (size * group_value(rank, i) - 1 - size) / (1 + size));
    }
    magi_group_plan_destroy(plan);
}

// Rank 0 sends rows [1, 3) twice to the last rank, which puts them apart; no other rank has a part in it. Bytes in rows
// of 5 of which 3 are used, running backwards on the sender.
static void strided(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    enum { ROWS = 4, WIDTH = 3, STEP = 5 };
    uint8_t local[ROWS][STEP], received[8][STEP];
    const int sends = rank == 0, receives = rank == size - 1;
    magi_group_piece out[2], in[3];
    out[0] = out[1] = piece_of(size - 1, 1, 3);
    in[0] = piece_of(0, 5, 7);
    in[1] = piece_of(0, 3, 3);
    in[2] = piece_of(0, 0, 2);
    const magi_group_tensor tensor = group_tensor_of(WIDTH, MAGI_DTYPE_U8);
    magi_group_args args = MAGI_GROUP_ARGS_INIT;
    args.local_rows = sends ? ROWS : 0;
    args.received_rows = receives ? 8 : 0;
    args.sends = sends ? out : NULL;
    args.n_sends = sends ? 2 : 0;
    args.receives = receives ? in : NULL;
    args.n_receives = receives ? 3 : 0;
    args.tensors = &tensor;
    args.n_tensors = 1;
    args.flags = MAGI_GROUP_STRIDED;
    for (int i = 0; i < ROWS * STEP; i++) {
        local[i / STEP][i % STEP] = (uint8_t)i;
    }
    memset(received, 0x5a, sizeof received);
    magi_tensor from = tensor_of(sends ? local[ROWS - 1] : NULL, MAGI_DTYPE_U8, 2, args.local_rows, WIDTH, 0);
    magi_tensor to = tensor_of(receives ? received : NULL, MAGI_DTYPE_U8, 2, args.received_rows, WIDTH, 0);
    from.stride[0] = -STEP;
    to.stride[0] = STEP;
    magi_group_plan *plan = plan_of(comm, &args);
    CHECK_OK(magi_group_plan_prepare(plan, NULL));
    for (int call = 0; call < 2; call++) {
        CHECK_OK(magi_group_cast(plan, &from, &to, 1, NULL));
    }
    for (int row = 0; receives && row < 8; row++) {
        static const int source[8] = {1, 2, -1, -1, -1, 1, 2, -1};
        for (int c = 0; c < STEP; c++) {
            const int set = source[row] >= 0 && c < WIDTH;
            CHECK_INT(received[row][c], set ? (ROWS - 1 - source[row]) * STEP + c : 0x5a);
        }
    }
    magi_group_plan_destroy(plan);
}

// Every rank gives rank 0 an (out, lse) pair for its only row; bf16 out, so that sums are made in workspace.
static void merged(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    enum { HEADS = 2, WIDTH = 2 };
    uint16_t out[HEADS * WIDTH], partial[HEADS * WIDTH];
    float lse[HEADS], partial_lse[HEADS];
    magi_group_piece sends[GROUP_RANKS];
    const magi_group_piece receive = piece_of(0, 0, 1);
    for (int32_t p = 0; p < size; p++) {
        sends[p] = piece_of(p, 0, 1);
    }
    magi_group_tensor tensors[2];
    tensors[0] = group_tensor_of(HEADS * WIDTH, MAGI_DTYPE_BF16);
    tensors[1] = group_tensor_of(HEADS, MAGI_DTYPE_F32);
    magi_group_args args = MAGI_GROUP_ARGS_INIT;
    args.local_rows = rank == 0;
    args.received_rows = 1;
    args.sends = sends;
    args.n_sends = rank == 0 ? (size_t)size : 0;
    args.receives = &receive;
    args.n_receives = 1;
    args.tensors = tensors;
    args.n_tensors = 2;
    args.flags = MAGI_GROUP_REDUCE;
    for (int i = 0; i < HEADS * WIDTH; i++) {
        store(MAGI_DTYPE_BF16, partial, i, i < WIDTH ? rank : (double)NAN);
        store(MAGI_DTYPE_BF16, out, i, 100);
    }
    partial_lse[0] = 0; // equal weights
    partial_lse[1] = -INFINITY;
    magi_tensor from[2], to[2];
    from[0] = tensor_of(partial, MAGI_DTYPE_BF16, 3, 1, HEADS, WIDTH);
    from[1] = tensor_of(partial_lse, MAGI_DTYPE_F32, 2, 1, HEADS, 0);
    to[0] = tensor_of(out, MAGI_DTYPE_BF16, 3, args.local_rows, HEADS, WIDTH);
    to[1] = tensor_of(lse, MAGI_DTYPE_F32, 2, args.local_rows, HEADS, 0);
    magi_group_plan *plan = plan_of(comm, &args);
    CHECK_OK(magi_group_reduce(plan, MAGI_GROUP_OP_LSE, from, 0, to, 2, NULL));
    if (rank == 0) {
        CHECK(fabs(lse[0] - log(size)) < 1e-6 && lse[1] == -INFINITY);
        for (int i = 0; i < HEADS * WIDTH; i++) {
            const double want = i < WIDTH ? (size - 1) / 2.0 : 0;
            CHECK(fabs(load(MAGI_DTYPE_BF16, out, i) - want) < 0.01 * (1 + want));
        }
    }
    magi_group_plan_destroy(plan);
}

int main(void) {
    for (int32_t size = 1; size <= GROUP_RANKS; size++) {
        run_ranks(size, everybody, NULL);
        run_ranks(size, strided, NULL);
        run_ranks(size, merged, NULL);
    }
    return 0;
}
