// What one forward kernel is compiled for. The host gives HEAD_DIM, HEAD_DIM_V, DTYPE_F16 or not, and these switches:
//   SOFTCAP      logits pass through a tanh
//   MAX_LOGITS   the maximum logit of each head is kept
//   GENERAL      f32 outputs, merging into an earlier result, and tiles cut into pieces
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
#ifndef MAX_LOGITS
#define MAX_LOGITS 0
#endif
#ifndef GENERAL
#define GENERAL 0
#endif

// Rows of a tile, 64 for each consumer warpgroup, and keys of a step. Exponentials bound small heads: a third warpgroup
// fills the pauses of the others, where its registers suffice.
#define SMALL_HEADS (HEAD_DIM <= 64 && HEAD_DIM_V <= 64 && !GENERAL)
#ifndef BLOCK_Q
#define BLOCK_Q (SMALL_HEADS ? 192 : 128)
#endif
#ifndef BLOCK_K
#define BLOCK_K (SMALL_HEADS ? 96 : HEAD_DIM_V <= 128 ? 128 : HEAD_DIM_V <= 192 ? 96 : GENERAL ? 48 : 64)
#endif

constexpr int D = HEAD_DIM, DV = HEAD_DIM_V, BM = BLOCK_Q, BN = BLOCK_K;
constexpr int D_CHUNKS = (D + 63) / 64, DV_CHUNKS = (DV + 63) / 64; // of 64 columns: 128 bytes, the width of a swizzle
constexpr int CONSUMER_GROUPS = BM / 64, CONSUMER_WARPS = 4 * CONSUMER_GROUPS, THREADS = 128 * (CONSUMER_GROUPS + 1);

// K and V have two stages, so that a step knows its own when it is compiled. A step takes K of its block and V of the
// one before, which share a barrier.
constexpr int STAGES = 2;
constexpr u32 Q_BYTES = D_CHUNKS * BM * 128, K_BYTES = D_CHUNKS * BN * 128, V_BYTES = DV_CHUNKS * BN * 128;
constexpr u32 SHARED_MOST = 232448;

// Columns of the output that a warp turns at once in shared memory of its own; 0: it turns them in registers, because
// there is no room.
DEV constexpr int outColumns(int q_stages) {
    const u32 used = q_stages * Q_BYTES + STAGES * (K_BYTES + V_BYTES) + 1024;
    for (int columns = 128; columns >= 32; columns /= 2) {
        if (DV % columns == 0 && used + CONSUMER_WARPS * 16 * columns * 2 <= SHARED_MOST) {
            return columns;
        }
    }
    return 0;
}
constexpr int Q_STAGES = outColumns(2) > 0 ? 2 : 1;
// With room for all its rows, a warp leaves them to the copy engine, as 64 columns after the other.
constexpr u32 OUT_BYTES = DV_CHUNKS * 16 * 128;
constexpr bool COPY_OUT =
    !GENERAL && Q_STAGES * Q_BYTES + STAGES * (K_BYTES + V_BYTES) + CONSUMER_WARPS * OUT_BYTES + 1024 <= SHARED_MOST;
// A finished tile is stored beside the scores of the block that follows, where registers suffice; small heads lose more
// by the changed order of products.
constexpr bool STORE_EARLY = COPY_OUT && DV > 96 && !SOFTCAP && !MAX_LOGITS;
constexpr int OUT_COLUMNS = COPY_OUT ? 0 : outColumns(Q_STAGES);

// Registers of a producer thread and of a consumer thread: together what a block has at launch, or the last warpgroup
// waits for its share for ever. Few of them slow the producer down.
constexpr bool MANY = DV > 128; // registers of a consumer
constexpr int PRODUCER_REGS = CONSUMER_GROUPS == 3 ? 32 : MANY ? 40 : 56;
constexpr int CONSUMER_REGS = CONSUMER_GROUPS == 3 ? 160 : MANY ? 232 : 224;
static_assert(PRODUCER_REGS + CONSUMER_GROUPS * CONSUMER_REGS <= 65536 / THREADS / 8 * 8 * (CONSUMER_GROUPS + 1),
              "more registers than a block has");

// One parameter of the kernel, so that a source picks its map by address. Index: the source.
struct ForwardMaps {
    TensorMap q, k[2], v[2], out;
};

// Of a block: where it stands in its tile, and what it needs. EXACT: a row may see its first key here.
enum { FIRST = 1, LAST = 2, MASKED = 4, STOP = 8, EXACT = 16, LIMITS = 32, EVEN = 64 };

// What consumers know of a block of keys. Rows count from the tile's first, columns and band from its own first key.
struct alignas(16) Block {
    int flags, key;
    int left, right, lo, hi;
    int item_row0, item_row1, limits;
};

// Which tile an accumulator of O belongs to.
struct alignas(16) TilePlace {
    int row0, unit, rows, slot, pieces;
};

// A warp asks for the place of a tile while the first block of the next one is at hand. The producer may then be two
// blocks further, which may be two tiles, and the scheduling warp one tile more.
constexpr int PLACES = 8;

// An item of a tile, as the scheduling warp lays it out for the producer: sides of the band for the tile's first row,
// `full_last` the last key at which a block may begin that needs no limits, `exact` the first key at which a block
// begins in which no row can see its first key.
struct alignas(16) Brief {
    int flags; // FIRST and LAST of its tile; what blocks that are not full need; STOP: there is no more work
    int kv_head, source;
    int start, run1, full0, full_last, exact;
    int run0, lo, hi, row0, row1, limits;
};

// Orders to the cleaning warp. It is at most as late as the stages are deep; one more says that there are no more.
constexpr int DIRTY = 4;

struct alignas(1024) Shared {
    u8 q[Q_STAGES][Q_BYTES], k[STAGES][K_BYTES], v[STAGES][V_BYTES];
    u8 o[CONSUMER_WARPS][COPY_OUT ? OUT_BYTES : OUT_COLUMNS > 0 ? 16 * OUT_COLUMNS * 2 : 1];
    Block block[STAGES];
    TilePlace place[PLACES];
    Brief brief[2];
    int dirty[DIRTY][2]; // {stage of V, first row that nothing sees}; stage -1: no more
    u64 q_full[2], q_empty[2], full[STAGES], k_empty[STAGES], v_empty[STAGES], dirty_full[DIRTY];
    u64 brief_full[2], brief_empty[2];
};
static_assert(sizeof(Shared) <= SHARED_MOST, "the stages do not fit shared memory");

constexpr int BARRIERS =
    (sizeof(Shared::q_full) + sizeof(Shared::q_empty) + sizeof(Shared::full) + sizeof(Shared::k_empty) +
     sizeof(Shared::v_empty) + sizeof(Shared::dirty_full) + sizeof(Shared::brief_full) + sizeof(Shared::brief_empty)) /
    8;

// Dynamic shared memory begins here when there is no static one; checked at entry. As a constant it costs no registers.
constexpr u32 SMEM = 1024;
#define AT(member) (SMEM + (u32)(u64) & ((Shared *)0)->member)
