// A CUDA driver for ranks in one process that compute: four devices, streams that are threads
// (tests/host_nccl/streams.h), kernels that were compiled for the processor (tests/host_driver/kernels.h), and memory
// that shows mistakes (memory.h). A launch copies its parameters and returns; its stream runs it. Built by
// tests/ranks_support, with the NCCL of tests/host_nccl beside it.
//
// Everything may be called from any thread. Where the real driver may or may not wait, this one does not.
enum { DEVICES = 4 };
#include "../host_driver/modules.h"
#include "../host_nccl/streams.h"
#include "memory.h"

namespace {

// Never destroyed: streams use them to the end of the process.
Memory &memory = *new Memory;
bool shared_pools[DEVICES]; // memory taken in the order of a stream is open to all other devices
std::atomic<int> allocations;
std::mutex &one_at_a_time = *new std::mutex; // kernels: what a block shares is static

struct AtTheEnd {
    ~AtTheEnd() { memory.check(); }
} at_the_end;

bool is_here(const Stream *stream) {
    return stream->context == current.back();
}

} // namespace

extern "C" {
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    NEEDS_CONTEXT;
    if (bytes == 0) {
        return INVALID_VALUE;
    }
    allocations++;
    *address = (uint64_t)memory.take(bytes, current.back());
    return *address == 0 ? OUT_OF_MEMORY : SUCCESS;
}
// Blocks of memory that were taken so far, of devices and of the host, for tests.
int fake_allocations(void) {
    return allocations;
}
// Waits for the device, as the driver's does.
int cuMemFree_v2(uint64_t address) {
    NEEDS_CONTEXT;
    Block block;
    if (!memory.give_up((char *)address, block)) {
        return INVALID_VALUE;
    }
    streams.drain(block.context);
    memory.free(block);
    return SUCCESS;
}
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    if (!is_here(stream_of(stream))) {
        return INVALID_HANDLE;
    }
    const int code = cuMemAlloc_v2(address, bytes);
    if (code == SUCCESS && !shared_pools[*current.back()]) {
        memory.keep_from_peers((char *)*address);
    }
    return code;
}
int cuMemPoolSetAccess(void *pool, const void *, size_t count) {
    shared_pools[*(int *)pool] = count == DEVICES - 1;
    return SUCCESS;
}
// For NCCL, which reaches the memory of other ranks of its process directly.
int fake_reachable(void *address) {
    return memory.is_reachable((char *)address);
}
int cuMemFreeAsync(uint64_t address, void *stream) {
    NEEDS_CONTEXT;
    Block block;
    if (!is_here(stream_of(stream)) || !memory.give_up((char *)address, block)) {
        return INVALID_VALUE;
    }
    stream_of(stream)->put([block] { memory.free(block); });
    return SUCCESS;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    NEEDS_CONTEXT;
    allocations++;
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *at == nullptr ? OUT_OF_MEMORY : SUCCESS;
}
// The bytes are read when the stream comes to it.
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    stream_of(stream)->put([to, from, bytes] { memcpy((char *)to, from, bytes); });
    return SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    NEEDS_CONTEXT;
    stream_of(nullptr)->drain();
    return memcpy(to, (const char *)from, bytes), SUCCESS;
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void *stream) {
    NEEDS_CONTEXT;
    if (!is_here(stream_of(stream))) {
        return INVALID_HANDLE;
    }
    stream_of(stream)->put([to, value, count] {
        for (size_t i = 0; i < count; i++) {
            ((unsigned *)to)[i] = value;
        }
    });
    return SUCCESS;
}
int cuPointerGetAttribute(void *value, int which, uint64_t address) {
    const int *const context = memory.context_of((char *)address);
    if (context == nullptr) {
        return INVALID_VALUE;
    }
    *(int *)value = which == 2 ? 2 : *context; // device memory, of that device
    return SUCCESS;
}
int cuLaunchKernelEx(const LaunchConfig *config, void *handle, void **parameters, void **) {
    NEEDS_CONTEXT;
    const Function *const function = (Function *)handle;
    if (const int code = refuse(*config, function)) {
        return code;
    }
    Stream *const stream = stream_of(config->stream);
    if (!is_here(stream)) {
        return INVALID_HANDLE;
    }
    const Index grid = config->grid, block = config->block;
    stream->put([grid, block, kernel = function->prepare(parameters)] {
        std::lock_guard<std::mutex> lock(one_at_a_time);
        run_grid(grid, block, kernel);
    });
    return SUCCESS;
}
}
