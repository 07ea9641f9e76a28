// Group plans on one rank: whatever is wrong with lists, tensors and numbers is refused by name, before anything is
// written.
#include "group.h"

typedef struct {
    magi_comm *comm;
    all_to_all g;
    group_memory m, before;
    magi_group_plan *plan;
} one_group;

#define CREATE_REFUSED(o, want, part)                                                                                  \
    do {                                                                                                               \
        magi_group_plan *made = NULL;                                                                                  \
        CHECK_REFUSED(magi_group_plan_create((o)->comm, &(o)->g.args, NULL, &made), want, part);                       \
        CHECK(made == NULL);                                                                                           \
        all_to_all_init(&(o)->g, 1, MAGI_DTYPE_F64);                                                                   \
    } while (0)

static void lists(one_group *o) {
    const magi_status argument = MAGI_STATUS_INVALID_ARGUMENT, range = MAGI_STATUS_INVALID_RANGE;
    all_to_all *g = &o->g;
    g->sends[0].peer = 1;
    CREATE_REFUSED(o, argument, "args.sends[0].peer is 1; it must be 0 to 0");
    g->receives[0].peer = -1;
    CREATE_REFUSED(o, argument, "args.receives[0].peer is -1");
    g->sends[0].reserved = 3;
    CREATE_REFUSED(o, argument, "args.sends[0].reserved is 3");
    g->sends[0].rows.end = GROUP_ROWS + 1;
    CREATE_REFUSED(o, range, "args.sends[0].rows is [0, 5)");
    g->sends[0].rows.start = -1;
    CREATE_REFUSED(o, range, "args.sends[0].rows is [-1, 4)");
    g->receives[0].rows.start = 3;
    g->receives[0].rows.end = 2;
    CREATE_REFUSED(o, range, "args.receives[0].rows is [3, 2)");
    g->receives[0] = piece_of(0, 0, 3);
    g->receives[1] = piece_of(0, 2, 4);
    g->args.n_receives = 2;
    CREATE_REFUSED(o, range, "both would write row 2");
    g->args.local_rows = -1;
    CREATE_REFUSED(o, argument, "args.local_rows is -1");
    g->args.received_rows = -7;
    CREATE_REFUSED(o, argument, "args.received_rows is -7");
    g->args.n_tensors = 0;
    CREATE_REFUSED(o, argument, "args.n_tensors is 0; it must be 1 to 64");
    g->tensors[1].row_elements = 0;
    CREATE_REFUSED(o, argument, "args.tensors[1].row_elements is 0");
    g->tensors[0].row_elements = INT64_MAX;
    CREATE_REFUSED(o, argument, "more than memory can hold");
    g->args.received_rows = INT64_MAX;
    CREATE_REFUSED(o, argument, "more than memory can hold");
    g->tensors[1].reserved = 1;
    CREATE_REFUSED(o, argument, "args.tensors[1].reserved is 1");
    g->tensors[1].dtype = 10;
    CREATE_REFUSED(o, MAGI_STATUS_INVALID_ENUM, "args.tensors[1].dtype is 10");
    g->args.flags = 8;
    CREATE_REFUSED(o, argument, "args.flags is 0x8");
    g->args.reserved = 1;
    CREATE_REFUSED(o, argument, "args.reserved is 1");
    g->args.size = sizeof g->args - 1;
    CREATE_REFUSED(o, MAGI_STATUS_STRUCT_SIZE, "args.size is ");
}

static void nulls(one_group *o) {
    const magi_status null = MAGI_STATUS_NULL_POINTER;
    magi_group_plan *made = NULL;
    size_t bytes = 0;
    CHECK_REFUSED(magi_group_plan_create(NULL, &o->g.args, NULL, &made), null, "comm is NULL");
    CHECK_REFUSED(magi_group_plan_create(o->comm, NULL, NULL, &made), null, "args is NULL");
    CHECK_REFUSED(magi_group_plan_create(o->comm, &o->g.args, NULL, NULL), null, "plan is NULL");
    o->g.args.sends = NULL;
    CREATE_REFUSED(o, null, "args.sends is NULL");
    o->g.args.receives = NULL;
    CREATE_REFUSED(o, null, "args.receives is NULL");
    o->g.args.tensors = NULL;
    CREATE_REFUSED(o, null, "args.tensors is NULL");
    CHECK_REFUSED(magi_group_plan_prepare(NULL, NULL), null, "plan is NULL");
    CHECK_REFUSED(magi_group_plan_workspace_size(NULL, &bytes), null, "plan is NULL");
    CHECK_REFUSED(magi_group_plan_workspace_size(o->plan, NULL), null, "bytes is NULL");
    CHECK_REFUSED(magi_group_cast(NULL, o->m.t_local, o->m.t_received, 2, NULL), null, "plan is NULL");
    CHECK_REFUSED(magi_group_cast(o->plan, NULL, o->m.t_received, 2, NULL), null, "local is NULL");
    CHECK_REFUSED(magi_group_cast(o->plan, o->m.t_local, NULL, 2, NULL), null, "received is NULL");
    CHECK_REFUSED(magi_group_reduce(NULL, 0, o->m.t_received, 0, o->m.t_local, 2, NULL), null, "plan is NULL");
    CHECK_REFUSED(magi_group_reduce(o->plan, 0, NULL, 0, o->m.t_local, 2, NULL), null, "partial is NULL");
    CHECK_REFUSED(magi_group_reduce(o->plan, 0, o->m.t_received, 0, NULL, 2, NULL), null, "local is NULL");
    magi_group_plan_destroy(NULL);
}

// One wrong descriptor of a cast, put right again.
#define CAST_REFUSED(o, want, part)                                                                                    \
    do {                                                                                                               \
        CHECK_REFUSED(magi_group_cast((o)->plan, (o)->m.t_local, (o)->m.t_received, 2, NULL), want, part);             \
        (o)->m = (o)->before;                                                                                          \
    } while (0)

static void casts(one_group *o) {
    group_memory *m = &o->m;
    CHECK_REFUSED(magi_group_cast(o->plan, m->t_local, m->t_received, 1, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "count is 1; the plan has 2 tensors");
    CHECK_REFUSED(magi_group_cast(o->plan, m->t_local, m->t_received, 2, (magi_stream)m), MAGI_STATUS_INVALID_ARGUMENT,
                  "stream is not NULL");
    CHECK_REFUSED(magi_group_plan_prepare(o->plan, (magi_stream)m), MAGI_STATUS_INVALID_ARGUMENT, "stream is not NULL");
    m->t_local[1].shape[0] = 3;
    CAST_REFUSED(o, MAGI_STATUS_SHAPE_MISMATCH, "local[1] has shape [3, 2]; for this plan it must have 4 rows of 2");
    m->t_received[0].shape[1] = 5;
    CAST_REFUSED(o, MAGI_STATUS_SHAPE_MISMATCH, "received[0] has shape [4, 5]");
    m->t_received[0].ndim = 3; // [4, 6, 1]
    m->t_received[0].shape[2] = m->t_received[0].stride[2] = 1;
    CAST_REFUSED(o, MAGI_STATUS_SHAPE_MISMATCH, "behind the rows it must be that of local[0]");
    m->t_received[1].dtype = MAGI_DTYPE_I64;
    CAST_REFUSED(o, MAGI_STATUS_DTYPE_MISMATCH, "received[1] has dtype i64; for this plan it must be f64");
    m->t_local[0].dtype = 77;
    CAST_REFUSED(o, MAGI_STATUS_INVALID_ENUM, "local[0].dtype is 77");
    m->t_local[0].data = NULL;
    CAST_REFUSED(o, MAGI_STATUS_NULL_POINTER, "local[0].data is NULL");
    m->t_local[0].device_type = MAGI_DEVICE_TYPE_CUDA;
    CAST_REFUSED(o, MAGI_STATUS_DEVICE_MISMATCH, "local[0] lies on CUDA device 0");
    m->t_local[0].stride[1] = 2;
    CAST_REFUSED(o, MAGI_STATUS_INVALID_STRIDE, "local[0] has stride 2 in its last dimension");
    m->t_received[1].stride[0] = 1;
    CAST_REFUSED(o, MAGI_STATUS_INVALID_STRIDE, "received[1] has stride [1, 1] and is not dense");
    m->t_received[1].data = m->t_received[0].data;
    CAST_REFUSED(o, MAGI_STATUS_TENSOR_OVERLAP, "received[1] overlaps received[0]");
    m->t_received[0].data = m->t_local[1].data;
    CAST_REFUSED(o, MAGI_STATUS_TENSOR_OVERLAP, "received[0] overlaps local[");
}

static void reductions(one_group *o) {
    group_memory *m = &o->m;
    magi_tensor *from = m->t_received, *to = m->t_local;
    CHECK_REFUSED(magi_group_reduce(o->plan, 3, from, 0, to, 2, NULL), MAGI_STATUS_INVALID_ENUM, "op is 3");
    CHECK_REFUSED(magi_group_reduce(o->plan, -1, from, 0, to, 2, NULL), MAGI_STATUS_INVALID_ENUM, "op is -1");
    CHECK_REFUSED(magi_group_reduce(o->plan, 0, from, 2, to, 2, NULL), MAGI_STATUS_INVALID_ARGUMENT, "accumulate is 2");
    CHECK_REFUSED(magi_group_reduce(o->plan, 0, from, 0, to, 3, NULL), MAGI_STATUS_INVALID_ARGUMENT, "count is 3");
    CHECK_REFUSED(magi_group_reduce(o->plan, MAGI_GROUP_OP_LSE, from, 0, to, 2, NULL), MAGI_STATUS_SHAPE_MISMATCH,
                  "they must be [rows, heads, width] and [rows, heads]");
    to[1].stride[0] = 1;
    CHECK_REFUSED(magi_group_reduce(o->plan, 0, from, 0, to, 2, NULL), MAGI_STATUS_INVALID_STRIDE,
                  "names an element twice");
    o->m = o->before;
    to[0].dtype = MAGI_DTYPE_F32;
    CHECK_REFUSED(magi_group_reduce(o->plan, 0, from, 0, to, 2, NULL), MAGI_STATUS_DTYPE_MISMATCH,
                  "local[0] has dtype f32; for this plan it must be f64");
    o->m = o->before;

    // Plans that cannot reduce: no workspace, integers, tensors that are no pairs, an lse of another type.
    all_to_all *g = &o->g;
    g->args.flags = 0;
    magi_group_plan *plan = plan_of(o->comm, &g->args);
    CHECK_REFUSED(magi_group_reduce(plan, 0, from, 0, to, 2, NULL), MAGI_STATUS_INVALID_ARGUMENT, "MAGI_GROUP_REDUCE");
    magi_group_plan_destroy(plan);
    all_to_all_init(g, 1, MAGI_DTYPE_I64);
    plan = plan_of(o->comm, &g->args);
    for (int i = 0; i < 2; i++) {
        from[i].dtype = to[i].dtype = MAGI_DTYPE_I64;
    }
    CHECK_REFUSED(magi_group_reduce(plan, 0, from, 0, to, 2, NULL), MAGI_STATUS_DTYPE_MISMATCH,
                  "partial[0] has dtype i64; only f64, f32, bf16 and f16 can be reduced");
    o->m = o->before;
    magi_group_plan_destroy(plan);
    all_to_all_init(g, 1, MAGI_DTYPE_F64);
    g->args.n_tensors = 1;
    plan = plan_of(o->comm, &g->args);
    CHECK_REFUSED(magi_group_reduce(plan, MAGI_GROUP_OP_LSE, from, 0, to, 1, NULL), MAGI_STATUS_INVALID_ARGUMENT,
                  "the plan has 1 tensors");
    magi_group_plan_destroy(plan);
    g->args.n_tensors = 2;
    g->tensors[1].dtype = MAGI_DTYPE_F32;
    plan = plan_of(o->comm, &g->args);
    from[1].dtype = to[1].dtype = MAGI_DTYPE_F32;
    CHECK_REFUSED(magi_group_reduce(plan, MAGI_GROUP_OP_LSE, from, 0, to, 2, NULL), MAGI_STATUS_DTYPE_MISMATCH,
                  "the lse of partial[0] must be f64");
    o->m = o->before;
    magi_group_plan_destroy(plan);
    all_to_all_init(g, 1, MAGI_DTYPE_F64);
}

int main(void) {
    static one_group o;
    CHECK_OK(magi_comm_create_local(1, &o.comm));
    all_to_all_init(&o.g, 1, MAGI_DTYPE_F64);
    group_memory_init(&o.m, 0, 1);
    o.before = o.m;
    o.plan = plan_of(o.comm, &o.g.args);
    lists(&o);
    nulls(&o);
    casts(&o);
    reductions(&o);
    CHECK(memcmp(o.m.received, o.before.received, sizeof o.m.received) == 0);
    CHECK(memcmp(o.m.local, o.before.local, sizeof o.m.local) == 0);
    // What was refused has changed nothing.
    CHECK_OK(magi_group_cast(o.plan, o.m.t_local, o.m.t_received, 2, NULL));
    group_check_received(&o.m, 1);
    magi_group_plan_destroy(o.plan);
    magi_comm_destroy(o.comm);
    return 0;
}
