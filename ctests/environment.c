// The environment: each variable that acts, what it accepts, and that it is read once. The library reads it on its
// first use, so every case is a child process of its own.
#include "ranks.h"
#include <sys/wait.h>
#include <unistd.h>

static void in_child(const char *name, const char *text, void (*run)(const char *text)) {
    int outcome = -1;
    fflush(NULL);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(setenv(name, text, 1) == 0);
        run(text);
        _exit(0);
    }
    CHECK(waitpid(child, &outcome, 0) == child);
    if (!WIFEXITED(outcome) || WEXITSTATUS(outcome) != 0) {
        FAIL("the case %s=%s failed", name, text);
    }
}

static const char *current;

// The text is refused wherever settings come from the environment, with name, text and what is accepted.
static void is_refused(const char *text) {
    magi_config config;
    magi_comm *comm = NULL;
    magi_key *key = NULL;
    char part[128];
    snprintf(part, sizeof part, "%s is \"%s\"; it must be ", current, text);
    memset(&config, 0x5a, sizeof config);
    const magi_config before = config;
    const magi_status status = MAGI_STATUS_INVALID_ENVIRONMENT;
    CHECK_REFUSED(magi_config_init(&config, sizeof config), status, part);
    CHECK(memcmp(&config, &before, sizeof config) == 0);
    CHECK_OK(magi_comm_create_local(1, &comm));
    magi_mask *mask = causal_mask(4);
    const magi_attn_shape shape = shape_of(1, 1, 8, 8, MAGI_DTYPE_F32);
    CHECK_REFUSED(magi_key_create(comm, mask, &shape, NULL, &key), status, part);
    // Changing it now changes nothing.
    CHECK(unsetenv(current) == 0);
    CHECK_REFUSED(magi_config_init(&config, sizeof config), status, part);
    magi_mask_destroy(mask);
    magi_comm_destroy(comm);
}

static void refuse(const char *name, const char *text) {
    current = name;
    in_child(name, text, is_refused);
}

static void precision(const char *text) {
    CHECK_INT(default_config().backward_high_precision_reduce, atoi(text));
}

static void reduce(const char *text) {
    const int32_t want = strcmp(text, "none") == 0  ? MAGI_DSINK_REDUCE_NONE
                         : strcmp(text, "sum") == 0 ? MAGI_DSINK_REDUCE_SUM
                                                    : MAGI_DSINK_REDUCE_AVG;
    CHECK_INT(default_config().dsink_reduce, want);
    CHECK(setenv("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "sum", 1) == 0);
    CHECK_INT(default_config().dsink_reduce, want);
}

static void cache(const char *text) {
    CHECK_INT(default_config().cache_size, atoi(text));
}

static void sanity(const char *text) {
    CHECK_INT(default_config().sanity_check, atoi(text));
}

static void chunks(const char *text) {
    CHECK_INT(default_config().min_chunks_per_rank, atoi(text));
}

static int warnings;

static void count_warning(int32_t level, const char *line, void *userdata) {
    CHECK_INT(level, MAGI_LOG_LEVEL_WARNING);
    CHECK_HAS(line, "MAGI_ATTENTION_SANITY_CHEQUE");
    CHECK(userdata == &warnings);
    warnings++;
}

// A name that nobody knows has no effect, and is warned of once.
static void misspelt(const char *text) {
    (void)text;
    CHECK_OK(magi_log_set_callback(count_warning, &warnings, MAGI_LOG_LEVEL_WARNING));
    CHECK_INT(default_config().sanity_check, 0);
    CHECK_INT(default_config().sanity_check, 0);
    CHECK_INT(warnings, 1);
}

// A name of another part or version of the software is no mistake.
static void known(const char *text) {
    (void)text;
    CHECK_OK(magi_log_set_callback(count_warning, &warnings, MAGI_LOG_LEVEL_WARNING));
    default_config();
    CHECK_INT(warnings, 0);
}

int main(void) {
    refuse("MAGI_ATTENTION_SANITY_CHECK", "perhaps");
    refuse("MAGI_ATTENTION_SANITY_CHECK", "");
    refuse("MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE", "2");
    refuse("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "max");
    refuse("MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE", "-1");
    refuse("MAGI_ATTENTION_MIN_CHUNKS_PER_RANK", "0");
    in_child("MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE", "1", precision);
    in_child("MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE", "0", precision);
    in_child("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "none", reduce);
    in_child("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "avg", reduce);
    in_child("MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE", "7", cache);
    in_child("MAGI_ATTENTION_SANITY_CHECK", "1", sanity);
    in_child("MAGI_ATTENTION_MIN_CHUNKS_PER_RANK", "3", chunks);
    in_child("MAGI_ATTENTION_SANITY_CHEQUE", "1", misspelt);
    in_child("MAGI_ATTENTION_QO_COMM", "1", known);
    return 0;
}
