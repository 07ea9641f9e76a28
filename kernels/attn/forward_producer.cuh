// The producer warpgroup: one thread takes the work, one starts all copies, one warp cleans values that nothing sees.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "forward_shape.cuh"
#include "row_load.cuh"

#include "clean.cuh" // wants the shape

// V of a block travels one step behind its K: step n multiplies P of block n - 1.
struct Values {
    int key, head, source, seen; // key -1: none; rows from `seen` on are seen by nothing
};

struct Producer {
    const ForwardMaps &maps;
    const magi_attn_forward_params &p;
    Shared &s;
    int n = 0, dirty = 0; // blocks and dirty blocks so far
    Values values = {-1, 0, 0, BN};

    // Values of the block before, into the stage of block n: the second of the two arrivals at its barrier. Where rows
    // of it are seen by nothing they may hold anything, and 0 * NaN is NaN: the cleaning warp zeroes them before
    // consumers hear of the copy.
    MEMBER void load_values() {
        const int i = n & 1;
        if (values.key < 0) {
            mbar_arrive(AT(full) + 8 * i);
            return;
        }
        mbar_wait(AT(v_empty) + 8 * i, (n >> 1 & 1) ^ 1);
        u32 bar = AT(full) + 8 * i;
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
    MEMBER void describe(Block &b, const Brief &it, int key) {
        b.left = it.run0 - key, b.right = it.run1 - key, b.lo = it.lo - key, b.hi = it.hi - key;
        b.item_row0 = it.row0, b.item_row1 = it.row1, b.limits = it.limits, b.key = key;
    }

    // What the loop over an item's blocks uses of the brief.
    struct Used {
        int run1, full0, full_last, exact, source, kv_head, flags;
    };
    MEMBER Used used(const Brief &it) {
        return {it.run1, it.full0, it.full_last, it.exact, it.source, it.kv_head, it.flags};
    }

    // The blocks of one item. What the loop takes delays copies: where a producer has registers for it, what the loop
    // uses stays there; else it is read again for each block.
    MEMBER void item(const Brief &it) {
        const Used once = used(it);
        int first = once.flags & FIRST;
#pragma unroll 1
        for (int key = it.start; key < once.run1; key += BN) {
            const Used u = PRODUCER_REGS >= 40 ? once : used(it);
            const int behind = key + BN;
            int flags = first | (key < u.exact ? EXACT : 0) | (behind >= u.run1 ? u.flags & LAST : 0);
            first = 0;
            Block &b = next_block();
            if (key < u.full0 || key > u.full_last) {
                flags |= u.flags & (MASKED | LIMITS);
                describe(b, it, key);
            }
            b.flags = flags;
            const int i = n & 1;
            mbar_expect(AT(full) + 8 * i, K_BYTES);
            load_rows<BN * 128>(AT(k) + i * K_BYTES, &maps.k[u.source], AT(full) + 8 * i, key, u.kv_head, p.copies_k);
            load_values();
            // Behind the end of the tensor the copy engine writes zeros.
            values = {key, u.kv_head, u.source, behind > u.run1 && u.run1 < p.tokens_k[u.source] ? u.run1 - key : BN};
            n++;
        }
    }

    // The one block of a tile whose rows see nothing.
    MEMBER void empty_block() {
        Block &b = next_block();
        b.left = b.right = b.lo = b.hi = b.item_row0 = b.item_row1 = 0;
        b.flags = FIRST | LAST | MASKED;
        mbar_arrive(AT(full) + 8 * (n & 1));
        load_values();
        values.key = -1;
        n++;
    }

    // All the work that this thread block gets.
    MEMBER void run() {
        for (int i = 0;; i++) {
            mbar_wait(AT(brief_full) + 8 * (i & 1), i >> 1 & 1);
            const Brief &it = s.brief[i & 1];
            if (it.flags & STOP) {
                break;
            }
            if (it.start == it.run1) {
                empty_block();
            } else {
                item(it);
            }
            mbar_arrive(AT(brief_empty) + 8 * (i & 1));
        }
        finish();
    }

    MEMBER void finish() {
        next_block().flags = STOP;
        mbar_arrive(AT(full) + 8 * (n & 1));
        load_values();
        s.dirty[dirty & (DIRTY - 1)][0] = -1;
        mbar_arrive(AT(dirty_full) + 8 * (dirty & (DIRTY - 1)));
    }
};

// The scheduling warp, of which one thread works: takes tiles from the counter, reads lists and fetches Q, so that the
// producer never waits for memory other than shared memory. It is one item ahead; further ahead, a thread block would
// hold work that others are free for.
struct Scheduler {
    const ForwardMaps &maps;
    const magi_attn_forward_params &p;
    Shared &s;
    int n = 0, tiles = 0; // items and tiles so far
    magi_tile t;          // the one at hand, of `unit`
    int unit;

    MEMBER Brief &next_brief() {
        mbar_wait(AT(brief_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        return s.brief[n & 1];
    }
    MEMBER void send() {
        mbar_arrive(AT(brief_full) + 8 * (n & 1));
        n++;
    }

    // The first key behind the blocks in which a row may see its first key: the first block, those which the lower side
    // of a band passes, and, with limits for each row, all up to the first full block.
    MEMBER int exact_end(const magi_item &it, const magi_tile &t) {
        const int band = it.lo + t.row0 + t.rows;
        const int limits = it.limits < 0 ? 0 : it.full0 < it.full1 ? it.full0 + 1 : it.run1;
        return max(max(it.start + 1, band), limits);
    }

    MEMBER void load_queries(int row0, int unit) {
        const int q = Q_STAGES == 2 ? tiles & 1 : 0, round = Q_STAGES == 2 ? tiles >> 1 : tiles;
        mbar_wait(AT(q_empty) + 8 * q, (round & 1) ^ 1);
        mbar_expect(AT(q_full) + 8 * q, p.q_bytes);
#pragma unroll
        for (int c = 0; c < D_CHUNKS; c++) {
            tma_load_4d(AT(q) + q * Q_BYTES + c * BM * 128, &maps.q, AT(q_full) + 8 * q, 64 * c, 0, row0, unit);
        }
    }

    MEMBER void fill(Brief &b, const magi_tile &t, const magi_item &it, int unit, int flags) {
        b.flags = flags | (it.limits < 0 ? MASKED : MASKED | LIMITS);
        b.kv_head = unit / p.group;
        b.start = it.start, b.run1 = it.run1, b.full0 = it.full0, b.full_last = it.full1 - BN;
        b.exact = exact_end(it, t), b.source = it.source, b.run0 = it.run0, b.limits = it.limits;
        b.lo = it.lo + t.row0, b.hi = it.hi + t.row0, b.row0 = it.row0, b.row1 = it.row1;
    }

    // Reads work: its tile and first item. Tiles come longest first, one unit after the other within a section of units
    // whose keys stay in the L2 cache.
    MEMBER void read(int work, Brief &b) {
        const int per_section = p.tile_count * p.section, section = work / per_section;
        const int in = work - section * per_section;
        unit = section * p.section + in % p.section;
        t = p.tiles[in / p.section];
        s.place[tiles & (PLACES - 1)] = {t.row0, unit, t.rows, t.slot, t.pieces};
        const magi_item first = t.items > 0 ? p.items[t.item0] : magi_item{};
        fill(b, t, first, unit, t.items > 1 ? FIRST : FIRST | LAST);
    }

    // Sends what was read, and what else the tile needs.
    MEMBER void hand_out() {
        send();
        load_queries(t.row0, unit);
        tiles++;
#pragma unroll 1
        for (int i = 1; i < t.items; i++) {
            const magi_item it = p.items[t.item0 + i];
            fill(next_brief(), t, it, unit, i + 1 == t.items ? LAST : 0);
            send();
        }
    }

    // The first work of this thread block, which needs no barrier yet.
    MEMBER void begin() { read(blockIdx.x, s.brief[0]); }

    MEMBER void run() {
        for (;;) {
            hand_out();
            Brief &b = next_brief();
            const int work = atomicAdd(&p.counters[0], 1) + gridDim.x;
            if (work >= p.tile_count * p.units) {
                b.flags = STOP;
                send();
                return;
            }
            read(work, b);
        }
    }
};
