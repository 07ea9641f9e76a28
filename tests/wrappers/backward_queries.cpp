// The dq kernel on the processor: reads a case, runs all blocks, writes dq and what was computed. Built by
// tests/backward_queries_kernel.rs; KERNELS is the kernel's text.
#include "block.h"
#include KERNELS

#include "case.h"

static BackwardQueriesMaps maps;
static magi_attn_backward_queries_params params;
static void entry() {
    magi_attn_backward_queries(maps, params);
}

// Tensors of the local part or of the receive buffer.
struct Keys {
    std::vector<u16> k, v;
};
static Keys take_keys(const std::vector<int> &sizes, int source, Map *of) {
    const int tokens = sizes[TK + source], hk = sizes[HK], d = sizes[WIDTH], dv = sizes[WIDTH_V];
    Keys keys;
    keys.k = take<u16>((size_t)tokens * hk * d);
    keys.v = take<u16>((size_t)tokens * hk * dv);
    of[2 + source] = rows_map(keys.k, tokens, hk, d, BN, D, params.copies_k);
    of[4 + source] = rows_map(keys.v, tokens, hk, dv, BN, DV, params.copies_v);
    params.tokens_k[source] = tokens;
    return keys;
}

// Rows without the gap behind each of them, which must be as it was.
static std::vector<u8> without_gaps(const std::vector<u8> &dq, size_t row, size_t pitch,
                                    const std::vector<u8> &before) {
    std::vector<u8> x;
    for (size_t at = 0; at < dq.size(); at += pitch) {
        x.insert(x.end(), &dq[at], &dq[at] + row);
        if (memcmp(&dq[at] + row, &before[at] + row, pitch - row)) {
            fail("something behind a row of dq was written");
        }
    }
    return x;
}

int main() {
    const auto sizes = take<int>(NUMBERS);
    const auto factors = take<float>(3); // scale_log2, scale, softcap_scale
    const int tq = sizes[TQ], hq = sizes[HQ], hk = sizes[HK], d = sizes[WIDTH], dv = sizes[WIDTH_V];
    const auto tiles = take<magi_tile>(sizes[TILES]);
    const auto items = take<magi_item>(sizes[ITEMS]);
    const auto limits = take<magi_row_limits>(sizes[LIMITS_COUNT]);
    auto q = take<u16>((size_t)tq * hq * d), dout = take<u16>((size_t)tq * hq * dv);
    Map of[7];
    of[0] = rows_map(q, tq, hq, d, 64, D, params.copies_k);
    of[1] = rows_map(dout, tq, hq, dv, 64, DV, params.copies_v);
    const Keys local = take_keys(sizes, 0, of), received = take_keys(sizes, 1, of);
    const int padded = (tq + 3) / 4 * 4, pitch = (d + 7) / 8 * 8;
    auto stats = take<magi_backward_pair>((size_t)hq * padded);
    of[6] = stats_map(stats, padded, hq, BM);
    const bool wide = sizes[FLAGS] & MAGI_BACKWARD_QUERIES_F32;
    const auto before = gradient((size_t)tq * hq * pitch, wide, sizes[FLAGS] & MAGI_BACKWARD_QUERIES_ACCUMULATE);
    auto dq = before;
    std::vector<int> counters(2), computed(CONSUMER_GROUPS);
    for (int i = 0; i < 7; i++) {
        ((TensorMap *)&maps)[i].opaque[0] = (u64)&of[i];
    }
    params.tiles = tiles.data(), params.items = items.data(), params.limits = limits.data();
    params.counters = counters.data(), params.dq = dq.data(), params.dq_token = hq * pitch, params.dq_head = pitch;
    params.tile_count = sizes[TILES], params.units = hq, params.group = hq / hk;
    params.section = sizes[SEED] % 2 ? hq : hq / hk;
    params.head_dim = d, params.flags = sizes[FLAGS];
    params.scale_log2 = factors[0], params.scale = factors[1], params.softcap_scale = factors[2];

    dice.seed(sizes[SEED]);
    gridDim.x = std::min(2, params.tile_count * hq);
    for (unsigned block = 0; block < gridDim.x; block++) {
        run_block(block, THREADS, entry);
        for (int group = 0; group < CONSUMER_GROUPS; group++) {
            computed[group] += threads[128 * (group + 1)].commits;
        }
    }
    if (counters[0] != 0 || counters[1] != 0) {
        fail("words that must be 0 after a launch are not");
    }
    const size_t size = wide ? 4 : 2;
    give(without_gaps(dq, d * size, pitch * size, before));
    give(computed);
}
