// Masks by name, rolls, keys on placements, the table of variables, words and pictures: through the C ABI.
#include "test.h"

static const magi_attn_shape SHAPE = {sizeof(magi_attn_shape), 2, 1, 16, 16, MAGI_DTYPE_F32, 0};

static int64_t area_of(magi_mask *mask) {
    int64_t area = -1;
    CHECK_OK(magi_mask_area(mask, &area));
    magi_mask_destroy(mask);
    return area;
}

static void masks(void) {
    magi_mask *mask = NULL;
    // Rows 1, 11, 111 of four keys; bits behind them are noise.
    const uint8_t bits[] = {0xf1, 0xff, 0xf3, 0xff, 0xf7, 0xff};
    CHECK_OK(magi_mask_create_from_dense(bits, 2, 3, 4, &mask));
    size_t slices = 0;
    CHECK_OK(magi_mask_slices(mask, NULL, &slices));
    CHECK_INT(slices, 1);
    CHECK_INT(area_of(mask), 6);
    CHECK_OK(magi_mask_create_from_dense(NULL, 0, 5, 0, &mask));
    CHECK_INT(area_of(mask), 0);
    CHECK_REFUSED(magi_mask_create_from_dense(bits, 0, 3, 4, &mask), MAGI_STATUS_INVALID_ARGUMENT, "row_bytes");
    CHECK_REFUSED(magi_mask_create_from_dense(NULL, 2, 3, 4, &mask), MAGI_STATUS_NULL_POINTER, "bits");
    CHECK_REFUSED(magi_mask_create_from_dense(bits, 2, -3, 4, &mask), MAGI_STATUS_INVALID_RANGE, "total_q");
    CHECK_REFUSED(magi_mask_create_from_dense(bits, 2, 3, 4, NULL), MAGI_STATUS_NULL_POINTER, "mask");

    const int64_t parents[] = {-1, 0, 0}, lengths[] = {4, 2, 3}, wrong[] = {-1, 1, 0};
    CHECK_OK(magi_mask_create_from_prefix_tree(parents, lengths, 3, &mask));
    CHECK_INT(area_of(mask), 10 + (8 + 3) + (12 + 6));
    CHECK_REFUSED(magi_mask_create_from_prefix_tree(wrong, lengths, 3, &mask), MAGI_STATUS_INVALID_ARGUMENT,
                  "parents[1]");
    CHECK_REFUSED(magi_mask_create_from_prefix_tree(NULL, lengths, 3, &mask), MAGI_STATUS_NULL_POINTER, "parents");
    CHECK_REFUSED(magi_mask_create_from_prefix_tree(parents, NULL, 3, &mask), MAGI_STATUS_NULL_POINTER, "lengths");
    CHECK_REFUSED(magi_mask_create_from_prefix_tree(parents, lengths, 3, NULL), MAGI_STATUS_NULL_POINTER, "mask");
    CHECK_OK(magi_mask_create_from_share_question(4, lengths + 1, 2, &mask));
    CHECK_INT(area_of(mask), 10 + (8 + 3) + (12 + 6));
    CHECK_REFUSED(magi_mask_create_from_share_question(-4, lengths, 2, &mask), MAGI_STATUS_INVALID_RANGE, "lengths[0]");
    CHECK_REFUSED(magi_mask_create_from_share_question(4, NULL, 2, &mask), MAGI_STATUS_NULL_POINTER, "answers");
    CHECK_REFUSED(magi_mask_create_from_share_question(4, lengths, 2, NULL), MAGI_STATUS_NULL_POINTER, "mask");

    // Frames see one frame on either side, and the first: 2 + 3 + 4 + 3 of four frames with five tokens each.
    CHECK_OK(magi_mask_create_from_video(4, 5, 1, 1, 0, &mask));
    CHECK_INT(area_of(mask), (2 + 3 + 4 + 3) * 25);
    CHECK_REFUSED(magi_mask_create_from_video(4, 5, 1, 2, 0, &mask), MAGI_STATUS_INVALID_ARGUMENT, "first_frame");
    CHECK_REFUSED(magi_mask_create_from_video(4, 5, 1, 1, 7, &mask), MAGI_STATUS_INVALID_ARGUMENT, "causal");
    CHECK_REFUSED(magi_mask_create_from_video(4, 5, 1, 1, 0, NULL), MAGI_STATUS_NULL_POINTER, "mask");
}

// A text of either kind, in a buffer that fits exactly and in one that is a byte short.
typedef magi_status (*text_fn)(const void *handle, char *text, size_t *size);
static magi_status mask_draw(const void *handle, char *text, size_t *size) {
    return magi_mask_draw((const magi_mask *)handle, text, size);
}
static magi_status key_draw(const void *handle, char *text, size_t *size) {
    return magi_key_draw((const magi_key *)handle, text, size);
}
static magi_status key_explain(const void *handle, char *text, size_t *size) {
    return magi_key_explain((const magi_key *)handle, text, size);
}

static void text(text_fn get, const void *handle, const char *part) {
    size_t size = 0;
    CHECK_OK(get(handle, NULL, &size));
    char *buffer = (char *)malloc(size);
    CHECK(buffer != NULL);
    CHECK_OK(get(handle, buffer, &size));
    CHECK_INT(strlen(buffer) + 1, size);
    CHECK_HAS(buffer, part);
    size_t less = size - 1;
    memset(buffer, '#', size);
    CHECK_ERROR(get(handle, buffer, &less), MAGI_STATUS_BUFFER_TOO_SMALL, "room for");
    CHECK_INT(less, size);
    CHECK_INT(buffer[0], '#');
    CHECK_ERROR(get(handle, buffer, NULL), MAGI_STATUS_NULL_POINTER, "size");
    CHECK_ERROR(get(NULL, buffer, &size), MAGI_STATUS_NULL_POINTER, "");
    free(buffer);
}

// The first `valid` of `total` tokens; -1: all of them.
static void roll(magi_key *key, int64_t total, int64_t shift, int64_t valid) {
    int64_t ids[16], labels[16], shape[] = {0};
    size_t count = 16;
    CHECK_OK(magi_key_position_ids(key, MAGI_SIDE_Q, ids, &count));
    shape[0] = (int64_t)count;
    magi_tensor x, y;
    CHECK_OK(magi_tensor_init(ids, MAGI_DTYPE_I64, 1, shape, &x));
    CHECK_OK(magi_tensor_init(labels, MAGI_DTYPE_I64, 1, shape, &y));
    CHECK_OK(magi_roll(key, MAGI_SIDE_Q, &x, shift, valid, &y, NULL));
    const int64_t n = valid < 0 ? total : valid;
    for (size_t i = 0; i < count; i++) {
        CHECK_INT(labels[i], ids[i] < n ? ((ids[i] - shift) % n + n) % n : ids[i]);
    }
    const magi_status bad = MAGI_STATUS_INVALID_ARGUMENT;
    CHECK_REFUSED(magi_roll(key, MAGI_SIDE_Q, &x, shift, total + 1, &y, NULL), bad, "valid is 20");
    CHECK_REFUSED(magi_roll(key, MAGI_SIDE_Q, &x, shift, -2, &y, NULL), bad, "valid is -2; it must be 0 to 19");
    CHECK_REFUSED(magi_roll(key, MAGI_SIDE_Q, &x, shift, -1, &x, NULL), MAGI_STATUS_TENSOR_OVERLAP, "local_y");
    CHECK_REFUSED(magi_roll(key, 2, &x, shift, -1, &y, NULL), MAGI_STATUS_INVALID_ENUM, "side");
}

static int32_t keys(magi_comm *comm, int32_t rank, void *userdata) {
    const magi_mask *const *masks_of = (const magi_mask *const *)userdata;
    magi_key *key = NULL, *last = NULL, *second = NULL, *third = NULL;
    CHECK_REFUSED(magi_comm_last_key(comm, &last), MAGI_STATUS_INVALID_ARGUMENT, "no key");
    const int32_t owners[] = {1, 2, 0, 2, 1}, odd[] = {1, 3, 0, 2, 1}, below[] = {1, -1, 0, 2, 1};
    CHECK_OK(magi_key_create_with_placement(comm, masks_of[0], &SHAPE, NULL, 4, owners, 5, NULL, 0, &key));
    int64_t tokens = 0, want = rank == 0 ? 4 : rank == 1 ? 7 : 8;
    CHECK_OK(magi_key_local_tokens(key, MAGI_SIDE_K, &tokens));
    CHECK_INT(tokens, want);
    CHECK_REFUSED(magi_key_create_with_placement(comm, masks_of[0], &SHAPE, NULL, 4, owners, 4, NULL, 0, &second),
                  MAGI_STATUS_INVALID_ARGUMENT, "owners_q");
    CHECK_REFUSED(magi_key_create_with_placement(comm, masks_of[0], &SHAPE, NULL, 4, odd, 5, NULL, 0, &second),
                  MAGI_STATUS_INVALID_ARGUMENT, "owners_q[1] is 3");
    CHECK_REFUSED(magi_key_create_with_placement(comm, masks_of[0], &SHAPE, NULL, 4, below, 5, NULL, 0, &second),
                  MAGI_STATUS_INVALID_ARGUMENT, "owners_q[1] is -1");
    CHECK_REFUSED(magi_key_create_with_placement(comm, masks_of[0], &SHAPE, NULL, 4, owners, 5, odd, 4, &second),
                  MAGI_STATUS_INVALID_ARGUMENT, "owners_k");

    CHECK_OK(magi_key_create_for_new_mask(key, masks_of[1], NULL, NULL, &second));
    CHECK_OK(magi_key_local_tokens(second, MAGI_SIDE_Q, &tokens));
    CHECK_INT(tokens, want);
    CHECK_OK(magi_comm_last_key(comm, &last));
    uint64_t a = 0, b = 1;
    CHECK_OK(magi_key_hash(second, &a));
    CHECK_OK(magi_key_hash(last, &b));
    CHECK(a == b);
    CHECK_REFUSED(magi_key_create_for_new_mask(key, masks_of[2], NULL, NULL, &third), MAGI_STATUS_INVALID_ARGUMENT,
                  "total_q");
    roll(key, 19, 1, -1);
    roll(key, 19, -1, 13);
    roll(key, 19, 5, 0);
    roll(second, 19, -40, 19);
    text(key_draw, key, "on 3 ranks");
    text(key_explain, second, "placement: that of the key");
    magi_key_destroy(last);
    magi_key_destroy(second);
    magi_key_destroy(key);
    return MAGI_STATUS_OK;
}

static void environment(void) {
    size_t count = 0, honoured = 0;
    CHECK_OK(magi_env_count(&count));
    CHECK(count > 40);
    for (size_t i = 0; i < count; i++) {
        magi_env_variable v;
        memset(&v, 0, sizeof v);
        v.size = sizeof v;
        CHECK_OK(magi_env_get(i, &v));
        CHECK(strlen(v.name) > 3 && strlen(v.kind) > 3 && strlen(v.accepts) > 3 && strlen(v.meaning) > 3);
        CHECK(v.acts >= MAGI_ENV_ACTS_BUILD && v.acts <= MAGI_ENV_ACTS_RUN);
        const char *const set = getenv(v.name);
        CHECK_INT(v.is_set, set != NULL);
        CHECK_TEXT(v.value, set != NULL ? set : v.default_value);
        if (v.no_effect_because == NULL) {
            honoured++;
        }
    }
    CHECK(honoured >= 5);
    magi_env_variable v;
    memset(&v, 0, sizeof v);
    CHECK_REFUSED(magi_env_get(0, &v), MAGI_STATUS_STRUCT_SIZE, "size");
    v.size = sizeof v;
    CHECK_REFUSED(magi_env_get(count, &v), MAGI_STATUS_INVALID_ARGUMENT, "index");
    CHECK_REFUSED(magi_env_get(0, NULL), MAGI_STATUS_NULL_POINTER, "variable");
    CHECK_REFUSED(magi_env_count(NULL), MAGI_STATUS_NULL_POINTER, "count");
}

int main(void) {
    masks();
    environment();
    int64_t pad = -1;
    CHECK_OK(magi_compute_pad_size(19, 4, 3, &pad));
    CHECK_INT(pad, 5);
    CHECK_REFUSED(magi_compute_pad_size(19, 0, 3, &pad), MAGI_STATUS_INVALID_ARGUMENT, "chunk_size");
    CHECK_REFUSED(magi_compute_pad_size(19, 4, 3, NULL), MAGI_STATUS_NULL_POINTER, "pad");
    magi_mask *made[3];
    CHECK_OK(magi_mask_create_from_sliding_window(19, 19, -1, 0, 0, &made[0]));
    CHECK_OK(magi_mask_create_from_sliding_window(19, 19, 3, 0, 0, &made[1]));
    CHECK_OK(magi_mask_create_from_sliding_window(18, 18, 3, 0, 0, &made[2]));
    text(mask_draw, made[0], "19 queries");
    CHECK_OK(magi_local_run(3, keys, made));
    for (int i = 0; i < 3; i++) {
        magi_mask_destroy(made[i]);
    }
    return 0;
}
