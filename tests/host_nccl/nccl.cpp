// NCCL for ranks that are threads of one process, over the driver beside it: the functions that the library calls, with
// their rules (one call at a time, nothing while the call before is in progress, nothing after an abort), and what
// tests ask for: failures, and a record of what was called.
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

extern "C" {
int cuCtxGetCurrent(void **context);
int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data);
int fake_reachable(void *address);
}

enum { OK = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };

struct ncclUniqueId {
    char internal[128];
};

// The fields that every version has.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking, cga, min_ctas, max_ctas;
    const char *net;
    int share;
};

namespace {

std::mutex mutex; // of everything here
std::condition_variable changed;
std::string record;
std::map<std::string, int> wishes;

int wish(const char *name, int otherwise) {
    const auto found = wishes.find(name);
    return found == wishes.end() ? otherwise : found->second;
}

// Whether the ranks of a communicator are in other processes, which nothing here reaches.
bool alone() {
    return getenv("FAKE_NCCL_ALONE") != nullptr;
}

void note(const char *what, int rank) {
    record += std::string(record.empty() ? "" : ", ") + what + " " + std::to_string(rank);
}

// The ranks that one id, or one color of a split, brings together.
struct Group {
    int size = 0, arrived = 0;
    std::map<std::pair<int, int>, std::deque<std::vector<char>>> mail; // by (sender, receiver)
};

// A split under way: what each rank asked for.
struct Split {
    std::map<int, std::pair<int, int>> asked; // rank: color, key
    std::map<int, std::shared_ptr<Group>> made;
};

} // namespace

struct ncclComm {
    std::shared_ptr<Group> group;
    int rank = 0, size = 0, device = 0, busy = 0, splits = 0, error = OK;
    bool blocking = false, aborted = false, dead = false;
    std::shared_ptr<Split> split; // this one comes out of it, once all ranks have asked
    int color = 0;
    ncclComm *child = nullptr; // of a split under way, and where to put it
    ncclComm **child_at = nullptr;
};

namespace {

struct Op {
    bool send;
    char *data;
    size_t bytes;
    int peer;
};

struct Batch {
    ncclComm *comm;
    std::vector<Op> ops;
};

std::map<std::string, std::shared_ptr<Group>> groups;
std::map<std::pair<Group *, int>, std::shared_ptr<Split>> splits;
thread_local int depth;
thread_local std::map<std::pair<ncclComm *, void *>, std::vector<Op>> grouped;

bool ready(ncclComm *c) {
    if (c->split && static_cast<int>(c->split->asked.size()) == c->size) {
        std::shared_ptr<Group> &group = c->split->made[c->color];
        if (!group) {
            group = std::make_shared<Group>();
        }
        int size = 0, rank = 0;
        const auto mine = c->split->asked.at(c->rank);
        for (const auto &[other, what] : c->split->asked) {
            size += what.first == c->color;
            rank += what.first == c->color && what.second < mine.second;
        }
        group->size = group->arrived = size;
        c->group = group;
        c->size = size;
        c->rank = rank;
        c->split = nullptr;
    }
    return !c->split && c->group->arrived == c->group->size;
}

// What is wrong with a call on `c` now.
int refuse(ncclComm *c) {
    if (c == nullptr || c->dead) {
        record += ", use after the end";
        return INVALID_ARGUMENT;
    }
    if (!ready(c) || c->busy > 0 || c->child != nullptr) {
        record += ", use while in progress";
        return INVALID_ARGUMENT;
    }
    return OK;
}

void run(void *data) {
    const std::unique_ptr<Batch> batch(static_cast<Batch *>(data));
    ncclComm *c = batch->comm;
    std::unique_lock<std::mutex> lock(mutex);
    for (const Op &op : batch->ops) {
        if (op.send) {
            c->group->mail[{c->rank, op.peer}].emplace_back(op.data, op.data + op.bytes);
        }
    }
    changed.notify_all();
    for (const Op &op : batch->ops) {
        // What another process sends never comes here.
        if (op.send || alone()) {
            continue;
        }
        auto &box = c->group->mail[{op.peer, c->rank}];
        // A message of another length never ends, as it may be with the real one.
        changed.wait(lock, [&] { return c->aborted || (!box.empty() && box.front().size() == op.bytes); });
        if (c->aborted) {
            return;
        }
        memcpy(op.data, box.front().data(), op.bytes);
        box.pop_front();
    }
}

int enqueue(ncclComm *c, void *stream, std::vector<Op> ops) {
    // A call of NCCL's goes on in the background for a while.
    c->busy = c->blocking ? 0 : 3;
    cuLaunchHostFunc(stream, run, new Batch{c, std::move(ops)});
    return c->busy ? IN_PROGRESS : OK;
}

int add(ncclComm *c, void *stream, Op op, int type) {
    std::lock_guard<std::mutex> lock(mutex);
    if (const int refused = refuse(c)) {
        return refused;
    }
    if (type != 0 || depth == 0) {
        return INVALID_USAGE;
    }
    if (op.peer != c->rank && !fake_reachable(op.data)) {
        fprintf(stderr, "NCCL for tests: an exchange of memory that other devices cannot reach\n");
        abort();
    }
    if (wish("send_fails", -1) == c->rank) {
        return SYSTEM_ERROR;
    }
    grouped[{c, stream}].push_back(op);
    return OK;
}

int device_of_thread(int *device) {
    void *context = nullptr;
    cuCtxGetCurrent(&context);
    if (context == nullptr) {
        return INVALID_USAGE;
    }
    *device = *static_cast<int *>(context);
    return OK;
}

} // namespace

extern "C" {

// ---- for tests
void fake_wish(const char *name, int value) {
    std::lock_guard<std::mutex> lock(mutex);
    wishes[name] = value;
}
// What was called since the last time.
void fake_record(char *text, size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    snprintf(text, size, "%s", record.c_str());
    record.clear();
}

// ---- NCCL
int ncclGetVersion(int *version) {
    const char *const text = getenv("FAKE_NCCL_VERSION");
    return *version = text == nullptr ? 22200 : atoi(text), OK;
}
int ncclGetUniqueId(ncclUniqueId *id) {
    static int count;
    std::lock_guard<std::mutex> lock(mutex);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "id %d", ++count);
    return OK;
}
int ncclCommInitRankConfig(ncclComm **comm, int size, ncclUniqueId id, int rank, Config *config) {
    std::lock_guard<std::mutex> lock(mutex);
    if (config->magic != 0xcafebeef || config->size < sizeof(Config) || config->blocking != 0) {
        return INVALID_ARGUMENT;
    }
    ncclComm *const c = *comm = new ncclComm;
    c->rank = rank;
    c->size = size;
    if (const int code = device_of_thread(&c->device)) {
        return code;
    }
    if (wish("init_fails", -1) == rank) {
        return c->error = SYSTEM_ERROR;
    }
    auto &group = groups[std::string(id.internal)];
    if (!group) {
        group = std::make_shared<Group>();
        group->size = size;
    }
    group->arrived += alone() ? size : wish("init_hangs", -1) != rank;
    c->group = group;
    return IN_PROGRESS;
}
int ncclCommInitAll(ncclComm **comms, int size, const int *) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto group = std::make_shared<Group>();
    group->size = group->arrived = size;
    for (int rank = 0; rank < size; rank++) {
        comms[rank] = new ncclComm;
        comms[rank]->group = group;
        comms[rank]->rank = comms[rank]->device = rank;
        comms[rank]->size = size;
        comms[rank]->blocking = true;
    }
    return OK;
}
int ncclCommSplit(ncclComm *c, int color, int key, ncclComm **made, Config *) {
    std::lock_guard<std::mutex> lock(mutex);
    if (const int refused = refuse(c)) {
        return refused;
    }
    auto &split = splits[{c->group.get(), c->splits++}];
    if (!split) {
        split = std::make_shared<Split>();
    }
    split->asked[c->rank] = {color, key};
    ncclComm *const n = new ncclComm(*c);
    *made = nullptr;
    c->child = n;
    c->child_at = made;
    n->split = split;
    n->color = color;
    n->busy = 0;
    n->child = nullptr;
    c->busy = 2;
    return IN_PROGRESS;
}
int ncclCommFinalize(ncclComm *c) {
    std::lock_guard<std::mutex> lock(mutex);
    if (const int refused = refuse(c)) {
        return refused;
    }
    note("finalize", c->rank);
    c->busy = wish("finalize_hangs", -1) == c->rank ? 1 << 30 : 2;
    return IN_PROGRESS;
}
int ncclCommDestroy(ncclComm *c) {
    std::lock_guard<std::mutex> lock(mutex);
    note("destroy", c->rank);
    c->dead = true;
    return OK;
}
int ncclCommAbort(ncclComm *c) {
    std::lock_guard<std::mutex> lock(mutex);
    note(c->dead ? "second end" : "abort", c->rank);
    c->dead = c->aborted = true;
    changed.notify_all();
    return OK;
}
int ncclCommGetAsyncError(ncclComm *c, int *error) {
    std::lock_guard<std::mutex> lock(mutex);
    if (c == nullptr || c->dead) {
        record += ", asked after the end";
        return INVALID_ARGUMENT;
    }
    *error = c->error;
    if (c->error == OK && wish("async_fails", -1) == c->rank && ready(c)) {
        *error = REMOTE_ERROR;
    } else if (c->error == OK && (!ready(c) || c->busy > 0)) {
        c->busy -= c->busy > 0;
        *error = IN_PROGRESS;
    } else if (c->error == OK && c->child != nullptr) {
        *error = IN_PROGRESS;
        if (ready(c->child)) {
            *c->child_at = c->child;
            c->child = nullptr;
        }
    }
    return OK;
}
const char *ncclGetErrorString(int code) {
    return code == SYSTEM_ERROR   ? "unhandled system error"
           : code == REMOTE_ERROR ? "remote process exited"
                                  : "wrong use";
}
const char *ncclGetLastError(ncclComm *) {
    return "as the test wished";
}
int ncclCommCount(ncclComm *c, int *count) {
    return *count = c->size, OK;
}
int ncclCommCuDevice(ncclComm *c, int *device) {
    return *device = c->device, OK;
}
int ncclCommUserRank(ncclComm *c, int *rank) {
    return *rank = c->rank, OK;
}
int ncclGroupStart(void) {
    return depth++, OK;
}
int ncclGroupEnd(void) {
    depth--;
    std::lock_guard<std::mutex> lock(mutex);
    int code = OK;
    for (auto &[where, ops] : grouped) {
        code = enqueue(where.first, where.second, std::move(ops));
    }
    grouped.clear();
    return code;
}
int ncclSend(const void *data, size_t bytes, int type, int peer, ncclComm *c, void *stream) {
    return add(c, stream, Op{true, static_cast<char *>(const_cast<void *>(data)), bytes, peer}, type);
}
int ncclRecv(void *data, size_t bytes, int type, int peer, ncclComm *c, void *stream) {
    return add(c, stream, Op{false, static_cast<char *>(data), bytes, peer}, type);
}
int ncclBroadcast(const void *from, void *to, size_t bytes, int, int root, ncclComm *c, void *stream) {
    std::lock_guard<std::mutex> lock(mutex);
    if (from != to || root != 0) {
        return INVALID_USAGE;
    }
    std::vector<Op> ops;
    for (int peer = 1; c->rank == 0 && peer < c->size; peer++) {
        ops.push_back(Op{true, static_cast<char *>(to), bytes, peer});
    }
    if (c->rank != 0) {
        ops.push_back(Op{false, static_cast<char *>(to), bytes, 0});
    }
    return enqueue(c, stream, std::move(ops));
}
}
