// A group in which every rank sends all its rows to all ranks, itself included.
#ifndef MAGI_CTEST_GROUP_H
#define MAGI_CTEST_GROUP_H

#include "ranks.h"

enum { GROUP_ROWS = 4, GROUP_RANKS = 8 };
enum { GROUP_KEYS = 6, GROUP_VALUES = 2 }; // elements of a row of each tensor

typedef struct {
    magi_group_piece sends[GROUP_RANKS], receives[GROUP_RANKS];
    magi_group_tensor tensors[2];
    magi_group_args args;
} all_to_all;

static inline magi_group_piece piece_of(int32_t peer, int64_t start, int64_t end) {
    magi_group_piece p;
    p.rows.start = start;
    p.rows.end = end;
    p.peer = peer;
    p.reserved = 0;
    return p;
}

static inline magi_group_tensor group_tensor_of(int64_t row_elements, int32_t dtype) {
    magi_group_tensor t;
    t.row_elements = row_elements;
    t.dtype = dtype;
    t.reserved = 0;
    return t;
}

// Two tensors of `dtype`; rows of rank p come to rows 4 p to 4 p + 4.
static inline void all_to_all_init(all_to_all *g, int32_t size, int32_t dtype) {
    const magi_group_args init = MAGI_GROUP_ARGS_INIT;
    for (int32_t p = 0; p < size; p++) {
        g->sends[p] = piece_of(p, 0, GROUP_ROWS);
        g->receives[p] = piece_of(p, p * GROUP_ROWS, (p + 1) * GROUP_ROWS);
    }
    g->tensors[0] = group_tensor_of(GROUP_KEYS, dtype);
    g->tensors[1] = group_tensor_of(GROUP_VALUES, dtype);
    g->args = init;
    g->args.local_rows = GROUP_ROWS;
    g->args.received_rows = (int64_t)size * GROUP_ROWS;
    g->args.sends = g->sends;
    g->args.n_sends = (size_t)size;
    g->args.receives = g->receives;
    g->args.n_receives = (size_t)size;
    g->args.tensors = g->tensors;
    g->args.n_tensors = 2;
    g->args.flags = MAGI_GROUP_REDUCE;
}

static inline magi_group_plan *plan_of(const magi_comm *comm, const magi_group_args *args) {
    magi_group_plan *plan = NULL;
    CHECK_OK(magi_group_plan_create(comm, args, NULL, &plan));
    return plan;
}

// Memory for the two tensors of one rank, in doubles.
typedef struct {
    double local[GROUP_ROWS * (GROUP_KEYS + GROUP_VALUES)];
    double received[GROUP_RANKS * GROUP_ROWS * (GROUP_KEYS + GROUP_VALUES)];
    magi_tensor t_local[2], t_received[2];
} group_memory;

static inline double group_value(int32_t rank, int64_t i) {
    return (double)(rank + 1) * 1000 + (double)i;
}

static inline void group_memory_init(group_memory *m, int32_t rank, int32_t size) {
    const int64_t rows = (int64_t)size * GROUP_ROWS;
    for (int64_t i = 0; i < GROUP_ROWS * (GROUP_KEYS + GROUP_VALUES); i++) {
        m->local[i] = group_value(rank, i);
    }
    memset(m->received, 0x5a, sizeof m->received);
    m->t_local[0] = tensor_of(m->local, MAGI_DTYPE_F64, 2, GROUP_ROWS, GROUP_KEYS, 0);
    m->t_local[1] = tensor_of(m->local + GROUP_ROWS * GROUP_KEYS, MAGI_DTYPE_F64, 2, GROUP_ROWS, GROUP_VALUES, 0);
    m->t_received[0] = tensor_of(m->received, MAGI_DTYPE_F64, 2, rows, GROUP_KEYS, 0);
    m->t_received[1] = tensor_of(m->received + rows * GROUP_KEYS, MAGI_DTYPE_F64, 2, rows, GROUP_VALUES, 0);
}

// What every rank has received: the local memory of all ranks, by rank, keys first.
static inline void group_check_received(const group_memory *m, int32_t size) {
    const int64_t keys = GROUP_ROWS * GROUP_KEYS, values = GROUP_ROWS * GROUP_VALUES;
    for (int32_t p = 0; p < size; p++) {
        for (int64_t i = 0; i < keys; i++) {
            CHECK(m->received[p * keys + i] == group_value(p, i));
        }
        for (int64_t i = 0; i < values; i++) {
            CHECK(m->received[size * keys + p * values + i] == group_value(p, keys + i));
        }
    }
}

#endif
