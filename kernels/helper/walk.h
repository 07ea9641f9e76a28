/*
 * Structs that the launchers of the helper kernels fill (src/backend/cuda/walk.rs, ranges.rs). tests/cuda_helpers.rs
 * runs kernels on what they fill. Plain C11 that NVRTC takes as it is.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef MAGI_ATTN_KERNELS_HELPER_WALK_H
#define MAGI_ATTN_KERNELS_HELPER_WALK_H

/* Most dimensions of a tensor. */
#define MAGI_WALK_DIMS 8

/* Ranges that travel with a launch: few in 4 KiB of parameters, many in 32 KiB. */
#define MAGI_RANGES_FEW 192
#define MAGI_RANGES_MANY 1920

/* Every index of two equally shaped tensors, cut into units of consecutive elements. Dimension 0 is the innermost. */
typedef struct magi_walk {
    long long units;                  /* product of the extents */
    long long extent[MAGI_WALK_DIMS]; /* units of dimension 0; indices of the others */
    long long first[MAGI_WALK_DIMS];  /* bytes from one to the next in the first tensor */
    long long second[MAGI_WALK_DIMS]; /* the same in the second tensor */
    int dims;                         /* 1 to 8 */
    int unit;                         /* elements of a unit (bytes, where elements are only moved) */
} magi_walk;

/* Rows [start, ...) of one tensor that lie at rows [packed, packed of the next) of another. */
typedef struct magi_range {
    long long start, packed;
} magi_range;

/* Rows that both tensors share: the walk goes through one row, this says which rows there are. */
typedef struct magi_rows {
    long long rows;        /* rows in all ranges of this launch */
    long long spread_step; /* bytes from one row to the next in the tensor that has the ranges */
    long long packed_step; /* the same in the tensor whose rows are consecutive */
    int count;             /* ranges, none of them empty */
    int scatter;           /* 0: spread to packed; 1: packed to spread */
} magi_rows;

/* A [tokens, heads, width] tensor; its last stride is 1, the others are bytes. */
typedef struct magi_view {
    char *data;
    long long token, head;
    int dtype; /* a magi_dtype, 0 to 3 */
    int reserved;
} magi_view;

/* Sinks of a launch: [s, heads], or [tokens, s, heads] with a token step that is not 0. Bytes. */
typedef struct magi_sinks {
    char *data;
    long long token, sink, head;
    int count; /* 0: none */
    int dtype;
} magi_sinks;

#endif
