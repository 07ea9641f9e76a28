// Modules, functions and tensor maps of drivers for tests that run kernels: an image is only looked at; every module
// has all kernels of kernels.h.
#pragma once
#include "contexts.h"
#include "kernels.h"

// A module is its context; a function belongs to it.
struct Function {
    int *context;
    Prepare prepare;
};

struct LaunchConfig {
    Index grid, block;
    unsigned shared_bytes;
    void *stream;
};

// Why a launch is refused; SUCCESS if it is not.
static int refuse(const LaunchConfig &c, const Function *function) {
    if (c.grid.y * c.grid.z != 1 || c.block.y * c.block.z != 1 || c.block.x % 32 != 0 || c.block.x > THREADS_MOST) {
        return INVALID_VALUE;
    }
    return function->context == current.back() ? SUCCESS : INVALID_HANDLE;
}

extern "C" {
// What a device says of itself: CUDA_TESTS_CAPABILITY is its compute capability, 90 (for 9.0) where it is not set,
// CUDA_TESTS_PROCESSORS the number of its multiprocessors, else 1.
int cuDeviceGetAttribute(int *value, int which, int) {
    const auto set = [](const char *name, int otherwise) {
        const char *const text = getenv(name);
        return text == nullptr ? otherwise : atoi(text);
    };
    const int capability = set("CUDA_TESTS_CAPABILITY", 90);
    switch (which) {
    case 75:
        *value = capability / 10;
        break;
    case 76:
        *value = capability % 10;
        break;
    case 16:
        *value = set("CUDA_TESTS_PROCESSORS", 1);
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
int cuDeviceGetName(char *name, int length, int) {
    return strncpy(name, "the processor", length), SUCCESS;
}
int cuModuleLoadData(void **module, const void *image) {
    NEEDS_CONTEXT;
    *module = current.back();
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
int cuModuleGetFunction(void **function, void *module, const char *name) {
    NEEDS_CONTEXT;
    const auto found = entries().find(name);
    if (found == entries().end()) {
        return NOT_FOUND;
    }
    if (module != current.back()) {
        return INVALID_HANDLE;
    }
    // Kept to the end, as modules are.
    *function = new Function{current.back(), found->second};
    return SUCCESS;
}
int cuModuleGetGlobal_v2(uint64_t *address, size_t *bytes, void *, const char *name) {
    const std::map<std::string, std::pair<int *, size_t>> all = {
        {"magi_attn_forward_sizes", {magi_attn_forward_sizes, sizeof magi_attn_forward_sizes}},
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
int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *data, const uint64_t *dims,
                           const uint64_t *strides, const unsigned *box, const unsigned *, int, int, int, int) {
    NEEDS_CONTEXT;
    Map made = {};
    made.data = (char *)data;
    made.rank = (int)rank;
    made.type = type;
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
}
