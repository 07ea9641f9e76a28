// A CUDA driver that has no device: memory is the host's, and a launch runs kernels that were compiled for the
// processor (kernels.h), at once. So launchers and kernels are tested together where there is no GPU. Built by
// tests/common_cuda.
//
// It knows one device with one multiprocessor, one thread, and of the driver what the library calls.
enum { DEVICES = 1 };
#include "modules.h"

static std::map<char *, size_t> allocated;
static int launches;

extern "C" {
// Set by tests: streams say that they are being captured. Calls that would spoil a capture are counted then.
int fake_capturing, fake_spoilt;
}
enum { CAPTURE_UNSUPPORTED = 900 };

// Ends a call that nobody may make while a stream is captured: it allocates, frees, copies or waits.
#define SPOILS_CAPTURE                                                                                                 \
    if (fake_capturing && ++fake_spoilt)                                                                               \
    return CAPTURE_UNSUPPORTED

extern "C" {
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    NEEDS_CONTEXT;
    SPOILS_CAPTURE;
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
    SPOILS_CAPTURE;
    if (allocated.erase((char *)address) == 0) {
        return INVALID_VALUE;
    }
    free((char *)address);
    return SUCCESS;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    NEEDS_CONTEXT;
    SPOILS_CAPTURE;
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *at == nullptr ? OUT_OF_MEMORY : SUCCESS;
}
int cuCtxSynchronize(void) {
    SPOILS_CAPTURE;
    return current.empty() ? INVALID_CONTEXT : SUCCESS;
}
int cuMemPoolSetAccess(void *, const void *, size_t) {
    return SUCCESS;
}
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *) {
    return cuMemAlloc_v2(address, bytes);
}
int cuMemFreeAsync(uint64_t address, void *) {
    return cuMemFree_v2(address);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    SPOILS_CAPTURE;
    return memcpy((void *)to, from, bytes), SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    SPOILS_CAPTURE;
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
int cuStreamGetCtx(void *, void **context) {
    return *context = &contexts.devices[0], SUCCESS;
}
int cuStreamGetId(void *stream, unsigned long long *id) {
    return *id = (uintptr_t)stream, SUCCESS;
}
int cuStreamIsCapturing(void *, int *status) {
    return *status = fake_capturing, SUCCESS;
}
int cuStreamSynchronize(void *) {
    SPOILS_CAPTURE;
    return current.empty() ? INVALID_CONTEXT : SUCCESS;
}
int cuStreamWaitEvent(void *, void *, unsigned) {
    return SUCCESS;
}
int cuEventCreate(void **event, unsigned) {
    return *event = &contexts.devices[0], SUCCESS;
}
int cuEventDestroy_v2(void *) {
    return SUCCESS;
}
int cuEventQuery(void *) {
    return SUCCESS;
}
int cuEventElapsedTime(float *milliseconds, void *, void *) {
    return *milliseconds = 0, SUCCESS;
}
int cuEventRecord(void *, void *) {
    return SUCCESS;
}
int cuEventSynchronize(void *) {
    SPOILS_CAPTURE;
    return SUCCESS;
}
int cuLaunchKernelEx(const LaunchConfig *config, void *handle, void **parameters, void **) {
    NEEDS_CONTEXT;
    const Function *const function = (Function *)handle;
    if (const int code = refuse(*config, function)) {
        return code;
    }
    launches++;
    run_grid(config->grid, config->block, function->prepare(parameters));
    return SUCCESS;
}
int fake_launches(void) {
    return launches;
}
}
