// Structs that may grow: a size that is too small is refused, unknown trailing bytes have to be zero.
#include "one.h"

// A struct as a later version of the header might have it, with one more field.
#define LATER(type)                                                                                                    \
    struct {                                                                                                           \
        type known;                                                                                                    \
        unsigned char added[24];                                                                                       \
    }

// `call` uses later.known: too small, too large by far, larger and not zero are refused; larger and zero is taken.
#define CHECK_SIZES(later, call, name, accepted)                                                                       \
    do {                                                                                                               \
        memset((later).added, 0, sizeof(later).added);                                                                 \
        (later).known.size = 0;                                                                                        \
        CHECK_REFUSED(call, MAGI_STATUS_STRUCT_SIZE, name ".size is 0");                                               \
        (later).known.size = sizeof(later).known - 1;                                                                  \
        CHECK_REFUSED(call, MAGI_STATUS_STRUCT_SIZE, name ".size is ");                                                \
        (later).known.size = SIZE_MAX;                                                                                 \
        CHECK_REFUSED(call, MAGI_STATUS_STRUCT_SIZE, name ".size is ");                                                \
        (later).known.size = sizeof(later);                                                                            \
        (later).added[sizeof(later).added - 1] = 1;                                                                    \
        CHECK_REFUSED(call, MAGI_STATUS_STRUCT_SIZE, name ".size is ");                                                \
        (later).added[sizeof(later).added - 1] = 0;                                                                    \
        CHECK_INT(call, accepted);                                                                                     \
    } while (0)

static void inputs(one_rank *o) {
    LATER(magi_config) config;
    LATER(magi_attn_shape) shape;
    magi_key *key = NULL;
    config.known = default_config();
    shape.known = shape_of(2, 1, 8, 8, MAGI_DTYPE_F64);
    CHECK_SIZES(config, magi_key_create(o->comm, o->mask, &shape.known, &config.known, &key), "config", 0);
    magi_key_destroy(key);
    key = NULL;
    config.known.size = sizeof(magi_config);
    CHECK_SIZES(shape, magi_key_create(o->comm, o->mask, &shape.known, &config.known, &key), "shape", 0);
    magi_key_destroy(key);
    key = NULL;
    const magi_mask *const masks[1] = {o->mask};
    shape.known.size = sizeof(magi_attn_shape);
    CHECK_SIZES(config, magi_key_create_joint(o->comm, masks, NULL, 1, &shape.known, &config.known, &key), "config", 0);
    magi_key_destroy(key);
    key = NULL;
    config.known.size = sizeof(magi_config);
    CHECK_SIZES(shape, magi_key_create_joint(o->comm, masks, NULL, 1, &shape.known, &config.known, &key), "shape", 0);
    magi_key_destroy(key);
    CHECK_REFUSED(magi_config_init(&config.known, sizeof(magi_config) - 1), MAGI_STATUS_STRUCT_SIZE, "size is ");
    CHECK_REFUSED(magi_config_init(&config.known, sizeof(magi_config) + 8), MAGI_STATUS_STRUCT_SIZE, "size is ");
}

// An id of zeros is refused after the config, and before anybody is looked for.
static void communicators(void) {
    LATER(magi_nccl_config) config;
    const magi_nccl_config init = MAGI_NCCL_CONFIG_INIT;
    magi_unique_id id;
    magi_comm *comm = NULL;
    memset(&id, 0, sizeof id);
    config.known = init;
    const magi_status refused = MAGI_STATUS_INVALID_ARGUMENT;
    CHECK_SIZES(config, magi_comm_create_nccl(&id, 0, 1, 0, &config.known, &comm), "config", refused);
}

static void attention(one_rank *o) {
    LATER(magi_forward_args) forward;
    LATER(magi_backward_args) backward;
    LATER(magi_flex_options) options;
    const magi_flex_options init = MAGI_FLEX_OPTIONS_INIT;
    size_t bytes = 0;
    double workspace[64];
    forward.known = o->forward;
    backward.known = o->backward;
    options.known = init;
    CHECK_SIZES(forward, magi_calc_attn_forward(o->key, &forward.known, NULL), "args", 0);
    CHECK_SIZES(forward, magi_flex_flash_attn_forward(o->mask, &forward.known, NULL, NULL), "args", 0);
    CHECK_SIZES(forward, magi_flex_flash_attn_forward_workspace_size(&forward.known, NULL, &bytes), "args", 0);
    CHECK_SIZES(options, magi_flex_flash_attn_forward_workspace_size(&o->forward, &options.known, &bytes), "options",
                0);
    CHECK_SIZES(options, magi_flex_flash_attn_forward(o->mask, &o->forward, &options.known, NULL), "options", 0);
    CHECK_SIZES(forward, magi_flex_flash_attn_forward_prepare(o->mask, &forward.known, NULL, NULL), "args", 0);
    CHECK_SIZES(options, magi_flex_flash_attn_backward_prepare(o->mask, &o->backward, &options.known, NULL), "options",
                0);
    CHECK_SIZES(backward, magi_calc_attn_backward(o->key, &backward.known, NULL), "args", 0);
    CHECK_SIZES(backward, magi_flex_flash_attn_backward_workspace_size(&backward.known, NULL, &bytes), "args", 0);
    CHECK_SIZES(options, magi_flex_flash_attn_backward_workspace_size(&o->backward, &options.known, &bytes), "options",
                0);
    CHECK(bytes > 0 && bytes <= sizeof workspace);
    // Without a workspace: the sizes are taken, and what is refused is something else.
    CHECK_SIZES(backward, magi_flex_flash_attn_backward(o->mask, &backward.known, NULL, NULL), "args",
                MAGI_STATUS_BUFFER_TOO_SMALL);
    CHECK_SIZES(options, magi_flex_flash_attn_backward(o->mask, &o->backward, &options.known, NULL), "options",
                MAGI_STATUS_BUFFER_TOO_SMALL);
}

static void outputs(const one_rank *o) {
    LATER(magi_key_stats) stats;
    LATER(magi_rank_stats) rank;
    LATER(magi_stage_stats) stage;
    memset(&stage, 0x5a, sizeof stage);
    memset(&stats, 0x5a, sizeof stats);
    memset(&rank, 0x5a, sizeof rank);
    CHECK_SIZES(stats, magi_key_get_stats(o->key, &stats.known), "stats", 0);
    CHECK_INT(stats.known.area, 21);
    CHECK_INT(stats.known.size, sizeof stats);
    CHECK_SIZES(rank, magi_key_get_rank_stats(o->key, 0, &rank.known), "stats", 0);
    CHECK_INT(rank.known.area, 21);
    CHECK_INT(rank.known.size, sizeof rank);
    CHECK_SIZES(stage, magi_key_get_stage_stats(o->key, MAGI_PASS_BACKWARD, 0, 0, &stage.known), "stats", 0);
    CHECK_INT(stage.known.area, 21);
    CHECK_INT(stage.known.size, sizeof stage);
    LATER(magi_stage_times) times;
    memset(&times, 0x5a, sizeof times);
    // The size is taken, and what is refused is a key that measures nothing.
    CHECK_SIZES(times, magi_key_get_stage_times(o->key, MAGI_PASS_BACKWARD, 0, &times.known), "times",
                MAGI_STATUS_INVALID_ARGUMENT);
}

int main(void) {
    one_rank o;
    one_create(&o);
    inputs(&o);
    communicators();
    attention(&o);
    outputs(&o);
    one_check_works(&o);
    one_destroy(&o);
    return 0;
}
