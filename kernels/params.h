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
#define MAGI_TILES_VERSION 2

/* Sides of a band that bound nothing. A token can be added to them, or taken away, without overflow. */
#define MAGI_TILES_NO_LO (-1073741824)
#define MAGI_TILES_NO_HI 1073741824

/* Rows and steps are tokens of the two sides: queries and keys in the forward pass, keys and queries in the backward
   pass. Tile i owns the rows [row0, row0 + rows) and walks items[item0 .. item0 + items). */
typedef struct magi_tile {
    int row0;   /* first row */
    int rows;   /* 1 to rows of a tile; fewer only at the end of the tensor */
    int item0;  /* first item */
    int items;  /* 0: no row sees anything */
    int steps;  /* steps of all its items: what the tile costs */
    int source; /* where its rows lie: 0 local tensor, 1 receive buffer (keys only) */
    int slot;   /* of its first piece in the workspace, when it is a piece of a tile; else 0 */
    int pieces; /* number of pieces << 16 | which of them this is; 0 or 1 << 16: whole */
} magi_tile;

/* A run of tokens. Steps begin at start, start + step, ... while below run1; those inside [full0, full1) are seen by
   all rows of the tile, the others need the limits. Row r of the tile (0 = row0) sees token t of the run iff
   row0 <= r < row1, run0 <= t < run1, lo <= t - (tile.row0 + r) <= hi, and, with limits >= 0,
   limits[limits + r].lo <= t < limits[limits + r].hi. */
typedef struct magi_item {
    int run0, run1;   /* the run */
    int start;        /* where its first step begins: run0 */
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

/* ----------------------------------------------------------- attention forward: src/backend/cuda/forward_params.rs */

/* Strides count elements. A unit is a query head, or, when `pack` query heads of one key head share a tile, all of
   those: row r of a tile is then token r / pack, query head unit * pack + r % pack. */
typedef struct magi_attn_forward_params {
    const magi_tile *tiles; /* in the order of the work */
    const magi_item *items;
    const magi_row_limits *limits;
    int *counters;        /* {next work, blocks done}; 0 before a launch, and after it */
    unsigned *maxima;     /* [heads_q], order-preserving bits; 0 before a launch, and after it */
    void *out;            /* [tokens, heads_q, head_dim_v] */
    float *lse;           /* [tokens, heads_q], or NULL */
    float *max_logits;    /* [heads_q] */
    const float *sink;    /* NULL, or [sinks] of every token and head by the strides below */
    float *piece_out;     /* [slots, units, rows of a tile, head_dim_v] in the order of registers */
    float *piece_lse;     /* [slots, units, rows of a tile] */
    int *piece_done;      /* [slots, units, warps of a tile]; 0 before a launch, and after it */
    const float *earlier; /* MAGI_FORWARD_ACCUMULATE: the output to merge into, which may be out itself */
    long long out_token, out_head, lse_token, lse_head, sink_token, sink_row, sink_head, earlier_token, earlier_head;
    int tile_count, units, group, section; /* group: units of a key head; section: units walked together */
    int pack, pack_inverse;                /* pack_inverse: 65536 / pack + 1 */
    int tokens_k[2];                       /* of the local tensor and of the receive buffer */
    int head_dim_v, sinks, q_bytes, flags; /* q_bytes: of one tile of Q as copied */
    int copies_k, copies_v;                /* of one block: 1 when a copy brings all columns, else one for each 64 */
    float scale_log2;                      /* of a logit, or of tanh with softcap: factor to base 2 */
    float softcap_scale;                   /* softmax_scale / softcap */
} magi_attn_forward_params;

/* Flags of forward. */
#define MAGI_FORWARD_OUT_F32 1    /* out is f32, else the input dtype */
#define MAGI_FORWARD_ACCUMULATE 2 /* merge into (earlier, lse), both f32 */

/* ---------------------------------------------------------- attention backward: src/backend/cuda/backward_params.rs */

/* One launch of magi_attn_backward over a list of key tiles: rows are keys of one key head, steps are queries. Strides
   count elements. A work item is a tile, a key head and, with `splits` above 1, a part of its query heads. Pairs are
   the local tensor and the receive buffer. */
typedef struct magi_attn_backward_params {
    const magi_tile *tiles; /* in the order of the work */
    const magi_item *items;
    const magi_row_limits *limits;
    int *counters; /* {next work, blocks done, even and odd parts begun}; 0 before a launch, and after it */
    float *dq;     /* [tokens_q, heads_q, head_dim], added to; 16-byte aligned */
    void *dk[2];   /* [tokens_k, heads_kv, head_dim] */
    void *dv[2];   /* [tokens_k, heads_kv, head_dim_v] */
    float *piece;  /* splits > 1: [tile_count, heads_kv, splits, magi_attn_backward_sizes[4] floats] */
    int *
        piece_done; /* splits > 1: [tile_count, heads_kv, consumer warps of a block]; 0 before a launch, and after it */
    long long dq_token, dq_head; /* multiples of 4 */
    long long dk_token[2], dk_head[2], dv_token[2], dv_head[2];
    int tile_count, heads_kv, group, section; /* group: query heads of a key head; section: key heads walked together */
    int splits;                               /* divides group */
    int tokens_q;
    int head_dim, head_dim_v;
    int copies_k,
        copies_v; /* of one block of K or Q, of V or dO: 1 when a copy brings all columns, else one for each 64 */
    int flags;
    float scale_log2;    /* of a logit, or of tanh with softcap: factor to base 2 */
    float scale;         /* of dq and dk: softmax_scale */
    float softcap_scale; /* softmax_scale / softcap */
} magi_attn_backward_params;

/* Flags of backward. */
#define MAGI_BACKWARD_OUT_F32 1    /* dk and dv are f32, else the input dtype */
#define MAGI_BACKWARD_ACCUMULATE 2 /* dk and dv, both f32, are added to */

/* ------------------------------------------------------------------- textbook attention: src/backend/cuda/textbook.rs
 */

/* Rows of a tile and tokens of a step; with f64 elements half as many fit. */
#define MAGI_TEXTBOOK_ROWS 64
#define MAGI_TEXTBOOK_ROWS_F64 32

/* A [tokens, heads, width] or [tokens, heads] tensor; the width has stride 1. Strides count elements and may be 0 or
   negative where the tensor is only read. */
typedef struct magi_textbook_rows {
    void *data;
    long long token, head;
} magi_textbook_rows;

/* One call over a tile list. q, k, v and dout are of the kernel's dtype; the others of its accumulator type. Pairs are
   the local tensor and the receive buffer. */
typedef struct magi_textbook_params {
    const magi_tile *tiles; /* in the order of the work */
    const magi_item *items;
    const magi_row_limits *limits;
    magi_textbook_rows q, k[2], v[2];
    magi_textbook_rows lse;         /* forward: read and written; backward: the final lse */
    magi_textbook_rows out;         /* forward: read and written */
    magi_textbook_rows dout, delta; /* backward, as the next two: added to */
    magi_textbook_rows dq, dk[2], dv[2];
    float *max_logits;         /* forward: [heads_q], raised where a logit is larger; or NULL */
    long long max_logits_head; /* elements from one head to the next */
    double scale;              /* softmax_scale */
    double factor;             /* of q . k: the scale, or what makes it an argument of tanh */
    double softcap;            /* logits are softcap * tanh(factor * q . k) with capped */
    int capped;                /* 0 or 1 */
    int tile_count, heads_q, heads_kv;
    int head_dim, head_dim_v;
} magi_textbook_params;

/* --------------------------- attention backward, dq alone: src/backend/cuda/backward_queries_params.rs */

/* One call over a list of query tiles. Strides count elements and, with the address of dq, are multiples of 16 bytes.
   A unit is a query head. */
typedef struct magi_attn_backward_queries_params {
    const magi_tile *tiles; /* in the order of the work */
    const magi_item *items;
    const magi_row_limits *limits;
    int *counters; /* {next work, blocks done}; 0 before a launch, and after it */
    void *dq;      /* [tokens, heads_q, head_dim] */
    long long dq_token, dq_head;
    int tile_count, units, group, section; /* group: query heads of a key head; section: heads walked together */
    int tokens_k[2];                       /* of the local tensor and of the receive buffer */
    int head_dim, flags;
    int copies_k, copies_v; /* of a block of K and a piece of Q, of V and of dout: 1, or one for each 64 columns */
    float scale;            /* softmax_scale: of dq */
    float scale_log2;       /* of a logit, or of tanh with softcap: factor to base 2 */
    float softcap_scale;    /* softmax_scale / softcap */
    int reserved0;          /* 0 */
} magi_attn_backward_queries_params;

/* Flags of the dq kernel. */
#define MAGI_BACKWARD_QUERIES_F32 1        /* dq is f32, else the input dtype */
#define MAGI_BACKWARD_QUERIES_ACCUMULATE 2 /* add to dq, which is f32 */

#endif
