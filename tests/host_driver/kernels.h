// Kernels that were compiled for the processor, each thread of a block as a coroutine that gives way at barriers.
// KERNELS is their text, ENTRIES the list of ENTRY(name); tests/common_cuda writes both. Kernels of the tensor cores
// have stand-ins (attention.h, forward.h).
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

// ---- what kernels see
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;
static void give_way();
static void __syncthreads() {
    give_way();
}
static void __nanosleep(unsigned) {}
static void __syncwarp() {
    give_way();
}
// Whether any thread says so. Threads are at most one call apart: the second of three answers is being collected when
// the first has been read by all.
static int answers[3];
static unsigned asked[1024];
static int __syncthreads_or(int mine) {
    const unsigned call = asked[threadIdx.x]++;
    answers[(call + 1) % 3] = 0;
    answers[call % 3] |= mine != 0;
    give_way();
    return answers[call % 3];
}
static int max(int a, int b) {
    return a > b ? a : b;
}
static int min(int a, int b) {
    return a < b ? a : b;
}
static void atomicMax(int *to, int x) {
    *to = max(*to, x);
}
template <class T> static T atomicAdd(T *to, T x) {
    const T before = *to;
    *to += x;
    return before;
}
static void __threadfence() {}
static void atomicMin(unsigned *to, unsigned x) {
    *to = *to < x ? *to : x;
}
// Two places for what threads exchange, in turn: nobody is two calls ahead of another.
static char exchanged[2][1024][8];
static unsigned exchanges[1024];
template <class T> static T __shfl_xor_sync(unsigned, T mine, int mask) {
    char (&place)[1024][8] = exchanged[exchanges[threadIdx.x]++ % 2];
    memcpy(place[threadIdx.x], &mine, sizeof mine);
    give_way();
    T other;
    memcpy(&other, place[threadIdx.x ^ mask], sizeof other);
    return other;
}
namespace {
#include KERNELS
enum { HEAD_DIM_MOST = 256 };
#include "attention.h"
#include "forward.h"
} // namespace

// ---- coroutines: all threads of a block reach every barrier of the kernels here, so a barrier is one round. In a
// block whose first thread meets no barrier none does, and the others are plain calls.
struct Thread {
    ucontext_t start;
    jmp_buf here;
    bool begun, done;
};
enum { THREADS_MOST = 1024, STACK = 64 << 10 };
// Never freed: a stream may run a kernel while the process ends.
static Thread *const threads = new Thread[THREADS_MOST];
static char *const stacks = (char *)malloc((size_t)THREADS_MOST * STACK);
static ucontext_t scheduler;
static jmp_buf round_of_threads;
static unsigned running;
static const std::function<void()> *body;
static bool plain;
static bool reversed; // the order of blocks, and of all threads but the first: another one with every launch

// Jumps and not swapcontext, which asks the kernel for the signal mask each time.
static void give_way() {
    if (plain) {
        abort();
    }
    if (_setjmp(threads[running].here) == 0) {
        _longjmp(round_of_threads, 1);
    }
}

static void thread_main() {
    (*body)();
    threads[running].done = true;
    _longjmp(round_of_threads, 1);
}

static void make_thread(unsigned i) {
    threads[i].begun = threads[i].done = false;
    ucontext_t *const start = &threads[i].start;
    getcontext(start);
    start->uc_stack.ss_sp = stacks + (size_t)i * STACK;
    start->uc_stack.ss_size = STACK;
    start->uc_link = nullptr;
    makecontext(start, thread_main, 0);
}

// Lets a thread run to its next barrier or its end; whether it is at a barrier.
static bool advance(unsigned i) {
    if (threads[i].done) {
        return false;
    }
    running = threadIdx.x = i;
    if (_setjmp(round_of_threads) == 0) {
        if (threads[i].begun) {
            _longjmp(threads[i].here, 1);
        }
        threads[i].begun = true;
        swapcontext(&scheduler, &threads[i].start);
    }
    return !threads[running].done;
}

// The thread whose turn is the i-th.
static unsigned turn(unsigned i, unsigned count) {
    return reversed && i > 0 ? count - i : i;
}

static void run_block(unsigned count) {
    memset(asked, 0, sizeof asked);
    memset(answers, 0, sizeof answers);
    memset(exchanges, 0, sizeof exchanges);
    make_thread(0);
    if (!advance(0)) {
        plain = true;
        for (unsigned i = 1; i < count; i++) {
            threadIdx.x = turn(i, count);
            (*body)();
        }
        plain = false;
        return;
    }
    for (unsigned i = 1; i < count; i++) {
        make_thread(turn(i, count));
        advance(turn(i, count));
    }
    for (bool left = true; left;) {
        left = false;
        for (unsigned i = 0; i < count; i++) {
            left = advance(turn(i, count)) || left;
        }
    }
}

// Runs all blocks, one after the other. One launch at a time.
static void run_grid(Index grid, Index block, const std::function<void()> &kernel) {
    gridDim = grid;
    blockDim = block;
    body = &kernel;
    reversed = !reversed;
    for (unsigned i = 0; i < grid.x; i++) {
        blockIdx = {reversed ? grid.x - 1 - i : i, 0, 0};
        run_block(block.x);
    }
}

// ---- kernels by name: from the addresses of parameters to a call with copies of them
typedef std::function<void()> (*Prepare)(void **parameters);

template <class... A, size_t... I>
static std::function<void()> prepare(void (*kernel)(A...), void **p, std::index_sequence<I...>) {
    typedef std::tuple<std::remove_const_t<A>...> Copies;
    const auto copies = std::make_shared<const Copies>(*(std::remove_const_t<A> *)p[I]...);
    return [kernel, copies] { std::apply(kernel, *copies); };
}
template <class... A> static std::function<void()> prepare(void (*kernel)(A...), void **p) {
    return prepare(kernel, p, std::index_sequence_for<A...>());
}
static const std::map<std::string, Prepare> &entries() {
    static const auto *const all = new std::map<std::string, Prepare>{
#define ENTRY(name) {#name, [](void **p) { return prepare(name, p); }},
#include ENTRIES
    };
    return *all;
}
