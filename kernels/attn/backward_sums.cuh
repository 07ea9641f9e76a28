// Sums of dq of one section of heads after the other: zeroed before the section's first product, brought to the dtype
// of dq when its last one has been added. The cleaning warp does both between two orders, while the tensor cores work.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_shape.cuh"

#if DQ
// Rows that are converted at once, and sums that are zeroed at once.
constexpr int PIECE = MAGI_BACKWARD_PIECE_ROWS, ZERO_PIECE = MAGI_BACKWARD_ZERO_PIECE;
constexpr int LOADS = D == 128 ? 2 : 1; // that are under way at once: as many as there are registers for

// What thread blocks tell each other, behind the next piece to be zeroed: pieces of a section that are zeroed, thread
// blocks that add nothing to it any more, pieces that a thread block has converted.
DEV int *zeroed(const magi_attn_backward_params &p, int section) {
    return p.sums + 1 + section;
}
DEV int *left(const magi_attn_backward_params &p, int section) {
    return p.sums + 1 + p.sections + section;
}
DEV int *converted(const magi_attn_backward_params &p, int block) {
    return p.sums + 1 + 2 * p.sections + block;
}

// The thread that has sums added: through which section it is.
struct Passage {
    const magi_attn_backward_params &p;
    int section = 0, behind; // `behind`: the first head to which nothing may be added yet

    MEMBER explicit Passage(const magi_attn_backward_params &params)
        : p(params), behind(params.sums ? params.section_heads : 0x7fffffff) {}

    // Says that all that this thread block adds to sections before `next` is in memory.
    MEMBER void leave(int next) {
        bulk_wait();
        fence_proxy_async_global();
        __threadfence();
#pragma unroll 1
        for (; section < next; section++) {
            atomicAdd(left(p, section), 1);
        }
    }

    // Before the first sums of a head are added: waits until its section is zeroed.
    MEMBER void enter(int head) {
        leave(head / p.section_heads);
        behind = (section + 1) * p.section_heads;
        while (ld_global_acquire(zeroed(p, section)) < p.zero_pieces) {
        }
        fence_proxy_async_global();
    }

    MEMBER void end() {
        if (p.sums) {
            leave(p.sections);
        }
    }
};

// The cleaning warp's part. What it knows stands in shared memory: registers are short.
enum { NEVER, LATER, NOW }; // whether there is something to do

// Zeroes a piece of a section up to the one after `now`. The first section is zero before the launch. Whoever comes
// takes the next piece: none waits for a thread block that has not begun.
DEV int zero_some(const magi_attn_backward_params &p, Shared &s, int now, int lane) {
    asm volatile("" : "+r"(lane)::"memory"); // nothing of this may be computed ahead of the loop
    if (s.zeroing >= p.sections) {
        return NEVER;
    }
    if (s.zeroing > now + 1) {
        return LATER;
    }
    u32 piece = 0;
    if (lane == 0) {
        piece = atomicAdd((u32 *)p.sums, 1);
    }
    piece = __shfl_sync(~0u, piece, 0);
    const int section = 1 + piece / (u32)p.zero_pieces;
    s.zeroing = section;
    if (section >= p.sections) {
        return NEVER;
    }
    piece -= (section - 1) * p.zero_pieces;
    float *to = p.dq + section * p.section_sums + (u64)piece * ZERO_PIECE + 4 * lane;
    const float *const end = p.dq + (section + 1) * p.section_sums;
#pragma unroll 1
    for (int i = 0; i < ZERO_PIECE / 128 && to < end; i++, to += 128) {
        st_global_f32x4(to, 0, 0, 0, 0);
    }
    fence_proxy_async_global(); // the copy engine adds to them
    __threadfence();
    __syncwarp();
    if (lane == 0) {
        atomicAdd(zeroed(p, section), 1);
    }
    return NOW;
}

// Whether nothing is added to a section any more.
DEV bool is_over(const magi_attn_backward_params &p, int section) {
    return ld_global_acquire(left(p, section)) == (int)gridDim.x &&
           (section == 0 || ld_global_acquire(zeroed(p, section)) == p.zero_pieces);
}

// Converts rows of one head, `token` and on, as far as there are any. `LANES` threads share a row.
DEV void convert(const magi_attn_backward_params &p, int head, int token, int lane) {
    constexpr int LANES = D <= 64 ? 16 : 32, ROWS = 32 / LANES, COLUMNS = 4 * LANES;
    asm volatile("" : "+r"(head), "+r"(token), "+r"(lane)::"memory"); // as above
    const int column = lane % LANES * 4;
    token += lane / LANES;
    const float *from = p.dq + head * p.dq_head + token * (i64)D + column;
    u16 *to = (u16 *)p.dq_out + head * p.dq_out_head + token * p.dq_out_token + column;
    int left = min(PIECE, p.tokens_q - token);
    if (left == PIECE) {
#pragma unroll
        for (int i = 0; i < PIECE * D; i += 32 * 32) {
            prefetch_l2(from + lane % LANES * 28 + i); // 128 bytes a thread
        }
    }
#pragma unroll LOADS
    for (int row = 0; row < PIECE; row += ROWS, from += ROWS * D, to += ROWS * p.dq_out_token) {
#pragma unroll
        for (int c = 0; c < D; c += COLUMNS) {
            if (row < left && (D % COLUMNS == 0 || c + column < D)) {
                const float4 x = ld_global_f32x4(from + c);
                st_global_v2(to + c, pack(x.x, x.y), pack(x.z, x.w));
            }
        }
    }
}

// Converts the next of this thread block's pieces, if its section is over.
DEV int convert_some(const magi_attn_backward_params &p, Shared &s, int now, int lane) {
    const int piece = s.piece;
    if (piece >= p.pieces) {
        return NEVER;
    }
    if (piece >= s.over) {
        const int section = (u32)piece / (u32)p.section_pieces;
        if (section >= now || !__shfl_sync(~0u, (int)is_over(p, section), 0)) {
            return LATER;
        }
        s.over = (section + 1) * p.section_pieces;
    }
    const int head = (u32)piece / (u32)p.head_pieces;
    convert(p, head, (piece - head * p.head_pieces) * PIECE, lane);
    __syncwarp();
    if (lane == 0) {
        s.piece += gridDim.x, s.converted++;
    }
    __syncwarp();
    return NOW;
}

// Does a piece of what there is to do up to the section after `now`.
DEV int some_sums(const magi_attn_backward_params &p, Shared &s, int now, int lane) {
    const int zero = zero_some(p, s, now, lane);
    return zero == NOW ? NOW : max(zero, convert_some(p, s, now, lane));
}

// Sees to sums until the next order comes.
DEV void until_ordered(const magi_attn_backward_params &p, Shared &s, u32 bar, u32 parity, int lane) {
    while (p.sums && !__shfl_sync(~0u, (int)mbar_test(bar, parity), 0)) {
        const int done = some_sums(p, s, *(volatile int *)&s.tile.section, lane);
        if (done == NEVER) {
            return;
        }
        if (done == LATER) {
            mbar_try(bar, parity);
            __syncwarp();
        }
    }
}

// What is left when this thread block has no more work, as far as it can be done without waiting for others.
DEV void end_sums(const magi_attn_backward_params &p, Shared &s, int lane) {
    if (!p.sums) {
        return;
    }
    while (some_sums(p, s, p.sections, lane) == NOW) {
    }
    if (lane == 0) {
        *converted(p, blockIdx.x) = s.converted;
    }
}
#endif
