// The producer: one thread takes the work and fetches keys, one fetches queries.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_maps.cuh"
#include "backward_shape.cuh"
#include "row_load.cuh"

struct Producer {
    const BackwardMaps &maps;
    const magi_attn_backward_params &p;
    Shared &s;
    int n = 0, orders = 0; // blocks and orders so far

    // The next order to the cleaning warp, which counts once its barrier is through.
    MEMBER Order &next_order() { return s.orders[orders & (ORDERS - 1)]; }
    MEMBER u32 send_order() { return AT(ordered) + 8 * (orders++ & (ORDERS - 1)); }

    // What a block needs that some row of the tile does not see entirely.
    MEMBER void describe(Block &b, const Brief &it, int query, int first) {
        b.left = max(it.run0, first) - query, b.right = it.run1 - query, b.lo = it.lo - query, b.hi = it.hi - query;
        b.item_row0 = it.row0, b.item_row1 = it.row1, b.limits = it.limits;
    }

    // Queries and what belongs to them, into stage i. Those before and behind the run may hold anything, and 0 * NaN is
    // NaN: the cleaning warp zeroes them before consumers hear of the copy. Behind the end of the tensor the copy
    // engine does.
    MEMBER void load(int i, int query, int head, int unseen, int seen) {
        u32 bar = AT(full) + 8 * i;
        if (unseen > 0 || (seen < BQ && query + seen < p.tokens_q)) {
            Order &o = next_order();
            o.what = CLEAN_QUERIES, o.stage = i, o.unseen = unseen, o.seen = seen;
            bar = send_order();
        } else {
            mbar_arrive_rest(bar);
        }
        mbar_expect(bar, Q_BYTES + DO_BYTES + STATS_BYTES);
        load_rows<BQ * 128>(AT(q) + i * Q_BYTES, &maps.q, bar, query, head, p.copies_k);
        tma_load_3d(AT(stats) + i * STATS_BYTES, &maps.stats, bar, query, 0, head);
        load_rows<BQ * 128>(AT(dout) + i * DO_BYTES, &maps.dout, bar, query, head, p.copies_v);
    }

    // One block of queries. The last one of a run begins earlier where it would reach beyond it and stats can be copied
    // from there: what the block before has is then masked, and nothing is to be cleaned.
    MEMBER void block(const Brief &it, int query) {
        const int i = n & 1;
        mbar_wait(AT(empty) + 8 * i, (n >> 1 & 1) ^ 1);
        Block &b = s.block[i];
        int flags = 0, from = query;
#if SHIFT
        if (query + BQ > it.run1 && it.run1 - BQ >= it.run0 && it.run1 % 4 == 0) {
            from = it.run1 - BQ;
        }
#endif
        if (query < it.full0 || query > it.full_last) {
            flags = it.flags;
            describe(b, it, from, query);
        }
        b.flags = flags, b.query = from;
        s.where[n & (PLACES - 1)] = {from, it.head};
        load(i, from, it.head, it.run0 - from, it.run1 - from);
        n++;
    }

    // The blocks of an item, from `first` on and round. What it says is read again for each: registers are short.
    MEMBER void item(const Brief &it) {
        if (it.clean >= 0) {
            next_order().what = CLEAN_KEYS, next_order().stage = it.clean;
            mbar_arrive(send_order());
        }
        int query = it.first;
#pragma unroll 1
        do {
            block(it, query);
            query += BQ;
            if (query >= it.end) {
                query = it.start;
            }
        } while (query != it.first);
    }

    // All the work that this thread block gets.
    MEMBER void run() {
        for (int i = 0;; i++) {
            mbar_wait(AT(brief_full) + 8 * (i & 1), i >> 1 & 1);
            const Brief &it = s.brief[i & 1];
            if (it.flags < 0) {
                break;
            }
            item(it);
            mbar_arrive(AT(brief_empty) + 8 * (i & 1));
        }
        next_order().what = NO_MORE;
        mbar_arrive(send_order());
    }
};

// The scheduling warp, of which one thread works: takes tiles from the counter, reads lists and fetches keys, so that
// the producer never waits for memory other than shared memory. Registers are short: what it knows of a tile stands in
// the tile's place.
struct Scheduler {
    const BackwardMaps &maps;
    const magi_attn_backward_params &p;
    Shared &s;
    int n = 0, tiles = 0; // items and tiles so far

    MEMBER int stage() const { return TILE_PLACES == 2 ? tiles & 1 : 0; }

    MEMBER TilePlace &next_place() {
        const int i = K_STAGES == TILE_PLACES ? tiles : tiles + 1; // with one K: the tile before is done with it
        mbar_wait(AT(k_empty) + 8 * (TILE_PLACES == 2 ? i & 1 : 0), (i / TILE_PLACES & 1) ^ 1);
        return s.place[stage()];
    }

    // A step that all keys of the tile see shows that there is no key that nothing sees.
    MEMBER bool all_seen(const TilePlace &t) {
#pragma unroll 1
        for (int i = t.item0; i < t.item1; i++) {
            if (p.items[i].full0 < p.items[i].full1) {
                return true;
            }
        }
        return t.item0 == t.item1;
    }

    // Keys that nothing sees are cleaned before consumers hear of K.
    MEMBER void load_keys(TilePlace &t) {
        const int i = stage();
        const bool clean = DQ && !all_seen(t);
        t.clean = clean ? i : -1;
        const u32 bar = (clean ? AT(k_loaded) : AT(k_full)) + 8 * i;
        if (!clean) {
            mbar_arrive_rest(bar);
        }
        mbar_expect(bar, K_BYTES);
        load_rows<BK * 128>(AT(k) + k_stage(i), &maps.k[t.source], bar, t.row0, t.head, p.copies_k);
        mbar_wait(AT(v_empty), (tiles & 1) ^ 1);
        mbar_expect(AT(v_full), V_BYTES);
        load_rows<BK * 128>(AT(v), &maps.v[t.source], AT(v_full), t.row0, t.head, p.copies_v);
    }

    MEMBER Brief &next_brief() {
        mbar_wait(AT(brief_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        return s.brief[n & 1];
    }
    MEMBER void send() {
        mbar_arrive(AT(brief_full) + 8 * (n & 1));
        n++;
    }

    // Tiles that add to the same rows of dq at once wait for each other: each begins with another of the part's blocks.
    MEMBER int first_query(const TilePlace &t, int start, int end) {
#if !DQ
        return start;
#elif ORDER == 0
        return start;
#else
        return start + __umulhi(t.row0 / BK * 0x9E3779B1u, (end - start + BQ - 1) / BQ) * BQ;
#endif
    }

    // The blocks of an item from the tile's `start` on and before its `end`, for one query head.
    MEMBER void fill(Brief &b, const TilePlace &t, const magi_item &it, int head) {
        b.head = head;
        b.flags = it.limits < 0 ? MASKED : MASKED | LIMITS;
        b.limits = it.limits;
        b.start = t.start, b.end = t.end, b.run0 = it.run0, b.run1 = it.run1;
        b.first = first_query(t, t.start, t.end);
        // Keys behind the end of the tensor are 0, but their exponentials may be infinite: a short tile has no full
        // step.
        b.full0 = it.full0, b.full_last = t.rows < BK ? it.full0 - 1 : it.full1 - BQ;
        b.lo = it.lo + t.row0, b.hi = it.hi + t.row0;
        b.row0 = it.row0, b.row1 = it.row1;
    }

    // Where part `n` begins for the item.
    MEMBER int part_start(int start, int n) {
        const int before = n * s.share.part - start;
        return start + (before > 0 ? (before + BQ - 1) / BQ * BQ : 0);
    }

    // The next part of an item; false when there is none.
    MEMBER bool next_part(TilePlace &t, const magi_item &it) {
        if (t.parts == 0) {
            return false;
        }
        t.parts--;
        if (t.in_parts) {
            t.start = part_start(it.start, t.part);
            t.end = min(it.run1, part_start(it.start, t.part + 1));
            t.part += t.backward ? -1 : 1;
        } else {
            t.start = it.start, t.end = it.run1;
        }
        return true;
    }
    MEMBER void first_part(TilePlace &t, const magi_item &it) {
        t.parts = 1;
        if (t.in_parts) {
            const int first = it.start / s.share.part, last = (it.run1 - 1) / s.share.part;
            t.parts = last - first + 1;
            t.part = t.backward ? last : first;
        }
    }

    // Tiles come longest first, one key head after the other within a section of heads; of a head, its splits.
    MEMBER void describe(TilePlace &place, int work) {
        const int split = work % p.splits, whole = work / p.splits, heads = s.share.heads;
        const int section = whole / s.share.section, in = whole - section * s.share.section, index = in / p.section;
        const int head = section * p.section + in % p.section;
        const magi_tile &t = p.tiles[index];
        place.row0 = t.row0, place.rows = t.rows, place.source = t.source, place.head = head, place.split = split;
        place.work = index * p.heads_kv + head;
        place.phase = tiles & 1;
        place.blocks = t.items > 0 ? t.steps * heads : 0;
        place.head0 = head * p.group + split * heads;
        place.head1 = place.head0 + heads;
        place.in_parts = ORDER == 2 && s.share.in_parts;
        place.backward = work / gridDim.x % 2 == 0;
        place.item0 = t.item0, place.item1 = t.item0 + t.items;
    }

    MEMBER void run() {
        int work = blockIdx.x;
#if SEG
        s.share.part = SEG * BQ;
#else
        s.share.part = min(max(p.tiles[0].steps / 8, 4), 32) * BQ;
#endif
        s.share.in_parts = 4 * p.tiles[p.tile_count / 2].steps < 3 * p.tiles[0].steps;
        while (work < s.share.work) {
            TilePlace &t = next_place();
            describe(t, work);
            load_keys(t);
            tiles++;
#pragma unroll 1
            for (t.item = t.item0; t.item < t.item1; t.item++) {
                first_part(t, p.items[t.item]);
#pragma unroll 1
                while (next_part(t, p.items[t.item])) {
                    if (t.start >= t.end) {
                        continue;
                    }
#pragma unroll 1
                    for (t.query_head = t.head0; t.query_head < t.head1; t.query_head++) {
                        Brief &b = next_brief();
                        b.clean = t.clean;
                        t.clean = -1;
                        int head = t.query_head;
#if SKIP
                        head += t.row0 / BK % (t.head1 - t.head0);
                        if (head >= t.head1) {
                            head -= t.head1 - t.head0;
                        }
#endif
                        fill(b, t, p.items[t.item], head);
                        send();
                    }
                }
            }
            work = atomicAdd(&p.counters[0], 1) + gridDim.x;
        }
        next_place().blocks = -1;
        mbar_arrive_rest(AT(k_full) + 8 * stage());
        mbar_arrive(AT(k_full) + 8 * stage());
        next_brief().flags = -1;
        send();
    }
};
