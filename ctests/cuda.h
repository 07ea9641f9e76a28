// A CUDA device for the C test programs, by the driver alone: neither a CUDA header nor a CUDA library is needed to
// build them. The declarations are those of the driver's interface, which does not change.
#ifndef MAGI_CTEST_CUDA_H
#define MAGI_CTEST_CUDA_H

#include "tensor.h"
#include <dlfcn.h>

typedef int cuda_result;               // CUresult
typedef unsigned long long cuda_place; // CUdeviceptr

// Codes by which the driver says that there is nothing to use.
enum { CUDA_STUB_LIBRARY = 34, CUDA_NO_DEVICE = 100 };

// Function pointers by their names in the driver.
typedef struct {
    cuda_result (*cuInit)(unsigned flags);
    cuda_result (*cuDeviceGetCount)(int *count);
    cuda_result (*cuDeviceGet)(int *device, int ordinal);
    cuda_result (*cuDevicePrimaryCtxRetain)(void **context, int device);
    cuda_result (*cuDevicePrimaryCtxRelease)(int device);
    cuda_result (*cuCtxSetCurrent)(void *context);
    cuda_result (*cuCtxGetCurrent)(void **context);
    cuda_result (*cuCtxSynchronize)(void);
    cuda_result (*cuMemAlloc)(cuda_place *at, size_t bytes);
    cuda_result (*cuMemFree)(cuda_place at);
    cuda_result (*cuMemcpyHtoD)(cuda_place to, const void *from, size_t bytes);
    cuda_result (*cuMemcpyDtoH)(void *to, cuda_place from, size_t bytes);
    cuda_result (*cuMemsetD8)(cuda_place at, unsigned char value, size_t bytes);
    cuda_result (*cuStreamCreate)(void **stream, unsigned flags);
    cuda_result (*cuStreamDestroy)(void *stream);
    cuda_result (*cuStreamSynchronize)(void *stream);
    cuda_result (*cuGetErrorName)(cuda_result code, const char **name);
    void *library, *context;
    int device, ordinal;
} cuda_driver;

// The driver of this program; cuda_begin fills it.
static cuda_driver cuda;

static inline void cuda_check(cuda_result code, const char *what, const char *file, int line) {
    if (code != 0) {
        const char *name = NULL;
        if (cuda.cuGetErrorName(code, &name) != 0 || name == NULL) {
            name = "unknown";
        }
        FAIL("from %s:%d: %s gave %d (%s)", file, line, what, code, name);
    }
}

// The call of the driver succeeds.
#define CHECK_CUDA(call) cuda_check((call), #call, __FILE__, __LINE__)

// Looks a function up; ISO C has no conversion from an object pointer to a function pointer, so its bytes are copied.
static inline void cuda_find(const char *name, void *function) {
    void *const found = dlsym(cuda.library, name);
    if (found == NULL) {
        FAIL("libcuda.so.1 has no %s", name);
    }
    memcpy(function, &found, sizeof found);
}

static inline void cuda_find_all(void) {
    cuda_find("cuInit", &cuda.cuInit);
    cuda_find("cuDeviceGetCount", &cuda.cuDeviceGetCount);
    cuda_find("cuDeviceGet", &cuda.cuDeviceGet);
    cuda_find("cuDevicePrimaryCtxRetain", &cuda.cuDevicePrimaryCtxRetain);
    cuda_find("cuDevicePrimaryCtxRelease_v2", &cuda.cuDevicePrimaryCtxRelease);
    cuda_find("cuCtxSetCurrent", &cuda.cuCtxSetCurrent);
    cuda_find("cuCtxGetCurrent", &cuda.cuCtxGetCurrent);
    cuda_find("cuCtxSynchronize", &cuda.cuCtxSynchronize);
    cuda_find("cuMemAlloc_v2", &cuda.cuMemAlloc);
    cuda_find("cuMemFree_v2", &cuda.cuMemFree);
    cuda_find("cuMemcpyHtoD_v2", &cuda.cuMemcpyHtoD);
    cuda_find("cuMemcpyDtoH_v2", &cuda.cuMemcpyDtoH);
    cuda_find("cuMemsetD8_v2", &cuda.cuMemsetD8);
    cuda_find("cuStreamCreate", &cuda.cuStreamCreate);
    cuda_find("cuStreamDestroy_v2", &cuda.cuStreamDestroy);
    cuda_find("cuStreamSynchronize", &cuda.cuStreamSynchronize);
    cuda_find("cuGetErrorName", &cuda.cuGetErrorName);
}

// Makes the primary context of device `ordinal` current, as the CUDA runtime and frameworks do. Ends the program as
// skipped where there is no driver or no such device; a driver that is there and fails is a failure.
static inline void cuda_begin(int ordinal) {
    cuda.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (cuda.library == NULL) {
        SKIP("no CUDA driver: %s", dlerror());
    }
    cuda_find_all();
    const cuda_result code = cuda.cuInit(0);
    if (code == CUDA_NO_DEVICE || code == CUDA_STUB_LIBRARY) {
        SKIP("no CUDA device: cuInit gave %d", code);
    }
    CHECK_CUDA(code);
    int count = 0;
    CHECK_CUDA(cuda.cuDeviceGetCount(&count));
    if (ordinal >= count) {
        SKIP("no CUDA device %d; there are %d", ordinal, count);
    }
    cuda.ordinal = ordinal;
    CHECK_CUDA(cuda.cuDeviceGet(&cuda.device, ordinal));
    CHECK_CUDA(cuda.cuDevicePrimaryCtxRetain(&cuda.context, cuda.device));
    CHECK_CUDA(cuda.cuCtxSetCurrent(cuda.context));
}

// The context is still current: calls of the library leave it as it was. Then gives it up.
static inline void cuda_end(void) {
    void *current = NULL;
    CHECK_CUDA(cuda.cuCtxGetCurrent(&current));
    CHECK(current == cuda.context);
    CHECK_CUDA(cuda.cuCtxSynchronize());
    CHECK_CUDA(cuda.cuCtxSetCurrent(NULL));
    CHECK_CUDA(cuda.cuDevicePrimaryCtxRelease(cuda.device));
}

// Device memory with every byte 0xff, which is NaN in every float type; NULL for 0 bytes.
static inline void *cuda_memory(size_t bytes) {
    cuda_place at = 0;
    if (bytes > 0) {
        CHECK_CUDA(cuda.cuMemAlloc(&at, bytes));
        CHECK_CUDA(cuda.cuMemsetD8(at, 0xff, bytes));
        CHECK_CUDA(cuda.cuCtxSynchronize());
    }
    return (void *)(uintptr_t)at;
}

static inline void cuda_free(void *at) {
    if (at != NULL) {
        CHECK_CUDA(cuda.cuMemFree((cuda_place)(uintptr_t)at));
    }
}

// Sets every byte to `value` and waits.
static inline void cuda_fill(void *at, unsigned char value, size_t bytes) {
    if (bytes > 0) {
        CHECK_CUDA(cuda.cuMemsetD8((cuda_place)(uintptr_t)at, value, bytes));
        CHECK_CUDA(cuda.cuCtxSynchronize());
    }
}

// Copies and waits: for the copy, not for other streams.
static inline void cuda_upload(void *to, const void *from, size_t bytes) {
    if (bytes > 0) {
        CHECK_CUDA(cuda.cuMemcpyHtoD((cuda_place)(uintptr_t)to, from, bytes));
        CHECK_CUDA(cuda.cuCtxSynchronize());
    }
}
static inline void cuda_download(void *to, const void *from, size_t bytes) {
    if (bytes > 0) {
        CHECK_CUDA(cuda.cuMemcpyDtoH(to, (cuda_place)(uintptr_t)from, bytes));
    }
}

// A stream that does not wait for the default one.
static inline magi_stream cuda_stream(void) {
    void *stream = NULL;
    CHECK_CUDA(cuda.cuStreamCreate(&stream, 1));
    return (magi_stream)stream;
}
static inline void cuda_stream_wait(magi_stream stream) {
    CHECK_CUDA(cuda.cuStreamSynchronize((void *)stream));
}
static inline void cuda_stream_destroy(magi_stream stream) {
    CHECK_CUDA(cuda.cuStreamDestroy((void *)stream));
}

// A tensor in host memory and one like it on the device, each in memory of its own.
typedef struct {
    magi_tensor host, device;
    size_t bytes;
} cuda_pair;

// Bytes from the first element to behind the last; strides are not negative.
static inline size_t cuda_span(const magi_tensor *t) {
    int64_t last = 0;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] == 0) {
            return 0;
        }
        last += (t->shape[i] - 1) * t->stride[i];
    }
    return (size_t)(last + 1) * element_size(t->dtype);
}

// The device's side of a tensor in host memory: as long, and all NaN.
static inline cuda_pair cuda_pair_of(const magi_tensor *host) {
    cuda_pair p;
    p.host = p.device = *host;
    p.bytes = cuda_span(host);
    p.device.device_type = MAGI_DEVICE_TYPE_CUDA;
    p.device.device_index = cuda.ordinal;
    p.device.data = cuda_memory(p.bytes);
    return p;
}

// Copies the host's side to the device, with what lies between its elements.
static inline void cuda_pair_upload(const cuda_pair *p) {
    cuda_upload(p->device.data, p->host.data, p->bytes);
}

// Frees both sides; the host's came from malloc.
static inline void cuda_pair_free(cuda_pair *p) {
    cuda_free(p->device.data);
    free(p->host.data);
}

#endif
