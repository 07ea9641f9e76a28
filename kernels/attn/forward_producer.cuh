// The producer warpgroup: one thread walks the tiles and starts all copies; one warp cleans values that nothing sees.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "forward_shape.cuh"

// One parameter of the kernel, so that a source picks its map by address. Index: the source.
struct ForwardMaps {
    TensorMap q, k[2], v[2];
};

template <int CHUNKS, u32 CHUNK_BYTES> DEV void load_rows(u32 dst, const TensorMap *m, u32 bar, int row, int head) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        tma_load_3d(dst + c * CHUNK_BYTES, m, bar, 64 * c, row, head);
    }
}

// V of a block travels one step behind its K: step n multiplies P of block n - 1.
struct Values {
    int key, head, source, seen; // key -1: none; rows from `seen` on are seen by nothing
};

struct Producer {
    const ForwardMaps &maps;
    const magi_attn_forward_params &p;
    Shared &s;
    int n = 0, tiles = 0, dirty = 0; // blocks, tiles and dirty blocks so far
    Values values = {-1, 0, 0, BN};

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
            s.dirty[dirty & 1][0] = i;
            s.dirty[dirty & 1][1] = values.seen;
            bar = AT(dirty_full) + 8 * (dirty & 1);
            dirty++;
        }
        mbar_expect(bar, V_BYTES);
        load_rows<DV_CHUNKS, BN * 128>(AT(v) + i * V_BYTES, &maps.v[values.source], bar, values.key, values.head);
    }

    // Block n of the stream, which follows b in shared memory; its K are there when nothing is to be copied.
    MEMBER void copies(int key, int kv_head, int source, int seen) {
        const int i = n & 1;
        if (key < 0) {
            mbar_arrive(AT(k_full) + 8 * i);
        } else {
            mbar_expect(AT(k_full) + 8 * i, K_BYTES);
            load_rows<D_CHUNKS, BN * 128>(AT(k) + i * K_BYTES, &maps.k[source], AT(k_full) + 8 * i, key, kv_head);
        }
        load_values();
        values = {key, kv_head, source, seen};
        n++;
    }

    // The block of item `it` that begins at key `key`. Everything is read again for each block: the producer has time,
    // but few registers.
    MEMBER void block(int tile, int item, int unit, int key, int place) {
        const magi_tile *const t = p.tiles + tile;
        const magi_item *const it = p.items + item;
        mbar_wait(AT(k_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        Block &b = s.block[n & 1];
        const int row0 = t->row0, rows = t->rows, run1 = it->run1, limits = it->limits, lo = it->lo + row0 - key;
        const bool full = key >= it->full0 && key + BN <= it->full1;
        // A row sees its first key in the first block, or where the lower side of a band passes it, or, with limits
        // of its own, anywhere up to the first full block.
        const bool exact = key == it->start || lo + rows > 0 || (limits >= 0 && (!full || key == it->full0));
        b.flags = place | (full ? 0 : MASKED) | (exact ? EXACT : 0) | (!full && limits >= 0 ? LIMITS : 0);
        b.left = it->run0 - key, b.right = run1 - key, b.lo = lo, b.hi = it->hi + row0 - key;
        b.item_row0 = it->row0, b.item_row1 = it->row1, b.limits = limits, b.key = key;
        if (place & FIRST) {
            s.place[tiles & (PLACES - 1)] = {row0, unit, rows, t->slot, t->pieces};
        }
        // Behind the end of the tensor the copy engine writes zeros.
        const int source = it->source, end = min(key + BN, p.tokens_k[source]);
        copies(key, unit / p.group, source, run1 < end ? run1 - key : BN);
    }

    // The one block of a tile whose rows see nothing.
    MEMBER void empty_block(const magi_tile *t, int unit) {
        mbar_wait(AT(k_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        Block &b = s.block[n & 1];
        b.flags = FIRST | LAST | MASKED;
        s.place[tiles & (PLACES - 1)] = {t->row0, unit, t->rows, t->slot, t->pieces};
        b.left = b.right = b.lo = b.hi = b.item_row0 = b.item_row1 = 0;
        copies(-1, 0, 0, BN);
    }

    MEMBER void tile(int index, int unit) {
        const magi_tile *const t = p.tiles + index;
        const int q = Q_STAGES == 2 ? tiles & 1 : 0, round = Q_STAGES == 2 ? tiles >> 1 : tiles;
        mbar_wait(AT(q_empty) + 8 * q, (round & 1) ^ 1);
        mbar_expect(AT(q_full) + 8 * q, p.q_bytes);
        const int row0 = t->row0;
#pragma unroll
        for (int c = 0; c < D_CHUNKS; c++) {
            tma_load_4d(AT(q) + q * Q_BYTES + c * BM * 128, &maps.q, AT(q_full) + 8 * q, 64 * c, 0, row0, unit);
        }
        int item = t->item0;
        const int end = item + t->items;
        if (item == end) {
            empty_block(t, unit);
        }
        int first = FIRST;
        for (; item != end; item++) {
            for (int key = p.items[item].start; key < p.items[item].run1; key += BN, first = 0) {
                const int last = item + 1 == end && key + BN >= p.items[item].run1 ? LAST : 0;
                block(index, item, unit, key, first | last);
            }
        }
        tiles++;
    }

    MEMBER void finish() {
        mbar_wait(AT(k_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        s.block[n & 1].flags = STOP;
        mbar_arrive(AT(k_full) + 8 * (n & 1));
        load_values();
        s.dirty[dirty & 1][0] = -1;
        mbar_arrive(AT(dirty_full) + 8 * (dirty & 1));
    }
};

// Tiles come longest first, one head after the other within a section of heads whose keys stay in the L2 cache. The
// next piece of work is asked for a tile ahead.
DEV void produce(const ForwardMaps &maps, const magi_attn_forward_params &p, Shared &s) {
    Producer producer{maps, p, s};
    const int per_section = p.tile_count * p.section, total = p.tile_count * p.units;
    for (int work = blockIdx.x; work < total;) {
        const int next = atomicAdd(&p.counters[0], 1) + gridDim.x;
        const int section = work / per_section, in = work - section * per_section;
        producer.tile(in / p.section, section * p.section + in % p.section);
        work = next;
    }
    producer.finish();
}

// The cleaning warp: zeroes rows of V that nothing sees, then says that V is there.
DEV void clean(Shared &s, int lane) {
    for (int d = 0;; d++) {
        mbar_wait(AT(dirty_full) + 8 * (d & 1), d >> 1 & 1);
        const int stage = s.dirty[d & 1][0], seen = s.dirty[d & 1][1];
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
