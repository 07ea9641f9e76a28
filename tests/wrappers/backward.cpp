// The backward kernel on the processor: reads a case, runs all blocks, writes gradients. Built by
// tests/backward_kernel.rs, which says what a case is; KERNELS is the kernel's text.
#include "block.h"
#include KERNELS

template <class T> static std::vector<T> take(size_t count) {
    std::vector<T> x(count + 1);
    if (fread(x.data(), sizeof(T), count, stdin) != count) {
        fail("the case ends early");
    }
    return x;
}
template <class T> static void give(const std::vector<T> &x) {
    fwrite(x.data(), sizeof(T), x.size(), stdout);
}

// Of a [tokens, heads, width] tensor of 16-bit elements: blocks of rows, all chunks of 64 columns of a family at once, or
// one where the width is not the family's.
static Map rows_map(std::vector<u16> &x, int tokens, int heads, int width, int rows, int family, int &copies) {
    const int chunks = (family + 63) / 64;
    const bool whole = width == family && width % 64 == 0;
    copies = whole ? 1 : chunks;
    return {(u8 *)x.data(),
            4,
            2,
            1,
            {whole ? 64 : width, tokens, whole ? chunks : 1, heads},
            {2, 2 * heads * width, 128, 2 * width},
            {64, rows, whole ? chunks : 1, 1}};
}

static BackwardMaps maps;
static magi_attn_backward_params params;
static void entry() {
    magi_attn_backward(maps, params);
}

enum { TQ, TK, HQ = 3, HK, WIDTH, WIDTH_V, SPLITS, FLAGS, TILES, ITEMS, LIMITS_COUNT, SEED, NUMBERS };

// Tensors of the local part or of the receive buffer, and their gradients.
struct Keys {
    std::vector<u16> k, v;
    std::vector<u8> dk, dv;
};

// A gradient that must be written everywhere, or, in f32, is added to a half.
static std::vector<u8> gradient(size_t count, bool wide) {
    std::vector<u8> x(count * (wide ? 4 : 2), 0xFF);
    if (wide) {
        std::fill((float *)x.data(), (float *)(x.data() + x.size()), 0.5f);
    }
    return x;
}

static Keys take_keys(const std::vector<int> &sizes, int source, Map *of) {
    const int tokens = sizes[TK + source], hk = sizes[HK], d = sizes[WIDTH], dv = sizes[WIDTH_V];
    const bool wide = sizes[FLAGS] & MAGI_BACKWARD_OUT_F32;
    Keys keys;
    keys.k = take<u16>((size_t)tokens * hk * d);
    keys.v = take<u16>((size_t)tokens * hk * dv);
    keys.dk = gradient((size_t)tokens * hk * d, wide);
    keys.dv = gradient((size_t)tokens * hk * dv, wide);
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
    std::vector<int> counters(2), done((size_t)sizes[TILES] * hk * CONSUMER_WARPS);
    of[6] = {(u8 *)stats.data(), 3, 4, 0, {2 * padded, 2, hq}, {4, 8 * padded, 16 * padded}, {2 * BQ, 1, 1}};
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
    gridDim.x = std::min(2, params.tile_count * hk * params.splits);
    for (unsigned block = 0; block < gridDim.x; block++) {
        run_block(block, THREADS, entry);
    }
    check_blocks(of[0], {items.begin(), items.end() - 1}); // `take` leaves one more
    for (const int word : done) {
        counters[0] |= word;
    }
    if (counters[0] != 0 || counters[1] != 0) {
        fail("words that must be 0 after a launch are not");
    }
    give(dq);
    for (const Keys *keys : {&local, &received}) {
        give(keys->dk);
        give(keys->dv);
    }
}
