/*
 * What the launchers of kernels/backward_rows.cu fill (src/backend/cuda/backward_rows.rs; tests/backward_layout.rs
 * compares the layouts). Strides count elements. Plain C11 that NVRTC takes as it is.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef MAGI_ATTN_KERNELS_HELPER_BACKWARD_ROWS_H
#define MAGI_ATTN_KERNELS_HELPER_BACKWARD_ROWS_H

/* Threads of a block. */
#define MAGI_BACKWARD_ROWS_THREADS 256

/* Most sinks of a token. */
#define MAGI_BACKWARD_ROWS_SINKS 8

/* Flags. */
#define MAGI_BACKWARD_ROWS_CLEAR 1     /* dq becomes 0 */
#define MAGI_BACKWARD_ROWS_SHARED 2    /* sinks are those of all tokens: dsink is a sum over tokens */
#define MAGI_BACKWARD_ROWS_ADD_DSINK 4 /* dsink is added to */
#define MAGI_BACKWARD_ROWS_GIVEN 8     /* out is delta itself, float [tokens, heads] */

/* lse to base 2 and delta of a token of a head and of the one behind it. Of a head come those of even tokens, then
   those of odd ones: what belongs to any stretch of tokens is one stretch of memory that begins at 16 bytes, and
   neighbours are read at once. */
typedef struct magi_backward_pair {
    float lse2[2], delta[2];
} magi_backward_pair;

/* What is done for every row, a token of a query head, before the gradients are computed. */
typedef struct magi_backward_rows {
    const void *out, *dout;    /* [tokens, heads, width]; see MAGI_BACKWARD_ROWS_GIVEN */
    const float *lse;          /* [tokens, heads], natural logarithm */
    magi_backward_pair *stats; /* [heads, 2, padded / 2], aligned to 16 bytes; beyond the tokens +inf and 0 */
    float *dq;                 /* [tokens, heads, dq_width], or NULL */
    const int *failed;         /* NULL, or not 0 where the tile list could not be made: dq becomes NaN */
    const float *sink;         /* NULL, or [sinks] of every token and head by the strides below */
    float *dsink;              /* likewise */
    double *parts;             /* [chunks, heads, MAGI_BACKWARD_ROWS_SINKS] with shared sinks */
    unsigned *done;            /* [heads] with shared sinks; 0 before a launch, and after it */
    long long out_token, out_head, dout_token, dout_head, lse_token, lse_head, dq_token, dq_head;
    long long sink_token, sink_row, sink_head, dsink_token, dsink_row, dsink_head;
    long long tokens, padded; /* padded: even, not below tokens */
    int heads, width, dq_width;
    int sinks, chunks, chunk; /* chunk: rows of one, a multiple of 32; chunks cover `padded` */
    int flags, reserved;
} magi_backward_rows;

/* f32 sums to dq, of the input dtype or f32. */
typedef struct magi_backward_dq {
    const float *from; /* [tokens, heads, width] */
    void *to;          /* likewise */
    long long from_token, from_head, to_token, to_head;
    long long tokens;
    int heads, width;
    int add; /* 0 or 1: to what is there */
    int reserved;
} magi_backward_dq;

#endif
