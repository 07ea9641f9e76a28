// Communicators over NCCL: every argument that cannot be, what launchers may say, and machines without a driver or
// NCCL. Ranks that do meet are tested in tests/nccl_*.rs.
#include "ranks.h"
#include <sys/wait.h>
#include <unistd.h>

static magi_comm *comm;

static void arguments(void) {
    magi_unique_id id;
    memset(&id, 0, sizeof id);
    const magi_status null = MAGI_STATUS_NULL_POINTER, argument = MAGI_STATUS_INVALID_ARGUMENT;
    CHECK_REFUSED(magi_unique_id_create(NULL), null, "id is NULL");
    CHECK_REFUSED(magi_comm_create_nccl(NULL, 0, 1, 0, NULL, &comm), null, "id is NULL");
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 1, 0, NULL, NULL), null, "comm is NULL");
    CHECK_REFUSED(magi_comm_create_from_env(NULL, NULL), null, "comm is NULL");
    CHECK_REFUSED(magi_comm_adopt_nccl(NULL, NULL, &comm), null, "nccl_comm is NULL");
    CHECK_REFUSED(magi_comm_adopt_nccl(&id, NULL, NULL), null, "comm is NULL");
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 0, 0, NULL, &comm), argument, "world_size is 0; it must be 1 to 4096");
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, -1, 0, NULL, &comm), argument, "world_size is -1");
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 4097, 0, NULL, &comm), argument, "world_size is 4097");
    CHECK_REFUSED(magi_comm_create_nccl(&id, 2, 2, 0, NULL, &comm), argument, "rank is 2; it must be 0 to 1");
    CHECK_REFUSED(magi_comm_create_nccl(&id, -1, 2, 0, NULL, &comm), argument, "rank is -1");
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 2, -1, NULL, &comm), argument, "device is -1; it must be 0 or more");
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 2, 0, NULL, &comm), argument, "id is not one that");
    memset(&id, 0x5a, sizeof id);
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 2, 0, NULL, &comm), argument, "id is not one that");
}

// Each field of the config, in each function that takes one.
static void refuse_config(const magi_nccl_config *config, magi_status status, const char *part) {
    magi_unique_id id;
    memset(&id, 0, sizeof id);
    CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 1, 0, config, &comm), status, part);
    CHECK_REFUSED(magi_comm_create_from_env(config, &comm), status, part);
    CHECK_REFUSED(magi_comm_adopt_nccl(&id, config, &comm), status, part);
}

static void configs(void) {
    const magi_nccl_config good = MAGI_NCCL_CONFIG_INIT;
    const magi_status argument = MAGI_STATUS_INVALID_ARGUMENT;
    magi_nccl_config config = good;
    config.size -= 1;
    refuse_config(&config, MAGI_STATUS_STRUCT_SIZE, "config.size is ");
    config = good;
    config.timeout_ms = -1;
    refuse_config(&config, argument, "config.timeout_ms is -1; it must be 0 to 86400000");
    config.timeout_ms = 86400001;
    refuse_config(&config, argument, "config.timeout_ms is 86400001");
    config = good;
    config.min_ctas = -1;
    refuse_config(&config, argument, "config.min_ctas is -1; it must be 0 to 1024");
    config.min_ctas = 8;
    config.max_ctas = 7;
    refuse_config(&config, argument, "config.max_ctas is 7; it must be 0, or min_ctas (8) or more");
    config.max_ctas = 1025;
    refuse_config(&config, argument, "config.max_ctas is 1025");
    config = good;
    config.port = 65536;
    refuse_config(&config, argument, "config.port is 65536; it must be 0 to 65535");
    config = good;
    config.abort_adopted = 2;
    refuse_config(&config, argument, "config.abort_adopted is 2");
}

// The library reads the environment once, so each case is a process of its own.
static void in_child(const char *const variables[], void (*run)(void)) {
    int outcome = -1;
    fflush(NULL);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (size_t i = 0; variables[i] != NULL; i += 2) {
            CHECK(setenv(variables[i], variables[i + 1], 1) == 0);
        }
        run();
        _exit(0);
    }
    CHECK(waitpid(child, &outcome, 0) == child);
    CHECK(WIFEXITED(outcome) && WEXITSTATUS(outcome) == 0);
}

static void no_launcher(void) {
    static const char *const ranks[] = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        CHECK(unsetenv(ranks[i]) == 0);
    }
    const magi_status status = MAGI_STATUS_INVALID_ENVIRONMENT;
    CHECK_REFUSED(magi_comm_create_from_env(NULL, &comm), status, "no launcher: none of RANK (torchrun)");
}

static void bad_rank(void) {
    const magi_status status = MAGI_STATUS_INVALID_ENVIRONMENT;
    CHECK_REFUSED(magi_comm_create_from_env(NULL, &comm), status, "RANK is 3; it must be below WORLD_SIZE, which is 2");
}

static void bad_port(void) {
    const magi_status status = MAGI_STATUS_INVALID_ENVIRONMENT;
    CHECK_REFUSED(magi_comm_create_from_env(NULL, &comm), status, "MASTER_PORT is \"http\"; it must be a whole number");
}

static void no_world(void) {
    const magi_status status = MAGI_STATUS_INVALID_ENVIRONMENT;
    CHECK_REFUSED(magi_comm_create_from_env(NULL, &comm), status, "OMPI_COMM_WORLD_SIZE is not");
}

// A device that no process sees.
static void no_such_device(void) {
    CHECK(setenv("CUDA_VISIBLE_DEVICES", "", 1) == 0);
    CHECK_REFUSED(magi_comm_create_from_env(NULL, &comm), MAGI_STATUS_NO_DEVICE, "");
    const char *const message = magi_last_error_message();
    CHECK(strstr(message, "libcuda") != NULL || strstr(message, "this is process 1000 of its host") != NULL);
}

static void environments(void) {
    const char *const none[] = {NULL};
    in_child(none, no_launcher);
    const char *const rank[] = {"RANK", "3", "WORLD_SIZE", "2", NULL};
    in_child(rank, bad_rank);
    const char *const port[] = {"RANK",      "0",           "WORLD_SIZE", "2", "MASTER_ADDR",
                                "localhost", "MASTER_PORT", "http",       NULL};
    in_child(port, bad_port);
    const char *const world[] = {"RANK", "", "OMPI_COMM_WORLD_RANK", "0", "OMPI_COMM_WORLD_SIZE", "", NULL};
    in_child(world, no_world);
}

// Without NCCL the answer names what was looked for; with it there is an id, and ids differ.
static void library(void) {
    magi_unique_id id, other;
    memset(&id, 0x5a, sizeof id);
    const magi_unique_id before = id;
    const magi_status status = magi_unique_id_create(&id);
    if (status == MAGI_STATUS_OK) {
        CHECK_OK(magi_unique_id_create(&other));
        CHECK(memcmp(&id, &other, sizeof id) != 0);
        CHECK_REFUSED(magi_comm_create_nccl(&id, 0, 1, 1000, NULL, &comm), MAGI_STATUS_NO_DEVICE, "CUDA");
        return;
    }
    CHECK_INT(status, MAGI_STATUS_NOT_SUPPORTED);
    CHECK(memcmp(&id, &before, sizeof id) == 0);
    const char *const message = magi_last_error_message();
    CHECK_HAS(message, "NCCL 2.22.0 or later was not found; tried libnccl.so.2");
    CHECK_HAS(message, "libnccl.so,");
    CHECK_HAS(message, "pip install nvidia-nccl-cu12");
    CHECK_REFUSED(magi_comm_adopt_nccl(&id, NULL, &comm), MAGI_STATUS_NOT_SUPPORTED, "libnccl.so.2");
}

// What all communicators have: here those of local ranks.
static void of_local_rank(magi_comm *c, int32_t rank, int32_t size, void *data) {
    (void)data;
    int32_t type = -1, index = -1, value = -1;
    CHECK_OK(magi_comm_device(c, &type, &index));
    CHECK(type == MAGI_DEVICE_TYPE_CPU && index == 0);
    CHECK_REFUSED(magi_comm_device(NULL, &type, &index), MAGI_STATUS_NULL_POINTER, "comm is NULL");
    CHECK_REFUSED(magi_comm_device(c, NULL, &index), MAGI_STATUS_NULL_POINTER, "device_type is NULL");
    CHECK_REFUSED(magi_comm_device(c, &type, NULL), MAGI_STATUS_NULL_POINTER, "device_index is NULL");

    int64_t sent = -1, received = -1;
    CHECK_OK(magi_comm_traffic(c, &sent, &received));
    CHECK(sent == 0 && received == 0);
    CHECK_REFUSED(magi_comm_traffic(NULL, &sent, &received), MAGI_STATUS_NULL_POINTER, "comm is NULL");
    CHECK_REFUSED(magi_comm_traffic(c, NULL, &received), MAGI_STATUS_NULL_POINTER, "sent is NULL");
    CHECK_REFUSED(magi_comm_traffic(c, &sent, NULL), MAGI_STATUS_NULL_POINTER, "received is NULL");

    magi_comm *inter = NULL, *intra = NULL;
    const magi_status null = MAGI_STATUS_NULL_POINTER, argument = MAGI_STATUS_INVALID_ARGUMENT;
    CHECK_REFUSED(magi_comm_split_mesh(NULL, 2, 3, &inter, &intra), null, "comm is NULL");
    CHECK_REFUSED(magi_comm_split_mesh(c, 2, 3, NULL, &intra), null, "inter is NULL");
    CHECK_REFUSED(magi_comm_split_mesh(c, 2, 3, &inter, NULL), null, "intra is NULL");
    CHECK_REFUSED(magi_comm_split_mesh(c, 0, 6, &inter, &intra), argument, "inter_size is 0");
    CHECK_REFUSED(magi_comm_split_mesh(c, 6, -1, &inter, &intra), argument, "intra_size is -1");
    CHECK_REFUSED(magi_comm_split_mesh(c, 2, 2, &inter, &intra), argument, "must be the number of ranks, 6");
    CHECK(inter == NULL && intra == NULL);
    for (int round = 0; round < 2; round++) {
        CHECK_OK(magi_comm_split_mesh(c, 2, 3, &inter, &intra));
        CHECK_OK(magi_comm_rank(inter, &value));
        CHECK_INT(value, rank / 3);
        CHECK_OK(magi_comm_size(inter, &value));
        CHECK_INT(value, 2);
        CHECK_OK(magi_comm_rank(intra, &value));
        CHECK_INT(value, rank % 3);
        CHECK_OK(magi_comm_size(intra, &value));
        CHECK_INT(value, 3);
        // Ranks of each compare the plans of a key.
        magi_mask *mask = causal_mask(48);
        magi_key *a = small_key(inter, mask, NULL), *b = small_key(intra, mask, NULL);
        CHECK_OK(magi_key_prepare(a, NULL));
        CHECK_OK(magi_key_prepare(b, NULL));
        magi_key_destroy(a);
        magi_key_destroy(b);
        magi_mask_destroy(mask);
        magi_comm_destroy(inter);
        magi_comm_destroy(intra);
    }
    CHECK_OK(magi_comm_async_error(c));
    CHECK_INT(size, 6);
}

int main(void) {
    // Before the library is used here: children of a process that has used it are refused.
    environments();
    const char *const far[] = {"RANK", "0", "WORLD_SIZE", "1", "LOCAL_RANK", "1000", NULL};
    in_child(far, no_such_device);
    arguments();
    configs();
    library();
    run_ranks(6, of_local_rank, NULL);
    CHECK(comm == NULL);
    return 0;
}
