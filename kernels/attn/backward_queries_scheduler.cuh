// The scheduling warp of the dq kernel, of which one thread works: takes tiles from the counter, reads lists and
// fetches what belongs to a tile's rows, so that the producer never waits for memory other than shared memory. It is
// one item ahead; further ahead, a thread block would hold work that others are free for.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../ptx/launch.cuh"
#include "backward_queries_producer.cuh"

struct Scheduler {
    const BackwardQueriesMaps &maps;
    const magi_attn_backward_queries_params &p;
    Shared &s;
    int n = 0, tiles = 0; // items and tiles so far

    MEMBER Brief &next_brief() {
        mbar_wait(AT(brief_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        return s.brief[n & 1];
    }
    MEMBER void send() {
        mbar_arrive(AT(brief_full) + 8 * (n & 1));
        n++;
    }

    // Q, lse and delta of a tile; dO follows warpgroup by warpgroup, as each is done with that of the tile before.
    MEMBER void load_tile(const TilePlace &t) {
        const int q = Q_STAGES == 2 ? tiles & 1 : 0, round = Q_STAGES == 2 ? tiles >> 1 : tiles;
        const u32 bar = AT(q_full) + 8 * q;
        mbar_wait(AT(q_empty) + 8 * q, (round & 1) ^ 1);
        mbar_expect(bar, CONSUMER_GROUPS * Q_PART + ROWS_BYTES);
        tma_load_3d(AT(rows) + q * ROWS_BYTES, &maps.rows, bar, 2 * t.row0, 0,
                    t.unit); // rows of tiles begin at even ones
#pragma unroll 1
        for (int g = 0; g < CONSUMER_GROUPS; g++) {
            load_rows<64 * 128>(AT(q) + (q * CONSUMER_GROUPS + g) * Q_PART, &maps.q, bar, t.row0 + 64 * g, t.unit,
                                p.copies_k);
        }
#pragma unroll 1
        for (int g = 0; g < CONSUMER_GROUPS; g++) {
            mbar_wait(AT(dout_empty) + 8 * g, (tiles & 1) ^ 1);
            mbar_expect(AT(dout_full) + 8 * g, DO_PART);
            load_rows<64 * 128>(AT(dout) + g * DO_PART, &maps.dout, AT(dout_full) + 8 * g, t.row0 + 64 * g, t.unit,
                                p.copies_v);
        }
    }

    // An item goes to the producer as it is in the list, in as few registers as there are.
    MEMBER void send_item(Brief &b, int item, int row0, int kv_head, int flags) {
        const int4 *const from = (const int4 *)(p.items + item);
        int4 *const to = (int4 *)&b.item;
#pragma unroll(PRODUCER_REGS >= 40 ? 3 : 1)
        for (int i = 0; i < 3; i++) {
            to[i] = from[i];
        }
        b.row0 = row0;
        b.kv_head = kv_head;
        b.flags = flags | (b.item.limits < 0 ? MASKED : MASKED | LIMITS);
        send();
    }

    // Tiles come longest first, one head after the other within a section of heads whose keys stay in the L2 cache.
    MEMBER void tile(u32 work, Brief *b) {
        const u32 per_section = again(p.tile_count) * p.section, section = work / per_section;
        const u32 in = work - section * per_section;
        const u32 unit = section * p.section + in % (u32)p.section;
        const int kv_head = unit / (u32)p.group;
        const magi_tile &t = p.tiles[in / (u32)p.section];
        TilePlace &place = s.place[tiles & (PLACES - 1)];
        place = {t.row0, (int)unit, t.rows, t.items};
        int item = t.item0;
        const int items = t.items;
        if (items == 0) {
            b->item.start = b->item.run1 = 0;
            b->flags = FIRST | LAST;
            send();
        } else {
            send_item(*b, item, place.row0, kv_head, items > 1 ? FIRST : FIRST | LAST);
        }
        load_tile(place);
        tiles++;
#pragma unroll 1
        for (const int last = item + items - 1; item < last;) {
            item++;
            send_item(next_brief(), item, place.row0, kv_head, item == last ? LAST : 0);
        }
    }

    // What stays the same from tile to tile is made anew for each, or it would hold registers.
    static MEMBER u32 again(u32 x) {
        asm volatile("" : "+r"(x));
        return x;
    }

    MEMBER void run() {
        u32 work = blockIdx.x;
        Brief *b = &next_brief();
        while (work < again(p.tile_count) * p.units) {
            tile(work, b);
            b = &next_brief();
            work = atomicAdd(&p.counters[0], 1) + ptx::blocks();
        }
        b->flags = STOP;
        send();
    }
};
