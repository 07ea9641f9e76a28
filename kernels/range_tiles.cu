// The tile list of query tiles or of key tiles over ranges that lie on the device, made there: one launch before the
// attention kernel, which the host need not wait for. See docs/kernels.md.
//
// A block makes one tile after the other; the last block to end puts them in order. Items of a tile ascend by (first
// token, index of the range), whatever block is when done, so results are the same bits on every run.
// SPDX-License-Identifier: Apache-2.0
#include "helper/range_tiles.h"
#include "ptx/convert.cuh"

// Tiles are put in order by buckets of steps.
enum { RANGE_THREADS = MAGI_RANGE_THREADS, RANGE_BUCKETS = 4 * RANGE_THREADS, RANGE_MOST = 0x7fffffff };

// Rows [row0, row1) and tokens [token0, token1) between two diagonals: lo <= token - row <= hi.
struct RangeSlice {
    int row0, row1, token0, token1, lo, hi;
};

MAGI_DEVICE int range_clamp(int x, int low, int high) {
    return min(max(x, low), high);
}

// Range `i`, clamped to the totals before its diagonals are laid through its corners. False: its type is none.
MAGI_DEVICE bool range_slice(const magi_range_params &p, int i, RangeSlice &s) {
    const int *const q = p.q_ranges + i * p.q_step, *const k = p.k_ranges + i * p.k_step;
    const int type = p.mask_types[i * p.type_step];
    const int q0 = range_clamp(q[0], 0, p.tokens_q), q1 = range_clamp(q[1], q0, p.tokens_q);
    const int k0 = range_clamp(k[0], 0, p.tokens_k), k1 = range_clamp(k[1], k0, p.tokens_k);
    const int lo = type & 2 ? k0 - q0 : MAGI_TILES_NO_LO, hi = type & 1 ? k1 - q1 : MAGI_TILES_NO_HI;
    if (p.of_keys) {
        s = {k0, k1, q0, q1, -hi, -lo};
    } else {
        s = {q0, q1, k0, k1, lo, hi};
    }
    return type >= 0 && type <= 3;
}

// What rows [row0, row0 + rows) see of range `i`. False: nothing. Sums stay far inside an int: tokens are at most 2^28.
MAGI_DEVICE bool range_item(const magi_range_params &p, int i, int row0, int rows, magi_item &item) {
    RangeSlice s;
    if (!range_slice(p, i, s) || s.token0 == s.token1 || s.lo > s.hi) {
        return false;
    }
    const int first = max(max(s.row0, row0), s.token0 - s.hi);
    const int last = min(min(s.row1, row0 + rows), s.token1 - s.lo) - 1;
    if (first > last) {
        return false;
    }
    // Rows see intervals whose ends move by 0 or 1 from one to the next: together they are one run.
    const int run0 = max(s.token0, first + s.lo), run1 = min(s.token1, last + s.hi + 1);
    item.run0 = item.start = item.full0 = item.full1 = run0;
    item.run1 = run1;
    item.row0 = first - row0;
    item.row1 = last + 1 - row0;
    item.lo = run0 - last >= s.lo ? MAGI_TILES_NO_LO : s.lo;
    item.hi = run1 - 1 - first <= s.hi ? MAGI_TILES_NO_HI : s.hi;
    item.source = item.reserved0 = 0;
    item.limits = -1;
    if (item.row0 == 0 && item.row1 == rows) {
        // What the last row sees from, and the first row up to.
        const int seen0 = max(run0, last + s.lo), seen1 = min(run1, first + s.hi + 1);
        const int full0 = run0 + (seen0 - run0 + p.step - 1) / p.step * p.step;
        const int full1 = run0 + (seen1 - run0) / p.step * p.step;
        if (full0 < full1) {
            item.full0 = full0;
            item.full1 = full1;
        }
    }
    return true;
}

// Ascending; all threads of the block. Merges of bitonic sequences whose second half is read backwards, so that every
// exchange has one direction and what would lie behind the end needs no place.
MAGI_DEVICE void range_sort(unsigned long long *keys, int count) {
    int pairs = 1;
    while (2 * pairs < count) {
        pairs *= 2;
    }
    for (int half = 1; half < count; half *= 2) {
        for (int step = half; step > 0; step /= 2) {
            for (int x = (int)threadIdx.x; x < pairs; x += RANGE_THREADS) {
                const int at = x % step, low = (x - at) * 2;
                const int i = low + at, j = step == half ? low + 2 * step - 1 - at : i + step;
                if (j < count && keys[i] > keys[j]) {
                    const unsigned long long key = keys[i];
                    keys[i] = keys[j];
                    keys[j] = key;
                }
            }
            __syncthreads();
        }
    }
}

// The keys of what a tile sees go to keys[0 .. ], in any order; how many there are. Without a place they are counted.
MAGI_DEVICE void range_meet(const magi_range_params &p, int row0, int rows, unsigned long long *keys, int *count) {
    for (int i = (int)threadIdx.x; i < p.count; i += RANGE_THREADS) {
        magi_item item;
        if (range_item(p, i, row0, rows, item)) {
            const int at = atomicAdd(count, 1);
            if (keys != nullptr) {
                keys[at] = (unsigned long long)item.run0 << 32 | (unsigned)i;
            }
        }
    }
}

// Tile `t` and its items.
MAGI_DEVICE void range_tile(const magi_range_params &p, int t) {
    __shared__ int found, filled, first, steps;
    const int row0 = t * p.rows, rows = min(p.rows, (p.of_keys ? p.tokens_k : p.tokens_q) - row0);
    if (threadIdx.x == 0) {
        found = filled = steps = 0;
    }
    __syncthreads();
    range_meet(p, row0, rows, nullptr, &found);
    __syncthreads();
    const int count = found;
    if (threadIdx.x == 0) {
        const unsigned long long at = atomicAdd(&p.counters->items, (unsigned long long)count);
        first = at + count <= (unsigned long long)p.max_items ? (int)at : -1;
    }
    __syncthreads();
    const int item0 = first;
    if (item0 < 0) {
        return; // all threads: the launch says in the end that there is no room
    }
    unsigned long long *const keys = p.keys + item0;
    range_meet(p, row0, rows, keys, &filled);
    __syncthreads();
    range_sort(keys, count);
    for (int j = (int)threadIdx.x; j < count; j += RANGE_THREADS) {
        magi_item item;
        range_item(p, (int)(unsigned)keys[j], row0, rows, item);
        p.items[item0 + j] = item;
        // Bounded, so that the sum of a tile stays an int whatever overlaps.
        atomicAdd(&steps, min((item.run1 - item.start + p.step - 1) / p.step, RANGE_MOST / count));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        p.drawn[t] = {row0, rows, item0, count, steps, 0, 0, 0};
        atomicMax(&p.counters->steps, steps);
    }
}

// A number that is the smaller the more steps there are.
MAGI_DEVICE int range_bucket(int steps, int most) {
    return most == 0 ? 0 : (int)((long long)(most - steps) * (RANGE_BUCKETS - 1) / most);
}

// Tiles by falling number of steps, those of nearly as many as they lie: kernels go by a tile's place in the list, and
// the same ranges must give the same list.
MAGI_DEVICE void range_order(const magi_range_params &p, int most) {
    __shared__ int place[RANGE_BUCKETS], before[RANGE_THREADS], buckets[RANGE_THREADS];
    const int tid = (int)threadIdx.x;
    for (int i = tid; i < RANGE_BUCKETS; i += RANGE_THREADS) {
        place[i] = 0;
    }
    __syncthreads();
    for (int t = tid; t < p.tile_count; t += RANGE_THREADS) {
        atomicAdd(&place[range_bucket(p.drawn[t].steps, most)], 1);
    }
    __syncthreads();
    int mine = 0;
    for (int i = 0; i < 4; i++) {
        mine += place[4 * tid + i];
    }
    before[tid] = mine;
    __syncthreads();
    for (int d = 1; d < RANGE_THREADS; d *= 2) {
        const int left = tid >= d ? before[tid - d] : 0;
        __syncthreads();
        before[tid] += left;
        __syncthreads();
    }
    int at = before[tid] - mine;
    for (int i = 0; i < 4; i++) {
        const int here = place[4 * tid + i];
        place[4 * tid + i] = at;
        at += here;
    }
    __syncthreads();
    for (int first = 0; first < p.tile_count; first += RANGE_THREADS) {
        const int count = min(RANGE_THREADS, p.tile_count - first);
        const bool here = tid < count;
        magi_tile tile = {};
        if (here) {
            tile = p.drawn[first + tid];
        }
        const int bucket = buckets[tid] = range_bucket(tile.steps, most);
        __syncthreads();
        int rank = 0, same = 0; // those of this round in the same bucket: before this one, and all
        for (int i = 0; i < count; i++) {
            rank += buckets[i] == bucket && i < tid;
            same += buckets[i] == bucket;
        }
        const int to = place[bucket] + rank;
        __syncthreads();
        if (here) {
            p.tiles[to] = tile;
        }
        if (here && rank + 1 == same) {
            place[bucket] = to + 1;
        }
        __syncthreads();
    }
}

MAGI_DEVICE void range_poison(const magi_range_output &o) {
    const long long rows = o.data == nullptr ? 0 : o.tokens * o.heads;
    for (long long i = threadIdx.x / 32; i < rows; i += RANGE_THREADS / 32) {
        const long long token = i / o.heads, head = i - token * o.heads;
        char *const row = o.data + (token * o.token + head * o.head) * o.bytes;
        for (int column = (int)threadIdx.x & 31; column < o.width; column += 32) {
            if (o.bytes == 2) {
                ((unsigned short *)row)[column] = 0x7fff;
            } else {
                ((unsigned *)row)[column] = 0x7fffffff;
            }
        }
    }
}

// NaN in every output, and tiles that store nothing over it.
MAGI_DEVICE void range_fail(const magi_range_params &p) {
    for (int t = (int)threadIdx.x; t < p.tile_count; t += RANGE_THREADS) {
        p.tiles[t] = {t * p.rows, 0, 0, 0, 0, 0, 0, 0};
    }
    range_poison(p.outputs[0]);
    range_poison(p.outputs[1]);
}

// What is wrong with the whole list, as an error word; 0: nothing.
MAGI_DEVICE unsigned long long range_error(const volatile magi_range_counters &c, int max_items) {
    if (c.bad_type != 0) {
        return (unsigned long long)MAGI_RANGE_BAD_TYPE << 56 | (unsigned)(RANGE_MOST - c.bad_type);
    }
    if (c.items > (unsigned long long)max_items) {
        return (unsigned long long)MAGI_RANGE_TOO_MANY << 56 | c.items;
    }
    return 0;
}

extern "C" __global__ void __launch_bounds__(MAGI_RANGE_THREADS)
    range_tiles(const __grid_constant__ magi_range_params p) {
    __shared__ int last;
    if (blockIdx.x == 0) {
        for (int i = (int)threadIdx.x; i < p.count; i += RANGE_THREADS) {
            RangeSlice s;
            if (!range_slice(p, i, s)) {
                atomicMax(&p.counters->bad_type, RANGE_MOST - i);
            }
        }
    }
    for (int t = (int)blockIdx.x; t < p.tile_count; t += (int)gridDim.x) {
        range_tile(p, t);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&p.counters->done, 1) == (int)gridDim.x - 1;
    }
    __syncthreads();
    if (!last) {
        return;
    }
    __threadfence();
    const unsigned long long error = range_error(*p.counters, p.max_items);
    if (error == 0) {
        range_order(p, ((const volatile magi_range_counters *)p.counters)->steps);
        return;
    }
    if (threadIdx.x == 0) {
        *(volatile unsigned long long *)p.error = error;
        p.counters->failed = 1;
    }
    range_fail(p);
}
