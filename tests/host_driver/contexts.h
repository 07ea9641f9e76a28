// What every driver for tests says of itself, and contexts: DEVICES devices, which are numbers.
#pragma once
#include <cstddef>
#include <vector>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600
};

// A context is the address of its device's number.
struct Contexts {
    int devices[DEVICES];
    Contexts() {
        for (int i = 0; i < DEVICES; i++) {
            devices[i] = i;
        }
    }
};
static Contexts contexts;
static thread_local std::vector<int *> current;

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
    return *count = DEVICES, SUCCESS;
}
int cuDeviceGet(int *device, int ordinal) {
    return *device = ordinal, SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
    return *bytes = (size_t)1 << 30, SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    return *context = &contexts.devices[device], SUCCESS;
}
int cuCtxGetCurrent(void **context) {
    return *context = current.empty() ? nullptr : current.back(), SUCCESS;
}
int cuCtxPushCurrent_v2(void *context) {
    return current.push_back(static_cast<int *>(context)), SUCCESS;
}
int cuCtxPopCurrent_v2(void **context) {
    NEEDS_CONTEXT;
    *context = current.back();
    current.pop_back();
    return SUCCESS;
}
int cuDeviceCanAccessPeer(int *can, int, int) {
    return *can = 1, SUCCESS;
}
// The pool that a device takes memory from in the order of streams is the device.
int cuDeviceGetMemPool(void **pool, int device) {
    return *pool = &contexts.devices[device], SUCCESS;
}
int cuThreadExchangeStreamCaptureMode(int *) {
    return SUCCESS;
}
int cuGetErrorName(int, const char **text) {
    return *text = "an error", SUCCESS;
}
int cuGetErrorString(int, const char **text) {
    return *text = "of the driver for tests", SUCCESS;
}
}
