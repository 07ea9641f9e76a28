// The main job in f64 on 1, 2, 4 and 7 ranks equals dense attention within 1e-10, in every variation of its arguments.
#include "job.h"

static const int32_t sizes[] = {1, 2, 4, 7};

// Under a memory checker, where a run takes 30 times as long: on 4 ranks alone.
static void on_all_sizes(job *j) {
    const int checked = getenv("MAGI_TEST_MEMCHECK") != NULL;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (!checked || sizes[i] == 4) {
            job_run(j, sizes[i]);
        }
    }
}

// Stages of forward and backward.
static void degrees(void) {
    static const int32_t degrees[][2] = {{0, 0}, {1, 2}, {2, 1}, {4, 4}};
    for (size_t i = 0; i < sizeof degrees / sizeof *degrees; i++) {
        job j = job_default("degrees");
        j.config.degree_forward = degrees[i][0];
        j.config.degree_backward = degrees[i][1];
        j.config.sanity_check = 1;
        on_all_sizes(&j);
    }
}

static void sinks(void) {
    for (int32_t reduce = MAGI_DSINK_REDUCE_NONE; reduce <= MAGI_DSINK_REDUCE_AVG; reduce++) {
        job j = job_default("shared sink");
        j.sinks = 3;
        j.config.dsink_reduce = reduce;
        on_all_sizes(&j);
        j.name = "shared sink, added to";
        j.flags = MAGI_ACCUMULATE_DSINK;
        job_run(&j, 4);
    }
    job j = job_default("sink of each query");
    j.sinks = 2;
    j.sink_per_token = 1;
    j.config.dsink_reduce = MAGI_DSINK_REDUCE_SUM; // of no consequence here
    on_all_sizes(&j);
    j.flags = MAGI_ACCUMULATE_DSINK;
    job_run(&j, 2);
}

static void variations(void) {
    job j = job_default("softcap and scale");
    j.softcap = 1.5;
    j.scale = 0.7;
    j.no_optional = 1;
    on_all_sizes(&j);

    j = job_default("interleaved");
    j.interleaved = 1;
    j.config.degree_forward = j.config.degree_backward = 2;
    on_all_sizes(&j);
    j.flags = MAGI_ACCUMULATE_DQ | MAGI_ACCUMULATE_DK | MAGI_ACCUMULATE_DV;
    on_all_sizes(&j);

    j = job_default("NaN where nobody looks");
    j.nan_unseen = 1;
    on_all_sizes(&j);
    job_cross(&j);
    on_all_sizes(&j);
    j.softcap = 2;
    job_run(&j, 4);

    j = job_default("dq added to");
    j.flags = MAGI_ACCUMULATE_DQ;
    job_run(&j, 4);
    j = job_default("dk added to");
    j.flags = MAGI_ACCUMULATE_DK;
    job_run(&j, 4);

    j = job_default("one key head");
    j.hq = 3;
    j.hkv = 1;
    j.d = 16;
    j.dv = 8;
    job_run(&j, 4);
    j = job_default("as many key heads as query heads");
    j.hkv = j.hq;
    j.config.placement = MAGI_PLACEMENT_SEQUENTIAL;
    job_run(&j, 4);
}

static void cross(void) {
    job j = job_default("cross-attention");
    job_cross(&j);
    j.sinks = 1;
    j.sink_per_token = 1;
    on_all_sizes(&j);
    j.config.degree_forward = j.config.degree_backward = 3;
    job_run(&j, 4);
}

// Masks that show nothing, totals of 0, and ranks that own nothing.
static void empties(void) {
    job j = job_default("empty mask");
    j.n = 0;
    j.sinks = 1;
    job_run(&j, 1);
    job_run(&j, 4);
    j = job_default("ranks without tokens");
    j.config.chunk_size = 32; // two chunks for seven ranks
    j.sinks = 2;
    j.sink_per_token = 1;
    job_run(&j, 7);
    j.sink_per_token = 0;
    j.config.dsink_reduce = MAGI_DSINK_REDUCE_SUM;
    job_run(&j, 7);
    j.interleaved = 1;
    job_run(&j, 7);
    static const int64_t totals[][2] = {{0, 0}, {0, 9}, {9, 0}};
    for (size_t i = 0; i < sizeof totals / sizeof *totals; i++) {
        j = job_default("totals of 0");
        j.n = 0;
        j.tq = totals[i][0];
        j.tk = totals[i][1];
        j.sinks = 2;
        job_run(&j, 1);
        job_run(&j, 3);
    }
}

static void hosts(void) {
    job j = job_default("ranks on two hosts");
    j.hosts = 2;
    j.config.hierarchical_comm = 1;
    job_run(&j, 4);
    j.interleaved = 1;
    j.config.degree_forward = 2;
    j.config.degree_backward = 0;
    job_run(&j, 6);
}

int main(void) {
    degrees();
    hosts();
    sinks();
    variations();
    cross();
    empties();
    return 0;
}
