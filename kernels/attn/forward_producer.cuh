// The producer warpgroup: one thread walks the tiles and starts all copies; one warp cleans values that nothing sees.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "forward_shape.cuh"

// One parameter of the kernel, so that a source picks its map by address. Index: the source.
struct ForwardMaps {
    TensorMap q, k[2], v[2];
};

// BN rows of K or V. One copy brings all columns, or one for each 64, which can end where the columns of a padded head
// dimension do.
template <u32 CHUNK_BYTES> DEV void load_rows(u32 dst, const TensorMap *m, u32 bar, int row, int head, int copies) {
    tma_load_4d(dst, m, bar, 0, row, 0, head);
#pragma unroll 1
    for (int c = 1; c < copies; c++) {
        tma_load_4d(dst + c * CHUNK_BYTES, m, bar, 64 * c, row, 0, head);
    }
}

// V of a block travels one step behind its K: step n multiplies P of block n - 1.
struct Values {
    int key, head, source, seen; // key -1: none; rows from `seen` on are seen by nothing
};

// A tile of a unit: one piece of work.
struct Work {
    int tile, unit;
};

struct Producer {
    const ForwardMaps &maps;
    const magi_attn_forward_params &p;
    Shared &s;
    int n = 0, tiles = 0, dirty = 0; // blocks, tiles and dirty blocks so far
    Values values = {-1, 0, 0, BN};
    int ticket; // of the work after this
    Work next;  // the same, decoded

    // Values of the block before, into the stage of block n. Where rows of it are seen by nothing they may hold
    // anything, and 0 * NaN is NaN: the cleaning warp zeroes them before consumers hear of the copy.
    MEMBER void load_values() {
        const int i = n & 1;
        if (values.key < 0) {
            mbar_arrive(AT(v_full) + 8 * i);
            return;
        }
        mbar_wait(AT(v_empty) + 8 * i, (n >> 1 & 1) ^ 1);
        u32 bar = AT(v_full) + 8 * i;
        if (values.seen < BN) {
            s.dirty[dirty & (DIRTY - 1)][0] = i;
            s.dirty[dirty & (DIRTY - 1)][1] = values.seen;
            bar = AT(dirty_full) + 8 * (dirty & (DIRTY - 1));
            dirty++;
        }
        mbar_expect(bar, V_BYTES);
        load_rows<BN * 128>(AT(v) + i * V_BYTES, &maps.v[values.source], bar, values.key, values.head, p.copies_v);
    }

    // Where consumers find block n of the stream, once they are done with what was there.
    MEMBER Block &next_block() {
        mbar_wait(AT(k_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        return s.block[n & 1];
    }

    // What a block needs that some row of the tile does not see entirely.
    MEMBER void describe(Block &b, int tile, int item, int key) {
        const magi_item *const it = p.items + item;
        const int row0 = p.tiles[tile].row0;
        b.left = it->run0 - key, b.right = it->run1 - key, b.lo = it->lo + row0 - key, b.hi = it->hi + row0 - key;
        b.item_row0 = it->row0, b.item_row1 = it->row1, b.limits = it->limits, b.key = key;
    }

    // The first key behind the blocks in which a row may see its first key: the first block, those which the lower side
    // of a band passes, and, with limits for each row, all up to the first full block.
    MEMBER int exact_end(const magi_item *it, const magi_tile *t) {
        const int band = it->lo + t->row0 + t->rows;
        const int limits = it->limits < 0 ? 0 : it->full0 < it->full1 ? it->full0 + 1 : it->run1;
        return max(max(it->start + 1, band), limits);
    }

    // Tiles come longest first, one unit after the other within a section of units whose keys stay in the L2 cache.
    MEMBER Work decode(int work) {
        const int per_section = p.tile_count * p.section, section = work / per_section, in = work - section * per_section;
        return {in / p.section, section * p.section + in % p.section};
    }

    // Decodes the next work and brings its tile and first item close, while copies of this tile are under way.
    MEMBER void look_ahead() {
        next.unit = -1;
        if (ticket < p.tile_count * p.units) {
            next = decode(ticket);
            touch(p.items + p.tiles[next.tile].item0);
        }
    }

    // The blocks of one item. The loop is short on purpose: what it takes delays copies.
    MEMBER void item(Work work, int index, int kv_head, int first, int last) {
        const magi_item *const it = p.items + index;
        const int start = it->start, run1 = it->run1, full0 = it->full0, full1 = it->full1 - BN, source = it->source;
        const int exact = exact_end(it, p.tiles + work.tile), masked = it->limits < 0 ? MASKED : MASKED | LIMITS;
        const TensorMap *const k = &maps.k[source];
#pragma unroll 1
        for (int key = start; key < run1; key += BN) {
            const int behind = key + BN;
            int flags = first | (key < exact ? EXACT : 0) | (behind >= run1 ? last : 0);
            const bool full = key >= full0 && key <= full1;
            Block &b = next_block();
            if (first) {
                place(work);
            }
            if (!full) {
                flags |= masked;
                describe(b, work.tile, index, key);
            }
            b.flags = flags;
            const int i = n & 1;
            mbar_expect(AT(k_full) + 8 * i, K_BYTES);
            load_rows<BN * 128>(AT(k) + i * K_BYTES, k, AT(k_full) + 8 * i, key, kv_head, p.copies_k);
            load_values();
            // Behind the end of the tensor the copy engine writes zeros.
            values = {key, kv_head, source, behind > run1 && run1 < p.tokens_k[source] ? run1 - key : BN};
            n++;
            if (first) {
                first = 0;
                look_ahead();
            }
        }
    }

    // Tells consumers of a tile. The place is free: its tile before was PLACES tiles ago, and consumers have let go of
    // the K of all blocks but the last.
    MEMBER void place(Work work) {
        const magi_tile *const t = p.tiles + work.tile;
        s.place[tiles & (PLACES - 1)] = {t->row0, work.unit, t->rows, t->slot, t->pieces};
    }

    // The one block of a tile whose rows see nothing.
    MEMBER void empty_block(Work work) {
        Block &b = next_block();
        place(work);
        b.left = b.right = b.lo = b.hi = b.item_row0 = b.item_row1 = 0;
        b.flags = FIRST | LAST | MASKED;
        mbar_arrive(AT(k_full) + 8 * (n & 1));
        load_values();
        values.key = -1;
        n++;
        look_ahead();
    }

    MEMBER void tile(Work work) {
        const magi_tile *const t = p.tiles + work.tile;
        const int q = Q_STAGES == 2 ? tiles & 1 : 0, round = Q_STAGES == 2 ? tiles >> 1 : tiles;
        const int row0 = t->row0, begin = t->item0, end = begin + t->items;
        mbar_wait(AT(q_empty) + 8 * q, (round & 1) ^ 1);
        mbar_expect(AT(q_full) + 8 * q, p.q_bytes);
#pragma unroll
        for (int c = 0; c < D_CHUNKS; c++) {
            tma_load_4d(AT(q) + q * Q_BYTES + c * BM * 128, &maps.q, AT(q_full) + 8 * q, 64 * c, 0, row0, work.unit);
        }
        if (begin == end) {
            empty_block(work);
        }
        const int kv_head = work.unit / p.group;
#pragma unroll 1
        for (int i = begin; i < end; i++) {
            item(work, i, kv_head, i == begin ? FIRST : 0, i + 1 == end ? LAST : 0);
        }
        tiles++;
    }

    // All the work that this thread block gets. The next piece is asked for a tile ahead.
    MEMBER void run() {
        next.unit = -1;
        if ((int)blockIdx.x < p.tile_count * p.units) {
            next = decode(blockIdx.x);
        }
        while (next.unit >= 0) {
            ticket = atomicAdd(&p.counters[0], 1) + gridDim.x;
            tile(next);
        }
        finish();
    }

    MEMBER void finish() {
        next_block().flags = STOP;
        mbar_arrive(AT(k_full) + 8 * (n & 1));
        load_values();
        s.dirty[dirty & (DIRTY - 1)][0] = -1;
        mbar_arrive(AT(dirty_full) + 8 * (dirty & (DIRTY - 1)));
    }
};

// The cleaning warp: zeroes rows of V that nothing sees, then says that V is there.
DEV void clean(Shared &s, int lane) {
    for (int d = 0;; d++) {
        mbar_wait(AT(dirty_full) + 8 * (d & (DIRTY - 1)), d / DIRTY & 1);
        const int stage = s.dirty[d & (DIRTY - 1)][0], seen = s.dirty[d & (DIRTY - 1)][1];
        if (stage < 0) {
            return;
        }
        for (int i = seen * 8 + lane; i < BN * 8; i += 32) { // 16 bytes of a row
#pragma unroll
            for (int c = 0; c < DV_CHUNKS; c++) {
                st_shared_v4(AT(v) + stage * V_BYTES + c * BN * 128 + i * 16, 0, 0, 0, 0);
            }
        }
        fence_proxy_async();
        __syncwarp();
        mbar_arrive_if(AT(v_full) + 8 * stage, lane == 0);
    }
}
