// What one dq kernel is compiled for. The host gives HEAD_DIM, HEAD_DIM_V, DTYPE_F16 or not, and SOFTCAP: logits pass
// through a tanh.
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

// Keys of a step. Registers bound it: a consumer has S, dP, dQ and the dS of the block before.
#ifndef BLOCK_K
#define BLOCK_K (HEAD_DIM <= 64 ? 128 : HEAD_DIM <= 128 ? 96 : HEAD_DIM_V <= 128 ? 80 : 64)
#endif

// Rows of a tile: 64 for each consumer warpgroup.
constexpr int D = HEAD_DIM, DV = HEAD_DIM_V, BM = 128, BN = BLOCK_K;
constexpr int D_CHUNKS = (D + 63) / 64, DV_CHUNKS = (DV + 63) / 64; // of 64 columns: 128 bytes, the width of a swizzle
constexpr int CONSUMER_GROUPS = BM / 64, CONSUMER_WARPS = 4 * CONSUMER_GROUPS, THREADS = 128 * (CONSUMER_GROUPS + 1);

// Of K there is a stage more than of V, because dQ += dS K of a block runs beside S and dP of the next one. K and V of
// a block share barriers, unless stages are so few that each must be fetched as soon as it can be.
constexpr int V_STAGES = D <= 192 ? 2 : 1, K_STAGES = V_STAGES + 1;
constexpr bool SPLIT = V_STAGES == 1;

// Of the three products that a step starts, dQ += dS K of the block before goes first, or else S does. The first keeps
// the tensor cores busy while the block is waited for, and gives K back early; the second leaves exponentials two
// products to hide behind instead of one.
constexpr bool EARLY = D != 192;
static_assert(EARLY || !SPLIT, "few stages of K have to be given back early");

// Where dQ of the block before goes first, a warpgroup can leave out the rest of a block that its rows do not see.
constexpr bool LEAVES_OUT = EARLY && !SPLIT;

// Q and dO of the 64 rows of a warpgroup; of a block, K and V.
constexpr u32 Q_PART = D_CHUNKS * 64 * 128, DO_PART = DV_CHUNKS * 64 * 128;
constexpr u32 K_BYTES = D_CHUNKS * BN * 128, V_BYTES = DV_CHUNKS * BN * 128,
              ROWS_BYTES = BM / 2 * sizeof(magi_backward_pair);
constexpr u32 SHARED_MOST = 232448;

// With two stages of Q, dQ of a finished tile goes to memory through the stage that held its queries.
constexpr u32 AT_LEAST = CONSUMER_GROUPS * (Q_PART + DO_PART) + K_STAGES * K_BYTES + V_STAGES * V_BYTES + 4096;
constexpr int Q_STAGES = AT_LEAST + CONSUMER_GROUPS * Q_PART <= SHARED_MOST ? 2 : 1;

// Registers of a producer thread and of a consumer thread: together what a block has at launch, or the last warpgroup
// waits for its share for ever. Few of them slow the producer down.
constexpr bool MANY = D / 2 + BN + BN / 4 > 200; // in a consumer: dQ, S and dP, dS
constexpr int PRODUCER_REGS = MANY ? 24 : 40, CONSUMER_REGS = MANY ? 240 : 232;
static_assert(PRODUCER_REGS + CONSUMER_GROUPS * CONSUMER_REGS <= 65536 / THREADS / 8 * 8 * (CONSUMER_GROUPS + 1),
              "more registers than a block has");

// Of a block: where it stands in its tile, and what it needs. UNSEEN: the first warpgroup's rows see nothing of it;
// twice that: the second one's.
enum { FIRST = 1, LAST = 2, MASKED = 4, STOP = 8, LIMITS = 16, UNSEEN = 32 };

// What consumers know of a block of keys. Rows count from the tile's first, columns and band from its own first key.
struct alignas(16) Block {
    int flags, key;
    int left, right, lo, hi;
    int item_row0, item_row1, limits;
};

// Which tile an accumulator of dQ belongs to.
struct alignas(16) TilePlace {
    int row0, unit, rows, items;
};

// A warp asks for the place of a tile while the first block of the next one is at hand. The producer may then be two
// blocks further, which may be two tiles, and the scheduling warp one tile more.
constexpr int PLACES = 8;

// An item of a tile, as the scheduling warp lays it out for the producer.
struct alignas(16) Brief {
    int flags; // FIRST and LAST of its tile; what blocks that are not full need; STOP: there is no more work
    int kv_head, row0;
    alignas(16) magi_item item;
};

// Orders to the cleaning warp. It is at most as late as the stages are deep; one more says that there are no more.
constexpr int DIRTY = 4;

struct alignas(1024) Shared {
    u8 q[Q_STAGES][CONSUMER_GROUPS][Q_PART], dout[CONSUMER_GROUPS][DO_PART];
    u8 k[K_STAGES][K_BYTES], v[V_STAGES][V_BYTES];
    magi_backward_pair rows[Q_STAGES][BM / 2];
    Block block[K_STAGES];
    TilePlace place[PLACES];
    Brief brief[2];
    int dirty[DIRTY][2]; // {stage of K, first row that nothing sees}; stage -1: no more
    u64 q_full[2], q_empty[2], dout_full[CONSUMER_GROUPS], dout_empty[CONSUMER_GROUPS];
    u64 full[K_STAGES], empty[K_STAGES], v_full[V_STAGES], v_empty[V_STAGES], dirty_full[DIRTY];
    u64 brief_full[2], brief_empty[2];
};
static_assert(sizeof(Shared) <= SHARED_MOST, "the stages do not fit shared memory");

// Dynamic shared memory begins here when there is no static one; checked at entry. As a constant it costs no registers.
static_assert(sizeof(magi_item) == 48, "an item is copied as three times 16 bytes");

constexpr u32 SMEM = 1024;
#define AT(member) (SMEM + (u32)(u64) & ((Shared *)0)->member)
