// What one backward kernel is compiled for. The host gives HEAD_DIM, HEAD_DIM_V, DTYPE_F16 or not, and these switches:
//   SOFTCAP   logits pass through a tanh
//   DQ=0      only dk and dv: dq is another kernel's
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../params.h"
#include "../ptx/barrier.cuh"
#include "../ptx/math.cuh"
#include "../ptx/memory.cuh"
#include "../ptx/wgmma.cuh"

#ifndef SOFTCAP
#define SOFTCAP 0
#endif
#ifndef GENERAL
#define GENERAL 0
#endif
#ifndef DQ_RED
#define DQ_RED 2
#endif
#ifndef DQ
#define DQ 1
#endif

// Rows of a tile (keys, 64 for each consumer warpgroup) and of a step (queries).
constexpr int D = HEAD_DIM, DV = HEAD_DIM_V, BK = 128, BQ = 64;
constexpr int D_CHUNKS = (D + 63) / 64, DV_CHUNKS = (DV + 63) / 64; // of 64 columns: 128 bytes, the width of a swizzle
constexpr int CONSUMER_GROUPS = BK / 64, CONSUMER_WARPS = 4 * CONSUMER_GROUPS, THREADS = 128 * (CONSUMER_GROUPS + 1);

// Two stages of queries, and two of K, so that a tile's keys are there when the tile before it ends. V is done with a
// step earlier.
constexpr int STAGES = 2;
constexpr u32 K_BYTES = D_CHUNKS * BK * 128, V_BYTES = DV_CHUNKS * BK * 128;
constexpr u32 Q_BYTES = D_CHUNKS * BQ * 128, DO_BYTES = DV_CHUNKS * BQ * 128, DS_BYTES = BK * BQ * 2;
constexpr u32 STATS_BYTES = 2 * BQ * 4;
constexpr u32 SHARED_MOST = 232448;

// Registers of a producer thread and of a consumer thread: together what a block has at launch, or the last warpgroup
// waits for its share for ever.
constexpr int PRODUCER_REGS = 24, CONSUMER_REGS = 240;
static_assert(PRODUCER_REGS + CONSUMER_GROUPS * CONSUMER_REGS <= 65536 / THREADS / 8 * 8 * (CONSUMER_GROUPS + 1),
              "more registers than a block has");

// What a block needs.
enum { MASKED = 1, LIMITS = 2 };

// What consumers know of a block of queries. Rows are the tile's keys, columns the block's queries: rows count from the
// tile's first, columns and band from the block's first query.
struct alignas(16) Block {
    int flags, query;
    int left, right, lo, hi;
    int item_row0, item_row1, limits, reserved;
};

// What they know of a tile. No blocks: its rows see nothing; fewer: there are no more tiles.
struct alignas(16) TilePlace {
    int row0, rows, head, source;
    int blocks, work, split;
    int head0, head1, item0, item1; // query heads and items, for the scheduling warp
};

// Where dQ of a block goes. The producer may be some blocks further when it is wanted.
struct alignas(8) QueryPlace {
    int query, head;
};
constexpr int PLACES = 8;

// An item of a tile for one query head, as the scheduling warp lays it out for the producer: sides of the band for the
// tile's first row, `full_last` the last query at which a block may begin that needs no limits.
struct alignas(16) Brief {
    int flags; // what blocks that are not full need; -1: there is no more work
    int head, clean; // clean: stage of K that is to be cleaned first, or -1
    int start, run1, full0, full_last;
    int run0, lo, hi, row0, row1, limits;
};

// Orders to the cleaning warp. It is at most as late as the stages are deep; one more says that there are no more.
constexpr int DIRTY = 8;

struct alignas(1024) Shared {
    u8 k[STAGES][K_BYTES], v[V_BYTES], q[STAGES][Q_BYTES], dout[STAGES][DO_BYTES];
    u8 ds[DQ ? 2 : 0][DS_BYTES];
    u8 dq[CONSUMER_GROUPS][D_CHUNKS][BQ * 128]; // of each warpgroup: boxes of 32 columns of dQ, on their way to memory
    float stats[STAGES][2][BQ]; // of each query of a block: lse to base 2, and delta
    Block block[STAGES];
    TilePlace place[STAGES];
    Brief brief[2];
    QueryPlace where[PLACES];
    int dirty[DIRTY][3]; // {stage, first query of the run, first behind it}; stage -1: no more; -2 - i: K of stage i
    int no_more_dq;
    u64 k_full[STAGES], k_empty[STAGES], k_loaded[STAGES], v_full, v_empty, dq_full[CONSUMER_GROUPS], dq_empty[CONSUMER_GROUPS], full[STAGES], empty[STAGES], dirty_full[DIRTY];
    u64 brief_full[2], brief_empty[2];
};
static_assert(sizeof(Shared) <= SHARED_MOST, "the stages do not fit shared memory");

// Dynamic shared memory begins here when there is no static one; checked at entry. As a constant it costs no registers.
constexpr u32 SMEM = 1024;
#define AT(member) (SMEM + (u32)(u64) & ((Shared *)0)->member)
