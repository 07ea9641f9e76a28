/*
 * The handful of functions of CUDA's driver that an example needs, looked up in libcuda.so.1 when it runs: it then
 * compiles without CUDA, and runs where there is no GPU. A program that is built with CUDA uses cudaMalloc,
 * cudaMemcpy and cudaStreamSynchronize instead; streams and pointers of both are the same.
 */
#ifndef MAGI_EXAMPLES_CUDA_DRIVER_H
#define MAGI_EXAMPLES_CUDA_DRIVER_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Results are CUresult, 0 being success; places in device memory are CUdeviceptr. */
typedef struct {
    int (*cuInit)(unsigned flags);
    int (*cuDeviceGetCount)(int *count);
    int (*cuDeviceGet)(int *device, int ordinal);
    int (*cuDevicePrimaryCtxRetain)(void **context, int device);
    int (*cuCtxSetCurrent)(void *context);
    int (*cuStreamCreate)(void **stream, unsigned flags);
    int (*cuStreamSynchronize)(void *stream);
    int (*cuMemAlloc)(uint64_t *place, size_t bytes);
    int (*cuMemFree)(uint64_t place);
    int (*cuMemcpyHtoD)(uint64_t to, const void *from, size_t bytes);
    int (*cuMemcpyDtoH)(void *to, uint64_t from, size_t bytes);
} cuda_driver;

/* The number of GPUs that this process sees; 0 also without a driver. `cuda` is good where there is one. */
static inline int cuda_open(cuda_driver *cuda) {
    static const struct {
        const char *name;
        size_t at;
    } functions[] = {
        {"cuInit", offsetof(cuda_driver, cuInit)},
        {"cuDeviceGetCount", offsetof(cuda_driver, cuDeviceGetCount)},
        {"cuDeviceGet", offsetof(cuda_driver, cuDeviceGet)},
        {"cuDevicePrimaryCtxRetain", offsetof(cuda_driver, cuDevicePrimaryCtxRetain)},
        {"cuCtxSetCurrent", offsetof(cuda_driver, cuCtxSetCurrent)},
        {"cuStreamCreate", offsetof(cuda_driver, cuStreamCreate)},
        {"cuStreamSynchronize", offsetof(cuda_driver, cuStreamSynchronize)},
        {"cuMemAlloc_v2", offsetof(cuda_driver, cuMemAlloc)},
        {"cuMemFree_v2", offsetof(cuda_driver, cuMemFree)},
        {"cuMemcpyHtoD_v2", offsetof(cuda_driver, cuMemcpyHtoD)},
        {"cuMemcpyDtoH_v2", offsetof(cuda_driver, cuMemcpyDtoH)},
    };
    void *const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    int count = 0;
    if (library == NULL) {
        return 0;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        /* ISO C has no conversion from an object pointer to a function pointer, so the bytes are copied. */
        void *const found = dlsym(library, functions[i].name);
        if (found == NULL) {
            return 0;
        }
        memcpy((char *)cuda + functions[i].at, &found, sizeof found);
    }
    return cuda->cuInit(0) == 0 && cuda->cuDeviceGetCount(&count) == 0 ? count : 0;
}

/* Makes the context that the CUDA runtime and frameworks use current on this thread, and a stream in it. 0 is success.
 */
static inline int cuda_use(const cuda_driver *cuda, int ordinal, void **stream) {
    int device = 0, result = cuda->cuDeviceGet(&device, ordinal);
    void *context = NULL;
    if (result == 0 && (result = cuda->cuDevicePrimaryCtxRetain(&context, device)) == 0 &&
        (result = cuda->cuCtxSetCurrent(context)) == 0) {
        result = cuda->cuStreamCreate(stream, 1); /* does not wait for the default stream */
    }
    return result;
}

#endif
