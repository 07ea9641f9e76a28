// A case as tests/backward_emulated/case.rs writes it, and tensor maps of its tensors. Included behind the kernel's
// text.
#pragma once
#include "block.h"

enum { TQ, TK, HQ = 3, HK, WIDTH, WIDTH_V, SPLITS, FLAGS, TILES, ITEMS, LIMITS_COUNT, SEED, NUMBERS };

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

// Of a [tokens, heads, width] tensor of 16-bit elements: blocks of rows, all chunks of 64 columns of a family at once,
// or one where the width is not the family's.
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

// Of lse and delta of `rows` queries.
static Map stats_map(std::vector<magi_backward_pair> &x, int padded, int heads, int rows) {
    return {(u8 *)x.data(), 3, 4, 0, {2 * padded, 2, heads}, {4, 8 * padded, 16 * padded}, {2 * rows, 1, 1}};
}

// A gradient that must be written everywhere, or, where it is added to, a half.
static std::vector<u8> gradient(size_t count, bool wide, bool added) {
    std::vector<u8> x(count * (wide ? 4 : 2), 0xFF);
    if (added) {
        std::fill((float *)x.data(), (float *)(x.data() + x.size()), 0.5f);
    }
    return x;
}
