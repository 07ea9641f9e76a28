// Queries that travel: the config's flag, statistics, what it refuses, and numbers over ranks.
#include "job.h"

enum { QUERIES = 24, KEYS = 960, RANKS = 4 };

// Few queries that see all keys: moving the queries moves fewer bytes.
static magi_mask *few_queries(void) {
    const magi_slice s = slice_of(0, QUERIES, 0, KEYS, MAGI_MASK_TYPE_FULL);
    magi_mask *mask = NULL;
    CHECK_OK(magi_mask_create(&s, 1, QUERIES, KEYS, &mask));
    return mask;
}

static magi_key *key_of(const magi_comm *comm, const magi_mask *mask, int qo_comm, int high) {
    const magi_attn_shape shape = shape_of(4, 2, 16, 8, MAGI_DTYPE_BF16);
    magi_config c = default_config();
    c.qo_comm = qo_comm;
    c.forward_high_precision_reduce = high;
    c.sanity_check = 1;
    c.chunk_size = 6;
    c.degree_forward = c.degree_backward = 1;
    magi_key *key = NULL;
    CHECK_OK(magi_key_create(comm, mask, &shape, &c, &key));
    return key;
}

static magi_key_stats stats_of(const magi_key *key) {
    magi_key_stats stats;
    stats.size = sizeof stats;
    CHECK_OK(magi_key_get_stats(key, &stats));
    return stats;
}

static uint64_t hash_of(const magi_key *key) {
    uint64_t hash = 0;
    CHECK_OK(magi_key_hash(key, &hash));
    return hash;
}

static void figures(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)rank;
    (void)data;
    magi_mask *mask = few_queries();
    magi_key *keys_only = key_of(comm, mask, 0, 0), *key = key_of(comm, mask, 1, 0), *high = key_of(comm, mask, 1, 1);
    const magi_key_stats before = stats_of(keys_only), after = stats_of(key), wide = stats_of(high);
    CHECK_INT(before.queries_moved, 0);
    CHECK_INT(before.bytes_queries + before.bytes_outputs, 0);
    // k and v: 2 heads of 16 + 8 elements of 2 bytes; backward their gradients too.
    CHECK_INT(before.bytes_forward, before.tokens_moved * 2 * 24 * 2);
    CHECK_INT(before.bytes_backward, before.tokens_moved * 2 * 24 * 4);
    CHECK_INT(before.bytes_forward_keys_only, before.bytes_forward);
    CHECK_INT(after.bytes_forward_keys_only, before.bytes_forward);
    CHECK_INT(after.bytes_backward_keys_only, before.bytes_backward);
    // Every rank's 6 queries to the 3 others, and no key to anybody.
    CHECK_INT(after.queries_moved, QUERIES * (RANKS - 1));
    CHECK_INT(after.tokens_moved, 0);
    CHECK_INT(after.bytes_keys, 0);
    CHECK_INT(after.bytes_queries, after.queries_moved * 4 * 16 * 2);
    // out in bf16 and lse in f32; with high precision both in f32.
    CHECK_INT(after.bytes_outputs, after.queries_moved * 4 * (8 * 2 + 4));
    CHECK_INT(wide.bytes_outputs, wide.queries_moved * 4 * (8 * 4 + 4));
    CHECK_INT(after.bytes_forward, after.bytes_keys + after.bytes_queries + after.bytes_outputs);
    // q, dout, lse and delta out; dq back.
    CHECK_INT(after.bytes_backward, after.queries_moved * 4 * (16 * 2 + 8 * 2 + 8 + 16 * 2));
    CHECK(after.bytes_forward * 5 < before.bytes_forward && after.bytes_backward * 5 < before.bytes_backward);
    CHECK(hash_of(key) != hash_of(keys_only) && hash_of(key) != hash_of(high));
    int64_t sent = 0, received = 0, bytes_sent = 0, bytes_received = 0;
    for (int32_t r = 0; r < size; r++) {
        magi_rank_stats one;
        one.size = sizeof one;
        CHECK_OK(magi_key_get_rank_stats(key, r, &one));
        CHECK_INT(one.area, QUERIES * KEYS / RANKS);
        sent += one.queries_sent;
        received += one.queries_received;
        bytes_sent += one.bytes_sent;
        bytes_received += one.bytes_received;
    }
    CHECK_INT(sent, after.queries_moved);
    CHECK_INT(received, after.queries_moved);
    CHECK_INT(bytes_sent, after.bytes_forward);
    CHECK_INT(bytes_received, after.bytes_forward);
    char text[8192];
    size_t length = sizeof text;
    CHECK_OK(magi_key_explain(key, text, &length));
    CHECK(strstr(text, "queries travel to keys") != NULL && strstr(text, "go home") != NULL);
    length = sizeof text;
    CHECK_OK(magi_key_explain(keys_only, text, &length));
    CHECK(strstr(text, "queries travel") == NULL);
    // No key is received any more, so there is less to hold.
    size_t least = 0, most = 0;
    CHECK_OK(magi_key_workspace_size(key, &least));
    CHECK_OK(magi_key_workspace_size(keys_only, &most));
    CHECK(least > 0 && least < most);
    CHECK_OK(magi_key_prepare(key, NULL));
    magi_key_destroy(high);
    magi_key_destroy(key);
    magi_key_destroy(keys_only);
    magi_mask_destroy(mask);
}

// A rank that lets queries travel and one that does not must find out before anything moves.
static void disagree(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)size;
    (void)data;
    magi_mask *mask = few_queries();
    magi_key *key = key_of(comm, mask, rank == 1, 0);
    CHECK_REFUSED(magi_key_prepare(key, NULL), MAGI_STATUS_PLAN_MISMATCH, "ranks disagree on the plan");
    magi_key_destroy(key);
    magi_mask_destroy(mask);
}

static void refused(void) {
    magi_comm *comms[4];
    CHECK_OK(magi_comm_create_local(4, comms));
    magi_mask *mask = few_queries();
    const magi_attn_shape shape = shape_of(4, 2, 16, 8, MAGI_DTYPE_F32);
    magi_config c = default_config();
    c.qo_comm = c.hierarchical_comm = 1;
    magi_key *key = NULL;
    CHECK_OK(magi_comm_set_mesh(comms[0], 2, 2));
    CHECK_REFUSED(magi_key_create(comms[0], mask, &shape, &c, &key), MAGI_STATUS_NOT_SUPPORTED,
                  "config.qo_comm and config.hierarchical_comm are both set");
    CHECK(key == NULL);
    magi_mask_destroy(mask);
    for (int i = 0; i < 4; i++) {
        magi_comm_destroy(comms[i]);
    }
}

static void numbers(void) {
    static const int32_t dtypes[] = {MAGI_DTYPE_F64, MAGI_DTYPE_F32, MAGI_DTYPE_BF16};
    static const double bounds[] = {1e-10, 1e-5, 2e-2};
    for (int i = 0; i < 3; i++) {
        job j;
        memset(&j, 0, sizeof j);
        j.name = "queries travel";
        j.tq = QUERIES;
        j.tk = KEYS / 4;
        j.hq = 4;
        j.hkv = 2;
        j.d = 16;
        j.dv = 8;
        j.dtype = dtypes[i];
        j.sinks = 2;
        j.sink_per_token = i % 2;
        j.acc_outputs = i == 1;
        j.bound = j.gradient_bound = bounds[i];
        j.slices[0] = slice_of(0, 16, 0, KEYS / 4, MAGI_MASK_TYPE_FULL);
        j.slices[1] = slice_of(16, QUERIES, 20, 200, MAGI_MASK_TYPE_CAUSAL);
        j.n = 2;
        j.config = default_config();
        j.config.qo_comm = 1;
        j.config.chunk_size = 3;
        j.config.balance_slack = 100;
        j.config.degree_forward = i;
        j.config.degree_backward = 1;
        j.config.forward_high_precision_reduce = j.config.backward_high_precision_reduce = i % 2;
        job_run(&j, RANKS);
        job_run(&j, 7);
    }
}

// The jobs of the other attention tests, with as much room for queries to travel as there can be.
static void variations(void) {
    job j = job_default("queries travel, irregular");
    j.config.qo_comm = 1;
    j.config.balance_slack = 1000;
    j.config.sanity_check = 1;
    j.sinks = 1;
    for (int32_t ranks = 2; ranks <= 8; ranks += 3) {
        job_run(&j, ranks);
    }
    j.interleaved = 1;
    j.flags = MAGI_ACCUMULATE_DQ | MAGI_ACCUMULATE_DK | MAGI_ACCUMULATE_DV | MAGI_ACCUMULATE_DSINK;
    job_run(&j, 5);
    j.no_optional = 1;
    job_run(&j, 4);
    j = job_default("queries travel, NaN where nobody looks");
    j.config.qo_comm = 1;
    j.config.balance_slack = 1000;
    j.config.degree_forward = 3;
    j.config.degree_backward = 0;
    j.nan_unseen = 1;
    job_run(&j, 5);
    job_cross(&j);
    job_run(&j, 4);
    j.softcap = 2;
    job_run(&j, 8);
}

int main(void) {
    run_ranks(RANKS, figures, NULL);
    run_ranks(2, disagree, NULL);
    refused();
    numbers();
    variations();
    return 0;
}
