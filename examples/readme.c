#include <magi_attn.h>
#include <stdio.h>

int main(void) {
    const int64_t documents[] = {0, 3, 8}, dims[] = {8, 1, 8}; /* tokens 0-2 and 3-7, causal; one head of 8 */
    float tokens[8][8] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}}, answers[8][8], sums[8];
    magi_mask *mask = NULL;
    magi_tensor x, out, lse;
    magi_tensor_init(tokens, MAGI_DTYPE_F32, 3, dims, &x);
    magi_tensor_init(answers, MAGI_DTYPE_F32, 3, dims, &out);
    magi_tensor_init(sums, MAGI_DTYPE_F32, 2, dims, &lse);
    magi_forward_args args = MAGI_FORWARD_ARGS_INIT;
    args.q = args.k = args.v = &x, args.out = &out, args.lse = &lse;
    if (magi_mask_create_from_cu_seqlens(documents, documents, 3, 1, -1, -1, 0, &mask) != MAGI_STATUS_OK ||
        magi_flex_flash_attn_forward(mask, &args, NULL, NULL) != MAGI_STATUS_OK) {
        return fprintf(stderr, "%s\n", magi_last_error_message()), 1;
    }
    printf("token 2 sees tokens 0 to 2: %.4f %.4f\n", answers[2][0], answers[2][1]);
    magi_mask_destroy(mask);
    return 0;
}
