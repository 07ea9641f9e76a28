/*
 * What the launcher of range_tiles fills (src/backend/cuda/range_tiles.rs; tests/range_tiles.rs compares the layouts).
 * Plain C11 that NVRTC takes as it is.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef MAGI_ATTN_KERNELS_HELPER_RANGE_TILES_H
#define MAGI_ATTN_KERNELS_HELPER_RANGE_TILES_H

#include "../params.h"

/* Threads of a block. */
#define MAGI_RANGE_THREADS 256

/* What the error word says: a kind in its upper 8 bits, below it the first index, or the number of items. */
#define MAGI_RANGE_BAD_TYPE 1
#define MAGI_RANGE_TOO_MANY 2

/* 0 before a launch. */
typedef struct magi_range_counters {
    unsigned long long items; /* that all tiles together want */
    int bad_type;             /* INT_MAX - the first range whose type is none; 0: no such range */
    int steps;                /* of the longest tile */
    int done;                 /* blocks */
    int failed;               /* 1 when the list could not be made */
} magi_range_counters;

/* A [tokens, heads, width] tensor that becomes NaN when the list cannot be made. Strides count elements. */
typedef struct magi_range_output {
    char *data; /* or NULL */
    long long token, head, tokens;
    int heads, width;
    int bytes; /* of an element: 2 or 4 */
    int reserved;
} magi_range_output;

/* Ranges on the device, and where the list over them goes. Strides count elements. */
typedef struct magi_range_params {
    const int *q_ranges, *k_ranges; /* [count, 2] */
    const int *mask_types;          /* [count] */
    long long q_step, k_step, type_step;
    magi_tile *tiles;         /* [tile_count], longest first */
    magi_tile *drawn;         /* [tile_count], the same by row */
    magi_item *items;         /* [max_items] */
    unsigned long long *keys; /* [max_items] */
    magi_range_counters *counters;
    unsigned long long *error;    /* in memory of the host */
    magi_range_output outputs[2]; /* of the rows */
    int count, tokens_q, tokens_k, rows, step, tile_count, max_items;
    int of_keys; /* 0: rows are queries, tokens keys; 1: rows are keys, tokens queries */
} magi_range_params;

#endif
