// The allocator hook: what it is asked for, what happens when it has nothing, and that all of it comes back.
#include "dense.h"
#include "ranks.h"

enum { WORLD = 3 };

struct heap {
    int refuse;     // returns NULL
    int misaligned; // returns an address that is not aligned to 256
    int blocks, calls;
    size_t bytes;
};

static void *heap_alloc(size_t bytes, void *userdata) {
    struct heap *h = (struct heap *)userdata;
    h->calls++;
    if (h->refuse) {
        return NULL;
    }
    char *block = (char *)memory(bytes + 512);
    char *base = block + (256 - (uintptr_t)block % 256);
    base += h->misaligned ? 64 : 0;
    memcpy(base - sizeof block, &block, sizeof block);
    memset(base, 0xff, bytes); // NaN wherever somebody reads what nobody wrote
    h->blocks++;
    h->bytes += bytes;
    return base;
}

static void heap_free(void *pointer, size_t bytes, void *userdata) {
    struct heap *h = (struct heap *)userdata;
    char *block;
    memcpy(&block, (char *)pointer - sizeof block, sizeof block);
    h->blocks--;
    h->bytes -= bytes;
    free(block);
}

static struct heap heaps[WORLD];

static magi_config config_of(struct heap *h) {
    magi_config c = default_config();
    c.alloc = heap_alloc;
    c.free = heap_free;
    c.userdata = h;
    c.degree_forward = c.degree_backward = 1;
    return c;
}

// Rank 1's allocator refuses: every rank gets it, and the same prepare works when there is memory again.
static void refused(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)size;
    (void)data;
    const magi_config config = config_of(&heaps[rank]);
    magi_mask *mask = causal_mask(40);
    magi_key *key = small_key(comm, mask, &config);
    size_t bytes = 0;
    CHECK_OK(magi_key_workspace_size(key, &bytes));
    CHECK(bytes > 0);
    heaps[rank].refuse = rank == 1;
    for (int i = 0; i < 2; i++) {
        if (rank == 1) {
            CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_OUT_OF_MEMORY,
                          "was refused by the caller's allocator");
            char part[32];
            snprintf(part, sizeof part, "%zu bytes", bytes);
            CHECK_HAS(magi_last_error_message(), part);
        } else {
            CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_OUT_OF_MEMORY,
                          "rank 1 could not take its workspace");
        }
        CHECK_OK(magi_comm_async_error(comm));
    }
    heaps[rank].refuse = 0;
    CHECK_OK(magi_key_prepare(key, NULL));
    CHECK_INT(heaps[rank].bytes, bytes);
    const int calls = heaps[rank].calls;
    int64_t x[40], local[40];
    memset(local, 0, sizeof local);
    magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, 40, 0, 0);
    magi_tensor tl = tensor_of(local, MAGI_DTYPE_I64, 1, tokens_of(key, MAGI_SIDE_Q), 0, 0);
    CHECK_OK(magi_undispatch(key, MAGI_SIDE_Q, &tl, &tx, NULL));

    // A key that needs less shares the workspace; one that needs more replaces it.
    magi_mask *large = causal_mask(80), *small = causal_mask(20);
    magi_key *a = small_key(comm, small, &config), *b = small_key(comm, large, &config);
    CHECK_OK(magi_key_prepare(a, NULL));
    CHECK_INT(heaps[rank].calls, calls);
    CHECK_OK(magi_key_prepare(b, NULL));
    CHECK_OK(magi_key_workspace_size(b, &bytes));
    CHECK_INT(heaps[rank].blocks, 1);
    CHECK_INT(heaps[rank].bytes, bytes);
    magi_key_destroy(a);
    magi_key_destroy(b);
    magi_key_destroy(key);
    magi_mask_destroy(large);
    magi_mask_destroy(small);
    magi_mask_destroy(mask);
}

// A hook that breaks its promise is found out before anything is computed there.
static void misaligned(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)size;
    (void)data;
    const magi_config config = config_of(&heaps[rank]);
    magi_mask *mask = causal_mask(40);
    magi_key *key = small_key(comm, mask, &config);
    heaps[rank].misaligned = rank == 2;
    if (rank == 2) {
        CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_INVALID_ARGUMENT, "must be aligned to 256");
    } else {
        CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_OUT_OF_MEMORY, "rank 2 could not take its workspace");
    }
    heaps[rank].misaligned = 0;
    CHECK_OK(magi_key_prepare(key, NULL));
    magi_key_destroy(key);
    magi_mask_destroy(mask);
}

// More than the machine has, from the system.
static void too_large(void) {
    const magi_slice slice = slice_of(0, (int64_t)1 << 31, 0, (int64_t)1 << 31, MAGI_MASK_TYPE_FULL);
    const magi_attn_shape shape = shape_of(65536, 65536, 1024, 1024, MAGI_DTYPE_F64);
    magi_comm *comm = NULL;
    magi_mask *mask = NULL;
    magi_key *key = NULL;
    CHECK_OK(magi_comm_create_local(1, &comm));
    CHECK_OK(magi_mask_create(&slice, 1, (int64_t)1 << 31, (int64_t)1 << 31, &mask));
    int32_t status = magi_key_create(comm, mask, &shape, NULL, &key);
    if (status == MAGI_STATUS_OK) {
        CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_OUT_OF_MEMORY, "was refused by the system");
    } else {
        CHECK_INT(status, MAGI_STATUS_OUT_OF_MEMORY);
    }
    magi_key_destroy(key);
    magi_mask_destroy(mask);
    magi_comm_destroy(comm);
}

int main(void) {
    run_ranks(WORLD, refused, NULL);
    run_ranks(WORLD, misaligned, NULL);
    for (int i = 0; i < WORLD; i++) {
        CHECK_INT(heaps[i].blocks, 0);
        CHECK_INT(heaps[i].bytes, 0);
    }
    too_large();
    return 0;
}
