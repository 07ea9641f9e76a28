// Group collectives over a mesh of hosts: rows cross once, and their sums come back once.
#include "group.h"

enum { ROWS = 3, WIDTH = 5, TWICE = 2 };

static magi_config over_hosts(void) {
    magi_config config = default_config();
    config.hierarchical_comm = 1;
    return config;
}

static void expect_traffic(const magi_comm *comm, int64_t sent_before, int64_t sent, int64_t received_before,
                           int64_t received) {
    int64_t all_sent = 0, all_received = 0;
    CHECK_OK(magi_comm_traffic(comm, &all_sent, &all_received));
    CHECK_INT(all_sent, sent_before + sent);
    CHECK_INT(all_received, received_before + received);
}

// Rank 0 sends its rows to ranks 2 and 3, which are on the other host, to rank 3 twice. They cross to rank 2 alone,
// which passes them on; what ranks 2 and 3 made of them crosses as one sum.
static void through_a_gateway(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    (void)size;
    float local[ROWS * WIDTH], received[TWICE * ROWS * WIDTH];
    const int owner = rank == 0, copies = rank == 2 ? 1 : rank == 3 ? TWICE : 0;
    magi_group_piece sends[3], receives[TWICE];
    sends[0] = piece_of(3, 0, ROWS);
    sends[1] = piece_of(2, 0, ROWS);
    sends[2] = piece_of(3, 0, ROWS);
    for (int i = 0; i < TWICE; i++) {
        receives[i] = piece_of(0, (int64_t)i * ROWS, (int64_t)(i + 1) * ROWS);
    }
    const magi_group_tensor tensor = group_tensor_of(WIDTH, MAGI_DTYPE_F32);
    magi_group_args args = MAGI_GROUP_ARGS_INIT;
    args.local_rows = owner ? ROWS : 0;
    args.received_rows = copies * ROWS;
    args.sends = sends;
    args.n_sends = owner ? 3 : 0;
    args.receives = receives;
    args.n_receives = (size_t)copies;
    args.tensors = &tensor;
    args.n_tensors = 1;
    args.flags = MAGI_GROUP_REDUCE;
    for (int i = 0; i < ROWS * WIDTH; i++) {
        local[i] = (float)(i + 1);
    }
    magi_tensor from = tensor_of(local, MAGI_DTYPE_F32, 2, args.local_rows, WIDTH, 0);
    magi_tensor to = tensor_of(received, MAGI_DTYPE_F32, 2, args.received_rows, WIDTH, 0);

    const magi_config config = over_hosts();
    magi_group_plan *plan = NULL;
    size_t bytes = 0;
    CHECK_OK(magi_comm_set_mesh(comm, 2, 2));
    CHECK_OK(magi_group_plan_create(comm, &args, &config, &plan));
    CHECK_REFUSED(magi_group_plan_workspace_size(plan, &bytes), MAGI_STATUS_INVALID_ARGUMENT, "is not prepared");
    CHECK_OK(magi_group_plan_prepare(plan, NULL));
    CHECK_OK(magi_group_plan_workspace_size(plan, &bytes));
    CHECK((bytes > 0) == (rank == 0 || rank == 2));

    const int64_t rows = ROWS * WIDTH * (int64_t)sizeof(float);
    const int64_t sent[4] = {rows, 0, TWICE * rows, 0}, taken[4] = {0, 0, rows, TWICE * rows};
    CHECK_OK(magi_group_cast(plan, &from, &to, 1, NULL));
    expect_traffic(comm, 0, sent[rank], 0, taken[rank]);
    for (int i = 0; i < copies * ROWS * WIDTH; i++) {
        CHECK(received[i] == (float)(i % (ROWS * WIDTH) + 1));
    }
    memset(local, 0x5a, sizeof local);
    CHECK_OK(magi_group_reduce(plan, MAGI_GROUP_OP_SUM, &to, 0, &from, 1, NULL));
    expect_traffic(comm, sent[rank], taken[rank], taken[rank], sent[rank]);
    for (int i = 0; owner && i < ROWS * WIDTH; i++) {
        CHECK(local[i] == (float)(3 * (i + 1)));
    }
    CHECK_OK(magi_group_reduce(plan, MAGI_GROUP_OP_AVG, &to, 1, &from, 1, NULL));
    for (int i = 0; owner && i < ROWS * WIDTH; i++) {
        CHECK(local[i] == (float)(6 * (i + 1)) / 4);
    }
    magi_group_plan_destroy(plan);
}

// Rows of all ranks to all ranks, one rank of which has no mesh, another one, or none is asked for.
static void disagreement(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    const char *const straight = "rank 2 moves rows straight to their ranks, rank 0 over 2 hosts of 2 ranks";
    const char *const other = "rank 2 moves rows over 4 hosts of 1 ranks, rank 0 over 2 hosts of 2 ranks";
    magi_config config = over_hosts();
    all_to_all g;
    group_memory m;
    magi_group_plan *plan = NULL;
    all_to_all_init(&g, size, MAGI_DTYPE_F64);
    group_memory_init(&m, rank, size);
    const group_memory before = m;
    CHECK_REFUSED(magi_group_plan_create(comm, &g.args, &config, &plan), MAGI_STATUS_INVALID_ARGUMENT,
                  "config.hierarchical_comm is set, but nothing says which ranks share a host");
    CHECK(plan == NULL);
    CHECK_OK(magi_comm_set_mesh(comm, rank == 2 ? 4 : 2, rank == 2 ? 1 : 2));
    CHECK_OK(magi_group_plan_create(comm, &g.args, &config, &plan));
    CHECK_REFUSED(magi_group_plan_prepare(plan, NULL), MAGI_STATUS_PLAN_MISMATCH, other);
    magi_group_plan_destroy(plan);
    CHECK_OK(magi_comm_set_mesh(comm, 2, 2));
    config.hierarchical_comm = rank != 2;
    CHECK_OK(magi_group_plan_create(comm, &g.args, &config, &plan));
    CHECK_REFUSED(magi_group_cast(plan, m.t_local, m.t_received, 2, NULL), MAGI_STATUS_PLAN_MISMATCH, straight);
    magi_group_plan_destroy(plan);
    CHECK(memcmp(m.received, before.received, sizeof m.received) == 0);
    CHECK_OK(magi_comm_async_error(comm));
    config.hierarchical_comm = 1;
    CHECK_OK(magi_group_plan_create(comm, &g.args, &config, &plan));
    CHECK_OK(magi_group_cast(plan, m.t_local, m.t_received, 2, NULL));
    group_check_received(&m, size);
    magi_group_plan_destroy(plan);
}

int main(void) {
    run_ranks(4, through_a_gateway, NULL);
    run_ranks(4, disagreement, NULL);
    return 0;
}
