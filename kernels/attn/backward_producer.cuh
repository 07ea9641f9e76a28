// The producer warpgroup: one thread takes the work and fetches keys, one fetches queries, one warp cleans queries that
// are not the run's.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_maps.cuh"
#include "backward_shape.cuh"

// Rows of one head. One copy brings all columns, or one for each 64, which can end where the columns of a padded head
// dimension do.
template <u32 CHUNK_BYTES> DEV void load_rows(u32 dst, const TensorMap *m, u32 bar, int row, int head, int copies) {
    tma_load_4d(dst, m, bar, 0, row, 0, head);
#pragma unroll 1
    for (int c = 1; c < copies; c++) {
        tma_load_4d(dst + c * CHUNK_BYTES, m, bar, 64 * c, row, 0, head);
    }
}

struct Producer {
    const BackwardMaps &maps;
    const magi_attn_backward_params &p;
    Shared &s;
    int n = 0, dirty = 0; // blocks and dirty blocks so far

    // What a block needs that some row of the tile does not see entirely.
    MEMBER void describe(Block &b, const Brief &it, int query) {
        b.left = it.run0 - query, b.right = it.run1 - query, b.lo = it.lo - query, b.hi = it.hi - query;
        b.item_row0 = it.row0, b.item_row1 = it.row1, b.limits = it.limits;
    }

    // Queries and what belongs to them, into stage i. Those before and behind the run may hold anything, and 0 * NaN is
    // NaN: the cleaning warp zeroes them before consumers hear of the copy. Behind the end of the tensor the copy engine
    // does.
    MEMBER void load(int i, int query, int head, int unseen, int seen) {
        u32 bar = AT(full) + 8 * i;
        if (unseen > 0 || (seen < BQ && query + seen < p.tokens_q)) {
            int *const order = s.dirty[dirty & (DIRTY - 1)];
            order[0] = i, order[1] = unseen, order[2] = seen;
            bar = AT(dirty_full) + 8 * (dirty & (DIRTY - 1));
            dirty++;
        }
        mbar_expect(bar, Q_BYTES + DO_BYTES + STATS_BYTES);
        load_rows<BQ * 128>(AT(q) + i * Q_BYTES, &maps.q, bar, query, head, p.copies_k);
        tma_load_3d(AT(stats) + i * STATS_BYTES, &maps.stats, bar, query, 0, head);
        load_rows<BQ * 128>(AT(dout) + i * DO_BYTES, &maps.dout, bar, query, head, p.copies_v);
    }

    // What an item says is read again for each block: registers are short.
    MEMBER void item(const Brief &it) {
        if (it.clean >= 0) {
            s.dirty[dirty & (DIRTY - 1)][0] = -2 - it.clean;
            mbar_arrive(AT(dirty_full) + 8 * (dirty & (DIRTY - 1)));
            dirty++;
        }
#pragma unroll 1
        for (int query = it.start; query < it.run1; query += BQ) {
            const int i = n & 1;
            mbar_wait(AT(empty) + 8 * i, (n >> 1 & 1) ^ 1);
            Block &b = s.block[i];
            int flags = 0;
            if (query < it.full0 || query > it.full_last) {
                flags = it.flags;
                describe(b, it, query);
            }
            b.flags = flags, b.query = query;
            s.where[n & (PLACES - 1)] = {query, it.head};
            load(i, query, it.head, it.run0 - query, it.run1 - query);
            n++;
        }
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
        s.dirty[dirty & (DIRTY - 1)][0] = -1;
        mbar_arrive(AT(dirty_full) + 8 * (dirty & (DIRTY - 1)));
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

    MEMBER TilePlace &next_place() {
        mbar_wait(AT(k_empty) + 8 * (tiles & 1), (tiles >> 1 & 1) ^ 1);
        return s.place[tiles & 1];
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

    // Keys that nothing sees are cleaned before consumers hear of K. True if there may be such.
    MEMBER bool load_keys(const TilePlace &t) {
        const int i = tiles & 1;
        const bool clean = !all_seen(t);
        const u32 bar = (clean ? AT(k_loaded) : AT(k_full)) + 8 * i;
        mbar_expect(bar, K_BYTES);
        load_rows<BK * 128>(AT(k) + i * K_BYTES, &maps.k[t.source], bar, t.row0, t.head, p.copies_k);
        mbar_wait(AT(v_empty), i ^ 1);
        mbar_expect(AT(v_full), V_BYTES);
        load_rows<BK * 128>(AT(v), &maps.v[t.source], AT(v_full), t.row0, t.head, p.copies_v);
        return clean;
    }

    MEMBER Brief &next_brief() {
        mbar_wait(AT(brief_empty) + 8 * (n & 1), (n >> 1 & 1) ^ 1);
        return s.brief[n & 1];
    }
    MEMBER void send() {
        mbar_arrive(AT(brief_full) + 8 * (n & 1));
        n++;
    }

    MEMBER void fill(Brief &b, const TilePlace &t, const magi_item &it, int head) {
        b.head = head;
        b.flags = it.limits < 0 ? MASKED : MASKED | LIMITS;
        b.limits = it.limits;
        b.start = it.start, b.run1 = it.run1, b.run0 = it.run0;
        // Keys behind the end of the tensor are 0, but their exponentials may be infinite: a short tile has no full
        // step.
        b.full0 = it.full0, b.full_last = t.rows < BK ? it.full0 - 1 : it.full1 - BQ;
        b.lo = it.lo + t.row0, b.hi = it.hi + t.row0;
        b.row0 = it.row0, b.row1 = it.row1;
    }

    // Tiles come longest first, one key head after the other within a section of heads; of a head, its splits.
    MEMBER void describe(TilePlace &place, int work) {
        const int split = work % p.splits, whole = work / p.splits, heads = p.group / p.splits;
        const int per_section = p.tile_count * p.section, section = whole / per_section;
        const int in = whole - section * per_section, index = in / p.section;
        const int head = section * p.section + in % p.section;
        const magi_tile &t = p.tiles[index];
        place.row0 = t.row0, place.rows = t.rows, place.source = t.source, place.head = head, place.split = split;
        place.work = index * p.heads_kv + head;
        place.blocks = t.steps * heads;
        place.head0 = head * p.group + split * heads;
        place.head1 = place.head0 + heads;
        place.item0 = t.item0, place.item1 = t.item0 + t.items;
    }

    MEMBER void run() {
        int work = blockIdx.x;
        while (work < p.tile_count * p.heads_kv * p.splits) {
            const TilePlace &t = next_place();
            describe(s.place[tiles & 1], work);
            int clean = load_keys(t) ? tiles & 1 : -1;
            tiles++;
#pragma unroll 1
            for (int h = t.head0; h < t.head1; h++) {
#pragma unroll 1
                for (int i = t.item0; i < t.item1; i++) {
                    Brief &b = next_brief();
                    b.clean = clean;
                    clean = -1;
                    fill(b, t, p.items[i], h);
                    send();
                }
            }
            work = atomicAdd(&p.counters[0], 1) + gridDim.x;
        }
        next_place().blocks = -1;
        mbar_arrive(AT(k_full) + 8 * (tiles & 1));
        next_brief().flags = -1;
        send();
    }
};

// Whether a key of a tile sees a query of one of its items.
DEV bool sees(const magi_attn_backward_params &p, const TilePlace &t, int row) {
#pragma unroll 1
    for (int i = t.item0; i < t.item1; i++) {
        const magi_item &it = p.items[i];
        if (row < it.row0 || row >= it.row1) {
            continue;
        }
        int lo = max(it.run0, t.row0 + row + it.lo), hi = min(it.run1, t.row0 + row + it.hi + 1);
        if (it.limits >= 0) {
            lo = max(lo, p.limits[it.limits + row].lo), hi = min(hi, p.limits[it.limits + row].hi);
        }
        if (lo < hi) {
            return true;
        }
    }
    return false;
}

// Zeroes keys of a stage that nothing sees: dQ is a sum over them.
DEV void clean_keys(const magi_attn_backward_params &p, Shared &s, int stage, u32 phase, int lane) {
    mbar_wait(AT(k_loaded) + 8 * stage, phase);
#pragma unroll 1
    for (int row = lane; row < BK; row += 32) {
        if (sees(p, s.place[stage], row)) {
            continue;
        }
#pragma unroll 1
        for (int i = 0; i < D_CHUNKS * 8; i++) { // 16 bytes of a row
            st_shared_v4(AT(k) + stage * K_BYTES + i / 8 * (BK * 128) + row * 128 + i % 8 * 16, 0, 0, 0, 0);
        }
    }
}

// Zeroes queries of a stage that are not the run's.
DEV void clean_queries(Shared &s, int stage, int unseen, int seen, int lane) {
#pragma unroll 1
    for (int i = lane; i < BQ * 8; i += 32) { // 16 bytes of a row
        if (i / 8 >= unseen && i / 8 < seen) {
            continue;
        }
#pragma unroll
        for (int c = 0; c < D_CHUNKS; c++) {
            st_shared_v4(AT(q) + stage * Q_BYTES + c * BQ * 128 + i * 16, 0, 0, 0, 0);
        }
#pragma unroll
        for (int c = 0; c < DV_CHUNKS; c++) {
            st_shared_v4(AT(dout) + stage * DO_BYTES + c * BQ * 128 + i * 16, 0, 0, 0, 0);
        }
        if (i % 8 == 0) {
            s.stats[stage][0][i / 8] = s.stats[stage][1][i / 8] = 0;
        }
    }
}

// The cleaning warp: zeroes what has been copied and nothing sees, then says that it is there.
DEV void clean(const magi_attn_backward_params &p, Shared &s, int lane) {
    u32 phases = 0; // of K's stages
    for (int d = 0;; d++) {
        mbar_wait(AT(dirty_full) + 8 * (d & (DIRTY - 1)), d / DIRTY & 1);
        const int *const order = s.dirty[d & (DIRTY - 1)];
        const int what = order[0], stage = what >= 0 ? what : -2 - what;
        if (what == -1) {
            return;
        }
        if (what < 0) {
            clean_keys(p, s, stage, phases >> stage & 1, lane);
            phases ^= 1 << stage;
        } else {
            clean_queries(s, stage, order[1], order[2], lane);
        }
        fence_proxy_async();
        __syncwarp();
        mbar_arrive_if((what < 0 ? AT(k_full) : AT(full)) + 8 * stage, lane == 0);
    }
}

// The adding warp, of which one thread works: has the copy engine add dQ of each block to memory.
DEV void add_queries(const BackwardMaps &maps, Shared &s) {
    for (int n = 0;; n++) {
#pragma unroll
        for (int g = 0; g < CONSUMER_GROUPS; g++) {
            mbar_wait(AT(dq_full) + 8 * g, n & 1);
            if (g == 0 && s.no_more_dq) {
                return;
            }
            const QueryPlace to = s.where[n & (PLACES - 1)];
#pragma unroll
            for (int c = 0; c < D / 64; c++) {
                tma_add_3d(&maps.dq, AT(dq) + g * sizeof(s.dq[0]) + c * BQ * 128, g * (D / 2) + 32 * c, to.query, to.head);
            }
            bulk_commit();
        }
        bulk_wait_read<0>();
#pragma unroll
        for (int g = 0; g < CONSUMER_GROUPS; g++) {
            mbar_arrive(AT(dq_empty) + 8 * g);
        }
    }
}
