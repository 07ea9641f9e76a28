/*
 * Memory, copies and a stream of a GPU, by the handful of functions of CUDA's driver that this takes. They are looked
 * up in libcuda.so.1 when the program runs: it compiles without CUDA, and where there is no GPU the same functions work
 * on host memory. A program that is built with CUDA uses cudaMalloc, cudaMemcpy and cudaStreamSynchronize instead;
 * streams and pointers of both are the same.
 */
#ifndef MAGI_EXAMPLES_CUDA_DRIVER_H
#define MAGI_EXAMPLES_CUDA_DRIVER_H

#include <dlfcn.h>
#include <magi_attn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Results are CUresult, 0 being success; places in device memory are CUdeviceptr. */
typedef struct {
    int (*cuInit)(unsigned flags);
    int (*cuDeviceGetCount)(int *count);
    int (*cuDeviceGet)(int *device, int ordinal);
    int (*cuDevicePrimaryCtxRetain)(void **context, int device);
    int (*cuCtxPushCurrent)(void *context);
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
        {"cuCtxPushCurrent_v2", offsetof(cuda_driver, cuCtxPushCurrent)},
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

/* ---- where a rank's tensors lie ---- */

/* A GPU, or with all zeros the host. */
struct place {
    const cuda_driver *cuda;
    int32_t device;
    magi_stream stream;
    void *blocks[64]; /* what was taken, given back together */
    size_t count;
};

/* The process ends: the other ranks then get an error. */
static inline void stop(const char *what, const char *message) {
    fprintf(stderr, "%s: %s\n", what, message);
    exit(1);
}

static inline void must_cuda(int result, const char *what) {
    if (result != 0) {
        fprintf(stderr, "error %d of CUDA's driver: ", result);
        stop(what, "refused");
    }
}

/* Makes the context that the CUDA runtime and frameworks use current on this thread, and a stream in it. */
static inline void use_device(struct place *p, const cuda_driver *cuda) {
    int device = 0;
    void *context = NULL, *stream = NULL;
    must_cuda(cuda->cuDeviceGet(&device, p->device), "cuDeviceGet");
    must_cuda(cuda->cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    must_cuda(cuda->cuCtxPushCurrent(context), "cuCtxPushCurrent");
    must_cuda(cuda->cuStreamCreate(&stream, 1), "cuStreamCreate"); /* does not wait for the default stream */
    p->cuda = cuda;
    p->stream = (magi_stream)stream;
}

static inline void wait_for(const struct place *p) {
    if (p->cuda != NULL) {
        must_cuda(p->cuda->cuStreamSynchronize((void *)p->stream), "cuStreamSynchronize");
    }
}

/* Memory aligned to 256, as workspace must be. */
static inline void *take(struct place *p, size_t bytes) {
    const size_t rounded = bytes > 0 ? (bytes + 255) / 256 * 256 : 256;
    uint64_t at = 0;
    if (p->count == sizeof p->blocks / sizeof *p->blocks) {
        stop("memory", "more blocks than there is room for");
    }
    if (p->cuda != NULL) {
        must_cuda(p->cuda->cuMemAlloc(&at, rounded), "cuMemAlloc");
    } else if ((at = (uint64_t)(uintptr_t)aligned_alloc(256, rounded)) == 0) {
        stop("memory", "there is no more");
    }
    return p->blocks[p->count++] = (void *)(uintptr_t)at;
}

static inline void give_back(struct place *p) {
    while (p->count > 0) {
        void *const block = p->blocks[--p->count];
        if (p->cuda != NULL) {
            must_cuda(p->cuda->cuMemFree((uint64_t)(uintptr_t)block), "cuMemFree");
        } else {
            free(block);
        }
    }
}

/* Host memory, to be freed. */
static inline void *host_memory(size_t bytes) {
    void *const memory = malloc(bytes);
    if (memory == NULL) {
        stop("memory", "there is no more");
    }
    return memory;
}

static inline void write_to(const struct place *p, void *to, const void *from, size_t bytes) {
    if (p->cuda != NULL) {
        must_cuda(p->cuda->cuMemcpyHtoD((uint64_t)(uintptr_t)to, from, bytes), "cuMemcpyHtoD");
    } else {
        memcpy(to, from, bytes);
    }
}

/* A copy in host memory, to be freed. */
static inline void *read_from(const struct place *p, const void *from, size_t bytes) {
    void *const copy = host_memory(bytes);
    if (p->cuda != NULL) {
        must_cuda(p->cuda->cuMemcpyDtoH(copy, (uint64_t)(uintptr_t)from, bytes), "cuMemcpyDtoH");
    } else {
        memcpy(copy, from, bytes);
    }
    return copy;
}

#endif
