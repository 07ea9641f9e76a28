// What one backward kernel is compiled for. The host gives HEAD_DIM, HEAD_DIM_V, DTYPE_F16 or not, and these switches:
//   SOFTCAP   logits pass through a tanh
//   DQ=0      only dk and dv: dq is another kernel's
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../helper/backward_rows.h"
#include "../params.h"
#include "../ptx/barrier.cuh"
#include "../ptx/math.cuh"
#include "../ptx/memory.cuh"
#include "../ptx/wgmma.cuh"

#ifndef SOFTCAP
#define SOFTCAP 0
#endif
#ifndef DQ
#define DQ 1
#endif
#ifndef PART_LEAST // blocks of a part of a tile's queries, at least; tests have fewer
#define PART_LEAST 2
#endif
// Work items that begin at about the same time; tests have fewer. Not the number of thread blocks, which depends on
// what is left to others: the order of a tile's blocks, and so the bits of dK and dV, must not.
#ifndef WAVE
#define WAVE 132
#endif
#ifndef CACHE // bytes that thread blocks can share of the L2 cache; tests have less
#define CACHE (24 << 20)
#endif

// Without dQ ptxas finds no registers for exponentials with a softcap beside products that are under way.
#define CAPPED_LATE (SOFTCAP && !DQ && HEAD_DIM + HEAD_DIM_V > 192)

// Above 128 columns, dV of 64 keys fills the registers of a warpgroup, dK those of another, and a third one has dQ:
// backward_wide_consumer.cuh.
#define WIDE (HEAD_DIM > 128 || HEAD_DIM_V > 128)

// The kernel of dk and dv alone has room for a third stage of queries, and for S of a block beside dV and dK of the one
// before: backward_keys_consumer.cuh. With a softcap there are not enough registers.
#define KEYS_ALONE (!DQ && !SOFTCAP && !WIDE)

// A product has 64 rows. dQ of another number of queries is computed transposed: a row is a column of dQ, of which a
// warpgroup has 64. dS then has a row for each query and a chunk for each warpgroup's keys; P is packed at once and lse
// read where it is wanted: there are fewer registers.
#define TRANSPOSED (DQ && !SOFTCAP && HEAD_DIM > 64 && !WIDE)

// Rows of a tile (keys) and of a step (queries).
constexpr int D = HEAD_DIM, DV = HEAD_DIM_V, BK = WIDE ? 64 : 128, BQ = TRANSPOSED ? 80 : 64;
constexpr int D_CHUNKS = (D + 63) / 64, DV_CHUNKS = (DV + 63) / 64; // of 64 columns: 128 bytes, the width of a swizzle
constexpr int CONSUMER_GROUPS = WIDE && DQ ? 3 : 2, CONSUMER_WARPS = 4 * CONSUMER_GROUPS,
              THREADS = 128 * (CONSUMER_GROUPS + 1);

// Two or three stages of queries, and two of K where there is room, so that a tile's keys are there when the tile
// before it ends. V is done with a step earlier. Where there is a place for each of two tiles and one K, K is given
// back before the tile is stored. dO of a wide block has barriers of its own: at 256 columns there is one stage of it,
// so that dQ has room on its way out.
constexpr int STAGES = KEYS_ALONE || HEAD_DIM <= 64 ? 3 : 2, TILE_PLACES = 2, K_STAGES = WIDE || TRANSPOSED ? 1 : 2;
constexpr int DO_STAGES = WIDE && DQ && (HEAD_DIM + HEAD_DIM_V > 384) ? 1 : STAGES;
constexpr u32 K_BYTES = D_CHUNKS * BK * 128, V_BYTES = DV_CHUNKS * BK * 128;
constexpr u32 Q_BYTES = D_CHUNKS * BQ * 128, DO_BYTES = DV_CHUNKS * BQ * 128, DS_BYTES = BK * BQ * 2;
constexpr u32 PAIR = sizeof(magi_backward_pair), STATS_BYTES = BQ / 2 * PAIR;
constexpr u32 SHARED_MOST = 232448;

// Queries of which Q, dO and sums of dQ of two heads stay in the L2 cache.
constexpr int CACHED = CACHE / 2 / (2 * HEAD_DIM + 2 * HEAD_DIM_V + (DQ ? 4 * HEAD_DIM : 0));

// dQ of a block leaves in boxes of 32 columns, BOXES of them at a time, through a place for each warpgroup that has a
// share of the columns. Where one warpgroup has them all, it leaves a chunk after the other, by places in turn.
constexpr u32 BOX_BYTES = BQ * 128;
constexpr int BOXES = D <= 64 ? 1 : 2, OUT_PLACES = 2;

static_assert(!TRANSPOSED || BOXES == 2, "dQ of a warpgroup has 64 columns when it is transposed");

// dS has two slots. A wide kernel has dS in one, behind two with P in f32: dS made of rounded P would be rounded twice.
constexpr int SLOTS = WIDE ? 3 : DQ ? 2 : 0;

// Registers of a producer thread and of a consumer thread: together what a block has at launch, or the last warpgroup
// waits for its share for ever.
constexpr int PRODUCER_REGS = 24, DQ_REGS = WIDE && DQ ? 64 : 0, CONSUMER_REGS = WIDE && DQ ? 208 : 240;
constexpr int SCORES_REGS = WIDE && DQ ? 216 : 240; // of the first warpgroup of wide heads
static_assert(PRODUCER_REGS + SCORES_REGS + CONSUMER_REGS + DQ_REGS <= 65536 / THREADS / 8 * 8 * (CONSUMER_GROUPS + 1),
              "more registers than a block has");

// What a block needs.
enum { MASKED = 1, LIMITS = 2 };

// What consumers know of a block of queries. Rows are the tile's keys, columns the block's queries: rows count from the
// tile's first, columns and band from the block's first query.
struct alignas(16) Block {
    int flags, query;
    int left, right, lo, hi;
    int item_row0, item_row1, limits;
};

// What they and the cleaning warp know of a tile. No blocks: its rows see nothing; fewer: there are no more tiles.
struct alignas(16) TilePlace {
    int row0, rows, head, source;
    int blocks, work, split, phase; // phase: of V's barrier
    int item0, item1;
};

// What the scheduling warp knows of its tile.
struct alignas(16) Tile : TilePlace {
    int head0, head1, clean;         // query heads; stage of K to be cleaned, or -1
    int backward, item, parts, part; // the item it is at, how many parts are left of it, and the next
    int start, end, query_head;      // of a part: the queries
};

// What follows from the parameters for all tiles: work items, those of a section of heads without splits, query heads
// of a split; whether tiles go by parts of their queries, and queries of a part; waves of a section, 0 where they go on
// from one to the next. Then how many parts all thread blocks begin together, and how many this one has begun of them.
// Kept here because registers are short.
struct Share {
    int work, section, heads, in_parts, part, waves;
    int together, begun;
};

// Where dQ of a block goes. The producer may be some blocks further when it is wanted.
struct alignas(8) QueryPlace {
    int query, head;
};
constexpr int PLACES = 8;

// An item of a tile for one query head, as the scheduling warp lays it out for the producer: sides of the band for the
// tile's first row, `first` the query at which its first block begins, `full_last` the last one at which a block may
// begin that needs no limits.
struct alignas(16) Brief {
    int flags;       // what blocks that are not full need; -1: there is no more work
    int head, clean; // clean: stage of K that is to be cleaned first, or -1
    int start, end, first, run1, full0, full_last;
    int run0, lo, hi, row0, row1, limits;
};

// Orders to the cleaning warp: {what, ...}. It is at most as late as the stages are deep.
constexpr int ORDERS = 8;
enum { CLEAN_QUERIES, CLEAN_KEYS, NO_MORE, CLEAN_GRADIENTS };
struct Order {
    int what, stage, unseen, seen; // of queries: the first of the run, the first behind it
};

struct alignas(1024) Shared {
    u8 k[K_STAGES][K_BYTES], v[V_BYTES], q[STAGES][Q_BYTES], dout[DO_STAGES][DO_BYTES];
    u8 ds[SLOTS + (SLOTS == 0)][SLOTS > 0 ? DS_BYTES : 128];
    u8 out[OUT_PLACES][DQ || !WIDE ? BOXES * BOX_BYTES : 1024]; // dQ of a block, on its way to memory; but for wide
                                                                // heads rows of a tile, too
    magi_backward_pair stats[STAGES][BQ / 2];                   // of a block's queries
    Block block[STAGES];
    TilePlace place[TILE_PLACES];
    Tile tile;
    Brief brief[2];
    QueryPlace where[PLACES];
    Order orders[ORDERS];
    Share share;
    int no_more_dq; // parts of dQ that there were, and 1
    u64 k_full[2], k_empty[2], k_loaded[2], v_full, v_empty, full[STAGES], empty[STAGES];
    u64 brief_full[2], brief_empty[2], ordered[ORDERS], dq_full[OUT_PLACES], dq_empty[OUT_PLACES];
#if WIDE
    u64 dout_full[2], dout_empty[2]; // `full` and `empty` are those of Q, lse and delta then
#endif
};
static_assert(sizeof(Shared) <= SHARED_MOST, "the stages do not fit shared memory");

// Dynamic shared memory begins here when there is no static one; checked at entry. As a constant it costs no registers.
constexpr u32 SMEM = 1024;
#define AT(member) (SMEM + (u32)(u64) & ((Shared *)0)->member)

// Where block n of a thread block stands, and the phase of the barriers there.
DEV u32 stage_of(u32 n) {
    return n % STAGES;
}
DEV u32 phase_of(u32 n) {
    return n / STAGES & 1;
}

// Where K of a tile with this place begins, from the first stage on.
DEV u32 k_stage(u32 place) {
    return K_STAGES == 2 ? place * K_BYTES : 0;
}
