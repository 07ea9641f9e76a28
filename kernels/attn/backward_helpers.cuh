// Two more warps of the producer warpgroup: one zeroes what nothing sees, one has dQ added to memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_maps.cuh"
#include "backward_shape.cuh"

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
            st_shared_v4(AT(k) + k_stage(stage) + i / 8 * (BK * 128) + row * 128 + i % 8 * 16, 0, 0, 0, 0);
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
        for (int c = 0; c < (WIDE ? 0 : DV_CHUNKS); c++) {
            st_shared_v4(AT(dout) + stage * DO_BYTES + c * BQ * 128 + i * 16, 0, 0, 0, 0);
        }
        if (i % 8 == 0) {
            magi_backward_pair &pair = s.stats[stage][i / 16];
            pair.lse2[i / 8 % 2] = pair.delta[i / 8 % 2] = 0;
        }
    }
}

#if WIDE
// The same of dO, which has barriers of its own.
DEV void clean_gradients(int stage, int unseen, int seen, int lane) {
#pragma unroll 1
    for (int i = lane; i < BQ * 8; i += 32) { // 16 bytes of a row
        if (i / 8 >= unseen && i / 8 < seen) {
            continue;
        }
#pragma unroll
        for (int c = 0; c < DV_CHUNKS; c++) {
            st_shared_v4(AT(dout) + stage * DO_BYTES + c * BQ * 128 + i * 16, 0, 0, 0, 0);
        }
    }
}
#endif

// The cleaning warp: zeroes what has been copied and nothing sees, then says that it is there.
DEV void clean(const magi_attn_backward_params &p, Shared &s, int lane) {
    u32 phases = 0; // of K's stages
    for (u32 i = 0;; i++) {
        mbar_wait(AT(ordered) + 8 * (i & (ORDERS - 1)), i / ORDERS & 1);
        const Order &o = s.orders[i & (ORDERS - 1)];
        const int what = o.what, stage = o.stage;
        if (what == NO_MORE) {
            return;
        }
        if (what == CLEAN_KEYS) {
            clean_keys(p, s, stage, phases >> stage & 1, lane);
            phases ^= 1 << stage;
#if WIDE
        } else if (what == CLEAN_GRADIENTS) {
            clean_gradients(stage, o.unseen, o.seen, lane);
#endif
        } else {
            clean_queries(s, stage, o.unseen, o.seen, lane);
        }
        fence_proxy_async();
        __syncwarp();
        u32 bar = what == CLEAN_KEYS ? AT(k_full) : AT(full);
#if WIDE
        bar = what == CLEAN_GRADIENTS ? AT(dout_full) : bar;
#endif
        mbar_arrive_warp(bar + 8 * stage, lane);
    }
}

#if DQ && WIDE
// The adding warp, of which one thread works: has the copy engine add dQ to memory, a chunk of 64 columns after the
// other. A place is free again when its copy has been read; the newest ones may be under way meanwhile.
DEV void add_queries(const BackwardMaps &maps, Shared &s) {
    u32 place = 0, phase = 0;
    for (u32 n = 0;; n++) { // parts so far
        mbar_wait(AT(dq_full) + 8 * place, phase);
        if (s.no_more_dq == n + 1) {
            break;
        }
        const QueryPlace to = s.where[n / D_CHUNKS & (PLACES - 1)];
#pragma unroll
        for (int c = 0; c < BOXES; c++) {
            tma_add_3d(&maps.dq, AT(out) + place * (BOXES * BOX_BYTES) + c * BOX_BYTES, 64 * (n % D_CHUNKS) + 32 * c,
                       to.query, to.head);
        }
        bulk_commit();
        bulk_wait_read<OUT_PLACES - 1>();
        place++;
        if (place == OUT_PLACES) {
            place = 0, phase ^= 1;
        }
        if (n >= OUT_PLACES - 1) {
            mbar_arrive(AT(dq_empty) + 8 * place);
        }
    }
    bulk_wait_read<0>();
}
#elif DQ
// The adding warp, of which one thread works: has the copy engine add dQ to memory. Warpgroups are served in turn.
DEV void add_queries(const BackwardMaps &maps, Shared &s) {
    for (u32 n = 0;; n++) { // blocks whose dQ a warpgroup has left so far
#pragma unroll
        for (int g = 0; g < CONSUMER_GROUPS; g++) {
            mbar_wait(AT(dq_full) + 8 * g, n & 1);
            if (g == 0 && s.no_more_dq) {
                return;
            }
            const QueryPlace to = s.where[n & (PLACES - 1)];
#pragma unroll
            for (int c = 0; c < BOXES; c++) {
                tma_add_3d(&maps.dq, AT(out) + g * (BOXES * BOX_BYTES) + c * BOX_BYTES, 32 * (BOXES * g + c), to.query,
                           to.head);
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
#endif
