/*
 * Structs that the host fills and kernels read. The Rust side of each stands in the file named above it; a test
 * compares sizes and offsets. Plain C11 that NVRTC takes as it is: no include, and int has 32 bits wherever this is
 * compiled.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef MAGI_ATTN_KERNELS_PARAMS_H
#define MAGI_ATTN_KERNELS_PARAMS_H

/* ---------------------------------------------------------------- tile lists: src/types/tiles.rs, docs/kernels.md */

/* Changes whenever a tile list made by an older host would be misread. */
#define MAGI_TILES_VERSION 1

/* Sides of a band that bound nothing. A token can be added to them, or taken away, without overflow. */
#define MAGI_TILES_NO_LO (-1073741824)
#define MAGI_TILES_NO_HI 1073741824

/* Rows and steps are tokens of the two sides: queries and keys in the forward pass, keys and queries in the backward
   pass. Tile i owns the rows [row0, row0 + rows) and walks items[item0 .. item0 + items). */
typedef struct magi_tile {
    int row0;                 /* first row */
    int rows;                 /* 1 to rows of a tile; fewer only at the end of the tensor */
    int item0;                /* first item */
    int items;                /* 0: no row sees anything */
    int steps;                /* steps of all its items: what the tile costs */
    int source;               /* where its rows lie: 0 local tensor, 1 receive buffer (keys only) */
    int reserved0, reserved1; /* 0 */
} magi_tile;

/* A run of tokens. Steps begin at start, start + step, ... while below run1; those inside [full0, full1) are seen by
   all rows of the tile, the others need the limits. Row r of the tile (0 = row0) sees token t of the run iff
   row0 <= r < row1, run0 <= t < run1, lo <= t - (tile.row0 + r) <= hi, and, with limits >= 0,
   limits[limits + r].lo <= t < limits[limits + r].hi. */
typedef struct magi_item {
    int run0, run1;   /* the run */
    int start;        /* where its first step begins: run0, or below it when steps are aligned */
    int full0, full1; /* start + a multiple of step, both; equal when no step is full */
    int row0, row1;   /* relative to the tile's first row */
    int lo, hi;       /* band */
    int source;       /* where the run lies: 0 local tensor, 1 receive buffer (keys only) */
    int limits;       /* index of the limits of row 0, or -1 */
    int reserved0;    /* 0 */
} magi_item;

/* Tokens [lo, hi) that one row sees; lo == hi when none. */
typedef struct magi_row_limits {
    int lo, hi;
} magi_row_limits;

#endif
