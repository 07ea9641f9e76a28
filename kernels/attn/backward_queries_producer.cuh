// The producer warpgroup of the dq kernel: one thread takes the work, one starts all copies of keys, one warp cleans
// keys that nothing sees.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_queries_shape.cuh"
#include "row_load.cuh"

#include "clean.cuh" // wants the shape

// One parameter of the kernel, so that a source picks its map by address. Index: the source.
struct BackwardQueriesMaps {
    TensorMap q, dout, k[2], v[2], rows;
};

struct Producer {
    const BackwardQueriesMaps &maps;
    const magi_attn_backward_queries_params &p;
    Shared &s;
    int n = 0, dirty = 0;        // blocks and dirty blocks so far
    u32 k = 0, v = 0, phase = 1; // stages of block n; phase of the barrier at which consumers make room for it

    MEMBER void next() {
        n++;
        v = V_STAGES == 1 ? 0 : v ^ 1;
        k = k + 1 == K_STAGES ? 0 : k + 1;
        // The first room that consumers make is in the last stage of K: that of the block before the first.
        phase ^= k == K_STAGES - 1;
    }

    // Where consumers find block n of the stream, once they are done with what was there.
    MEMBER Block &next_block() {
        if (!SPLIT || n >= K_STAGES) { // else V waits
            mbar_wait(AT(empty) + 8 * k, phase);
        }
        return s.block[k];
    }

    // Where the arrival of V of block n is heard.
    MEMBER u32 values_barrier() {
        if (SPLIT) {
            mbar_wait(AT(v_empty) + 8 * v, (n / V_STAGES & 1) ^ 1);
            return AT(v_full) + 8 * v;
        }
        return AT(full) + 8 * k;
    }

    // Block n without copies.
    MEMBER void arrive() {
        mbar_arrive(AT(full) + 8 * k);
        mbar_arrive(values_barrier());
    }

    // What a block needs that some row of the tile does not see entirely.
    MEMBER void describe(Block &b, const Brief &brief, int key) {
        const magi_item &it = brief.item;
        const int to_band = brief.row0 - key;
        b.left = it.run0 - key, b.right = it.run1 - key, b.lo = it.lo + to_band, b.hi = it.hi + to_band;
        b.item_row0 = it.row0, b.item_row1 = it.row1, b.limits = it.limits, b.key = key;
    }

    // UNSEEN of a warpgroup; never of a tile's first block, with which dQ begins.
    MEMBER int unseen(const Block &b, int group) const {
        const int row = 64 * group;
        const bool none = row + 63 + b.hi < max(b.left, 0) || row + b.lo >= min(b.right, BN) || row >= b.item_row1 ||
                          row + 64 <= b.item_row0;
        return none ? UNSEEN << group : 0;
    }

    // Keys are a factor of dQ, too: rows that nothing sees may hold anything, and 0 * NaN is NaN. The cleaning warp
    // zeroes them before consumers hear of the copy. Behind the end of the tensor the copy engine writes zeros.
    MEMBER u32 keys_barrier(int seen, bool clean) {
        if (clean) {
            return AT(full) + 8 * k;
        }
        s.dirty[dirty & (DIRTY - 1)][0] = k;
        s.dirty[dirty & (DIRTY - 1)][1] = seen;
        return AT(dirty_full) + 8 * (dirty++ & (DIRTY - 1));
    }

    // What the loop over an item's blocks uses of the brief.
    struct Used {
        int run1, full0, full1, source, kv_head, flags;
    };
    MEMBER Used used(const Brief &b) {
        return {b.item.run1, b.item.full0, b.item.full1, b.item.source, b.kv_head, b.flags};
    }

    // The blocks of one item. What the loop takes delays copies: where a producer has registers for it, what the loop
    // uses stays there; else it is read again for each block.
    MEMBER void item(const Brief &brief) {
        const Used once = used(brief);
        int first = once.flags & FIRST;
#pragma unroll 1
        for (int key = brief.item.start; key < once.run1; key += BN) {
            const Used u = PRODUCER_REGS >= 40 ? once : used(brief);
            const int behind = key + BN;
            int flags = first | (behind >= u.run1 ? u.flags & LAST : 0);
            first = 0;
            Block &b = next_block();
            if (key < u.full0 || behind > u.full1) {
                flags |= u.flags & (MASKED | LIMITS);
                describe(b, brief, key);
                if (LEAVES_OUT && !(flags & FIRST)) {
                    flags |= unseen(b, 0) | unseen(b, 1);
                }
            }
            b.flags = flags;
            const u32 bar = keys_barrier(u.run1 - key, behind <= u.run1 || u.run1 == p.tokens_k[u.source]);
            mbar_expect(bar, K_BYTES);
            load_rows<BN * 128>(AT(k) + k * K_BYTES, &maps.k[u.source], bar, key, u.kv_head, p.copies_k);
            const u32 v_bar = values_barrier();
            mbar_expect(v_bar, V_BYTES);
            load_rows<BN * 128>(AT(v) + v * V_BYTES, &maps.v[u.source], v_bar, key, u.kv_head, p.copies_v);
            next();
        }
    }

    // The one block of a tile whose rows see nothing.
    MEMBER void empty_block() {
        Block &b = next_block();
        b.left = b.right = b.lo = b.hi = b.item_row0 = b.item_row1 = 0;
        b.flags = FIRST | LAST | MASKED;
        arrive();
        next();
    }

    // All the work that this thread block gets.
    MEMBER void run() {
        for (int i = 0;; i++) {
            mbar_wait(AT(brief_full) + 8 * (i & 1), i >> 1 & 1);
            const Brief &brief = s.brief[i & 1];
            if (brief.flags & STOP) {
                break;
            }
            if (brief.item.start == brief.item.run1) {
                empty_block();
            } else {
                item(brief);
            }
            mbar_arrive(AT(brief_empty) + 8 * (i & 1));
        }
        next_block().flags = STOP;
        arrive();
        s.dirty[dirty & (DIRTY - 1)][0] = -1;
        mbar_arrive(AT(dirty_full) + 8 * (dirty & (DIRTY - 1)));
    }
};
