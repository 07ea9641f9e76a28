// A CUDA driver without devices, for tests of what waits for what: memory is the host's, four devices are numbers, and
// each stream is a thread that does what was enqueued, one thing after the other.
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600 };
enum { DEVICES = 4 };

// A context is the address of its device's number.
static int contexts[DEVICES] = {0, 1, 2, 3};
static thread_local std::vector<int *> current;

namespace {

// Something that happens once.
struct Moment {
    std::mutex mutex;
    std::condition_variable changed;
    bool come = false;

    void happen() {
        std::lock_guard<std::mutex> lock(mutex);
        come = true;
        changed.notify_all();
    }
    bool has_come() {
        std::lock_guard<std::mutex> lock(mutex);
        return come;
    }
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return come; });
    }
};

struct Stream {
    int *context;
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;

    explicit Stream(int *context) : context(context) {
        std::thread([this] { run(); }).detach();
    }
    void put(std::function<void()> f) {
        std::lock_guard<std::mutex> lock(mutex);
        work.push_back(std::move(f));
        changed.notify_one();
    }
    void run() {
        for (;;) {
            std::unique_lock<std::mutex> lock(mutex);
            changed.wait(lock, [&] { return !work.empty(); });
            const std::function<void()> f = std::move(work.front());
            work.pop_front();
            lock.unlock();
            f();
        }
    }
};

struct Event {
    std::shared_ptr<Moment> last;
};

// Streams are never freed: their threads may still have something to do.
Stream *stream_of(void *handle) {
    if (handle != nullptr) {
        return static_cast<Stream *>(handle);
    }
    static std::mutex mutex;
    static std::map<int *, Stream *> defaults;
    std::lock_guard<std::mutex> lock(mutex);
    Stream *&stream = defaults[current.back()];
    if (stream == nullptr) {
        stream = new Stream(current.back());
    }
    return stream;
}

} // namespace

#define NEEDS_CONTEXT                                                                                                  \
    if (current.empty())                                                                                               \
    return INVALID_CONTEXT

extern "C" {
// Set by tests: streams say that they are being captured.
int fake_capturing;

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
int cuDeviceGetName(char *name, int length, int) {
    return strncpy(name, "a number", length), SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
    return *bytes = (size_t)1 << 30, SUCCESS;
}
int cuDeviceGetAttribute(int *value, int, int) {
    return *value = 1, SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    return *context = &contexts[device], SUCCESS;
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
int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    NEEDS_CONTEXT;
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    NEEDS_CONTEXT;
    // The library's stream: it waits for no default stream, and is the most urgent.
    if (flags != 1 || priority != -5) {
        return INVALID_VALUE;
    }
    *stream = new Stream(current.back());
    return SUCCESS;
}
int cuStreamCreate(void **stream, unsigned) {
    NEEDS_CONTEXT;
    *stream = new Stream(current.back());
    return SUCCESS;
}
int cuStreamDestroy_v2(void *) {
    NEEDS_CONTEXT;
    return SUCCESS;
}
int cuStreamGetCtx(void *stream, void **context) {
    NEEDS_CONTEXT;
    *context = stream == nullptr ? current.back() : static_cast<Stream *>(stream)->context;
    return SUCCESS;
}
int cuStreamGetId(void *stream, unsigned long long *id) {
    return *id = (unsigned long long)stream, SUCCESS;
}
int cuStreamIsCapturing(void *, int *status) {
    return *status = fake_capturing, SUCCESS;
}
int cuThreadExchangeStreamCaptureMode(int *) {
    return SUCCESS;
}
int cuStreamSynchronize(void *stream) {
    NEEDS_CONTEXT;
    const auto moment = std::make_shared<Moment>();
    stream_of(stream)->put([moment] { moment->happen(); });
    moment->wait();
    return SUCCESS;
}
int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    NEEDS_CONTEXT;
    stream_of(stream)->put([function, data] { function(data); });
    return SUCCESS;
}
int cuEventCreate(void **event, unsigned) {
    NEEDS_CONTEXT;
    *event = new Event;
    return SUCCESS;
}
int cuEventDestroy_v2(void *event) {
    return delete static_cast<Event *>(event), SUCCESS;
}
int cuEventRecord(void *event, void *stream) {
    NEEDS_CONTEXT;
    const auto moment = std::make_shared<Moment>();
    static_cast<Event *>(event)->last = moment;
    stream_of(stream)->put([moment] { moment->happen(); });
    return SUCCESS;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned) {
    NEEDS_CONTEXT;
    if (const auto moment = static_cast<Event *>(event)->last) {
        stream_of(stream)->put([moment] { moment->wait(); });
    }
    return SUCCESS;
}
int cuEventQuery(void *event) {
    NEEDS_CONTEXT;
    const auto moment = static_cast<Event *>(event)->last;
    return moment == nullptr || moment->has_come() ? SUCCESS : NOT_READY;
}
int cuEventSynchronize(void *event) {
    NEEDS_CONTEXT;
    if (const auto moment = static_cast<Event *>(event)->last) {
        moment->wait();
    }
    return SUCCESS;
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
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    NEEDS_CONTEXT;
    memcpy((void *)to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    NEEDS_CONTEXT;
    memcpy(to, (void *)from, bytes);
    return SUCCESS;
}
int cuGetErrorName(int, const char **text) {
    return *text = "an error", SUCCESS;
}
int cuGetErrorString(int, const char **text) {
    return *text = "of the driver for tests", SUCCESS;
}

// What the library looks for and these tests do not call.
#define NOT_HERE(name)                                                                                                 \
    int name(void) {                                                                                                   \
        return NOT_FOUND;                                                                                              \
    }
NOT_HERE(cuFuncGetAttribute)
NOT_HERE(cuFuncSetAttribute)
NOT_HERE(cuLaunchKernelEx)
NOT_HERE(cuMemAllocAsync)
NOT_HERE(cuMemFreeAsync)
NOT_HERE(cuMemsetD32Async)
NOT_HERE(cuModuleGetFunction)
NOT_HERE(cuModuleGetGlobal_v2)
NOT_HERE(cuModuleLoadData)
NOT_HERE(cuModuleUnload)
NOT_HERE(cuPointerGetAttribute)
NOT_HERE(cuTensorMapEncodeTiled)
}
