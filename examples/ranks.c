#include <magi_attn.h>
#include <stdio.h>

/* One of two ranks. It owns 4 of 8 tokens (1 head, head_dim 8), which see tokens of both ranks. */
static int32_t run(magi_comm *comm, int32_t rank, void *mask) {
    const magi_attn_shape shape = {sizeof shape, 1, 1, 8, 8, MAGI_DTYPE_F32, 0};
    float tokens[4][8] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}}, answers[4][8];
    magi_tensor x, out;
    magi_tensor_init(tokens, MAGI_DTYPE_F32, 3, (int64_t[]){4, 1, 8}, &x);
    magi_tensor_init(answers, MAGI_DTYPE_F32, 3, (int64_t[]){4, 1, 8}, &out);
    magi_forward_args args = MAGI_FORWARD_ARGS_INIT;
    args.q = args.k = args.v = &x;
    args.out = &out;
    magi_key *key = NULL;
    magi_status status = magi_key_create(comm, mask, &shape, NULL, &key);
    if (status == MAGI_STATUS_OK && (status = magi_calc_attn_forward(key, &args, NULL)) == MAGI_STATUS_OK) {
        printf("rank %d: %.4f\n", (int)rank, (double)answers[3][0]);
    }
    magi_key_destroy(key);
    return status;
}

int main(void) {
    const int64_t documents[] = {0, 3, 8}; /* tokens 0 to 2 and 3 to 7, causal */
    magi_mask *mask = NULL;
    magi_status status = magi_mask_create_from_cu_seqlens(documents, documents, 3, 1, -1, -1, 0, &mask);
    if (status != MAGI_STATUS_OK || (status = magi_local_run(2, run, mask)) != MAGI_STATUS_OK) {
        fprintf(stderr, "%s\n", magi_last_error_message());
    }
    magi_mask_destroy(mask);
    return status != MAGI_STATUS_OK;
}
