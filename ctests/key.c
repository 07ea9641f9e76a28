// Keys: who owns what, statistics, hash, cache, and how long they live.
#include "dense.h"
#include "ranks.h"

enum { TOKENS = 50, WORLD = 3 };

// Every token of both sides is owned by exactly one rank; position ids ascend.
static unsigned char owned[2][TOKENS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void ownership(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    magi_mask *mask = causal_mask(TOKENS);
    magi_key *key = small_key(comm, mask, NULL);
    (void)data;
    for (int32_t side = 0; side < 2; side++) {
        int64_t ids[TOKENS];
        size_t count = 0;
        CHECK_OK(magi_key_position_ids(key, side, NULL, &count));
        CHECK_INT(count, tokens_of(key, side));
        CHECK((int64_t)count >= TOKENS / size - 8 && count <= TOKENS);
        ids[0] = -5;
        size_t room = count - 1;
        CHECK_REFUSED(magi_key_position_ids(key, side, ids, &room), MAGI_STATUS_BUFFER_TOO_SMALL,
                      "positions has room for ");
        CHECK_INT(room, count);
        CHECK_INT(ids[0], -5);
        CHECK_OK(magi_key_position_ids(key, side, ids, &room));
        pthread_mutex_lock(&lock);
        for (size_t i = 0; i < count; i++) {
            CHECK(ids[i] >= 0 && ids[i] < TOKENS && (i == 0 || ids[i] > ids[i - 1]));
            owned[side][ids[i]]++;
        }
        pthread_mutex_unlock(&lock);
    }
    // Figures for one rank add up to those for all.
    magi_key_stats all;
    magi_rank_stats one;
    int64_t area = 0, most = 0, tokens = 0, sent = 0, received = 0;
    all.size = sizeof all;
    one.size = sizeof one;
    CHECK_OK(magi_key_get_stats(key, &all));
    for (int32_t r = 0; r < size; r++) {
        CHECK_OK(magi_key_get_rank_stats(key, r, &one));
        area += one.area;
        most = one.area > most ? one.area : most;
        tokens += one.tokens_q;
        sent += one.tokens_sent;
        received += one.tokens_received;
        if (r == rank) {
            CHECK_INT(one.tokens_q, tokens_of(key, MAGI_SIDE_Q));
            CHECK_INT(one.tokens_k, tokens_of(key, MAGI_SIDE_K));
        }
    }
    CHECK_INT(area, TOKENS * (TOKENS + 1) / 2);
    CHECK_INT(all.area, area);
    CHECK_INT(all.area_max, most);
    CHECK_NEAR(all.balance, (double)most * size / (double)area, 1e-12);
    CHECK(all.balance_bound >= 1 && all.balance >= all.balance_bound - 1e-12);
    CHECK_INT(tokens, TOKENS);
    CHECK_INT(sent, received);
    CHECK_INT(all.tokens_moved, received);
    CHECK_INT(all.tokens_all_gather, TOKENS * (size - 1));
    CHECK(all.tokens_moved <= all.tokens_all_gather && all.tokens_moved > 0);
    CHECK(all.tokens_received_max >= all.tokens_moved / size && all.tokens_sent_max >= all.tokens_moved / size);
    CHECK(all.chunk_size >= 1);
    one.area = -5;
    CHECK_REFUSED(magi_key_get_rank_stats(key, size, &one), MAGI_STATUS_INVALID_ARGUMENT,
                  "rank is 3; it must be 0 to 2");
    CHECK_REFUSED(magi_key_get_rank_stats(key, -1, &one), MAGI_STATUS_INVALID_ARGUMENT, "rank is -1");
    CHECK_INT(one.area, -5);
    magi_key_destroy(key);
    magi_mask_destroy(mask);
}

static uint64_t hash_of(const magi_key *key) {
    uint64_t hash = 0;
    CHECK_OK(magi_key_hash(key, &hash));
    return hash;
}

// Equal requests have one hash with any cache; what decides the plan changes it.
static void hashes(void) {
    magi_comm *comms[2];
    CHECK_OK(magi_comm_create_local(2, comms));
    magi_mask *mask = causal_mask(TOKENS), *same = causal_mask(TOKENS), *other = causal_mask(TOKENS + 1);
    magi_config config = default_config();
    for (int64_t cache = 0; cache < 2; cache++) {
        config.cache_size = cache;
        magi_key *a = small_key(comms[0], mask, &config), *b = small_key(comms[0], same, &config);
        magi_key *peer = small_key(comms[1], mask, &config);
        CHECK(a != b && hash_of(a) == hash_of(b) && hash_of(a) == hash_of(peer));
        magi_key *c = small_key(comms[0], other, &config);
        CHECK(hash_of(a) != hash_of(c));
        // The first handle lives on, whatever the cache keeps.
        magi_key_destroy(b);
        CHECK_INT(hash_of(a), hash_of(peer));
        magi_key_destroy(a);
        magi_key_destroy(c);
        magi_key_destroy(peer);
    }
    config.degree_forward = 2;
    magi_key *base = small_key(comms[0], mask, NULL), *staged = small_key(comms[0], mask, &config);
    CHECK(hash_of(base) != hash_of(staged));
    magi_key_destroy(base);
    magi_key_destroy(staged);
    magi_mask_destroy(mask);
    magi_mask_destroy(same);
    magi_mask_destroy(other);
    magi_comm_destroy(comms[0]);
    magi_comm_destroy(comms[1]);
}

// A key outlives mask and communicator: the mask's end changes nothing, the communicator's is named.
static void lifetimes(void) {
    magi_comm *comm = NULL;
    CHECK_OK(magi_comm_create_local(1, &comm));
    magi_mask *mask = causal_mask(4);
    magi_key *key = small_key(comm, mask, NULL);
    magi_mask_destroy(mask);
    CHECK_OK(magi_key_prepare(key, NULL));
    CHECK_OK(magi_key_prepare(key, NULL));
    int64_t x[4] = {7, 8, 9, 10}, y[4] = {0, 0, 0, 0};
    magi_tensor tx = tensor_of(x, MAGI_DTYPE_I64, 1, 4, 0, 0), ty = tensor_of(y, MAGI_DTYPE_I64, 1, 4, 0, 0);
    CHECK_OK(magi_undispatch(key, MAGI_SIDE_K, &tx, &ty, NULL));
    CHECK(memcmp(x, y, sizeof x) == 0);
    memset(y, 0x5a, sizeof y);
    magi_comm_destroy(comm);

    const magi_status status = MAGI_STATUS_COMM_DESTROYED;
    const char *part = "the communicator was destroyed";
    int64_t tokens = 0;
    size_t size = 0;
    uint64_t hash = 0;
    magi_key_stats stats;
    magi_rank_stats rank_stats;
    magi_stage_stats stage_stats;
    stats.size = sizeof stats;
    rank_stats.size = sizeof rank_stats;
    stage_stats.size = sizeof stage_stats;
    CHECK_REFUSED(magi_key_get_stage_stats(key, MAGI_PASS_FORWARD, 0, 0, &stage_stats), status, part);
    CHECK_REFUSED(magi_key_prepare(key, NULL), status, part);
    CHECK_REFUSED(magi_key_local_tokens(key, MAGI_SIDE_Q, &tokens), status, part);
    CHECK_REFUSED(magi_key_position_ids(key, MAGI_SIDE_Q, NULL, &size), status, part);
    CHECK_REFUSED(magi_key_get_stats(key, &stats), status, part);
    CHECK_REFUSED(magi_key_get_rank_stats(key, 0, &rank_stats), status, part);
    CHECK_REFUSED(magi_key_workspace_size(key, &size), status, part);
    CHECK_REFUSED(magi_key_hash(key, &hash), status, part);
    CHECK_REFUSED(magi_dispatch(key, MAGI_SIDE_K, &tx, &ty, NULL), status, part);
    CHECK_REFUSED(magi_undispatch(key, MAGI_SIDE_K, &tx, &ty, NULL), status, part);
    CHECK_REFUSED(magi_dispatch_sharded(key, MAGI_SIDE_K, &tx, &ty, NULL), status, part);
    CHECK_INT(y[0], 0x5a5a5a5a5a5a5a5a);
    magi_key_destroy(key);
}

// Nothing to attend over, in every way that there is.
static void empties(void) {
    magi_comm *comm = NULL;
    CHECK_OK(magi_comm_create_local(1, &comm));
    for (int64_t total_q = 0; total_q < 4; total_q += 3) {
        for (int64_t total_k = 0; total_k < 4; total_k += 3) {
            magi_mask *mask = NULL;
            CHECK_OK(magi_mask_create(NULL, 0, total_q, total_k, &mask));
            magi_key *key = small_key(comm, mask, NULL);
            magi_key_stats stats;
            size_t bytes = 0, count = 1;
            stats.size = sizeof stats;
            CHECK_OK(magi_key_prepare(key, NULL));
            CHECK_INT(tokens_of(key, MAGI_SIDE_Q), total_q);
            CHECK_INT(tokens_of(key, MAGI_SIDE_K), total_k);
            CHECK_OK(magi_key_position_ids(key, MAGI_SIDE_Q, NULL, &count));
            CHECK_INT(count, total_q);
            CHECK_OK(magi_key_workspace_size(key, &bytes));
            CHECK_OK(magi_key_get_stats(key, &stats));
            CHECK_INT(stats.area, 0);
            CHECK_NEAR(stats.balance, 1, 0);
            CHECK_INT(stats.tokens_moved, 0);
            magi_key_destroy(key);
            magi_mask_destroy(mask);
        }
    }
    magi_comm_destroy(comm);
}

// The longest mask: asking for the number of positions does not make them, which would take 16 GiB.
static void longest(void) {
    const int64_t total = (int64_t)1 << 31;
    magi_comm *comm = NULL;
    size_t count = 0;
    int64_t room = 0;
    CHECK_OK(magi_comm_create_local(1, &comm));
    magi_mask *mask = causal_mask(total);
    magi_key *key = small_key(comm, mask, NULL);
    const double start = now_ms();
    CHECK_OK(magi_key_position_ids(key, MAGI_SIDE_Q, NULL, &count));
    CHECK(count == (size_t)total);
    count = 1;
    CHECK_REFUSED(magi_key_position_ids(key, MAGI_SIDE_Q, &room, &count), MAGI_STATUS_BUFFER_TOO_SMALL,
                  "2147483648 are needed");
    CHECK(now_ms() - start < 1000);
    magi_key_destroy(key);
    magi_mask_destroy(mask);
    magi_comm_destroy(comm);
}

int main(void) {
    run_ranks(WORLD, ownership, NULL);
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < TOKENS; i++) {
            CHECK_INT(owned[side][i], 1);
        }
    }
    hashes();
    lifetimes();
    empties();
    longest();
    return 0;
}
