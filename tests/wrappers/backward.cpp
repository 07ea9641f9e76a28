// The backward kernel on the processor: reads a case, runs all blocks, writes gradients. Built by
// tests/backward_kernel.rs; KERNELS is the kernel's text.
#ifndef BLOCKS // of the launch
#define BLOCKS 2
#endif
#include "block.h"
#include KERNELS

#include "case.h"

static BackwardMaps maps;
static magi_attn_backward_params params;
static void entry() {
    magi_attn_backward(maps, params);
}

// Tensors of the local part or of the receive buffer, and their gradients.
struct Keys {
    std::vector<u16> k, v;
    std::vector<u8> dk, dv;
};

static Keys take_keys(const std::vector<int> &sizes, int source, Map *of) {
    const int tokens = sizes[TK + source], hk = sizes[HK], d = sizes[WIDTH], dv = sizes[WIDTH_V];
    const bool wide = sizes[FLAGS] & MAGI_BACKWARD_OUT_F32, added = sizes[FLAGS] & MAGI_BACKWARD_ACCUMULATE;
    Keys keys;
    keys.k = take<u16>((size_t)tokens * hk * d);
    keys.v = take<u16>((size_t)tokens * hk * dv);
    keys.dk = gradient((size_t)tokens * hk * d, wide, added);
    keys.dv = gradient((size_t)tokens * hk * dv, wide, added);
    of[2 + source] = rows_map(keys.k, tokens, hk, d, BK, D, params.copies_k);
    of[4 + source] = rows_map(keys.v, tokens, hk, dv, BK, DV, params.copies_v);
    params.dk[source] = keys.dk.data(), params.dk_token[source] = hk * d, params.dk_head[source] = d;
    params.dv[source] = keys.dv.data(), params.dv_token[source] = hk * dv, params.dv_head[source] = dv;
    return keys;
}

// Blocks of a run that is long enough have queries of that run alone: what others have would be zeroed first.
static void check_blocks(const Map &queries, const std::vector<magi_item> &items) {
    for (const auto &corner : queries.loaded) {
        const int first = corner[1];
        const auto has = [&](const magi_item &it) {
            return it.run1 - it.run0 < BQ ? first == it.run0 : first >= it.run0 && first + BQ <= it.run1;
        };
        if (!std::any_of(items.begin(), items.end(), has)) {
            fail("a block that reaches beyond a long run");
        }
    }
}

int main() {
    const auto sizes = take<int>(NUMBERS);
    const auto factors = take<float>(3); // scale_log2, scale, softcap_scale
    const int tq = sizes[TQ], hq = sizes[HQ], hk = sizes[HK], d = sizes[WIDTH], dv = sizes[WIDTH_V];
    const auto tiles = take<magi_tile>(sizes[TILES]);
    const auto items = take<magi_item>(sizes[ITEMS]);
    const auto limits = take<magi_row_limits>(sizes[LIMITS_COUNT]);
    auto q = take<u16>((size_t)tq * hq * d), dout = take<u16>((size_t)tq * hq * dv);
    Map of[8];
    of[0] = rows_map(q, tq, hq, d, BQ, D, params.copies_k);
    of[1] = rows_map(dout, tq, hq, dv, BQ, DV, params.copies_v);
    const Keys local = take_keys(sizes, 0, of), received = take_keys(sizes, 1, of);
    const int padded = (tq + 3) / 4 * 4, columns = (d + 3) / 4 * 4;
    auto stats = take<magi_backward_pair>((size_t)hq * padded);
    std::vector<float> dq((size_t)tq * hq * columns);
    std::vector<float> piece((size_t)sizes[TILES] * hk * sizes[SPLITS] * BK * (D + DV));
    std::vector<int> counters(4), done((size_t)sizes[TILES] * hk * CONSUMER_WARPS);
    of[6] = stats_map(stats, padded, hq, BQ);
    of[7] = {(u8 *)dq.data(), 3, 4, 1, {d, tq, hq}, {4, 4 * hq * columns, 4 * columns}, {32, BQ, 1}};
    for (int i = 0; i < 8; i++) {
        ((TensorMap *)&maps)[i].opaque[0] = (u64)&of[i];
    }
    params.tiles = tiles.data(), params.items = items.data(), params.limits = limits.data();
    params.counters = counters.data(), params.piece = piece.data(), params.piece_done = done.data();
    params.tile_count = sizes[TILES], params.heads_kv = hk, params.group = hq / hk, params.section = hk;
    params.splits = sizes[SPLITS], params.tokens_q = tq, params.head_dim = d, params.head_dim_v = dv;
    params.flags = sizes[FLAGS], params.scale_log2 = factors[0], params.scale = factors[1];
    params.softcap_scale = factors[2];

    dice.seed(sizes[SEED]);
    gridDim.x = std::min(BLOCKS, params.tile_count * hk * params.splits);
    for (unsigned block = 0; block < gridDim.x; block++) {
        run_block(block, THREADS, entry);
    }
    check_blocks(of[0], {items.begin(), items.end() - 1}); // `take` leaves one more
    for (const int word : done) {
        counters[0] |= word;
    }
    if (std::any_of(counters.begin(), counters.end(), [](int x) { return x != 0; })) {
        fail("words that must be 0 after a launch are not");
    }
    give(dq);
    for (const Keys *keys : {&local, &received}) {
        give(keys->dk);
        give(keys->dv);
    }
}
