/*
 * libmagi_attn: attention over very long sequences and irregular masks, on one device or many.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Generated from src/ffi by cbindgen; not to be edited. The comments here are the reference of the C ABI;
 * docs/abi.md holds its conventions and the table of thread rules.
 */

#ifndef MAGI_ATTN_H
#define MAGI_ATTN_H

#include <stddef.h>
#include <stdint.h>

/* A CUDA stream: a cudaStream_t or CUstream passes without a cast. NULL on the CPU backend. */
typedef struct CUstream_st *magi_stream;

/* Defaults of the argument structs: magi_forward_args args = MAGI_FORWARD_ARGS_INIT; */
#define MAGI_FORWARD_ARGS_INIT {sizeof(magi_forward_args), NULL, NULL, NULL, NULL, 0.0, 0.0, NULL, NULL, NULL}
#define MAGI_BACKWARD_ARGS_INIT                                                                              \
    {sizeof(magi_backward_args), NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0.0, 0.0, NULL, NULL, NULL, NULL, 0, 0}
#define MAGI_FLEX_OPTIONS_INIT {sizeof(magi_flex_options), NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0}
#define MAGI_GROUP_ARGS_INIT {sizeof(magi_group_args), 0, 0, NULL, 0, NULL, 0, NULL, 0, 0, 0}
#define MAGI_NCCL_CONFIG_INIT {sizeof(magi_nccl_config), 0, 0, 0, 0, 0}
#define MAGI_ATTN_SHAPE_INIT {sizeof(magi_attn_shape), 0, 0, 0, 0, 0, 0}

/**
 * Major version of this header. With major version 0, a new minor version may change the ABI.
 */
#define MAGI_VERSION_MAJOR 0

/**
 * Minor version of this header.
 */
#define MAGI_VERSION_MINOR 1

/**
 * Patch version of this header.
 */
#define MAGI_VERSION_PATCH 0

/**
 * Version of this header as one number, `major * 10000 + minor * 100 + patch`.
 */
#define MAGI_VERSION (((MAGI_VERSION_MAJOR * 10000) + (MAGI_VERSION_MINOR * 100)) + MAGI_VERSION_PATCH)

/**
 * dq is added to what it holds.
 */
#define MAGI_ACCUMULATE_DQ 1

/**
 * dk is added to what it holds.
 */
#define MAGI_ACCUMULATE_DK 2

/**
 * dv is added to what it holds.
 */
#define MAGI_ACCUMULATE_DV 4

/**
 * dsink is added to what it holds.
 */
#define MAGI_ACCUMULATE_DSINK 8

/**
 * magi_group_reduce will be called on the plan: takes workspace for what comes in and, for bf16 and f16, for sums.
 */
#define MAGI_GROUP_REDUCE 1

/**
 * local and received of magi_group_cast, and partial of magi_group_reduce, may be other than dense: takes workspace for
 * dense copies of the rows that travel.
 */
#define MAGI_GROUP_STRIDED 2

/**
 * Gradients are asked for too.
 */
#define MAGI_WITH_BACKWARD 1

/**
 * A sink.
 */
#define MAGI_WITH_SINK 2

/**
 * max_logits.
 */
#define MAGI_WITH_MAX_LOGITS 4

/**
 * out in the accumulator type.
 */
#define MAGI_WITH_ACC_OUT 8

/**
 * options.accumulate.
 */
#define MAGI_WITH_ACCUMULATE 16

/**
 * The mask as ranges in memory of the CUDA device.
 */
#define MAGI_WITH_DEVICE_RANGES 32

/**
 * Dropout: supported nowhere.
 */
#define MAGI_WITH_DROPOUT 64

/**
 * An additive bias or ALiBi: supported nowhere.
 */
#define MAGI_WITH_BIAS 128

/**
 * Tensors in an 8-bit floating-point type: supported nowhere.
 */
#define MAGI_WITH_FP8 256

/**
 * Keys and values in pages: supported nowhere.
 */
#define MAGI_WITH_PAGED_KEYS 512

/**
 * A mask of its own for each head: supported nowhere.
 */
#define MAGI_WITH_HEAD_MASKS 1024

/**
 * Gradients into lse: supported nowhere.
 */
#define MAGI_WITH_LSE_GRADIENT 2048

/**
 * What a call came to. 1xx argument, 2xx not supported, 3xx resources, 4xx CUDA, 5xx communication, 6xx timeout and abort,
 * 9xx internal.
 *
 * After 1xx, 2xx and 3xx outputs are untouched, every object stays good and the call may be repeated; only
 * magi_flex_flash_attn_* may have written part of its outputs when memory runs out. After 5xx
 * (but not after a plan mismatch) and 6xx the communicator is finished: abort or destroy it and make a new one.
 * After an internal error the handle is poisoned.
 */
enum magi_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The call did what it says.
     */
    MAGI_STATUS_OK = 0,
    /**
     * An argument has a value that the function does not accept; the message says which and what would do.
     */
    MAGI_STATUS_INVALID_ARGUMENT = 100,
    /**
     * A pointer that must not be NULL is NULL.
     */
    MAGI_STATUS_NULL_POINTER = 101,
    /**
     * A range is out of order, negative, or beyond the total.
     */
    MAGI_STATUS_INVALID_RANGE = 102,
    /**
     * An integer that stands for an enum has no such value.
     */
    MAGI_STATUS_INVALID_ENUM = 103,
    /**
     * Two slices of a mask cover the same (query, key) cell.
     */
    MAGI_STATUS_MASK_OVERLAP = 104,
    /**
     * A tensor has another shape than the call needs.
     */
    MAGI_STATUS_SHAPE_MISMATCH = 105,
    /**
     * A tensor has another dtype than the call needs.
     */
    MAGI_STATUS_DTYPE_MISMATCH = 106,
    /**
     * A tensor has a stride that the call cannot use.
     */
    MAGI_STATUS_INVALID_STRIDE = 107,
    /**
     * A tensor lies on another device than the communicator or mask works on.
     */
    MAGI_STATUS_DEVICE_MISMATCH = 108,
    /**
     * A caller's buffer is too small; the needed size is in the size argument.
     */
    MAGI_STATUS_BUFFER_TOO_SMALL = 109,
    /**
     * An output overlaps an input or another output in memory.
     */
    MAGI_STATUS_TENSOR_OVERLAP = 110,
    /**
     * The `size` field of a struct is not one this library knows, or unknown trailing bytes are not zero.
     */
    MAGI_STATUS_STRUCT_SIZE = 111,
    /**
     * An environment variable has a value that does not parse.
     */
    MAGI_STATUS_INVALID_ENVIRONMENT = 112,
    /**
     * A second call was made on a handle, or on its communicator, while one was running.
     */
    MAGI_STATUS_HANDLE_BUSY = 113,
    /**
     * The communicator of this key was destroyed.
     */
    MAGI_STATUS_COMM_DESTROYED = 114,
    /**
     * A combination that this build cannot run; the message holds every reason.
     */
    MAGI_STATUS_NOT_SUPPORTED = 200,
    /**
     * The process was forked after the library was used; make a fresh process instead.
     */
    MAGI_STATUS_FORKED = 201,
    /**
     * Memory could not be had.
     */
    MAGI_STATUS_OUT_OF_MEMORY = 300,
    /**
     * The operating system refused a thread or another resource.
     */
    MAGI_STATUS_RESOURCE_EXHAUSTED = 301,
    /**
     * There is no CUDA device, or no driver for it; the message says what was looked for.
     */
    MAGI_STATUS_NO_DEVICE = 400,
    /**
     * The CUDA driver refused a call or a kernel failed; the message names the call and the driver's error.
     */
    MAGI_STATUS_CUDA_FAILED = 401,
    /**
     * A kernel could not be compiled: no compiler was found, or it refused; the message holds what it said.
     */
    MAGI_STATUS_COMPILE_FAILED = 402,
    /**
     * A peer failed, or a message was not what the plan says; the communicator is finished.
     */
    MAGI_STATUS_COMM_FAILED = 500,
    /**
     * Ranks disagree on the plan or on the order of calls. Nothing was moved and the communicator stays good.
     */
    MAGI_STATUS_PLAN_MISMATCH = 501,
    /**
     * A peer did not arrive within the communicator's timeout; the communicator is finished.
     */
    MAGI_STATUS_TIMEOUT = 600,
    /**
     * The communicator was aborted.
     */
    MAGI_STATUS_ABORTED = 601,
    /**
     * A defect of this library; the handle is poisoned and its communicator aborted.
     */
    MAGI_STATUS_INTERNAL = 900,
    /**
     * The handle was poisoned by an earlier internal error; only `destroy` works on it.
     */
    MAGI_STATUS_POISONED = 901,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_status magi_status;
#else
typedef int32_t magi_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Element type of a tensor. The first four can be attended over; all of them can be moved.
 */
enum magi_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * IEEE double.
     */
    MAGI_DTYPE_F64 = 0,
    /**
     * IEEE single.
     */
    MAGI_DTYPE_F32 = 1,
    /**
     * bfloat16.
     */
    MAGI_DTYPE_BF16 = 2,
    /**
     * IEEE half.
     */
    MAGI_DTYPE_F16 = 3,
    /**
     * Signed 64-bit.
     */
    MAGI_DTYPE_I64 = 4,
    /**
     * Signed 32-bit.
     */
    MAGI_DTYPE_I32 = 5,
    /**
     * Signed 16-bit.
     */
    MAGI_DTYPE_I16 = 6,
    /**
     * Signed 8-bit.
     */
    MAGI_DTYPE_I8 = 7,
    /**
     * Unsigned 8-bit, and the bytes of any 1-byte type.
     */
    MAGI_DTYPE_U8 = 8,
    /**
     * One byte, 0 or 1.
     */
    MAGI_DTYPE_BOOL = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_dtype magi_dtype;
#else
typedef int32_t magi_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The four spellings of a slice's band, as they come in and are printed.
 */
enum magi_mask_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Every cell of the rectangle.
     */
    MAGI_MASK_TYPE_FULL = 0,
    /**
     * `k - q <= ke - qe`: the diagonal ends in the bottom-right corner.
     */
    MAGI_MASK_TYPE_CAUSAL = 1,
    /**
     * `k - q >= ks - qs`: the diagonal starts in the top-left corner.
     */
    MAGI_MASK_TYPE_INV_CAUSAL = 2,
    /**
     * Both bounds.
     */
    MAGI_MASK_TYPE_BI_CAUSAL = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_mask_type magi_mask_type;
#else
typedef int32_t magi_mask_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Queries or keys. With equal totals both sides share one placement.
 */
enum magi_side
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Query tokens (q, out, lse, dout, dq, per-token sinks).
     */
    MAGI_SIDE_Q = 0,
    /**
     * Key tokens (k, v, dk, dv).
     */
    MAGI_SIDE_K = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_side magi_side;
#else
typedef int32_t magi_side;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What `calc_attn` backward does with the gradient of a sink that all queries share.
 */
enum magi_dsink_reduce
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Every rank keeps its partial gradient.
     */
    MAGI_DSINK_REDUCE_NONE = 0,
    /**
     * The sum over ranks, on every rank.
     */
    MAGI_DSINK_REDUCE_SUM = 1,
    /**
     * The sum over ranks divided by their number.
     */
    MAGI_DSINK_REDUCE_AVG = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_dsink_reduce magi_dsink_reduce;
#else
typedef int32_t magi_dsink_reduce;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How chunks are given to ranks.
 */
enum magi_placement
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Equal numbers of chunks, areas as even as swaps make them, and of such placements one that moves few tokens.
     */
    MAGI_PLACEMENT_BALANCED = 0,
    /**
     * Contiguous blocks.
     */
    MAGI_PLACEMENT_SEQUENTIAL = 1,
    /**
     * Twice as many contiguous pieces as ranks; rank r has the pieces r and 2 * world - 1 - r.
     */
    MAGI_PLACEMENT_ZIGZAG = 2,
    /**
     * Documents (chunks whose rows see keys from the same place on) heaviest first, the chunks of each dealt to the
     * ranks in turn, back and forth: every rank has a share of every long document.
     */
    MAGI_PLACEMENT_BY_DOCUMENT = 3,
    /**
     * Longest chunk first to that rank, of the least loaded `top_percent` with room, where it adds fewest received
     * tokens.
     */
    MAGI_PLACEMENT_TOP_HEAP = 4,
    /**
     * The least largest area, then the fewest received tokens, by trying everything: for at most 16 chunks.
     */
    MAGI_PLACEMENT_EXACT = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_placement magi_placement;
#else
typedef int32_t magi_placement;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How long the planner looks for a placement that moves few tokens. Budgets count steps, not time, so that every rank
 * comes to the same placement.
 */
enum magi_effort
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * A fraction of a millisecond for 8 ranks, a few for 64.
     */
    MAGI_EFFORT_FAST = 0,
    /**
     * Up to 100 ms for 64 ranks: for masks that live long.
     */
    MAGI_EFFORT_THOROUGH = 1,
    /**
     * By area alone.
     */
    MAGI_EFFORT_BALANCE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_effort magi_effort;
#else
typedef int32_t magi_effort;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which kernels compute.
 */
enum magi_backend
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The best there is for the device: the fast kernels where they compute the call, else textbook attention; on the CPU
     * its one backend.
     */
    MAGI_BACKEND_DEFAULT = 0,
    /**
     * The fast kernels; need a CUDA device.
     */
    MAGI_BACKEND_FFA = 1,
    /**
     * Textbook attention in high precision.
     */
    MAGI_BACKEND_SDPA = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_backend magi_backend;
#else
typedef int32_t magi_backend;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a tensor's bytes lie.
 */
enum magi_device_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Host memory.
     */
    MAGI_DEVICE_TYPE_CPU = 0,
    /**
     * Memory of a CUDA device.
     */
    MAGI_DEVICE_TYPE_CUDA = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_device_type magi_device_type;
#else
typedef int32_t magi_device_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * When an environment variable acts.
 */
enum magi_env_acts
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * When the library or a kernel is compiled.
     */
    MAGI_ENV_ACTS_BUILD = 0,
    /**
     * When a key is created, through magi_config_init.
     */
    MAGI_ENV_ACTS_KEY = 1,
    /**
     * In calls.
     */
    MAGI_ENV_ACTS_RUN = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_env_acts magi_env_acts;
#else
typedef int32_t magi_env_acts;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How magi_group_reduce adds up.
 */
enum magi_group_op
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The sum of all contributions.
     */
    MAGI_GROUP_OP_SUM = 0,
    /**
     * The sum divided by the number of contributions.
     */
    MAGI_GROUP_OP_AVG = 1,
    /**
     * Tensors come in pairs of out `[rows, heads, width]` and lse `[rows, heads]`, which are merged: each out counts by
     * exp(lse - merged lse). An lse of -inf has weight 0, and its out is not read.
     */
    MAGI_GROUP_OP_LSE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_group_op magi_group_op;
#else
typedef int32_t magi_group_op;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How much is said.
 */
enum magi_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nothing.
     */
    MAGI_LOG_LEVEL_OFF = 0,
    /**
     * What failed.
     */
    MAGI_LOG_LEVEL_ERROR = 1,
    /**
     * Also what is probably not meant, such as an unknown environment variable.
     */
    MAGI_LOG_LEVEL_WARNING = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_log_level magi_log_level;
#else
typedef int32_t magi_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Forward or backward.
 */
enum magi_pass
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * From q, k and v to out.
     */
    MAGI_PASS_FORWARD = 0,
    /**
     * From out and its gradient to those of q, k and v.
     */
    MAGI_PASS_BACKWARD = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum magi_pass magi_pass;
#else
typedef int32_t magi_pass;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * One rank of a communicator. One call at a time; abort and async_error may come from any thread at any time.
 */
typedef struct magi_comm magi_comm;

/**
 * What one rank sends and receives in a group, on a communicator. One call at a time, and one at a time for all keys and
 * group plans of a communicator.
 */
typedef struct magi_group_plan magi_group_plan;

/**
 * A mask, an attention shape, a placement, a plan and a communicator. One call at a time, and one at a time for all
 * keys of a communicator; forward and backward may come from different threads.
 */
typedef struct magi_key magi_key;

/**
 * A mask. Immutable: every function on it may be called from any thread, many at once.
 */
typedef struct magi_mask magi_mask;

/**
 * Called with (level, line, userdata), from whichever thread has something to say. `line` ends without a newline and
 * is good during the call. Must not call back into the library.
 */
typedef void (*magi_log_callback)(int32_t level, const char *line, void *userdata);

/**
 * A tensor that the caller owns: element `[i, j, ..]` lies `i * stride[0] + j * stride[1] + ..` elements after `data`.
 *
 * The last stride must be 1; other strides may be anything, for outputs anything that names no element twice. `data`
 * must be aligned to its element, and may be NULL when a dimension is 0. Attention tensors are
 * `[tokens, heads, head_dim]`.
 */
typedef struct magi_tensor {
    /**
     * First element.
     */
    void *data;
    /**
     * A magi_dtype.
     */
    int32_t dtype;
    /**
     * A magi_device_type.
     */
    int32_t device_type;
    /**
     * Index of the device; 0 on the CPU.
     */
    int32_t device_index;
    /**
     * Dimensions in use, 1 to 8.
     */
    int32_t ndim;
    /**
     * Extent of each dimension.
     */
    int64_t shape[8];
    /**
     * Elements from one index to the next in each dimension.
     */
    int64_t stride[8];
} magi_tensor;

/**
 * Allocates `bytes` aligned to 256; returns NULL when it cannot.
 */
typedef void *(*magi_alloc_fn)(size_t bytes, void *userdata);

/**
 * Frees what the matching magi_alloc_fn returned.
 */
typedef void (*magi_free_fn)(void *pointer, size_t bytes, void *userdata);

/**
 * Settings of a key. Fill with magi_config_init, then change fields.
 */
typedef struct magi_config {
    /**
     * sizeof(magi_config).
     */
    size_t size;
    /**
     * Tokens of a chunk, the unit in which tokens are given to ranks; 0 lets the planner choose.
     */
    int64_t chunk_size;
    /**
     * With chunk_size 0: at least so many chunks for each rank (8).
     */
    int64_t min_chunks_per_rank;
    /**
     * Keys that a communicator keeps for equal requests, least recently used first out (100); 0 keeps none.
     */
    int64_t cache_size;
    /**
     * With MAGI_PLACEMENT_BALANCED: how far above the mean, in thousandths, the largest area of a rank may be where
     * that saves received tokens, 0 to 1000 (9).
     */
    int64_t balance_slack;
    /**
     * Per cent of the ranks that MAGI_PLACEMENT_TOP_HEAP chooses among, 1 to 100 (50).
     */
    int64_t top_percent;
    /**
     * What predictions take the forward kernel for: GFLOP/s on visible cells, for head_dim up to 64, up to 128, and
     * above. The defaults of this and the next four are of bf16 on one H200 among four of a host.
     */
    int64_t forward_gflops[3];
    /**
     * The same for the backward kernel.
     */
    int64_t backward_gflops[3];
    /**
     * MB/s that a rank receives while all ranks do.
     */
    int64_t link_mb_per_s;
    /**
     * Nanoseconds that a transfer takes before its first byte counts.
     */
    int64_t link_latency_ns;
    /**
     * Nanoseconds that a stage's kernel takes beyond its cells.
     */
    int64_t kernel_latency_ns;
    /**
     * A magi_placement.
     */
    int32_t placement;
    /**
     * A magi_effort: how long a balanced placement that moves few tokens is looked for.
     */
    int32_t effort;
    /**
     * Remote stages of the forward pass, 0 to 8, or -1 (the default), which lets the planner choose by the rates above: 0
     * fetches everything, then computes once; with more, all but the first are fetched beside a kernel, and results merged.
     */
    int32_t degree_forward;
    /**
     * Remote stages of the backward pass, likewise (-1).
     */
    int32_t degree_backward;
    /**
     * When the backward pass computes the host stage (-1). 0: before the remote stages, where it hides the first fetch; 1:
     * behind them, where it hides the last reduction; 2: half of it at either end, in two kernels; -1: as the slowest rank
     * is predicted to be ready first, by the rates above. Of no effect with a degree_backward of 0.
     */
    int32_t bwd_hide_tail_reduce;
    /**
     * A magi_dsink_reduce: what backward does across ranks with the gradient of a sink that all queries share.
     */
    int32_t dsink_reduce;
    /**
     * 0 or 1: partial dk and dv, and dq of queries that travelled, travel in the accumulator type instead of the input
     * dtype (0).
     */
    int32_t backward_high_precision_reduce;
    /**
     * 0 or 1: group collectives, of keys and of group plans, cross hosts once a row, then fan out inside the host (0). Needs
     * magi_comm_set_mesh.
     */
    int32_t hierarchical_comm;
    /**
     * 0 or 1: queries may travel to keys, and their outputs back, where that moves fewer bytes than keys to queries (0).
     * With hierarchical_comm it is NOT_SUPPORTED.
     */
    int32_t qo_comm;
    /**
     * 0 or 1: partial outputs of queries that travelled go home in the accumulator type instead of the input dtype (0).
     */
    int32_t forward_high_precision_reduce;
    /**
     * 0 or 1: verify each plan when it is made, and that inputs hold no NaN (0).
     */
    int32_t sanity_check;
    /**
     * A magi_backend: which kernels compute on a CUDA device.
     */
    int32_t backend;
    /**
     * 0 or 1: the same bits on every run (0).
     */
    int32_t deterministic;
    /**
     * Multiprocessors that the forward kernel leaves to communication in stages that overlap it, 0 to 1024; -1 for the
     * default: none beside one exchange, which is launched first, and 8 where exchanges follow each other. Ranks may differ
     * in this and the next field.
     */
    int32_t forward_sm_margin;
    /**
     * The same for the backward kernels.
     */
    int32_t backward_sm_margin;
    /**
     * 0 or 1: measure each attention call on the key, for magi_key_get_stage_times, magi_key_trace and
     * magi_key_draw_profile, and name its parts for profilers that follow NVTX (0). Ranks may differ.
     */
    int32_t profile;
    /**
     * Allocates workspace, aligned to 256 bytes, in prepare only: memory of the communicator's device; NULL (with free)
     * takes it from the system, or from the CUDA device. Both
     * functions may be called from any thread with the communicator's lock held: they must not call back.
     */
    magi_alloc_fn alloc;
    /**
     * Frees it, at the latest when the communicator is destroyed.
     */
    magi_free_fn free;
    /**
     * Passed to both.
     */
    void *userdata;
} magi_config;

/**
 * An environment variable. Strings are static: they live as long as the library.
 */
typedef struct magi_env_variable {
    /**
     * sizeof(magi_env_variable), set by the caller.
     */
    size_t size;
    /**
     * Its name.
     */
    const char *name;
    /**
     * "boolean", "integer", "word" or "text".
     */
    const char *kind;
    /**
     * What it accepts.
     */
    const char *accepts;
    /**
     * What holds when it is not set; "" where that means something of its own.
     */
    const char *default_value;
    /**
     * What it was set to when the environment was read, once per process; default_value when it was not set.
     */
    const char *value;
    /**
     * What it does, where it has an effect.
     */
    const char *meaning;
    /**
     * NULL when the library honours it, else why it is accepted without effect.
     */
    const char *no_effect_because;
    /**
     * A magi_env_acts.
     */
    int32_t acts;
    /**
     * 1 when it was set, else 0.
     */
    int32_t is_set;
} magi_env_variable;

/**
 * What magi_local_run runs on each rank's thread: gets the rank's communicator (good until it returns), its rank and
 * userdata, returns a magi_status. Must not let a C++ exception out.
 */
typedef int32_t (*magi_local_fn)(struct magi_comm *comm, int32_t rank, void *userdata);

/**
 * How the ranks of one communicator find each other. Made by one rank, copied to the others by whatever way the program
 * has, and used once.
 */
typedef struct magi_unique_id {
    /**
     * Opaque.
     */
    uint8_t bytes[256];
} magi_unique_id;

/**
 * How a communicator over NCCL is made: MAGI_NCCL_CONFIG_INIT, then change fields. NULL stands for the defaults.
 */
typedef struct magi_nccl_config {
    /**
     * sizeof(magi_nccl_config).
     */
    size_t size;
    /**
     * How long this rank waits for the others while the communicator is made, and in later calls as if by
     * magi_comm_set_timeout: milliseconds, 1 to 86,400,000; 0: 300,000.
     */
    int64_t timeout_ms;
    /**
     * Fewest thread blocks that NCCL communicates with; 0: as NCCL sees fit. Not for an adopted communicator.
     */
    int32_t min_ctas;
    /**
     * Most thread blocks, likewise.
     */
    int32_t max_ctas;
    /**
     * For magi_comm_create_from_env: the port on which rank 0 listens, 1 to 65535, the same on every rank; 0: MASTER_PORT + 1
     * (docs/environment.md).
     */
    int32_t port;
    /**
     * For magi_comm_adopt_nccl: 1 when the adopted communicator may be aborted once this one has ended by a failure, a
     * timeout or an abort, else 0. Without, work that waits for a lost peer on the device waits until its owner aborts it.
     */
    int32_t abort_adopted;
} magi_nccl_config;

/**
 * Tokens `[start, end)`. Empty when `end <= start`; negative starts are refused where ranges come in.
 */
typedef struct magi_range {
    /**
     * First token.
     */
    int64_t start;
    /**
     * One past the last token.
     */
    int64_t end;
} magi_range;

/**
 * One slice of a mask: queries `q`, keys `k`, and which corners the diagonals run through.
 */
typedef struct magi_slice {
    /**
     * Query rows.
     */
    struct magi_range q;
    /**
     * Key columns.
     */
    struct magi_range k;
    /**
     * A magi_mask_type.
     */
    int32_t mask_type;
    /**
     * Must be 0.
     */
    int32_t reserved;
} magi_slice;

/**
 * Heads, head dimensions and dtype of an attention layer.
 */
typedef struct magi_attn_shape {
    /**
     * sizeof(magi_attn_shape).
     */
    size_t size;
    /**
     * Query heads, 1 to 65,536.
     */
    int64_t heads_q;
    /**
     * Key and value heads; a divisor of heads_q.
     */
    int64_t heads_kv;
    /**
     * Elements of a query or key row, 8 to 1,024.
     */
    int64_t head_dim;
    /**
     * Elements of a value row, 8 to 1,024.
     */
    int64_t head_dim_v;
    /**
     * A magi_dtype: f64, f32, bf16 or f16.
     */
    int32_t dtype;
    /**
     * Must be 0.
     */
    int32_t reserved;
} magi_attn_shape;

/**
 * What a plan comes to, over all ranks. Token counts are of keys, in one forward pass, where nothing else is said. Bytes
 * count what a rank receives, results that come home included.
 */
typedef struct magi_key_stats {
    /**
     * sizeof(magi_key_stats), set by the caller.
     */
    size_t size;
    /**
     * Visible cells of the mask.
     */
    int64_t area;
    /**
     * Largest number of cells that one rank computes.
     */
    int64_t area_max;
    /**
     * Largest over mean; 1 for an empty mask.
     */
    double balance;
    /**
     * No placement of these chunks has a smaller balance than this.
     */
    double balance_bound;
    /**
     * Keys that are sent from rank to rank, each counted once for every rank that it goes to.
     */
    int64_t tokens_moved;
    /**
     * Keys that would be moved if every rank fetched all keys that it does not own, as all-gather does.
     */
    int64_t tokens_all_gather;
    /**
     * Largest number of keys that one rank receives.
     */
    int64_t tokens_received_max;
    /**
     * Largest number of keys that one rank sends.
     */
    int64_t tokens_sent_max;
    /**
     * Tokens of a chunk.
     */
    int64_t chunk_size;
    /**
     * Queries that travel in a forward pass, each counted once for every rank that it goes to; as many outputs come back.
     * 0 unless config.qo_comm is set and saves bytes.
     */
    int64_t queries_moved;
    /**
     * Bytes of k and v in a forward pass; with hierarchical_comm those that are passed on inside a host count again.
     */
    int64_t bytes_keys;
    /**
     * Bytes of q in a forward pass.
     */
    int64_t bytes_queries;
    /**
     * Bytes of out and lse that come home in a forward pass.
     */
    int64_t bytes_outputs;
    /**
     * Bytes that a forward pass moves: the three above.
     */
    int64_t bytes_forward;
    /**
     * Bytes that a backward pass moves, counted likewise.
     */
    int64_t bytes_backward;
    /**
     * Bytes that a forward pass would move on the same placement if only keys travelled; bytes_forward is never more.
     */
    int64_t bytes_forward_keys_only;
    /**
     * The same of a backward pass.
     */
    int64_t bytes_backward_keys_only;
    /**
     * Stages of the forward pass, the host stage included.
     */
    int64_t stages_forward;
    /**
     * Stages of the backward pass, likewise.
     */
    int64_t stages_backward;
    /**
     * Predicted time of the forward pass on the slowest rank, in nanoseconds, by the config's rates.
     */
    int64_t forward_ns;
    /**
     * The same of the backward pass.
     */
    int64_t backward_ns;
    /**
     * Keys that cross from host to host in a forward pass: each counted once for every rank that it goes to, or with
     * hierarchical_comm once for every host. -1 while no mesh says which ranks share a host (magi_comm_set_mesh).
     */
    int64_t tokens_inter_host;
    /**
     * Keys that go from rank to rank inside hosts, with hierarchical_comm those too that came from another host before.
     * -1 likewise.
     */
    int64_t tokens_intra_host;
} magi_key_stats;

/**
 * What a plan comes to for one rank.
 */
typedef struct magi_rank_stats {
    /**
     * sizeof(magi_rank_stats), set by the caller.
     */
    size_t size;
    /**
     * Cells that the rank computes.
     */
    int64_t area;
    /**
     * Query tokens that it owns.
     */
    int64_t tokens_q;
    /**
     * Key tokens that it owns.
     */
    int64_t tokens_k;
    /**
     * Keys that it sends, each counted once for every rank that it goes to.
     */
    int64_t tokens_sent;
    /**
     * Keys that it receives.
     */
    int64_t tokens_received;
    /**
     * Queries that it sends in a forward pass, each counted once for every rank that it goes to; their outputs come back.
     */
    int64_t queries_sent;
    /**
     * Queries that it receives in a forward pass.
     */
    int64_t queries_received;
    /**
     * Bytes that it sends in a forward pass, with hierarchical_comm those too that it passes on.
     */
    int64_t bytes_sent;
    /**
     * Bytes that it receives in a forward pass, with hierarchical_comm those too that it only passes on.
     */
    int64_t bytes_received;
    /**
     * Predicted time of its forward pass, in nanoseconds, by the config's rates.
     */
    int64_t forward_ns;
    /**
     * The same of its backward pass.
     */
    int64_t backward_ns;
    /**
     * How much of forward_ns it computes nothing.
     */
    int64_t forward_wait_ns;
    /**
     * How much of backward_ns it computes nothing.
     */
    int64_t backward_wait_ns;
    /**
     * Keys that it sends to ranks of other hosts; -1 while no mesh says which those are (magi_comm_set_mesh).
     */
    int64_t tokens_sent_inter_host;
    /**
     * Keys that it sends to ranks of its host, with hierarchical_comm those too that it passes on; -1 likewise.
     */
    int64_t tokens_sent_intra_host;
    /**
     * Keys that it receives from other hosts, with hierarchical_comm on behalf of its host; -1 likewise.
     */
    int64_t tokens_received_inter_host;
    /**
     * Keys that it receives from ranks of its host; -1 likewise.
     */
    int64_t tokens_received_intra_host;
} magi_rank_stats;

/**
 * One stage of one rank. Token counts are of keys; times are predicted by the config's rates, in nanoseconds from the
 * start of the pass, and end where they start when there is nothing to do.
 */
typedef struct magi_stage_stats {
    /**
     * sizeof(magi_stage_stats), set by the caller.
     */
    size_t size;
    /**
     * Cells that the rank computes in the stage.
     */
    int64_t area;
    /**
     * Keys that it receives for it.
     */
    int64_t tokens_received;
    /**
     * Keys that it sends for the same stage of others, each counted once for every rank that it goes to.
     */
    int64_t tokens_sent;
    /**
     * Its keys, and queries of other ranks, start to come in.
     */
    int64_t fetch_start_ns;
    /**
     * They are there.
     */
    int64_t fetch_end_ns;
    /**
     * Its cells start to be computed.
     */
    int64_t compute_start_ns;
    /**
     * They are computed.
     */
    int64_t compute_end_ns;
    /**
     * Backward: the gradients of its keys start to go back. Where queries travel: results of its queries too, also forward.
     */
    int64_t reduce_start_ns;
    /**
     * They are back.
     */
    int64_t reduce_end_ns;
    /**
     * How long the rank computes nothing before the stage.
     */
    int64_t wait_ns;
    /**
     * Queries of other ranks that it receives for it; 0 unless queries travel.
     */
    int64_t queries_received;
    /**
     * Queries that it sends for the same stage of others, each counted once for every rank that it goes to.
     */
    int64_t queries_sent;
} magi_stage_stats;

/**
 * One stage of the last measured call of a pass on this rank, in nanoseconds from the start of the call's work. Times end
 * where they start when there was nothing to do. On a CUDA device they are those of events on the streams; in host memory
 * those of the host's clock, where a transfer ends when this rank has taken what came in.
 */
typedef struct magi_stage_times {
    /**
     * sizeof(magi_stage_times), set by the caller.
     */
    size_t size;
    /**
     * Its fetch has what it needs, and the transfers before it are over. Includes waiting for ranks that are late.
     */
    int64_t fetch_start_ns;
    /**
     * Its keys, and queries of others, are there.
     */
    int64_t fetch_end_ns;
    /**
     * Its kernels begin.
     */
    int64_t compute_start_ns;
    /**
     * They have ended.
     */
    int64_t compute_end_ns;
    /**
     * Backward: its gradients start to go back. Where queries travel: results of its queries too, also forward.
     */
    int64_t reduce_start_ns;
    /**
     * Those of the other ranks are there, to be added.
     */
    int64_t reduce_end_ns;
    /**
     * How long nothing was computed because of its fetch: the caller's stream stood still.
     */
    int64_t fetch_wait_ns;
    /**
     * How long nothing was computed because of its reduction.
     */
    int64_t reduce_wait_ns;
    /**
     * The whole call, from the start of its work to its end; the same in every stage. The waits of all stages, divided by it,
     * are the share of communication that computing did not hide.
     */
    int64_t pass_ns;
} magi_stage_times;

/**
 * Arguments of magi_calc_attn_forward. Start from MAGI_FORWARD_ARGS_INIT. "acc" is the accumulator type: f64 for f64
 * tensors, else f32.
 */
typedef struct magi_forward_args {
    /**
     * sizeof(magi_forward_args).
     */
    size_t size;
    /**
     * `[local q tokens, heads_q, head_dim]`.
     */
    const struct magi_tensor *q;
    /**
     * `[local k tokens, heads_kv, head_dim]`.
     */
    const struct magi_tensor *k;
    /**
     * `[local k tokens, heads_kv, head_dim_v]`.
     */
    const struct magi_tensor *v;
    /**
     * NULL, or f32 `[s, heads_q]` shared by all queries (the same on every rank), or f32 `[local q tokens, s, heads_q]`;
     * 1 to 8 sinks. A sink is a key of value 0 whose logit is given, neither scaled nor capped.
     */
    const struct magi_tensor *sink;
    /**
     * Factor on q . k; 0 means 1 / sqrt(head_dim).
     */
    double softmax_scale;
    /**
     * Logits become softcap * tanh(logit / softcap); 0 leaves them. Else at least 1e-100.
     */
    double softcap;
    /**
     * Output `[local q tokens, heads_q, head_dim_v]`, in the input dtype or acc. Rows that see nothing are 0.
     */
    const struct magi_tensor *out;
    /**
     * Output acc `[local q tokens, heads_q]`, natural logarithm, sink included, -inf for rows that see nothing; may be
     * NULL. Backward needs it.
     */
    const struct magi_tensor *lse;
    /**
     * Output f32 `[heads_q]`: largest scaled and capped logit over all ranks, sink excluded, -inf if there is none; may
     * be NULL, on all ranks or on none.
     */
    const struct magi_tensor *max_logits;
} magi_forward_args;

/**
 * Arguments of magi_calc_attn_backward. Start from MAGI_BACKWARD_ARGS_INIT. "acc" is the accumulator type: f64 for f64
 * tensors, else f32.
 */
typedef struct magi_backward_args {
    /**
     * sizeof(magi_backward_args).
     */
    size_t size;
    /**
     * As in forward.
     */
    const struct magi_tensor *q;
    /**
     * As in forward.
     */
    const struct magi_tensor *k;
    /**
     * As in forward.
     */
    const struct magi_tensor *v;
    /**
     * As in forward.
     */
    const struct magi_tensor *sink;
    /**
     * What forward returned, in the input dtype or acc.
     */
    const struct magi_tensor *out;
    /**
     * What forward returned.
     */
    const struct magi_tensor *lse;
    /**
     * Gradient of out, `[local q tokens, heads_q, head_dim_v]`, input dtype.
     */
    const struct magi_tensor *dout;
    /**
     * As in forward.
     */
    double softmax_scale;
    /**
     * As in forward.
     */
    double softcap;
    /**
     * Output like q, in the input dtype or acc.
     */
    const struct magi_tensor *dq;
    /**
     * Output like k, in the input dtype or acc.
     */
    const struct magi_tensor *dk;
    /**
     * Output like v, in the input dtype or acc.
     */
    const struct magi_tensor *dv;
    /**
     * Output like sink, in acc; NULL exactly when sink is NULL. For a shared sink this rank's part of the sum over
     * queries, reduced over ranks as the key's config says.
     */
    const struct magi_tensor *dsink;
    /**
     * MAGI_ACCUMULATE_*: outputs that are added to instead of overwritten.
     */
    uint32_t flags;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} magi_backward_args;

/**
 * How one device computes, beside the tensors. Start from MAGI_FLEX_OPTIONS_INIT.
 */
typedef struct magi_flex_options {
    /**
     * sizeof(magi_flex_options).
     */
    size_t size;
    /**
     * NULL with a mask; without one i32 `[n, 2]` query ranges on the tensors' device. Ranges are clamped to the totals
     * before a type's diagonals are laid through their corners; a cell that is covered twice counts twice. On a CUDA device
     * the fast kernels alone take them: the lists are read there, in the order of the stream, so they may change
     * between calls and between replays of a graph.
     */
    const struct magi_tensor *q_ranges;
    /**
     * NULL with a mask; without one i32 `[n, 2]` key ranges.
     */
    const struct magi_tensor *k_ranges;
    /**
     * NULL with a mask; without one i32 `[n]`, each a magi_mask_type.
     */
    const struct magi_tensor *mask_types;
    /**
     * Workspace of at least the queried size, aligned to 256 bytes, sharing no memory with any tensor; NULL when that is 0.
     */
    void *workspace;
    /**
     * Bytes of workspace.
     */
    size_t workspace_size;
    /**
     * A magi_backend.
     */
    int32_t backend;
    /**
     * 0 or 1: the same bits on every run. Of backward by the fast kernels of a CUDA device, which then compute dq apart from
     * dk and dv, 7 products for 5; without it the last bits of dq may differ. Everything else gives them always.
     */
    int32_t deterministic;
    /**
     * Multiprocessors left to others; 0 on the CPU.
     */
    int32_t sm_margin;
    /**
     * 0 or 1, forward only: out (in acc) and lse hold an earlier result, into which this one is merged. Not with a sink.
     */
    int32_t accumulate;
    /**
     * Ranges on a CUDA device: room for this many pairs of a tile and a range that meet, tiles being of queries in forward,
     * of keys in backward, and also of queries in deterministic backward. 0 for the default: tiles + 4 n.
     */
    int64_t max_items;
} magi_flex_options;

/**
 * A run of rows that goes to, or comes from, one rank.
 */
typedef struct magi_group_piece {
    /**
     * Rows: of the local tensors in a send, of the received tensors in a receive.
     */
    struct magi_range rows;
    /**
     * The other rank; may be this rank.
     */
    int32_t peer;
    /**
     * Must be 0.
     */
    int32_t reserved;
} magi_group_piece;

/**
 * What the rows of one tensor of a group look like, whatever their shape.
 */
typedef struct magi_group_tensor {
    /**
     * Elements of a row: the product of all dimensions but the first; 1 or more.
     */
    int64_t row_elements;
    /**
     * A magi_dtype: what travels.
     */
    int32_t dtype;
    /**
     * Must be 0.
     */
    int32_t reserved;
} magi_group_tensor;

/**
 * What one rank sends and receives in a group. Start from MAGI_GROUP_ARGS_INIT.
 *
 * Between two ranks the k-th piece sent is the k-th piece received, and has as many rows; pieces without rows do not count.
 * Pieces of different ranks may stand in any order.
 */
typedef struct magi_group_args {
    /**
     * sizeof(magi_group_args).
     */
    size_t size;
    /**
     * Rows (shape[0]) of the local tensors.
     */
    int64_t local_rows;
    /**
     * Rows of the received tensors.
     */
    int64_t received_rows;
    /**
     * `[n_sends]`: local rows that go out. A row may go to any number of ranks, and to one of them more than once.
     */
    const struct magi_group_piece *sends;
    /**
     * Number of sends.
     */
    size_t n_sends;
    /**
     * `[n_receives]`: received rows that come in. No two may meet.
     */
    const struct magi_group_piece *receives;
    /**
     * Number of receives.
     */
    size_t n_receives;
    /**
     * `[n_tensors]`: what travels together, such as k and v; the same on every rank.
     */
    const struct magi_group_tensor *tensors;
    /**
     * Number of tensors, 1 to 64.
     */
    size_t n_tensors;
    /**
     * MAGI_GROUP_*. MAGI_GROUP_REDUCE on every rank or on none.
     */
    uint32_t flags;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} magi_group_args;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the library that was loaded, as one number to compare with `MAGI_VERSION`.
 *
 * Thread-safe; never fails.
 */
int32_t magi_version(void);

/**
 * Version of the library that was loaded, as text such as "0.1.0". Static: never freed.
 *
 * Thread-safe; never fails.
 */
const char *magi_version_string(void);

/**
 * A few words for `code`, in a static string; "unknown status" for a number that is none.
 *
 * Any thread.
 */
const char *magi_status_string(int32_t code);

/**
 * The message of the last call on this thread that did not return MAGI_STATUS_OK: function, parameter, value and what
 * would have been accepted. "" before the first. Good until the next failing call on this thread.
 *
 * Any thread.
 */
const char *magi_last_error_message(void);

/**
 * Sends log lines of at most `level` (a magi_log_level) to `callback`, or to stderr when it is NULL. Starts off.
 *
 * Any thread. Returns when no call of the previous callback is running.
 */
magi_status magi_log_set_callback(magi_log_callback callback,
                                  void *userdata,
                                  int32_t level);

/**
 * Describes `data` as a dense row-major host tensor of `ndim` dimensions. Nothing is read or allocated.
 *
 * `shape`: `[ndim]`. Errors: NULL_POINTER, INVALID_ENUM (dtype), SHAPE_MISMATCH (ndim outside 1 to 8, a negative
 * extent, more elements than memory holds). Any thread.
 *
 * # Safety
 * `shape` must point to `ndim` integers, `tensor` to a magi_tensor.
 */
magi_status magi_tensor_init(void *data,
                             int32_t dtype,
                             int32_t ndim,
                             const int64_t *shape,
                             struct magi_tensor *tensor);

/**
 * Fills `config` with the defaults overlaid by the environment, which is read once per process.
 *
 * `size`: sizeof(magi_config). Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ENVIRONMENT (a variable that does not
 * parse). Any thread.
 *
 * # Safety
 * `config` must point to `size` writable bytes.
 */
magi_status magi_config_init(struct magi_config *config,
                             size_t size);

/**
 * Number of environment variables that the library knows. Errors: NULL_POINTER. Any thread.
 *
 * # Safety
 * `count` must point to a size_t.
 */
magi_status magi_env_count(size_t *count);

/**
 * Fills `variable`, whose `size` the caller has set, with variable `index`, 0 to count - 1.
 *
 * Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT. Any thread.
 *
 * # Safety
 * `variable` must point to a magi_env_variable.
 */
magi_status magi_env_get(size_t index, struct magi_env_variable *variable);

/**
 * Makes the ranks of a communicator inside this process: host memory, no GPU.
 *
 * `world_size`: 1 to 64. `comms`: `[world_size]`, each to be used by a thread of its own (collectives block) and to be
 * destroyed by magi_comm_destroy. Waits end after 300 s unless magi_comm_set_timeout says otherwise.
 * Errors: NULL_POINTER, INVALID_ARGUMENT. Any thread; not collective.
 *
 * # Safety
 * `comms` must have room for `world_size` pointers.
 */
magi_status magi_comm_create_local(int32_t world_size,
                                   struct magi_comm **comms);

/**
 * Runs `run` for ranks 0 to world_size - 1, each on a thread of its own with a communicator of its own, and returns the
 * first error of any rank. A rank that returns an error, or panics, wakes the others with MAGI_STATUS_COMM_FAILED.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT, RESOURCE_EXHAUSTED (a thread was refused), and whatever a rank returned.
 * Any thread; waits for all ranks.
 *
 * # Safety
 * `run` must be callable with `userdata` from world_size threads at once, and must not unwind.
 */
magi_status magi_local_run(int32_t world_size,
                           magi_local_fn run,
                           void *userdata);

/**
 * This handle's rank, 0 to world size - 1. Errors: NULL_POINTER, POISONED. Any thread.
 *
 * # Safety
 * `rank` must point to an int32_t.
 */
magi_status magi_comm_rank(const struct magi_comm *comm, int32_t *rank);

/**
 * Number of ranks. Errors: NULL_POINTER, POISONED. Any thread.
 *
 * # Safety
 * `size` must point to an int32_t.
 */
magi_status magi_comm_size(const struct magi_comm *comm, int32_t *size);

/**
 * Longest time that a call of this rank waits for a peer, in milliseconds, 1 to 86,400,000; 300,000 at first.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT, POISONED. Any thread; holds for waits that start later.
 */
magi_status magi_comm_set_timeout(const struct magi_comm *comm, int64_t milliseconds);

/**
 * Says how ranks lie on hosts: rank r is number r % intra_size on host r / intra_size. Keys and group plans that are made
 * later with config.hierarchical_comm then move each row to a host once and fan it out there. The same on every rank.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT (the sizes do not multiply to the number of ranks), POISONED, COMM_DESTROYED. Any
 * thread; not collective.
 */
magi_status magi_comm_set_mesh(const struct magi_comm *comm,
                               int32_t inter_size,
                               int32_t intra_size);

/**
 * Splits the communicator by the mesh of magi_comm_set_mesh: `*inter` becomes the communicator of the ranks that have this
 * one's number on every host, by host, and `*intra` that of the ranks of this one's host. Both are handles of their own, to
 * be destroyed, with the timeout of `comm`, which stays as it is.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT (the sizes do not multiply to the number of ranks, or ranks gave different ones),
 * POISONED, HANDLE_BUSY, COMM_DESTROYED, those of waiting for ranks. Collective; takes turns.
 *
 * # Safety
 * `inter` and `intra` must each point to a pointer.
 */
magi_status magi_comm_split_mesh(const struct magi_comm *comm,
                                 int32_t inter_size,
                                 int32_t intra_size,
                                 struct magi_comm **inter,
                                 struct magi_comm **intra);

/**
 * Where this rank's tensors lie: a magi_device_type and the index of the device, 0 on the CPU.
 *
 * Errors: NULL_POINTER, POISONED. Any thread.
 *
 * # Safety
 * `device_type` and `device_index` must each point to an int32_t.
 */
magi_status magi_comm_device(const struct magi_comm *comm, int32_t *device_type, int32_t *device_index);

/**
 * Bytes that this rank has sent to other ranks, and received from them, in exchanges since the communicator was made:
 * what keys, movement and group collectives move, counted when it starts. A forward pass on a key adds bytes_sent and
 * bytes_received of its magi_rank_stats, and 4 bytes a query head for every other rank if max_logits is asked for on a CUDA
 * device.
 *
 * Errors: NULL_POINTER, POISONED. Any thread.
 *
 * # Safety
 * `sent` and `received` must each point to an int64_t.
 */
magi_status magi_comm_traffic(const struct magi_comm *comm,
                              int64_t *sent,
                              int64_t *received);

/**
 * MAGI_STATUS_OK while the communicator is good, else what ended it, which magi_last_error_message then explains.
 * Any thread at any time.
 */
magi_status magi_comm_async_error(const struct magi_comm *comm);

/**
 * Ends the communicator: every rank's running and later calls return MAGI_STATUS_ABORTED with `reason` (may be NULL).
 * Always returns, and does nothing to a communicator that has ended. Any thread at any time.
 *
 * # Safety
 * `reason` must be NULL or a string that ends with a zero byte.
 */
magi_status magi_comm_abort(const struct magi_comm *comm,
                            const char *reason);

/**
 * Frees the handle. Later calls on its keys return MAGI_STATUS_COMM_DESTROYED; peers that wait for it get
 * MAGI_STATUS_COMM_FAILED. NULL does nothing. Not while another call on the handle runs.
 */
void magi_comm_destroy(struct magi_comm *comm);

/**
 * Makes an id for a new communicator. The process listens for the ranks on a TCP port of the system's choice, and must stay
 * until they have destroyed the communicator: so let a rank make the id.
 *
 * Errors: NULL_POINTER, NOT_SUPPORTED (no NCCL; the message says where it was looked for), RESOURCE_EXHAUSTED. Any thread; not
 * collective.
 *
 * # Safety
 * `id` must point to a magi_unique_id.
 */
magi_status magi_unique_id_create(struct magi_unique_id *id);

/**
 * Makes rank `rank` of the `world_size` ranks that have the same `id`, on CUDA device `device`. Waits until all are there.
 * Ranks may be threads of one process or processes, on one host or many, each with a device of its own.
 *
 * `id`: of magi_unique_id_create, for this communicator alone. `config`: may be NULL. `comm`: to be destroyed by
 * magi_comm_destroy. Errors: NULL_POINTER, INVALID_ARGUMENT, STRUCT_SIZE; NO_DEVICE; NOT_SUPPORTED (no NCCL); TIMEOUT (the
 * message names who did not come); COMM_FAILED (what does not fit, or what another rank failed with); RESOURCE_EXHAUSTED.
 * Collective; any thread.
 *
 * # Safety
 * `id` must point to a magi_unique_id, `config` be NULL or point to a magi_nccl_config, `comm` point to a pointer.
 */
magi_status magi_comm_create_nccl(const struct magi_unique_id *id,
                                  int32_t rank,
                                  int32_t world_size,
                                  int32_t device,
                                  const struct magi_nccl_config *config,
                                  struct magi_comm **comm);

/**
 * Makes the communicator of all processes that torchrun, mpirun or srun started, this one among them, and waits until all
 * are there. Rank and number of ranks are those of the launcher; the device is the process's number on its host, or the only
 * one that it sees. Rank 0 listens on the host of MASTER_ADDR, port MASTER_PORT + 1; docs/environment.md tells what holds
 * where they are not set.
 *
 * `config`: may be NULL. Errors: INVALID_ENVIRONMENT (what is missing or does not parse), and those of magi_comm_create_nccl.
 * Collective; any thread.
 *
 * # Safety
 * `config` must be NULL or point to a magi_nccl_config, `comm` point to a pointer.
 */
magi_status magi_comm_create_from_env(const struct magi_nccl_config *config,
                                      struct magi_comm **comm);

/**
 * Makes a communicator over an ncclComm_t that the program, or a framework, has: same ranks, same devices. It stays its
 * owner's, who must keep it until magi_comm_destroy, and use it from no other thread while a call on `comm` runs; work of both
 * may be under way at once only if every rank issues it in the same order.
 *
 * `nccl_comm`: of the NCCL that this library finds first, which is the one the process has loaded. `config`: may be NULL.
 * Errors: NULL_POINTER, INVALID_ARGUMENT, STRUCT_SIZE, NOT_SUPPORTED (no NCCL), NO_DEVICE, TIMEOUT, COMM_FAILED, CUDA_FAILED.
 * Collective over the ranks of `nccl_comm`; any thread. After an error `nccl_comm` may have been used by some of its ranks.
 *
 * # Safety
 * `nccl_comm` must be an ncclComm_t, `config` NULL or point to a magi_nccl_config, `comm` point to a pointer.
 */
magi_status magi_comm_adopt_nccl(void *nccl_comm,
                                 const struct magi_nccl_config *config,
                                 struct magi_comm **comm);

/**
 * The mask whose visible cells are those of `slices`, over `total_q` queries and `total_k` keys (0 to 2^31).
 *
 * `slices`: `[n]`; they may share rows and columns and may be empty, in any order; NULL with n = 0 is the mask that
 * shows nothing. Errors: NULL_POINTER, INVALID_RANGE (naming the slice), INVALID_ENUM, MASK_OVERLAP (naming two slices
 * and a cell that both cover), INVALID_ARGUMENT. Any thread. Destroy with magi_mask_destroy.
 *
 * # Safety
 * `slices` must point to `n` slices, `mask` to a pointer.
 */
magi_status magi_mask_create(const struct magi_slice *slices,
                             size_t n,
                             int64_t total_q,
                             int64_t total_k,
                             struct magi_mask **mask);

/**
 * The mask of documents packed one after the other: document i owns queries `[cu_seqlens_q[i], cu_seqlens_q[i+1])` and keys
 * `[cu_seqlens_k[i], cu_seqlens_k[i+1])`, and sees nothing of the others.
 *
 * `cu_seqlens_q`, `cu_seqlens_k`: `[n]`, n >= 1, from 0 ascending; the last are the totals. `causal` (0 or 1) aligns bottom-right.
 * A query sees `window_left` keys before its diagonal and `window_right` after it (-1: all of them; with `causal`
 * none after it), and the first `global_window` keys of its document besides.
 * Errors: NULL_POINTER, INVALID_ARGUMENT, INVALID_RANGE. Any thread. Destroy with magi_mask_destroy.
 *
 * # Safety
 * `cu_seqlens_q` and `cu_seqlens_k` must point to `n` integers each, `mask` to a pointer.
 */
magi_status magi_mask_create_from_cu_seqlens(const int64_t *cu_seqlens_q,
                                             const int64_t *cu_seqlens_k,
                                             size_t n,
                                             int32_t causal,
                                             int64_t window_left,
                                             int64_t window_right,
                                             int64_t global_window,
                                             struct magi_mask **mask);

/**
 * The mask of one sequence in which each query sees a window of keys: as magi_mask_create_from_cu_seqlens with one
 * document of `total_q` queries and `total_k` keys. A causal window of w keys is (w - 1, 0).
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT, INVALID_RANGE. Any thread. Destroy with magi_mask_destroy.
 *
 * # Safety
 * `mask` must point to a pointer.
 */
magi_status magi_mask_create_from_sliding_window(int64_t total_q,
                                                 int64_t total_k,
                                                 int64_t window_left,
                                                 int64_t window_right,
                                                 int64_t global_window,
                                                 struct magi_mask **mask);

/**
 * The mask in which each token sees its own block of `block` tokens and all blocks before it, in each document.
 *
 * `cu_seqlens`: `[n]`, n >= 1, from 0 ascending; the last is the total. Errors: NULL_POINTER, INVALID_ARGUMENT,
 * INVALID_RANGE. Any thread. Destroy with magi_mask_destroy.
 *
 * # Safety
 * `cu_seqlens` must point to `n` integers, `mask` to a pointer.
 */
magi_status magi_mask_create_from_block_causal(const int64_t *cu_seqlens,
                                               size_t n,
                                               int64_t block,
                                               struct magi_mask **mask);

/**
 * Totals of a mask: query tokens and key tokens. Either pointer may be NULL. Errors: NULL_POINTER. Any thread.
 *
 * # Safety
 * `total_q` and `total_k` must be NULL or point to an int64_t each.
 */
magi_status magi_mask_totals(const struct magi_mask *mask,
                             int64_t *total_q,
                             int64_t *total_k);

/**
 * Number of visible (query, key) cells. Errors: NULL_POINTER. Any thread.
 *
 * # Safety
 * `area` must point to an int64_t.
 */
magi_status magi_mask_area(const struct magi_mask *mask, int64_t *area);

/**
 * Prints the mask as typed slices that cover the same cells, each once.
 *
 * `slices`: room for `*count`, or NULL to ask for the number; `*count` becomes the number there is.
 * Errors: NULL_POINTER, BUFFER_TOO_SMALL. Any thread.
 *
 * # Safety
 * `slices` must be NULL or have room for `*count` slices; `count` must point to a size_t.
 */
magi_status magi_mask_slices(const struct magi_mask *mask, struct magi_slice *slices, size_t *count);

/**
 * Draws the mask as SVG: slices coloured by type, or a grid of shades when there are too many to draw each. At most some
 * hundred kilobytes; follows the viewer's light or dark scheme.
 *
 * `svg`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
 * Errors: NULL_POINTER, BUFFER_TOO_SMALL. Any thread.
 *
 * # Safety
 * `svg` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
 */
magi_status magi_mask_draw(const struct magi_mask *mask,
                           char *svg,
                           size_t *size);

/**
 * Frees the handle. Keys made from it stay good. A mask that was used on a CUDA device waits for all that is under way there, so
 * do not destroy one while a stream of that device is captured. NULL does nothing.
 */
void magi_mask_destroy(struct magi_mask *mask);

/**
 * The mask of a bit matrix `[total_q, row_bytes]`: query q sees key k where bit k % 8, least significant first, of byte
 * `q * row_bytes + k / 8` is set. It is covered exactly by few slices, found in one pass over the matrix.
 *
 * `row_bytes`: total_k / 8, rounded up, or more; bits beyond total_k are not looked at. `bits` may be NULL when the matrix
 * has no bytes. Errors: NULL_POINTER, INVALID_RANGE, INVALID_ARGUMENT (row_bytes; more than 2^20 slices are needed).
 * Any thread. Destroy with magi_mask_destroy.
 *
 * # Safety
 * `bits` must point to `total_q * row_bytes` bytes, `mask` to a pointer.
 */
magi_status magi_mask_create_from_dense(const uint8_t *bits,
                                        size_t row_bytes,
                                        int64_t total_q,
                                        int64_t total_k,
                                        struct magi_mask **mask);

/**
 * The mask of sequences that share prefixes: node i continues node `parents[i]`, or starts a tree of its own where that
 * is -1. A token sees all tokens of its node's ancestors, and its own node up to itself. Nodes lie one after the other,
 * node i with `lengths[i]` tokens; in depth-first order there is one slice a node.
 *
 * `parents`, `lengths`: `[n]`, parents before children. Errors: NULL_POINTER, INVALID_ARGUMENT (a parent; an order that
 * needs more than 2^20 slices), INVALID_RANGE (a length). Any thread. Destroy with magi_mask_destroy.
 *
 * # Safety
 * `parents` and `lengths` must point to `n` integers each, `mask` to a pointer.
 */
magi_status magi_mask_create_from_prefix_tree(const int64_t *parents,
                                              const int64_t *lengths,
                                              size_t n,
                                              struct magi_mask **mask);

/**
 * The mask of one question of `prefix` tokens and `n` answers to it, one after the other, of `answers[i]` tokens: answers see
 * the question and themselves, each token causally.
 *
 * `answers`: `[n]`. Errors: NULL_POINTER, INVALID_RANGE (naming lengths[0] for the question, lengths[i + 1] for answer i).
 * Any thread. Destroy with magi_mask_destroy.
 *
 * # Safety
 * `answers` must point to `n` integers, `mask` to a pointer.
 */
magi_status magi_mask_create_from_share_question(int64_t prefix,
                                                 const int64_t *answers,
                                                 size_t n,
                                                 struct magi_mask **mask);

/**
 * The mask of a video of `frames` frames with `tokens_per_frame` tokens each: a token sees all tokens of its own frame and
 * of `window` frames on either side (-1: all), with `causal` (0 or 1) only of those before; with `first_frame` (0 or 1)
 * also those of the first frame, however far.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT (frames: 0 to 2^20), INVALID_RANGE (too many tokens). Any thread. Destroy with
 * magi_mask_destroy.
 *
 * # Safety
 * `mask` must point to a pointer.
 */
magi_status magi_mask_create_from_video(int64_t frames,
                                        int64_t tokens_per_frame,
                                        int64_t window,
                                        int32_t first_frame,
                                        int32_t causal,
                                        struct magi_mask **mask);

/**
 * Plans `mask` for the ranks of `comm`. Every rank computes the same plan by itself: no communication here.
 *
 * `config`: NULL for defaults overlaid by the environment. Equal arguments give the plan that the communicator has in
 * its cache. Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT, INVALID_ENUM, DTYPE_MISMATCH, INVALID_ENVIRONMENT,
 * HANDLE_BUSY, POISONED, OUT_OF_MEMORY, and what ended the communicator. One call at a time on `comm`; not collective, but
 * every rank has to make its keys in the same order. Destroy with magi_key_destroy.
 *
 * # Safety
 * `shape` must point to a magi_attn_shape, `config` to a magi_config or be NULL, `key` to a pointer.
 */
magi_status magi_key_create(const struct magi_comm *comm,
                            const struct magi_mask *mask,
                            const struct magi_attn_shape *shape,
                            const struct magi_config *config,
                            struct magi_key **key);

/**
 * Compares plans with all ranks and takes workspace, so that later calls neither allocate nor compare. The first
 * collective call on a key does it when this was not called. On a CUDA device it also loads kernels, which it compiles where
 * that was not done ahead of time, and uploads tile lists for calls without softcap and max_logits; the first call with
 * one of them adds its own. Not while `stream` is captured.
 *
 * Errors: NULL_POINTER, PLAN_MISMATCH (on every rank, naming ranks and hashes), OUT_OF_MEMORY (on every rank), HANDLE_BUSY,
 * COMM_DESTROYED, POISONED, COMM_FAILED, TIMEOUT, ABORTED; on a CUDA device also DEVICE_MISMATCH (a stream of another one),
 * NOT_SUPPORTED (config.backend is FFA and cannot, or a captured stream), CUDA_FAILED, COMPILE_FAILED (the other ranks get
 * OUT_OF_MEMORY, which names this one). Collective.
 */
magi_status magi_key_prepare(const struct magi_key *key,
                             magi_stream stream);

/**
 * Number of tokens of `side` (a magi_side) that this rank owns. Errors: NULL_POINTER, INVALID_ENUM, COMM_DESTROYED,
 * POISONED. Any thread.
 *
 * # Safety
 * `tokens` must point to an int64_t.
 */
magi_status magi_key_local_tokens(const struct magi_key *key,
                                  int32_t side,
                                  int64_t *tokens);

/**
 * The global position of each local token of `side`, ascending: row i of a local tensor is token `positions[i]`.
 *
 * `positions`: room for `*count`, or NULL to ask for the number. Errors: NULL_POINTER, INVALID_ENUM, BUFFER_TOO_SMALL,
 * COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `positions` must be NULL or have room for `*count` integers; `count` must point to a size_t.
 */
magi_status magi_key_position_ids(const struct magi_key *key,
                                  int32_t side,
                                  int64_t *positions,
                                  size_t *count);

/**
 * Fills `stats`, whose `size` the caller has set.
 *
 * Errors: NULL_POINTER, STRUCT_SIZE, COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `stats` must point to a magi_key_stats.
 */
magi_status magi_key_get_stats(const struct magi_key *key, struct magi_key_stats *stats);

/**
 * Fills `stats`, whose `size` the caller has set, with the figures of `rank`.
 *
 * Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT, COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `stats` must point to a magi_rank_stats.
 */
magi_status magi_key_get_rank_stats(const struct magi_key *key, int32_t rank, struct magi_rank_stats *stats);

/**
 * Bytes of workspace that forward and backward of this key use. The communicator holds the largest of its keys. On a CUDA
 * device what kernels work in is part of it, so the first call loads kernels and uploads the key's tile lists, as
 * magi_key_prepare does.
 *
 * Errors: NULL_POINTER, COMM_DESTROYED, POISONED; on a CUDA device also OUT_OF_MEMORY, NOT_SUPPORTED, CUDA_FAILED,
 * COMPILE_FAILED. Any thread.
 *
 * # Safety
 * `bytes` must point to a size_t.
 */
magi_status magi_key_workspace_size(const struct magi_key *key,
                                    size_t *bytes);

/**
 * The plan's hash: equal on every rank that planned the same, on any machine.
 *
 * Errors: NULL_POINTER, COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `hash` must point to a uint64_t.
 */
magi_status magi_key_hash(const struct magi_key *key, uint64_t *hash);

/**
 * Frees the handle; the communicator may keep the plan in its cache. NULL does nothing. Not while a call on it runs.
 */
void magi_key_destroy(struct magi_key *key);

/**
 * Fills `stats`, whose `size` the caller has set, with the figures of `rank` in stage `stage` of `pass` (a magi_pass). Forward,
 * stage 0 is the host stage, which fetches nothing; backward, bwd_hide_tail_reduce says where it is. With a degree of 0 there is
 * one stage, which is both. magi_key_get_stats tells how many stages there are.
 *
 * Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ENUM, INVALID_ARGUMENT, COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `stats` must point to a magi_stage_stats.
 */
magi_status magi_key_get_stage_stats(const struct magi_key *key,
                                     int32_t pass,
                                     int32_t rank,
                                     int32_t stage,
                                     struct magi_stage_stats *stats);

/**
 * Fills `times`, whose `size` the caller has set, with what stage `stage` of the last call of `pass` (a magi_pass) on a key with
 * config.profile was measured to do on this rank. Keys of equal requests share a plan, and so their last call. Reductions of
 * max_logits and dsink over ranks count to no stage. A call in a graph that is being captured is not measured. Waits until the
 * device has done what was enqueued.
 *
 * Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ENUM, INVALID_ARGUMENT (stage; the key was made without config.profile; no call came
 * to its end), CUDA_FAILED, HANDLE_BUSY, COMM_DESTROYED, POISONED, and what ended the communicator. One call at a time on the
 * communicator; not collective.
 *
 * # Safety
 * `times` must point to a magi_stage_times.
 */
magi_status magi_key_get_stage_times(const struct magi_key *key,
                                     int32_t pass,
                                     int32_t stage,
                                     struct magi_stage_times *times);

/**
 * The last measured calls of both passes in the trace event format (JSON), which chrome://tracing and ui.perfetto.dev show: the
 * rank is a process with rows for what was computed, fetched and reduced; waits lie in the row of what is computed. Times start
 * with the first call. To see several ranks side by side, join their lists `traceEvents`; clocks of ranks are not compared.
 *
 * `json`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included. A call in between may
 * change it. Errors: NULL_POINTER, BUFFER_TOO_SMALL, and as magi_key_get_stage_times. One call at a time on the communicator;
 * not collective.
 *
 * # Safety
 * `json` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
 */
magi_status magi_key_trace(const struct magi_key *key,
                           char *json,
                           size_t *size);

/**
 * Draws the last measured calls of both passes on this rank as SVG, each above its prediction on one line of time: lanes of
 * computing, fetching and reducing, by stage; waits hatched, with their share in the caption. Follows the viewer's light or dark
 * scheme.
 *
 * `svg`: as `json` of magi_key_trace. Errors: as there. One call at a time on the communicator; not collective.
 *
 * # Safety
 * `svg` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
 */
magi_status magi_key_draw_profile(const struct magi_key *key,
                                  char *svg,
                                  size_t *size);

/**
 * Plans another mask with the same totals for tokens that lie as `key` placed them: dispatched tensors of one key fit
 * the other. For models whose layers have different masks.
 *
 * `shape`: NULL for that of `key`. `config`: NULL for that of `key`; its fields about chunks and placement have no
 * effect. Errors: as magi_key_create, and INVALID_ARGUMENT when totals differ. One call at a time on the communicator; not
 * collective, but every rank has to make its keys in the same order. Destroy with magi_key_destroy.
 *
 * # Safety
 * `shape` must be NULL or point to a magi_attn_shape, `config` be NULL or point to a magi_config, `new_key` point to a
 * pointer.
 */
magi_status magi_key_create_for_new_mask(const struct magi_key *key,
                                         const struct magi_mask *mask,
                                         const struct magi_attn_shape *shape,
                                         const struct magi_config *config,
                                         struct magi_key **new_key);

/**
 * As magi_key_create, with tokens placed by the caller: chunk i, tokens `[i, i + 1) * chunk_size` of the side (the last may
 * be short), lies on rank `owners[i]`. Counts may differ between ranks, and a rank may own nothing.
 *
 * `owners_q`: `[n_q]`, one for each chunk of the queries. `owners_k`: `[n_k]` likewise for the keys; NULL with n_k = 0 when
 * totals are equal (keys lie with the queries), or to give keys in equal contiguous shares when they are not.
 * `config`: as magi_key_create; its fields about chunks and placement have no effect. Errors: as magi_key_create, and
 * INVALID_ARGUMENT (chunk_size, owners; owners_k that differ from owners_q with equal totals). One call at a time on `comm`;
 * not collective, but every rank has to make its keys in the same order. Destroy with magi_key_destroy.
 *
 * # Safety
 * `shape` must point to a magi_attn_shape, `config` to a magi_config or be NULL, `owners_q` to `n_q` integers, `owners_k` to
 * `n_k`, `key` to a pointer.
 */
magi_status magi_key_create_with_placement(const struct magi_comm *comm,
                                           const struct magi_mask *mask,
                                           const struct magi_attn_shape *shape,
                                           const struct magi_config *config,
                                           int64_t chunk_size,
                                           const int32_t *owners_q,
                                           size_t n_q,
                                           const int32_t *owners_k,
                                           size_t n_k,
                                           struct magi_key **key);

/**
 * The key that was made last on `comm`, as a handle of its own.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT (none was made yet), COMM_DESTROYED, HANDLE_BUSY, POISONED, and what ended the
 * communicator. One call at a time on `comm`; not collective. Destroy with magi_key_destroy.
 *
 * # Safety
 * `key` must point to a pointer.
 */
magi_status magi_comm_last_key(const struct magi_comm *comm,
                               struct magi_key **key);

/**
 * Says in words who placed tokens and what other placements would come to, how evenly work is spread, what travels (also
 * between hosts and inside them, where magi_comm_set_mesh said which ranks share one), and what each stage of this rank waits
 * for, and for how long as predicted. Meant for people; the wording may change. Plans three other placements to compare with.
 *
 * `text`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
 * Errors: NULL_POINTER, BUFFER_TOO_SMALL, COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `text` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
 */
magi_status magi_key_explain(const struct magi_key *key,
                             char *text,
                             size_t *size);

/**
 * Draws the plan of all ranks as SVG: the mask coloured by the rank that computes each part, the cells of each rank, the
 * keys that go from rank to rank, those received in each stage, and the predicted times of the slowest rank and of the one
 * nearest to the mean: lanes of computing, fetching and, backward, reducing, waits hatched. At most some hundred kilobytes;
 * follows the viewer's light or dark scheme.
 *
 * `svg`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
 * Errors: NULL_POINTER, BUFFER_TOO_SMALL, COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `svg` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
 */
magi_status magi_key_draw(const struct magi_key *key,
                          char *svg,
                          size_t *size);

/**
 * Plans several masks with the same totals on one placement that is balanced for all of them together: dispatched tensors of
 * one key fit all others. For models whose layers have different masks, say full and windowed ones. Each key is in all
 * other ways as magi_key_create makes it; equal arguments give the plans that the communicator has in its cache.
 *
 * `masks`: `[n]`, 1 to 4,096. `weights`: `[n]`, each at least 1, how often a mask's area and keys count (the number of layers
 * that have it); NULL for 1 each. `config`: as magi_key_create. `keys`: `[n]`, key i for mask i; on failure none is made.
 * Errors: as magi_key_create, and INVALID_ARGUMENT (n, totals that differ, a weight below 1, weighted areas above 2^62
 * cells, weights times the longer total above 2^42). One call at a time on `comm`; not collective, but every rank has to make its keys in the same order. Destroy each
 * with magi_key_destroy.
 *
 * # Safety
 * `masks` must point to `n` masks, `weights` to `n` integers or be NULL, `shape` to a magi_attn_shape, `config` to a
 * magi_config or be NULL, `keys` to `n` pointers.
 */
magi_status magi_key_create_joint(const struct magi_comm *comm,
                                  const struct magi_mask *const *masks,
                                  const int64_t *weights,
                                  size_t n,
                                  const struct magi_attn_shape *shape,
                                  const struct magi_config *config,
                                  struct magi_key **keys);

/**
 * Picks this rank's tokens: `local_x[i] = x[position i]`. No communication.
 *
 * `x`: `[total of side, ..]`, the same on every rank; `local_x`: `[local tokens of side, ..]`, same dtype and trailing
 * shape, any strides. Errors: NULL_POINTER, INVALID_ENUM, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE,
 * DEVICE_MISMATCH, TENSOR_OVERLAP, HANDLE_BUSY, COMM_DESTROYED, POISONED. Backward: magi_dispatch_backward.
 *
 * # Safety
 * The tensors must be as magi_tensor says.
 */
magi_status magi_dispatch(const struct magi_key *key,
                          int32_t side,
                          const struct magi_tensor *x,
                          const struct magi_tensor *local_x,
                          magi_stream stream);

/**
 * Gradient of magi_dispatch: gathers every rank's `dlocal_x` `[local tokens, ..]` into `dx` `[total, ..]`, the sum over
 * ranks of what each contributed, on every rank.
 *
 * Errors: as magi_undispatch. Collective.
 *
 * # Safety
 * The tensors must be as magi_tensor says.
 */
magi_status magi_dispatch_backward(const struct magi_key *key,
                                   int32_t side,
                                   const struct magi_tensor *dlocal_x,
                                   const struct magi_tensor *dx,
                                   magi_stream stream);

/**
 * Gathers the ranks' tokens into the full tensor in global order, on every rank.
 *
 * `local_x`: `[local tokens of side, ..]`; `x`: `[total of side, ..]`, same dtype and trailing shape, any strides.
 * Errors: as magi_dispatch, and PLAN_MISMATCH, OUT_OF_MEMORY, COMM_FAILED, TIMEOUT, ABORTED. Collective.
 * Backward: magi_undispatch_backward.
 *
 * # Safety
 * The tensors must be as magi_tensor says.
 */
magi_status magi_undispatch(const struct magi_key *key,
                            int32_t side,
                            const struct magi_tensor *local_x,
                            const struct magi_tensor *x,
                            magi_stream stream);

/**
 * Gradient of magi_undispatch. With `partial` 0 every rank holds the full gradient `dx` `[total, ..]` and picks its
 * tokens, without communication. With `partial` 1 each rank holds a part of it: `dlocal_x` is the sum over ranks, added
 * in rank order in the accumulator type (f64 for f64, else f32); the dtype must be f64, f32, bf16 or f16, and the call is
 * collective.
 *
 * `dlocal_x`: `[local tokens, ..]`. Errors: as magi_undispatch, and INVALID_ARGUMENT (partial).
 *
 * # Safety
 * The tensors must be as magi_tensor says.
 */
magi_status magi_undispatch_backward(const struct magi_key *key,
                                     int32_t side,
                                     const struct magi_tensor *dx,
                                     int32_t partial,
                                     const struct magi_tensor *dlocal_x,
                                     magi_stream stream);

/**
 * From contiguous shares to the plan's layout, for tensors too large to replicate.
 *
 * `share`: this rank's share `[total / world size, ..]` of the global tensor (the first total % world size ranks hold one
 * token more); `local_x`: `[local tokens of side, ..]`, same dtype and trailing shape. Errors: as magi_undispatch.
 * Collective. It is a permutation: its gradient is magi_undispatch_sharded of the gradients.
 *
 * # Safety
 * The tensors must be as magi_tensor says.
 */
magi_status magi_dispatch_sharded(const struct magi_key *key,
                                  int32_t side,
                                  const struct magi_tensor *share,
                                  const struct magi_tensor *local_x,
                                  magi_stream stream);

/**
 * The inverse of magi_dispatch_sharded: from the plan's layout to contiguous shares. Errors: as magi_undispatch.
 * Collective. Its gradient is magi_dispatch_sharded of the gradients.
 *
 * # Safety
 * The tensors must be as magi_tensor says.
 */
magi_status magi_undispatch_sharded(const struct magi_key *key,
                                    int32_t side,
                                    const struct magi_tensor *local_x,
                                    const struct magi_tensor *share,
                                    magi_stream stream);

/**
 * Shifts tokens along the global sequence, those at the end to the front: token `(i + shift) mod valid` of the result is
 * token i of `local_x`, whichever ranks own them. Tokens from `valid` on, padding that the caller put there, stay.
 *
 * `local_x`, `local_y`: `[local tokens of side, ..]`, same dtype and trailing shape, any strides. `shift` may be negative or
 * larger than the total. `valid`: 0 to the side's total, or -1 for all; equal on all ranks, as `shift`. Errors: as
 * magi_undispatch, and INVALID_ARGUMENT. Collective. Its gradient is magi_roll of the gradients by -shift.
 *
 * # Safety
 * The tensors must be as magi_tensor says.
 */
magi_status magi_roll(const struct magi_key *key,
                      int32_t side,
                      const struct magi_tensor *local_x,
                      int64_t shift,
                      int64_t valid,
                      const struct magi_tensor *local_y,
                      magi_stream stream);

/**
 * The least number of tokens to add to `total` so that it divides evenly into chunks, equally many for each rank. Only for
 * callers who want that: nothing in this library needs it.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT. Any thread.
 *
 * # Safety
 * `pad` must point to an int64_t.
 */
magi_status magi_compute_pad_size(int64_t total,
                                  int64_t chunk_size,
                                  int32_t world_size,
                                  int64_t *pad);

/**
 * Attention of this rank's queries over all keys that they see, on whichever rank those are.
 *
 * Errors: NULL_POINTER, STRUCT_SIZE, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE, DEVICE_MISMATCH, TENSOR_OVERLAP,
 * INVALID_ARGUMENT, HANDLE_BUSY, COMM_DESTROYED, POISONED; PLAN_MISMATCH, OUT_OF_MEMORY when the key was not prepared;
 * COMM_FAILED, TIMEOUT, ABORTED; on a CUDA device NOT_SUPPORTED (config.backend is FFA and cannot compute this call, or a
 * captured stream with more than one rank), CUDA_FAILED. Collective: every rank of the key calls it, also one without
 * tokens.
 *
 * # Safety
 * `args` must be NULL or as its type says, its tensors as magi_tensor says.
 */
magi_status magi_calc_attn_forward(const struct magi_key *key,
                                   const struct magi_forward_args *args,
                                   magi_stream stream);

/**
 * Gradients of magi_calc_attn_forward for the tokens that this rank owns. Keys travel again; nothing but out and lse is
 * kept from forward.
 *
 * Errors: as magi_calc_attn_forward. Collective.
 *
 * # Safety
 * As magi_calc_attn_forward.
 */
magi_status magi_calc_attn_backward(const struct magi_key *key,
                                    const struct magi_backward_args *args,
                                    magi_stream stream);

/**
 * Attention of `args.q` over `args.k` and `args.v` as `mask` says. Shapes as in magi_forward_args, with the mask's totals
 * for the local tokens.
 *
 * With ranges on a CUDA device a type that is none, or more than `options.max_items` items, is found there: out and lse
 * become NaN (max_logits -inf), and the next call with ranges on the device returns INVALID_ENUM or BUFFER_TOO_SMALL in
 * place of computing, once.
 *
 * On a CUDA device calls with one mask may be under way at once on the 64 streams that it was called on last, and beside them the 448
 * calls that were captured last; a captured call must not run twice at the same time, as in two executable graphs of one graph.
 *
 * `mask`: NULL when `options` holds ranges. `options`: NULL for defaults. Errors: NULL_POINTER, STRUCT_SIZE,
 * INVALID_ARGUMENT, INVALID_ENUM, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE, DEVICE_MISMATCH, TENSOR_OVERLAP,
 * BUFFER_TOO_SMALL (workspace), NOT_SUPPORTED, OUT_OF_MEMORY (outputs may then be partly written). Any thread.
 *
 * # Safety
 * `args` and `options` must be NULL or as their types say, their tensors as magi_tensor says.
 */
magi_status magi_flex_flash_attn_forward(const struct magi_mask *mask,
                                         const struct magi_forward_args *args,
                                         const struct magi_flex_options *options,
                                         magi_stream stream);

/**
 * Makes what a call of magi_flex_flash_attn_forward with the same mask, options and kinds of arguments (shapes, dtypes,
 * device, which of them are NULL) needs beside its tensors: plans the mask's tiles, uploads them, loads kernels and
 * compiles those that are not compiled yet. Such calls then only enqueue, and may be captured into a CUDA graph. Without
 * it the first call does this. May allocate and wait; not while `stream` is captured. Does nothing on the CPU. For ranges on a
 * CUDA device it only loads kernels: it then holds for calls of any number of ranges.
 *
 * Tensors are checked, their memory is not touched. Errors: as magi_flex_flash_attn_forward, and COMPILE_FAILED. Any
 * thread.
 *
 * # Safety
 * As magi_flex_flash_attn_forward.
 */
magi_status magi_flex_flash_attn_forward_prepare(const struct magi_mask *mask,
                                                 const struct magi_forward_args *args,
                                                 const struct magi_flex_options *options,
                                                 magi_stream stream);

/**
 * Gradients of magi_flex_flash_attn_forward. Shapes and flags as in magi_backward_args. On a CUDA device the fast kernels
 * compute what they do in forward, except where dk and dv have two dtypes, one of them alone is added to, or both are added
 * to in bf16 or f16: that is for the textbook kernels. The workspace has f32 sums of dq where dq itself is not f32, and
 * grows with the tensors.
 *
 * With ranges on a CUDA device that cannot be taken (see forward) dq, dk and dv become NaN.
 *
 * Errors: as forward. Any thread.
 *
 * # Safety
 * As magi_flex_flash_attn_forward.
 */
magi_status magi_flex_flash_attn_backward(const struct magi_mask *mask,
                                          const struct magi_backward_args *args,
                                          const struct magi_flex_options *options,
                                          magi_stream stream);

/**
 * What magi_flex_flash_attn_forward_prepare is to forward, for magi_flex_flash_attn_backward.
 *
 * # Safety
 * As magi_flex_flash_attn_backward.
 */
magi_status magi_flex_flash_attn_backward_prepare(const struct magi_mask *mask,
                                                  const struct magi_backward_args *args,
                                                  const struct magi_flex_options *options,
                                                  magi_stream stream);

/**
 * Bytes of workspace that magi_flex_flash_attn_forward needs for `args` (data pointers are not looked at beyond NULL)
 * and `options` (NULL for defaults). On a CUDA device the first query, or prepare, for a kind of arguments loads their kernel, which
 * may have to be compiled; later ones only compute. Errors: as forward, and COMPILE_FAILED. Any thread.
 *
 * # Safety
 * As magi_flex_flash_attn_forward; `bytes` must point to a size_t.
 */
magi_status magi_flex_flash_attn_forward_workspace_size(const struct magi_forward_args *args,
                                                        const struct magi_flex_options *options,
                                                        size_t *bytes);

/**
 * Bytes of workspace that magi_flex_flash_attn_backward needs. Otherwise as the forward query.
 *
 * # Safety
 * As magi_flex_flash_attn_backward; `bytes` must point to a size_t.
 */
magi_status magi_flex_flash_attn_backward_workspace_size(const struct magi_backward_args *args,
                                                         const struct magi_flex_options *options,
                                                         size_t *bytes);

/**
 * A group of ranks that send each other rows, as this rank sees it: which of its rows go where, and where what comes in is
 * put. No communication here.
 *
 * `config`: NULL for defaults overlaid by the environment. Its allocator makes workspace; with hierarchical_comm, the same on
 * every rank, rows go over the mesh that magi_comm_set_mesh has set before: each row to another host once. Its other fields
 * have no effect.
 *
 * Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT, INVALID_ENUM, INVALID_RANGE (rows beyond their total, or received
 * twice), INVALID_ENVIRONMENT, COMM_DESTROYED, OUT_OF_MEMORY, POISONED. Any thread; not collective. Destroy with
 * magi_group_plan_destroy.
 *
 * # Safety
 * `args` must be NULL or as its type says, `config` NULL or a magi_config, `plan` point to a pointer.
 */
magi_status magi_group_plan_create(const struct magi_comm *comm,
                                   const struct magi_group_args *args,
                                   const struct magi_config *config,
                                   struct magi_group_plan **plan);

/**
 * Compares with all ranks what they send and expect, learns what passes through this rank over a mesh, and takes workspace,
 * so that later calls do none of it. The first magi_group_cast or magi_group_reduce on a plan does it when this was not
 * called.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT (stream), PLAN_MISMATCH (on every rank, naming two ranks that do not fit together),
 * OUT_OF_MEMORY (on every rank), NOT_SUPPORTED (on every rank: over a mesh more than 4,194,304 pieces leave their hosts),
 * HANDLE_BUSY, COMM_DESTROYED, POISONED, COMM_FAILED, TIMEOUT, ABORTED. Collective.
 */
magi_status magi_group_plan_prepare(const struct magi_group_plan *plan,
                                    magi_stream stream);

/**
 * Bytes of workspace that calls on this plan use. The communicator holds the largest of its keys and group plans. 0 for dense
 * tensors and no reduction, unless many small pieces go between two ranks and travel packed, or rows pass through this rank.
 *
 * Errors: NULL_POINTER, INVALID_ARGUMENT (over a mesh, before the plan is prepared), COMM_DESTROYED, POISONED. Any thread.
 *
 * # Safety
 * `bytes` must point to a size_t.
 */
magi_status magi_group_plan_workspace_size(const struct magi_group_plan *plan,
                                           size_t *bytes);

/**
 * Sends rows of `local` to the ranks that the plan names and puts what comes in into rows of `received`. Rows of `received`
 * that no piece names stay as they are.
 *
 * `local`: `[count]` tensors `[local_rows, ..]`; `received`: `[count]` tensors `[received_rows, ..]`, of the same trailing
 * shape; dtype and row elements as the plan says; dense, or any strides with MAGI_GROUP_STRIDED. `count`: the plan's number of
 * tensors. Errors: NULL_POINTER, INVALID_ARGUMENT, INVALID_ENUM, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE,
 * DEVICE_MISMATCH, TENSOR_OVERLAP, HANDLE_BUSY, COMM_DESTROYED, POISONED; PLAN_MISMATCH, OUT_OF_MEMORY when the plan was not
 * prepared; COMM_FAILED, TIMEOUT, ABORTED. Collective: every rank calls it, also one without pieces. Its gradient is
 * magi_group_reduce with MAGI_GROUP_OP_SUM.
 *
 * # Safety
 * `local` and `received` must point to `count` tensors as magi_tensor says.
 */
magi_status magi_group_cast(const struct magi_group_plan *plan,
                            const struct magi_tensor *local,
                            const struct magi_tensor *received,
                            size_t count,
                            magi_stream stream);

/**
 * The transpose of magi_group_cast: rows of `partial`, one for each received row, go back to where they came from, and each
 * row of `local` becomes what all that come back for it make together.
 *
 * Contributions are added in ascending rank, those of one rank in the order of its pieces, in the accumulator type (f64 for
 * f64, else f32), whatever the dtype that travels; the result is rounded once. Over a mesh those of another host are added
 * there first, likewise, and count as one at the place of that host's ranks. So the bits are the same on every run.
 * `op`: a magi_group_op. `partial`: `[count]` tensors `[received_rows, ..]` in the plan's dtypes; rows that no piece names are
 * not read. `accumulate`: 0 overwrites `local`, rows without a contribution with 0 (lse: -inf); 1 takes what `local` holds as
 * one more contribution, the first. `local`: `[count]` tensors `[local_rows, ..]` in the plan's dtype or its accumulator type,
 * any strides. Errors: as magi_group_cast, and INVALID_ARGUMENT for a plan without MAGI_GROUP_REDUCE, DTYPE_MISMATCH for dtypes
 * other than f64, f32, bf16 and f16. Collective.
 *
 * # Safety
 * `partial` and `local` must point to `count` tensors as magi_tensor says.
 */
magi_status magi_group_reduce(const struct magi_group_plan *plan,
                              int32_t op,
                              const struct magi_tensor *partial,
                              int32_t accumulate,
                              const struct magi_tensor *local,
                              size_t count,
                              magi_stream stream);

/**
 * Frees the handle. NULL does nothing. Not while a call on it runs.
 */
void magi_group_plan_destroy(struct magi_group_plan *plan);

/**
 * Says in words which kernels magi_flex_flash_attn_forward and _backward would compute with on a device, and what no device
 * computes. Meant for people; the wording may change. Strides and addresses are not part of the question.
 *
 * `device_type`: a magi_device_type. `device_index`: 0 on the CPU. `backend`: a magi_backend. `softmax_scale`, `softcap`: as
 * in magi_forward_args. `flags`: MAGI_WITH_*, what the calls are to do; without MAGI_WITH_BACKWARD only forward has to be
 * possible. `text`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
 * Errors: NOT_SUPPORTED when the calls cannot be computed there, the message holding every reason; NULL_POINTER, STRUCT_SIZE,
 * INVALID_ARGUMENT, INVALID_ENUM, DTYPE_MISMATCH, BUFFER_TOO_SMALL, NO_DEVICE. Any thread.
 *
 * # Safety
 * `shape` must point to a magi_attn_shape; `text` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
 */
magi_status magi_explain_support(int32_t device_type,
                                 int32_t device_index,
                                 const struct magi_attn_shape *shape,
                                 int32_t backend,
                                 double softmax_scale,
                                 double softcap,
                                 uint32_t flags,
                                 char *text,
                                 size_t *size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MAGI_ATTN_H */
