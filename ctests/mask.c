// Masks: every builder against cells counted one by one, printing, and everything that is refused.
#include "dense.h"
#include "ranks.h"

enum { MOST = 64 };

// The mask prints as slices that cover exactly `cells`, and its area is their number.
static void check_cells(const magi_mask *mask, int64_t tq, int64_t tk, const unsigned char *cells) {
    magi_slice slices[MOST * MOST];
    unsigned char printed[MOST * MOST];
    int64_t have_q = -1, have_k = -1, area = -1, want = 0;
    size_t count = 0;
    CHECK_OK(magi_mask_totals(mask, &have_q, &have_k));
    CHECK_INT(have_q, tq);
    CHECK_INT(have_k, tk);
    CHECK_OK(magi_mask_slices(mask, NULL, &count));
    CHECK(count <= sizeof slices / sizeof *slices);
    if (count > 0) {
        size_t room = count - 1;
        memset(slices, 0x5a, sizeof slices);
        CHECK_REFUSED(magi_mask_slices(mask, slices, &room), MAGI_STATUS_BUFFER_TOO_SMALL, "slices has room for ");
        CHECK_INT(room, count);
        CHECK_INT(slices[0].reserved, 0x5a5a5a5a);
        CHECK_OK(magi_mask_slices(mask, slices, &room));
    }
    fill_cells(slices, count, tq, tk, printed); // fails where two of them meet
    for (int64_t i = 0; i < tq * tk; i++) {
        if (printed[i] != cells[i]) {
            FAIL("cell (%d, %d) is %d, must be %d", (int)(i / tk), (int)(i % tk), printed[i], cells[i]);
        }
        want += cells[i];
    }
    CHECK_OK(magi_mask_area(mask, &area));
    CHECK_INT(area, want);
}

static void slices(void) {
    magi_slice s[6];
    unsigned char cells[MOST * MOST];
    magi_mask *mask = NULL;
    s[0] = slice_of(0, 13, 0, 13, MAGI_MASK_TYPE_CAUSAL);
    s[1] = slice_of(13, 30, 5, 20, MAGI_MASK_TYPE_FULL);
    s[2] = slice_of(13, 30, 20, 40, MAGI_MASK_TYPE_INV_CAUSAL);
    s[3] = slice_of(35, 50, 0, 30, MAGI_MASK_TYPE_BI_CAUSAL);
    s[4] = slice_of(50, 61, 3, 61, MAGI_MASK_TYPE_CAUSAL);
    s[5] = slice_of(7, 7, 0, 61, MAGI_MASK_TYPE_FULL); // empty
    for (size_t n = 0; n <= 6; n++) {
        CHECK_OK(magi_mask_create(n == 0 ? NULL : s, n, 61, 61, &mask));
        fill_cells(s, n, 61, 61, cells);
        check_cells(mask, 61, 61, cells);
        magi_mask_destroy(mask);
    }
    // One rectangle of each type, wide, tall, square and one token long.
    static const int64_t extents[5][2] = {{9, 4}, {4, 9}, {6, 6}, {1, 5}, {5, 1}};
    for (int32_t type = 0; type < 4; type++) {
        for (size_t i = 0; i < 5; i++) {
            s[0] = slice_of(2, 2 + extents[i][0], 3, 3 + extents[i][1], type);
            CHECK_OK(magi_mask_create(s, 1, 12, 15, &mask));
            fill_cells(s, 1, 12, 15, cells);
            check_cells(mask, 12, 15, cells);
            magi_mask_destroy(mask);
        }
    }
}

// What a query at `q` of a document with `nq` queries and `nk` keys sees of key `k`.
static int window_shows(int64_t q, int64_t k, int64_t nq, int64_t nk, int causal, int64_t left, int64_t right,
                        int64_t global_window) {
    const int64_t diagonal = q + nk - nq;
    if (causal && k > diagonal) {
        return 0;
    }
    if (k < global_window) {
        return 1;
    }
    return (left < 0 || k >= diagonal - left) && (causal || right < 0 || k <= diagonal + right);
}

static void documents(void) {
    static const int64_t cu_q[5] = {0, 1, 1, 20, 33}, cu_k[5] = {0, 5, 9, 20, 60};
    static const int64_t windows[5][3] = {{-1, -1, 0}, {-1, 0, 0}, {3, 0, 0}, {2, 4, 0}, {3, 1, 2}};
    unsigned char cells[MOST * MOST];
    magi_mask *mask = NULL;
    for (int causal = 0; causal < 2; causal++) {
        for (size_t w = 0; w < 5; w++) {
            const int64_t left = windows[w][0], right = windows[w][1], global_window = windows[w][2];
            memset(cells, 0, sizeof cells);
            for (int d = 0; d < 4; d++) {
                for (int64_t q = cu_q[d]; q < cu_q[d + 1]; q++) {
                    for (int64_t k = cu_k[d]; k < cu_k[d + 1]; k++) {
                        cells[q * 60 + k] =
                            (unsigned char)window_shows(q - cu_q[d], k - cu_k[d], cu_q[d + 1] - cu_q[d],
                                                        cu_k[d + 1] - cu_k[d], causal, left, right, global_window);
                    }
                }
            }
            CHECK_OK(magi_mask_create_from_cu_seqlens(cu_q, cu_k, 5, causal, left, right, global_window, &mask));
            check_cells(mask, 33, 60, cells);
            magi_mask_destroy(mask);
        }
    }
    // Window sizes count the query itself: a causal window of 4 keys is (3, 0).
    for (int64_t q = 0; q < 20; q++) {
        for (int64_t k = 0; k < 20; k++) {
            cells[q * 20 + k] = k <= q && k > q - 4;
        }
    }
    CHECK_OK(magi_mask_create_from_sliding_window(20, 20, 3, 0, 0, &mask));
    check_cells(mask, 20, 20, cells);
    magi_mask_destroy(mask);
    // Blocks of 4 in documents of 10 and 7 tokens.
    static const int64_t cu[3] = {0, 10, 17};
    for (int64_t q = 0; q < 17; q++) {
        for (int64_t k = 0; k < 17; k++) {
            const int64_t start = q < 10 ? 0 : 10, end = q < 10 ? 10 : 17;
            cells[q * 17 + k] = k >= start && k < end && (k - start) / 4 <= (q - start) / 4;
        }
    }
    CHECK_OK(magi_mask_create_from_block_causal(cu, 3, 4, &mask));
    check_cells(mask, 17, 17, cells);
    magi_mask_destroy(mask);
}

static void overlaps(void) {
    magi_slice s[3];
    magi_mask *mask = NULL;
    s[0] = slice_of(0, 4, 0, 4, MAGI_MASK_TYPE_CAUSAL);
    s[1] = slice_of(6, 8, 0, 8, MAGI_MASK_TYPE_FULL);
    s[2] = slice_of(2, 7, 7, 8, MAGI_MASK_TYPE_FULL);
    CHECK_REFUSED(magi_mask_create(s, 3, 8, 8, &mask), MAGI_STATUS_MASK_OVERLAP,
                  "slices[1] and slices[2] both cover query 6, key 7");
    // The two triangles of a square share its diagonal, and only that.
    s[1] = slice_of(0, 4, 0, 4, MAGI_MASK_TYPE_INV_CAUSAL);
    CHECK_REFUSED(magi_mask_create(s, 2, 8, 8, &mask), MAGI_STATUS_MASK_OVERLAP,
                  "slices[0] and slices[1] both cover query ");
    s[1] = slice_of(0, 3, 1, 4, MAGI_MASK_TYPE_INV_CAUSAL);
    CHECK_OK(magi_mask_create(s, 2, 8, 8, &mask));
    magi_mask_destroy(mask);
    mask = NULL;
    s[1] = s[0];
    CHECK_REFUSED(magi_mask_create(s, 2, 8, 8, &mask), MAGI_STATUS_MASK_OVERLAP, "slices[0] and slices[1]");
    CHECK(mask == NULL);
}

static void ranges(void) {
    const int64_t beyond = ((int64_t)1 << 31) + 1;
    magi_slice s = slice_of(0, 4, 0, 4, MAGI_MASK_TYPE_FULL);
    magi_mask *mask = NULL;
    const magi_status status = MAGI_STATUS_INVALID_RANGE;
    CHECK_REFUSED(magi_mask_create(&s, 1, 3, 4, &mask), status, "slices[0].q is [0, 4)");
    CHECK_HAS(magi_last_error_message(), "total_q (3)");
    CHECK_REFUSED(magi_mask_create(&s, 1, 4, 3, &mask), status, "slices[0].k is [0, 4)");
    s.q.start = -1;
    CHECK_REFUSED(magi_mask_create(&s, 1, 4, 4, &mask), status, "slices[0].q is [-1, 4)");
    s.q.start = 5;
    CHECK_REFUSED(magi_mask_create(&s, 1, 8, 8, &mask), status, "slices[0].q is [5, 4)");
    s.q.start = 0;
    s.k.start = INT64_MIN;
    s.k.end = INT64_MAX;
    CHECK_REFUSED(magi_mask_create(&s, 1, 8, 8, &mask), status, "slices[0].k is ");
    CHECK_REFUSED(magi_mask_create(NULL, 0, -1, 8, &mask), status, "total_q is -1");
    CHECK_REFUSED(magi_mask_create(NULL, 0, 8, beyond, &mask), status, "total_k is 2147483649");
    CHECK_REFUSED(magi_mask_create_from_sliding_window(-2, 8, 1, 1, 0, &mask), status, "total_q is -2");
    const int64_t cu[3] = {0, 4, 8}, late[3] = {1, 4, 8}, falling[3] = {0, 5, 4}, large[2] = {0, beyond};
    CHECK_REFUSED(magi_mask_create_from_cu_seqlens(late, cu, 3, 1, -1, 0, 0, &mask), status, "cu_seqlens_q[0] is 1");
    CHECK_REFUSED(magi_mask_create_from_cu_seqlens(cu, falling, 3, 1, -1, 0, 0, &mask), status,
                  "cu_seqlens_k[2] is 4; it must be at least cu_seqlens_k[1], which is 5");
    CHECK_REFUSED(magi_mask_create_from_block_causal(falling, 3, 2, &mask), status, "cu_seqlens[2] is 4");
    CHECK_REFUSED(magi_mask_create_from_block_causal(large, 2, 2, &mask), status, "cu_seqlens[1] is 2147483649");
    CHECK(mask == NULL);
}

static void arguments(void) {
    const magi_status status = MAGI_STATUS_INVALID_ARGUMENT;
    const int64_t cu[2] = {0, 8};
    magi_mask *mask = NULL;
    magi_slice s = slice_of(0, 4, 0, 4, MAGI_MASK_TYPE_FULL);
    s.reserved = 3;
    CHECK_REFUSED(magi_mask_create(&s, 1, 4, 4, &mask), status, "slices[0].reserved is 3; it must be 0");
    CHECK_REFUSED(magi_mask_create(&s, SIZE_MAX, 4, 4, &mask), status, "slices has ");
    CHECK_REFUSED(magi_mask_create_from_cu_seqlens(cu, cu, 0, 1, -1, 0, 0, &mask), status, "cu_seqlens_q has 0");
    CHECK_REFUSED(magi_mask_create_from_cu_seqlens(cu, cu, 2, 2, -1, 0, 0, &mask), status, "causal is 2");
    CHECK_REFUSED(magi_mask_create_from_cu_seqlens(cu, cu, 2, 0, -2, 0, 0, &mask), status, "window_left is -2");
    CHECK_REFUSED(magi_mask_create_from_cu_seqlens(cu, cu, 2, 0, 0, -3, 0, &mask), status, "window_right is -3");
    CHECK_REFUSED(magi_mask_create_from_sliding_window(8, 8, 1, 1, -1, &mask), status, "global_window is -1");
    CHECK_REFUSED(magi_mask_create_from_block_causal(cu, 2, 0, &mask), status, "block is 0; it must be 1 or more");
    const int64_t shifted[3] = {0, 0, 0};
    const int64_t *odd = (const int64_t *)(const void *)((const char *)shifted + 4);
    CHECK_REFUSED(magi_mask_create_from_block_causal(odd, 2, 1, &mask), status, "not aligned");
    CHECK(mask == NULL);
    // The extremes that are allowed.
    int64_t area = -1;
    s = slice_of(0, (int64_t)1 << 31, 0, (int64_t)1 << 31, MAGI_MASK_TYPE_FULL);
    CHECK_OK(magi_mask_create(&s, 1, (int64_t)1 << 31, (int64_t)1 << 31, &mask));
    CHECK_OK(magi_mask_area(mask, &area));
    CHECK_INT(area, (int64_t)1 << 62);
    magi_mask_destroy(mask);
    CHECK_OK(magi_mask_create(NULL, 0, 0, 0, &mask));
    CHECK_OK(magi_mask_area(mask, &area));
    CHECK_INT(area, 0);
    magi_mask_destroy(mask);
}

int main(void) {
    slices();
    documents();
    overlaps();
    ranges();
    arguments();
    return 0;
}
