// The producer: one thread takes the work and fetches keys, one fetches queries.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "../ptx/launch.cuh"
#include "backward_maps.cuh"
#include "backward_shape.cuh"
#include "row_load.cuh"

struct Producer {
    const BackwardMaps &maps;
    const magi_attn_backward_params &p;
    Shared &s;
    u32 n = 0, orders = 0; // blocks and orders so far

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
    MEMBER u32 barrier(u32 bar, int what, int i, int query, int unseen, int seen) {
        if (unseen > 0 || (seen < BQ && query + seen < p.tokens_q)) {
            Order &o = next_order();
            o.what = what, o.stage = i, o.unseen = unseen, o.seen = seen;
            return send_order();
        }
        mbar_arrive_rest(bar);
        return bar;
    }
    MEMBER void load(int i, int query, int head, int unseen, int seen) {
        u32 bar = barrier(AT(full) + 8 * i, CLEAN_QUERIES, i, query, unseen, seen);
        mbar_expect(bar, Q_BYTES + STATS_BYTES + (WIDE ? 0 : DO_BYTES));
        load_rows<BQ * 128>(AT(q) + i * Q_BYTES, &maps.q, bar, query, head, p.copies_k);
        tma_load_3d(AT(stats) + i * STATS_BYTES, &maps.stats, bar, 2 * (query & ~1), query & 1, head);
#if WIDE
        i = DO_STAGES == 2 ? i : 0;
        mbar_wait(AT(dout_empty) + 8 * i, (n / DO_STAGES & 1) ^ 1);
        bar = barrier(AT(dout_full) + 8 * i, CLEAN_GRADIENTS, i, query, unseen, seen);
        mbar_expect(bar, DO_BYTES);
#endif
        load_rows<BQ * 128>(AT(dout) + i * DO_BYTES, &maps.dout, bar, query, head, p.copies_v);
    }

    // One block of queries. The last one of a run begins earlier where it would reach beyond it: what the block before
    // has is then masked, and nothing is to be cleaned.
    MEMBER void block(const Brief &it, int query) {
        const int i = stage_of(n);
        mbar_wait(AT(empty) + 8 * i, phase_of(n) ^ 1);
        Block &b = s.block[i];
        int flags = 0, from = query;
        if (query + BQ > it.run1 && it.run1 - BQ >= it.run0) {
            from = it.run1 - BQ;
        }
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
        for (u32 i = 0;; i++) {
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

// V of a tile, when that of the tile before is done with.
DEV void load_values(const BackwardMaps &maps, const magi_attn_backward_params &p, const TilePlace &t, u32 tile) {
    mbar_wait(AT(v_empty), (tile & 1) ^ 1);
    mbar_expect(AT(v_full), V_BYTES);
    load_rows<BK * 128>(AT(v), &maps.v[t.source], AT(v_full), t.row0, t.head, p.copies_v);
}

#if KEYS_ALONE
// The warp of V, of which one thread works: K and queries of the next tile do not wait until there is room for its V.
DEV void fetch_values(const BackwardMaps &maps, const magi_attn_backward_params &p, const Shared &s) {
    for (u32 tile = 0;; tile++) {
        mbar_wait(AT(k_full) + 8 * (tile & 1), tile >> 1 & 1);
        if (s.place[tile & 1].blocks < 0) {
            return;
        }
        load_values(maps, p, s.place[tile & 1], tile);
    }
}
#endif

// The scheduling warp, of which one thread works: takes tiles from the counter, reads lists and fetches keys, so that
// the producer never waits for memory other than shared memory. Registers are short: what it knows of its tile stands
// in shared memory, too, and is there before the tile before has ended.
struct Scheduler {
    const BackwardMaps &maps;
    const magi_attn_backward_params &p;
    Shared &s;
    u32 n = 0, tiles = 0; // items and tiles so far

    MEMBER int stage() const { return TILE_PLACES == 2 ? tiles & 1 : 0; }

    // Waits until there is room for the next tile's keys.
    MEMBER void wait_for_place() {
        const u32 i = K_STAGES == TILE_PLACES ? tiles : tiles + 1; // with one K: the tile before is done with it
        mbar_wait(AT(k_empty) + 8 * (TILE_PLACES == 2 ? i & 1 : 0), (i / TILE_PLACES & 1) ^ 1);
    }

    // A step that all keys of the tile see shows that there is no key that nothing sees.
    MEMBER bool all_seen(const Tile &t) {
#pragma unroll 1
        for (int i = t.item0; i < t.item1; i++) {
            if (p.items[i].full0 < p.items[i].full1) {
                return true;
            }
        }
        return t.item0 == t.item1;
    }

    // V, which is done with a step before K is, then K. Keys that nothing sees are cleaned before consumers hear of K.
    MEMBER void load_keys(Tile &t) {
        const int i = stage();
        const bool clean = DQ && !all_seen(t);
        t.clean = clean ? i : -1;
        if (!KEYS_ALONE) {
            load_values(maps, p, t, tiles);
        }
        wait_for_place();
        s.place[i] = t;
        const u32 bar = (t.clean < 0 ? AT(k_full) : AT(k_loaded)) + 8 * i;
        if (t.clean < 0) {
            mbar_arrive_rest(bar);
        }
        mbar_expect(bar, K_BYTES);
        load_rows<BK * 128>(AT(k) + k_stage(i), &maps.k[t.source], bar, t.row0, t.head, p.copies_k);
        tiles++;
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
    MEMBER int first_query(const Tile &t) {
        const u32 blocks = (t.end - t.start + BQ - 1) / BQ;
        return t.start + (DQ ? __umulhi(t.row0 / BK * 0x9E3779B1u, blocks) * BQ : 0); // the golden ratio: far apart
    }

    // The blocks of the tile's part of an item, for one query head.
    MEMBER void fill(Brief &b, const Tile &t, const magi_item &it) {
        b.head = t.query_head;
        b.flags = it.limits < 0 ? MASKED : MASKED | LIMITS;
        b.limits = it.limits;
        b.start = t.start, b.end = t.end, b.run0 = it.run0, b.run1 = it.run1;
        b.first = first_query(t);
        // Keys behind the end of the tensor are 0, but their exponentials may be infinite: a short tile has no full
        // step.
        b.full0 = it.full0, b.full_last = t.rows < BK ? it.full0 - 1 : it.full1 - BQ;
        b.lo = it.lo + t.row0, b.hi = it.hi + t.row0;
        b.row0 = it.row0, b.row1 = it.row1;
    }

    // Q, dO and sums of dq stay in the L2 cache where thread blocks of the same queries do them at about the same time.
    // Where tiles are about equally long, and a query head of the longest stays there, they go through one query head
    // after the other in step. Else all heads come for a part of the queries before the next part. The tiles that begin
    // first end with the same queries in a causal mask, and go backward by parts; the shorter ones that follow as those
    // end go forward, whereby they, too, are in step, and end together.
    MEMBER void order_parts() {
        const magi_tile *const t = p.tiles;
        const int steps = t[p.tile_count / 16].steps; // not of the few tiles whose keys are of two documents
        const bool unlike = 4 * t[3 * (i64)p.tile_count / 4].steps < 3 * steps;
        s.share.in_parts = unlike || steps > CACHED / BQ;
        s.share.part = min(max(steps / 8, PART_LEAST), 16) * BQ;
        s.share.waves = unlike ? max((2 * s.share.section + WAVE) / (2 * WAVE), 1) : 0;
        s.share.together = s.share.begun = 0;
        // A head that does not fit at all is worth a wait.
        if (steps > 4 * CACHED / BQ && same_queries(t[0], t[p.tile_count - 1])) {
            const int parts = (steps * BQ + s.share.part - 1) / s.share.part;
            s.share.together = s.share.work / (int)ptx::blocks() * parts; // the last tiles are not for all
        }
    }

    // Tiles that see the same queries go through as many parts.
    MEMBER bool same_queries(const magi_tile &a, const magi_tile &b) {
        const magi_item *const x = p.items + a.item0, *const y = p.items + b.item0;
        return a.steps == b.steps && a.items == b.items && x[0].start == y[0].start &&
               x[a.items - 1].run1 == y[b.items - 1].run1;
    }

    // Thread blocks whose tiles are the same drift apart over many of them, until a part has left the cache before all
    // have read it. So none begins a part before all have begun the one before it. One that waits in vain, because
    // others have no multiprocessor yet, does without from there on, and soon all do: it waits as long as a twentieth
    // of all parts takes, or 2 ms.
    MEMBER void begin_together() {
        const int n = s.share.begun;
        if (n >= s.share.together) {
            return;
        }
        s.share.begun = n + 1;
        int *const begun = p.counters + 2; // of even and of odd parts
        atomicAdd(&begun[n & 1], 1);
        // A part takes 300 with 8 query heads.
        const int times = max(max(16 * s.share.together, 128 * s.share.heads), 2048);
        if (n > 0 && !ptx::comes_to(&begun[(n - 1) & 1], ((n + 1) / 2) * (int)ptx::blocks(), times)) {
            s.share.together = 0;
        }
    }

    // Where part `n` begins for an item.
    MEMBER int part_start(const magi_item &it, int n) {
        const int before = n * s.share.part - it.start;
        return it.start + (before > 0 ? (before + BQ - 1) / BQ * BQ : 0);
    }

    // Counts an item's parts.
    MEMBER void begin_parts(Tile &t, const magi_item &it) {
        t.parts = 1;
        if (s.share.in_parts) {
            const int first = it.start / s.share.part, last = (it.run1 - 1) / s.share.part;
            t.parts = last - first + 1;
            t.part = t.backward ? last : first;
        }
    }

    // The queries of the next part.
    MEMBER void next_part(Tile &t, const magi_item &it) {
        t.parts--;
        t.start = it.start, t.end = it.run1;
        if (s.share.in_parts) {
            t.start = part_start(it, t.part);
            t.end = min(it.run1, part_start(it, t.part + 1));
            t.part += t.backward ? -1 : 1;
        }
    }

    MEMBER void send_part(Tile &t) {
#pragma unroll 1
        for (t.query_head = t.head0; t.query_head < t.head1; t.query_head++) {
            Brief &b = next_brief();
            b.clean = t.clean;
            t.clean = -1;
            fill(b, t, p.items[t.item]);
            send();
        }
    }

    MEMBER void send_tile(Tile &t) {
#pragma unroll 1
        for (t.item = t.item0; t.item < t.item1; t.item++) {
            begin_parts(t, p.items[t.item]);
#pragma unroll 1
            while (t.parts > 0) {
                next_part(t, p.items[t.item]);
                if (t.start < t.end) {
                    begin_together();
                    send_part(t);
                }
            }
        }
    }

    // Tiles come longest first, one key head after the other within a section of heads; of a head, its splits.
    MEMBER void describe(Tile &tile, int work) {
        const int split = work % p.splits, whole = work / p.splits, heads = s.share.heads;
        const int section = whole / s.share.section, in = whole - section * s.share.section, index = in / p.section;
        const int head = section * p.section + in % p.section;
        const magi_tile &t = p.tiles[index];
        tile.row0 = t.row0, tile.rows = t.rows, tile.source = t.source, tile.head = head, tile.split = split;
        tile.work = index * p.heads_kv + head;
        tile.phase = tiles & 1;
        tile.blocks = t.items > 0 ? t.steps * heads : 0;
        tile.head0 = head * p.group + split * heads;
        tile.head1 = tile.head0 + heads;
        const int waves = s.share.waves;
        const int wave = waves > 0 ? section * waves + min(in / WAVE, waves - 1) : work / WAVE;
        tile.backward = wave % 2 == 0;
        tile.item0 = t.item0, tile.item1 = t.item0 + t.items;
    }

    MEMBER void run() {
        int work = blockIdx.x;
        order_parts();
        while (work < s.share.work) {
            describe(s.tile, work);
            load_keys(s.tile);
            send_tile(s.tile);
            work = atomicAdd(&p.counters[0], 1) + gridDim.x;
        }
        wait_for_place();
        s.place[stage()].blocks = -1;
        mbar_arrive_rest(AT(k_full) + 8 * stage());
        mbar_arrive(AT(k_full) + 8 * stage());
        next_brief().flags = -1;
        send();
    }
};
