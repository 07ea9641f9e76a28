#include <magi_attn.h>
#include <stdio.h>

/* One of three ranks. Rank 0 has four rows, which the others need in part: row 1 goes to both. What they make of them,
   here twice each row, comes back and is added up. */
static int32_t run(magi_comm *comm, int32_t rank, void *unused) {
    const magi_group_piece sends[] = {{{0, 2}, 1, 0}, {{1, 4}, 2, 0}}; /* rows [0, 2) to rank 1, [1, 4) to rank 2 */
    const magi_group_piece receives[] = {{{0, rank + 1}, 0, 0}};       /* from rank 0: two rows, three rows */
    const magi_group_tensor tensor = {2, MAGI_DTYPE_F32, 0};
    magi_group_args args = MAGI_GROUP_ARGS_INIT;
    args.tensors = &tensor;
    args.n_tensors = 1;
    args.flags = MAGI_GROUP_REDUCE;
    if (rank == 0) {
        args.local_rows = 4, args.sends = sends, args.n_sends = 2;
    } else {
        args.received_rows = rank + 1, args.receives = receives, args.n_receives = 1;
    }
    float rows[4][2] = {{1, 10}, {2, 20}, {3, 30}, {4, 40}}, came[3][2];
    magi_tensor local, received;
    magi_tensor_init(rows, MAGI_DTYPE_F32, 2, (int64_t[]){args.local_rows, 2}, &local);
    magi_tensor_init(came, MAGI_DTYPE_F32, 2, (int64_t[]){args.received_rows, 2}, &received);
    magi_group_plan *plan = NULL;
    magi_status status = magi_group_plan_create(comm, &args, NULL, &plan);
    if (status == MAGI_STATUS_OK && (status = magi_group_cast(plan, &local, &received, 1, NULL)) == MAGI_STATUS_OK) {
        for (int i = 0; i < 2 * args.received_rows; i++) {
            came[i / 2][i % 2] *= 2;
        }
        status = magi_group_reduce(plan, MAGI_GROUP_OP_SUM, &received, 0, &local, 1, NULL);
    }
    for (int i = 0; status == MAGI_STATUS_OK && i < args.local_rows; i++) {
        printf("row %d: %.0f %.0f\n", i, (double)rows[i][0], (double)rows[i][1]);
    }
    magi_group_plan_destroy(plan);
    return (void)unused, status;
}

int main(void) {
    const magi_status status = magi_local_run(3, run, NULL);
    if (status != MAGI_STATUS_OK) {
        fprintf(stderr, "%s\n", magi_last_error_message());
    }
    return status != MAGI_STATUS_OK;
}
