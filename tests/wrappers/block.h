// A block of threads on the processor, for kernels that want a Hopper device: each thread a coroutine that gives way
// where it waits. Warps run in random order and are held up at random, copies complete at random later times: what a
// barrier does not order may happen in any order.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <ucontext.h>
#include <vector>

// ---- what kernels see
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__
#define __align__(x)
struct Index {
    unsigned x;
};
static Index threadIdx, blockIdx, gridDim;
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
struct int4 {
    int x, y, z, w;
};
static int max(int a, int b) {
    return a > b ? a : b;
}
static int min(int a, int b) {
    return a < b ? a : b;
}
static unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
static float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static void __threadfence() {}
static int atomicAdd(int *to, int x) {
    const int before = *to;
    *to += x;
    return before;
}
static void __trap() {
    abort();
}

// Dynamic shared memory, which kernels call `raw`; it begins at address 1024.
alignas(1024) unsigned char raw[256 << 10];
static unsigned char *at(unsigned address) {
    return raw + address - 1024;
}
static void *__cvta_shared_to_generic(unsigned address) {
    return at(address);
}

[[noreturn]] static void fail(const char *why) {
    fprintf(stderr, "block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, why);
    exit(1);
}

// ---- coroutines
using Work = std::function<void()>;
struct Thread {
    ucontext_t context;
    bool done;
    unsigned long long looked;               // `events` when it began to wait; it looks again when there are more
    std::deque<std::shared_ptr<int>> adding; // groups of copies to memory: how many have not read their shared memory
    std::vector<Work> products;
    std::deque<std::vector<Work>> groups; // committed products
    int commits;                          // of products, so far
};
static std::vector<Thread> threads;
static ucontext_t scheduler;
static std::mt19937 dice;
static unsigned long long events; // whatever may let a thread go on
static std::vector<Work> copies;  // under way

static void give_way(unsigned long long looked = events) {
    const unsigned self = threadIdx.x;
    threads[self].looked = looked;
    swapcontext(&threads[self].context, &scheduler);
}

// Holds up a warp now and then; its lane 0 says for how long.
static unsigned long long rounds, late[32];
static void hold_up() {
    const unsigned w = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0 && dice() % 8 == 0) {
        late[w] = rounds + dice() % 200;
    }
    while (late[w] > rounds) {
        give_way(~0ull);
    }
}

// ---- barriers of threads
struct Meeting {
    int here;
    unsigned round;
    void arrive(int count) {
        if (++here == count) {
            here = 0, round++, events++;
        }
    }
    void wait(int count) {
        const unsigned mine = round;
        arrive(count);
        while (round == mine) {
            give_way();
        }
    }
};
static Meeting warps[32], named[16], everybody;
static void __syncwarp() {
    warps[threadIdx.x / 32].wait(32);
}
static void __syncthreads() {
    everybody.wait((int)threads.size());
}

// What a thread shows the others of its warp.
static unsigned long long shown[1024][2];
template <class T> static void show(const T &x) {
    memcpy(shown[threadIdx.x], &x, sizeof x);
    __syncwarp();
}
template <class T> static T seen(unsigned thread) {
    T x;
    memcpy(&x, shown[thread], sizeof x);
    return x;
}
template <class T> static T __shfl_sync(unsigned, T mine, int lane) {
    show(mine);
    const T theirs = seen<T>(threadIdx.x / 32 * 32 + lane);
    __syncwarp();
    return theirs;
}

static void (*body)();
static void thread_main() {
    body();
    threads[threadIdx.x].done = true;
    events++;
}

// One round: every warp that is not held up runs until its threads wait. Whether all threads have ended.
static bool round_of_warps(std::vector<int> &order, std::vector<int> &held) {
    rounds++;
    std::shuffle(order.begin(), order.end(), dice);
    for (const int w : order) {
        if (held[w] > 0) {
            held[w]--;
            continue;
        }
        held[w] = dice() % 60 == 0 ? dice() % 300 : dice() % 4 == 0;
        for (threadIdx.x = 32 * w; threadIdx.x < 32u * w + 32; threadIdx.x++) {
            const unsigned i = threadIdx.x;
            if (!threads[i].done && threads[i].looked != events) {
                swapcontext(&scheduler, &threads[i].context);
            }
            threadIdx.x = i;
        }
    }
    if (!copies.empty() && dice() % 3 == 0) {
        std::swap(copies[dice() % copies.size()], copies.back());
        const Work copy = copies.back();
        copies.pop_back();
        copy();
        events++;
    }
    return copies.empty() && std::all_of(threads.begin(), threads.end(), [](const Thread &t) { return t.done; });
}

static void run_block(unsigned block, unsigned count, void (*entry)()) {
    constexpr size_t STACK = 256 << 10;
    static const std::unique_ptr<char[]> stacks(new char[1024 * STACK]); // not touched before they are used
    body = entry;
    blockIdx.x = block;
    threads.assign(count, Thread{{}, false, ~0ull});
    for (Meeting *m : {warps, named}) {
        std::fill(m, m + (m == warps ? 32 : 16), Meeting{});
    }
    everybody = {};
    for (size_t i = 0; i < sizeof raw; i += 2) { // NaN
        raw[i] = 0xFF, raw[i + 1] = 0x7F;
    }
    for (unsigned i = 0; i < count; i++) {
        ucontext_t *const c = &threads[i].context;
        getcontext(c);
        c->uc_stack.ss_sp = &stacks[i * STACK];
        c->uc_stack.ss_size = STACK;
        c->uc_link = &scheduler;
        makecontext(c, thread_main, 0);
    }
    std::vector<int> order(count / 32), held(count / 32);
    for (unsigned w = 0; w < count / 32; w++) {
        order[w] = (int)w;
    }
    int idle = 0;
    for (unsigned long long before = events; !round_of_warps(order, held); before = events) {
        idle = events == before ? idle + 1 : 0;
        if (idle > 3000) {
            fail("everybody waits");
        }
    }
}
