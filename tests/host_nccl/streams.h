// Streams of drivers for tests: each is a thread that does what was enqueued, one thing after the other; and events.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../host_driver/contexts.h"

namespace {

// Something that happens once.
struct Moment {
    std::mutex mutex;
    std::condition_variable changed;
    bool come = false;
    std::chrono::steady_clock::time_point when;

    void happen() {
        std::lock_guard<std::mutex> lock(mutex);
        come = true;
        when = std::chrono::steady_clock::now();
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
    // Waits until everything that is on it now is done.
    void drain() {
        const auto moment = std::make_shared<Moment>();
        put([moment] { moment->happen(); });
        moment->wait();
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

// Streams are never freed: their threads may still have something to do.
struct Streams {
    std::mutex mutex;
    std::map<int *, Stream *> defaults;
    std::vector<Stream *> all;

    Stream *make(int *context) {
        std::lock_guard<std::mutex> lock(mutex);
        return all.emplace_back(new Stream(context));
    }
    Stream *of_default(int *context) {
        std::lock_guard<std::mutex> lock(mutex);
        Stream *&stream = defaults[context];
        if (stream == nullptr) {
            stream = all.emplace_back(new Stream(context));
        }
        return stream;
    }
    // Waits for everything on the streams of a device.
    void drain(int *context) {
        std::unique_lock<std::mutex> lock(mutex);
        const std::vector<Stream *> now = all;
        lock.unlock();
        for (Stream *stream : now) {
            if (stream->context == context) {
                stream->drain();
            }
        }
    }
};
Streams &streams = *new Streams;

// The default stream of the current context for a null handle. It waits for no other stream, nor they for it.
Stream *stream_of(void *handle) {
    return handle == nullptr ? streams.of_default(current.back()) : static_cast<Stream *>(handle);
}

// Several threads may ask for an event while another one records it.
class Event {
    std::mutex mutex;
    std::shared_ptr<Moment> last;

  public:
    int *const context;
    const bool timed;

    Event(int *context, bool timed) : context(context), timed(timed) {}
    void record(Stream *stream) {
        const auto moment = std::make_shared<Moment>();
        std::lock_guard<std::mutex> lock(mutex);
        last = moment;
        stream->put([moment] { moment->happen(); });
    }
    // NULL if it was never recorded.
    std::shared_ptr<Moment> moment() {
        std::lock_guard<std::mutex> lock(mutex);
        return last;
    }
};

} // namespace

extern "C" {
// Set by tests: streams say that they are being captured.
int fake_capturing;

int cuCtxSynchronize(void) {
    NEEDS_CONTEXT;
    streams.drain(current.back());
    return SUCCESS;
}
// Events with times that were made so far, for tests.
static std::atomic<int> timed_events;
int fake_timed_events(void) {
    return timed_events;
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
    *stream = streams.make(current.back());
    return SUCCESS;
}
int cuStreamCreate(void **stream, unsigned) {
    NEEDS_CONTEXT;
    *stream = streams.make(current.back());
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
int cuStreamSynchronize(void *stream) {
    NEEDS_CONTEXT;
    stream_of(stream)->drain();
    return SUCCESS;
}
int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    NEEDS_CONTEXT;
    stream_of(stream)->put([function, data] { function(data); });
    return SUCCESS;
}
int cuEventCreate(void **event, unsigned flags) {
    NEEDS_CONTEXT;
    *event = new Event(current.back(), (flags & 2) == 0); // 2: without a time
    timed_events += (flags & 2) == 0;
    return SUCCESS;
}
int cuEventDestroy_v2(void *event) {
    return delete static_cast<Event *>(event), SUCCESS;
}
int cuEventRecord(void *event, void *stream) {
    NEEDS_CONTEXT;
    Stream *const on = stream_of(stream);
    if (on->context != static_cast<Event *>(event)->context) {
        return INVALID_HANDLE;
    }
    static_cast<Event *>(event)->record(on);
    return SUCCESS;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned) {
    NEEDS_CONTEXT;
    if (const auto moment = static_cast<Event *>(event)->moment()) {
        stream_of(stream)->put([moment] { moment->wait(); });
    }
    return SUCCESS;
}
int cuEventQuery(void *event) {
    NEEDS_CONTEXT;
    const auto moment = static_cast<Event *>(event)->moment();
    return moment == nullptr || moment->has_come() ? SUCCESS : NOT_READY;
}
int cuEventSynchronize(void *event) {
    NEEDS_CONTEXT;
    if (const auto moment = static_cast<Event *>(event)->moment()) {
        moment->wait();
    }
    return SUCCESS;
}
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    NEEDS_CONTEXT;
    Event *const events[] = {static_cast<Event *>(start), static_cast<Event *>(end)};
    std::chrono::steady_clock::time_point times[2];
    for (int i = 0; i < 2; i++) {
        const auto moment = events[i]->moment();
        if (!events[i]->timed || events[i]->context != current.back() || moment == nullptr) {
            return INVALID_HANDLE;
        }
        if (!moment->has_come()) {
            return NOT_READY;
        }
        times[i] = moment->when;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(times[1] - times[0]).count();
    return SUCCESS;
}
}
