// Figures of stages, predicted times, and what crosses hosts: they agree with each other on every rank.
#include "ranks.h"

enum { TOKENS = 4096, WORLD = 4, INTER = 2, INTRA = 2 };

static magi_key *key_of(const magi_comm *comm, int32_t forward, int32_t backward, int32_t hide, int32_t hierarchical) {
    magi_mask *mask = causal_mask(TOKENS);
    const magi_attn_shape shape = shape_of(2, 1, 64, 64, MAGI_DTYPE_BF16);
    magi_config config = default_config();
    magi_key *key = NULL;
    config.chunk_size = 64;
    config.degree_forward = forward;
    config.degree_backward = backward;
    config.bwd_hide_tail_reduce = hide;
    config.hierarchical_comm = hierarchical;
    config.link_mb_per_s = 1500; // slow enough for waits
    CHECK_OK(magi_key_create(comm, mask, &shape, &config, &key));
    magi_mask_destroy(mask);
    return key;
}

static magi_key_stats stats_of(const magi_key *key) {
    magi_key_stats s;
    s.size = sizeof s;
    CHECK_OK(magi_key_get_stats(key, &s));
    return s;
}

static magi_rank_stats rank_stats_of(const magi_key *key, int32_t rank) {
    magi_rank_stats s;
    s.size = sizeof s;
    CHECK_OK(magi_key_get_rank_stats(key, rank, &s));
    return s;
}

static magi_stage_stats stage_stats_of(const magi_key *key, int32_t pass, int32_t rank, int32_t stage) {
    magi_stage_stats s;
    s.size = sizeof s;
    CHECK_OK(magi_key_get_stage_stats(key, pass, rank, stage, &s));
    return s;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// One pass of one rank: stages add up to the rank's figures, follow each other, and end when the rank is said to.
// `host` is the host stage, -1 for none.
static void check_pass(const magi_key *key, int32_t pass, int32_t rank, int64_t stages, int32_t host) {
    const magi_rank_stats of_rank = rank_stats_of(key, rank);
    int64_t area = 0, sent = 0, received = 0, end = 0, free_at = 0, waits = 0;
    for (int32_t i = 0; i < stages; i++) {
        const magi_stage_stats s = stage_stats_of(key, pass, rank, i);
        area += s.area;
        sent += s.tokens_sent;
        received += s.tokens_received;
        if (i == host) {
            CHECK_INT(s.tokens_received, 0);
            CHECK_INT(s.fetch_end_ns, s.fetch_start_ns);
        }
        CHECK_INT(s.fetch_end_ns > s.fetch_start_ns, s.tokens_received > 0);
        CHECK_INT(s.compute_end_ns > s.compute_start_ns, s.area > 0);
        CHECK_INT(s.reduce_end_ns > s.reduce_start_ns, pass == MAGI_PASS_BACKWARD && s.tokens_received > 0);
        CHECK(s.compute_start_ns >= s.fetch_end_ns);
        CHECK(s.tokens_received == 0 || s.area == 0 || pass == MAGI_PASS_FORWARD ||
              s.reduce_start_ns >= s.compute_end_ns);
        CHECK_INT(s.wait_ns, s.compute_start_ns - free_at);
        CHECK(s.wait_ns >= 0);
        waits += s.wait_ns;
        free_at = s.compute_end_ns;
        end = larger(end, larger(s.fetch_end_ns, larger(s.compute_end_ns, s.reduce_end_ns)));
    }
    waits += end - free_at;
    CHECK_INT(area, of_rank.area);
    CHECK_INT(sent, of_rank.tokens_sent);
    CHECK_INT(received, of_rank.tokens_received);
    CHECK_INT(end, pass == MAGI_PASS_FORWARD ? of_rank.forward_ns : of_rank.backward_ns);
    CHECK_INT(waits, pass == MAGI_PASS_FORWARD ? of_rank.forward_wait_ns : of_rank.backward_wait_ns);
}

static void stages(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    static const int32_t degrees[][2] = {{0, 0}, {1, 2}, {3, 1}, {2, 2}};
    (void)data;
    for (size_t d = 0; d < sizeof degrees / sizeof *degrees; d++) {
        const int32_t forward = degrees[d][0], backward = degrees[d][1], hide = (int32_t)d % 3;
        magi_key *key = key_of(comm, forward, backward, hide, 0);
        const magi_key_stats s = stats_of(key);
        CHECK_INT(s.stages_forward, forward + 1);
        CHECK_INT(s.stages_backward, backward + 1 + (hide == 2));
        int64_t slowest[2] = {0, 0};
        for (int32_t r = 0; r < size; r++) {
            check_pass(key, MAGI_PASS_FORWARD, r, s.stages_forward, forward > 0 ? 0 : -1);
            check_pass(key, MAGI_PASS_BACKWARD, r, s.stages_backward,
                       backward == 0 ? -1
                       : hide == 0   ? 0
                                     : backward + hide - 1);
            slowest[0] = larger(slowest[0], rank_stats_of(key, r).forward_ns);
            slowest[1] = larger(slowest[1], rank_stats_of(key, r).backward_ns);
        }
        CHECK_INT(s.forward_ns, slowest[0]);
        CHECK_INT(s.backward_ns, slowest[1]);
        CHECK(s.forward_ns > 0 && s.backward_ns > s.forward_ns);
        CHECK(rank_stats_of(key, 0).forward_wait_ns > 0);
        magi_key_destroy(key);
    }
    magi_key *key = key_of(comm, 1, 2, 1, 0);
    magi_stage_stats one;
    one.size = sizeof one;
    one.area = -5;
    CHECK_REFUSED(magi_key_get_stage_stats(key, 2, 0, 0, &one), MAGI_STATUS_INVALID_ENUM, "pass is 2; it must be 0");
    CHECK_REFUSED(magi_key_get_stage_stats(key, MAGI_PASS_FORWARD, size, 0, &one), MAGI_STATUS_INVALID_ARGUMENT,
                  "rank is 4; it must be 0 to 3");
    CHECK_REFUSED(magi_key_get_stage_stats(key, MAGI_PASS_FORWARD, 0, 2, &one), MAGI_STATUS_INVALID_ARGUMENT,
                  "stage is 2; it must be 0 to 1");
    CHECK_REFUSED(magi_key_get_stage_stats(key, MAGI_PASS_BACKWARD, rank, -1, &one), MAGI_STATUS_INVALID_ARGUMENT,
                  "stage is -1; it must be 0 to 2");
    CHECK_INT(one.area, -5);
    magi_key_destroy(key);
}

// What crosses hosts and what stays inside adds up, and two levels cross less.
static void hosts(magi_comm *comm, int32_t rank, int32_t size, void *data) {
    (void)data;
    magi_key *flat = key_of(comm, 1, 1, -1, 0);
    magi_key_stats s = stats_of(flat);
    CHECK_INT(s.tokens_inter_host, -1);
    CHECK_INT(s.tokens_intra_host, -1);
    CHECK_INT(rank_stats_of(flat, rank).tokens_sent_inter_host, -1);
    CHECK_INT(rank_stats_of(flat, rank).tokens_received_intra_host, -1);
    CHECK_OK(magi_comm_set_mesh(comm, INTER, INTRA));
    magi_key *keys[2] = {flat, key_of(comm, 1, 1, -1, 1)};
    int64_t crossing[2];
    for (int i = 0; i < 2; i++) {
        int64_t sums[4] = {0, 0, 0, 0};
        for (int32_t r = 0; r < size; r++) {
            const magi_rank_stats one = rank_stats_of(keys[i], r);
            CHECK(one.tokens_sent_inter_host > 0 && one.tokens_received_intra_host > 0);
            sums[0] += one.tokens_sent_inter_host;
            sums[1] += one.tokens_received_inter_host;
            sums[2] += one.tokens_sent_intra_host;
            sums[3] += one.tokens_received_intra_host;
            if (i == 0) {
                CHECK_INT(one.tokens_sent_inter_host + one.tokens_sent_intra_host, one.tokens_sent);
                CHECK_INT(one.tokens_received_inter_host + one.tokens_received_intra_host, one.tokens_received);
            }
        }
        s = stats_of(keys[i]);
        CHECK_INT(sums[0], s.tokens_inter_host);
        CHECK_INT(sums[1], s.tokens_inter_host);
        CHECK_INT(sums[2], s.tokens_intra_host);
        CHECK_INT(sums[3], s.tokens_intra_host);
        crossing[i] = s.tokens_inter_host;
    }
    CHECK_INT(stats_of(flat).tokens_moved, stats_of(keys[1]).tokens_moved);
    CHECK(crossing[1] < crossing[0] && crossing[1] * INTRA >= crossing[0]);

    char text[1 << 16];
    size_t room = sizeof text;
    char part[96];
    CHECK_OK(magi_key_explain(keys[1], text, &room));
    CHECK_HAS(text, "hosts: 2 hosts of 2 ranks");
    CHECK_HAS(text, "over two levels: ");
    CHECK_HAS(text, "against other placements");
    const magi_stage_stats stage = stage_stats_of(keys[1], MAGI_PASS_FORWARD, rank, 1);
    snprintf(part, sizeof part, " after a wait of %lld.%lld us for its keys", (long long)(stage.wait_ns / 1000),
             (long long)(stage.wait_ns % 1000 / 100));
    CHECK(stage.wait_ns > 0 && stage.wait_ns < 1000000);
    CHECK_HAS(text, part);
    magi_key_destroy(keys[0]);
    magi_key_destroy(keys[1]);
}

int main(void) {
    run_ranks(WORLD, stages, NULL);
    run_ranks(WORLD, hosts, NULL);
    return 0;
}
