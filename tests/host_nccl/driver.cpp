// A CUDA driver without devices, for tests of what waits for what: memory is the host's, four devices are numbers, and
// streams are threads (streams.h). Nothing is computed.
enum { DEVICES = 4 };
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "streams.h"

extern "C" {
int cuDeviceGetName(char *name, int length, int) {
    return strncpy(name, "a number", length), SUCCESS;
}
int cuDeviceGetAttribute(int *value, int, int) {
    return *value = 1, SUCCESS;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    NEEDS_CONTEXT;
    *address = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    return SUCCESS;
}
int cuMemFree_v2(uint64_t address) {
    NEEDS_CONTEXT;
    free((void *)address);
    return SUCCESS;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    NEEDS_CONTEXT;
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    NEEDS_CONTEXT;
    memcpy((void *)to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    NEEDS_CONTEXT;
    memcpy(to, (void *)from, bytes);
    return SUCCESS;
}

int fake_reachable(void *) {
    return 1;
}

// There is no pool: memory comes from cuMemAlloc.
int cuMemAllocAsync(void) {
    return 801; // CUDA_ERROR_NOT_SUPPORTED
}

// What the library looks for and these tests do not call.
#define NOT_HERE(name)                                                                                                 \
    int name(void) {                                                                                                   \
        return NOT_FOUND;                                                                                              \
    }
NOT_HERE(cuFuncGetAttribute)
NOT_HERE(cuFuncSetAttribute)
NOT_HERE(cuLaunchKernelEx)
NOT_HERE(cuMemPoolSetAccess)
NOT_HERE(cuMemFreeAsync)
NOT_HERE(cuMemsetD32Async)
NOT_HERE(cuModuleGetFunction)
NOT_HERE(cuModuleGetGlobal_v2)
NOT_HERE(cuModuleLoadData)
NOT_HERE(cuModuleUnload)
NOT_HERE(cuPointerGetAttribute)
NOT_HERE(cuTensorMapEncodeTiled)
}
