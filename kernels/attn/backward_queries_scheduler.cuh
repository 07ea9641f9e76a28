// The scheduling warp of the dq kernel, of which one thread works: takes tiles from the counter, reads lists and
// fetches what belongs to a tile's rows, so that the producer never waits for memory other than shared memory. It is
// one item ahead; further ahead, a thread block would hold work that others are free for.
// SPDX-License-Identifier: Apache-2.0
#pragma once
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
    MEMBER void load_tile(int row0, int unit) {
        const int q = Q_STAGES == 2 ? tiles & 1 : 0, round = Q_STAGES == 2 ? tiles >> 1 : tiles;
        mbar_wait(AT(q_empty) + 8 * q, (round & 1) ^ 1);
        mbar_expect(AT(q_full) + 8 * q, CONSUMER_GROUPS * Q_PART + ROWS_BYTES);
        tma_load_3d(AT(rows) + q * ROWS_BYTES, &maps.rows, AT(q_full) + 8 * q, row0, 0, unit);
#pragma unroll 1
        for (int g = 0; g < CONSUMER_GROUPS; g++) {
            load_rows<64 * 128>(AT(q) + (q * CONSUMER_GROUPS + g) * Q_PART, &maps.q, AT(q_full) + 8 * q, row0 + 64 * g,
                                unit, p.copies_k);
        }
#pragma unroll 1
        for (int g = 0; g < CONSUMER_GROUPS; g++) {
            mbar_wait(AT(dout_empty) + 8 * g, (tiles & 1) ^ 1);
            mbar_expect(AT(dout_full) + 8 * g, DO_PART);
            load_rows<64 * 128>(AT(dout) + g * DO_PART, &maps.dout, AT(dout_full) + 8 * g, row0 + 64 * g, unit,
                                p.copies_v);
        }
    }

    MEMBER void fill(Brief &b, const magi_tile &t, const magi_item &it, int unit, int flags) {
        b.flags = flags | (it.limits < 0 ? MASKED : MASKED | LIMITS);
        b.kv_head = unit / p.group;
        b.start = it.start, b.run1 = it.run1, b.full0 = it.full0, b.full_last = it.full1 - BN;
        b.source = it.source, b.run0 = it.run0, b.limits = it.limits;
        b.lo = it.lo + t.row0, b.hi = it.hi + t.row0, b.row0 = it.row0, b.row1 = it.row1;
    }

    // Tiles come longest first, one head after the other within a section of heads whose keys stay in the L2 cache.
    MEMBER void tile(int work, Brief *b) {
        const int per_section = p.tile_count * p.section, section = work / per_section;
        const int in = work - section * per_section;
        const int unit = section * p.section + in % p.section;
        const magi_tile t = p.tiles[in / p.section];
        s.place[tiles & (PLACES - 1)] = {t.row0, unit, t.rows, t.items};
        const magi_item first = t.items > 0 ? p.items[t.item0] : magi_item{};
        fill(*b, t, first, unit, t.items > 1 ? FIRST : FIRST | LAST);
        send();
        load_tile(t.row0, unit);
        tiles++;
#pragma unroll 1
        for (int i = 1; i < t.items; i++) {
            const magi_item it = p.items[t.item0 + i];
            fill(next_brief(), t, it, unit, i + 1 == t.items ? LAST : 0);
            send();
        }
    }

    MEMBER void run() {
        int work = blockIdx.x;
        Brief *b = &next_brief();
        while (work < p.tile_count * p.units) {
            tile(work, b);
            b = &next_brief();
            work = atomicAdd(&p.counters[0], 1) + gridDim.x;
        }
        b->flags = STOP;
        send();
    }
};
