// The producer warpgroup of the dq kernel: one thread takes the work, one starts all copies of keys, one warp cleans
// keys that nothing sees.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_queries_shape.cuh"

// One parameter of the kernel, so that a source picks its map by address. Index: the source.
struct BackwardQueriesMaps {
    TensorMap q, dout, k[2], v[2], rows;
};

// Rows of a tensor. One copy brings all columns, or one for each 64, which can end where the columns of a padded head
// dimension do.
template <u32 CHUNK_BYTES> DEV void load_rows(u32 dst, const TensorMap *m, u32 bar, int row, int head, int copies) {
    tma_load_4d(dst, m, bar, 0, row, 0, head);
#pragma unroll 1
    for (int c = 1; c < copies; c++) {
        tma_load_4d(dst + c * CHUNK_BYTES, m, bar, 64 * c, row, 0, head);
    }
}

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
        // Room for the first blocks is there; the first one that waits is the first in the last stage of K.
        phase ^= k == K_STAGES - 1;
    }

    // Where consumers find block n of the stream, once they are done with what was there.
    MEMBER Block &next_block() {
        mbar_wait(AT(empty) + 8 * k, phase);
        return s.block[k];
    }

    // Both arrivals at the barrier of block n when nothing is copied.
    MEMBER void arrive() {
        mbar_arrive(AT(full) + 8 * k);
        mbar_arrive(AT(full) + 8 * k);
    }

    // What a block needs that some row of the tile does not see entirely.
    MEMBER void describe(Block &b, const Brief &it, int key) {
        b.left = it.run0 - key, b.right = it.run1 - key, b.lo = it.lo - key, b.hi = it.hi - key;
        b.item_row0 = it.row0, b.item_row1 = it.row1, b.limits = it.limits, b.key = key;
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

    // The blocks of one item.
    MEMBER void item(const Brief &it) {
        const int run1 = it.run1, full0 = it.full0, full_last = it.full_last, source = it.source, kv_head = it.kv_head;
        const int item_flags = it.flags, tokens = p.tokens_k[source];
        int first = item_flags & FIRST;
#pragma unroll 1
        for (int key = it.start; key < run1; key += BN) {
            const int behind = key + BN;
            int flags = first | (behind >= run1 ? item_flags & LAST : 0);
            first = 0;
            Block &b = next_block();
            if (key < full0 || key > full_last) {
                flags |= item_flags & (MASKED | LIMITS);
                describe(b, it, key);
            }
            b.flags = flags;
            const u32 bar = keys_barrier(run1 - key, behind <= run1 || run1 == tokens);
            mbar_expect(bar, K_BYTES);
            load_rows<BN * 128>(AT(k) + k * K_BYTES, &maps.k[source], bar, key, kv_head, p.copies_k);
            mbar_expect(AT(full) + 8 * k, V_BYTES);
            load_rows<BN * 128>(AT(v) + v * V_BYTES, &maps.v[source], AT(full) + 8 * k, key, kv_head, p.copies_v);
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
        next_block().flags = STOP;
        arrive();
        s.dirty[dirty & (DIRTY - 1)][0] = -1;
        mbar_arrive(AT(dirty_full) + 8 * (dirty & (DIRTY - 1)));
    }
};

// The cleaning warp: zeroes rows of K that nothing sees, then says that K is there.
DEV void clean(Shared &s, int lane) {
    for (int d = 0;; d++) {
        mbar_wait(AT(dirty_full) + 8 * (d & (DIRTY - 1)), d / DIRTY & 1);
        const int stage = s.dirty[d & (DIRTY - 1)][0], seen = s.dirty[d & (DIRTY - 1)][1];
        if (stage < 0) {
            return;
        }
        for (int i = seen * 8 + lane; i < BN * 8; i += 32) { // 16 bytes of a row
#pragma unroll
            for (int c = 0; c < D_CHUNKS; c++) {
                st_shared_v4(AT(k) + stage * K_BYTES + c * BN * 128 + i * 16, 0, 0, 0, 0);
            }
        }
        fence_proxy_async();
        __syncwarp();
        mbar_arrive_if(AT(full) + 8 * stage, lane == 0);
    }
}
