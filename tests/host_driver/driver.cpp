// A CUDA driver that has no device: memory is the host's, and a launch runs kernels that were compiled for the
// processor, each thread of a block as a coroutine that gives way at barriers. So launchers and kernels are tested
// together where there is no GPU. Built by tests/common_cuda: KERNELS is the kernels' text, ENTRIES the list of
// ENTRY(name).
//
// It knows one device of compute capability 9.0 with one multiprocessor, and of the driver what the library calls.
// Kernels of the tensor cores have stand-ins (attention.h).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
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
static char exchanged[1024][8];
template <class T> static T __shfl_xor_sync(unsigned, T mine, int mask) {
    memcpy(exchanged[threadIdx.x], &mine, sizeof mine);
    give_way();
    T other;
    memcpy(&other, exchanged[threadIdx.x ^ mask], sizeof other);
    give_way();
    return other;
}
namespace {
#include KERNELS
enum { HEAD_DIM_MOST = 128 };
#include "attention.h"
} // namespace

// ---- coroutines: all threads of a block reach every barrier of the kernels here, so a barrier is one round. In a
// block whose first thread meets no barrier none does, and the others are plain calls.
struct Thread {
    ucontext_t context;
    bool done;
};
static std::vector<Thread> threads;
static std::vector<char> stacks;
static ucontext_t scheduler;
static unsigned running;
static void (*body)(void **);
static void **parameters;

static bool plain;

static void give_way() {
    if (plain) {
        abort();
    }
    swapcontext(&threads[running].context, &scheduler);
}

static void thread_main() {
    body(parameters);
    threads[running].done = true;
}

static void make_thread(unsigned i) {
    const size_t stack = 64 << 10;
    stacks.resize(1024 * stack);
    threads.resize(1024);
    ucontext_t *const context = &threads[i].context;
    getcontext(context);
    context->uc_stack.ss_sp = &stacks[i * stack];
    context->uc_stack.ss_size = stack;
    context->uc_link = &scheduler;
    threads[i].done = false;
    makecontext(context, thread_main, 0);
}

// Lets a thread run to its next barrier or its end; whether it is at a barrier.
static bool advance(unsigned i) {
    if (threads[i].done) {
        return false;
    }
    running = threadIdx.x = i;
    swapcontext(&scheduler, &threads[i].context);
    return !threads[i].done;
}

static void run_block(unsigned count) {
    memset(asked, 0, sizeof asked);
    memset(answers, 0, sizeof answers);
    make_thread(0);
    if (!advance(0)) {
        plain = true;
        for (threadIdx.x = 1; threadIdx.x < count; threadIdx.x++) {
            body(parameters);
        }
        plain = false;
        return;
    }
    for (unsigned i = 1; i < count; i++) {
        make_thread(i);
        advance(i);
    }
    for (bool left = true; left;) {
        left = false;
        for (unsigned i = 0; i < count; i++) {
            left = advance(i) || left;
        }
    }
}

template <class... A, size_t... I> static void apply(void (*kernel)(A...), void **p, std::index_sequence<I...>) {
    kernel(*(std::remove_const_t<A> *)p[I]...);
}
template <class... A> static void call(void (*kernel)(A...), void **p) {
    apply(kernel, p, std::index_sequence_for<A...>());
}
static const std::map<std::string, void (*)(void **)> &entries() {
    static const std::map<std::string, void (*)(void **)> all = {
#define ENTRY(name) {#name, [](void **p) { call(name, p); }},
#include ENTRIES
    };
    return all;
}

// ---- the driver
static std::map<char *, size_t> allocated;
static std::vector<void *> current;
static int context_of_the_device;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
#define NEEDS_CONTEXT                                                                                                  \
    if (current.empty())                                                                                               \
    return INVALID_CONTEXT

extern "C" {
int cuInit(unsigned) {
    return SUCCESS;
}
int cuDriverGetVersion(int *version) {
    return *version = 13000, SUCCESS;
}
int cuDeviceGetCount(int *count) {
    return *count = 1, SUCCESS;
}
int cuDeviceGet(int *device, int ordinal) {
    return *device = ordinal, SUCCESS;
}
int cuDeviceGetName(char *name, int length, int) {
    return strncpy(name, "the processor", length), SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
    return *bytes = (size_t)1 << 30, SUCCESS;
}
int cuDeviceGetAttribute(int *value, int which, int) {
    switch (which) {
    case 75:
        *value = 9;
        break; // compute capability
    case 76:
        *value = 0;
        break;
    case 16:
        *value = 1;
        break; // multiprocessors
    case 38:
        *value = 1 << 20;
        break; // level-2 cache
    case 97:
        *value = 232448;
        break; // shared memory
    default:
        return INVALID_VALUE;
    }
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
    return *context = &context_of_the_device, SUCCESS;
}
int cuCtxGetCurrent(void **context) {
    return *context = current.empty() ? nullptr : current.back(), SUCCESS;
}
int cuCtxPushCurrent_v2(void *context) {
    return current.push_back(context), SUCCESS;
}
int cuCtxPopCurrent_v2(void **context) {
    NEEDS_CONTEXT;
    *context = current.back();
    current.pop_back();
    return SUCCESS;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    NEEDS_CONTEXT;
    char *const memory = (char *)aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (memory == nullptr) {
        return OUT_OF_MEMORY;
    }
    allocated[memory] = bytes;
    *address = (uint64_t)memory;
    return SUCCESS;
}
int cuMemFree_v2(uint64_t address) {
    NEEDS_CONTEXT;
    if (allocated.erase((char *)address) == 0) {
        return INVALID_VALUE;
    }
    free((char *)address);
    return SUCCESS;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    NEEDS_CONTEXT;
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *at == nullptr ? OUT_OF_MEMORY : SUCCESS;
}
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *) {
    return cuMemAlloc_v2(address, bytes);
}
int cuMemFreeAsync(uint64_t address, void *) {
    return cuMemFree_v2(address);
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    return memcpy((void *)to, from, bytes), SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    return memcpy(to, (void *)from, bytes), SUCCESS;
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void *) {
    for (size_t i = 0; i < count; i++) {
        ((unsigned *)to)[i] = value;
    }
    return SUCCESS;
}
int cuPointerGetAttribute(void *value, int which, uint64_t address) {
    const auto after = allocated.upper_bound((char *)address);
    if (after == allocated.begin()) {
        return INVALID_VALUE;
    }
    const auto block = std::prev(after);
    if ((char *)address >= block->first + block->second) {
        return INVALID_VALUE;
    }
    *(int *)value = which == 2 ? 2 : 0; // device memory, of device 0
    return SUCCESS;
}
int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    return *least = *greatest = 0, SUCCESS;
}
int cuStreamCreateWithPriority(void **stream, unsigned, int) {
    return *stream = nullptr, SUCCESS;
}
int cuStreamDestroy_v2(void *) {
    return SUCCESS;
}
int cuThreadExchangeStreamCaptureMode(int *) {
    return SUCCESS;
}
int cuStreamGetCtx(void *, void **context) {
    return *context = &context_of_the_device, SUCCESS;
}
int cuStreamGetId(void *stream, unsigned long long *id) {
    return *id = (uintptr_t)stream, SUCCESS;
}
int cuStreamIsCapturing(void *, int *status) {
    return *status = 0, SUCCESS;
}
int cuStreamSynchronize(void *) {
    return current.empty() ? INVALID_CONTEXT : SUCCESS;
}
int cuStreamWaitEvent(void *, void *, unsigned) {
    return SUCCESS;
}
int cuEventCreate(void **event, unsigned) {
    return *event = &context_of_the_device, SUCCESS;
}
int cuEventDestroy_v2(void *) {
    return SUCCESS;
}
int cuEventQuery(void *) {
    return SUCCESS;
}
int cuEventRecord(void *, void *) {
    return SUCCESS;
}
int cuEventSynchronize(void *) {
    return SUCCESS;
}
int cuModuleLoadData(void **module, const void *image) {
    NEEDS_CONTEXT;
    *module = (void *)image;
    return memcmp(image,
                  "\x7f"
                  "ELF",
                  4) == 0
               ? SUCCESS
               : INVALID_VALUE;
}
int cuModuleUnload(void *) {
    return SUCCESS;
}
int cuModuleGetFunction(void **function, void *, const char *name) {
    const auto found = entries().find(name);
    if (found == entries().end()) {
        return NOT_FOUND;
    }
    *function = (void *)found->second;
    return SUCCESS;
}
int cuModuleGetGlobal_v2(uint64_t *address, size_t *bytes, void *, const char *name) {
    const std::map<std::string, std::pair<int *, size_t>> all = {
        {"magi_attn_backward_sizes", {magi_attn_backward_sizes, sizeof magi_attn_backward_sizes}},
        {"magi_attn_backward_queries_sizes",
         {magi_attn_backward_queries_sizes, sizeof magi_attn_backward_queries_sizes}},
    };
    const auto found = all.find(name);
    if (found == all.end()) {
        return NOT_FOUND;
    }
    *address = (uint64_t)found->second.first;
    *bytes = found->second.second;
    return SUCCESS;
}
int cuFuncGetAttribute(int *value, int, void *) {
    return *value = 0, SUCCESS;
}
int cuFuncSetAttribute(void *, int, int) {
    return SUCCESS;
}
int cuTensorMapEncodeTiled(void *map, int, unsigned rank, void *data, const uint64_t *dims, const uint64_t *strides,
                           const unsigned *box, const unsigned *, int, int, int, int) {
    Map made = {};
    made.data = (char *)data;
    made.rank = (int)rank;
    for (unsigned d = 0; d < rank; d++) {
        made.dims[d] = dims[d];
        made.box[d] = box[d];
        if (d > 0) {
            made.strides[d - 1] = strides[d - 1];
        }
    }
    memcpy(map, &made, sizeof made);
    return SUCCESS;
}
int cuGetErrorName(int, const char **text) {
    return *text = "an error", SUCCESS;
}
int cuGetErrorString(int, const char **text) {
    return *text = "of the driver for tests", SUCCESS;
}
int cuLaunchKernelEx(const unsigned *config, void *function, void **arguments, void **) {
    NEEDS_CONTEXT;
    gridDim = {config[0], config[1], config[2]};
    blockDim = {config[3], config[4], config[5]};
    if (gridDim.y * gridDim.z != 1 || blockDim.y * blockDim.z != 1 || blockDim.x % 32 != 0 || blockDim.x > 1024) {
        return INVALID_VALUE;
    }
    body = (void (*)(void **))function;
    parameters = arguments;
    for (unsigned block = 0; block < gridDim.x; block++) {
        blockIdx = {block, 0, 0};
        run_block(blockDim.x);
    }
    return SUCCESS;
}
}
