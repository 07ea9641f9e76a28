// NVTX for tests: keeps the names of ranges, and ends the process when ranges are left open or ended twice.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

namespace {

// Of a thread, which must not end inside a range.
struct Depth {
    int open = 0;

    void expect(bool good) {
        if (!good) {
            fprintf(stderr, "NVTX for tests: ranges do not match\n");
            abort();
        }
    }
    ~Depth() { expect(open == 0); }
};
thread_local Depth depth;
std::mutex mutex;
std::string names;

} // namespace

extern "C" {
int nvtxRangePushA(const char *name) {
    std::lock_guard<std::mutex> lock(mutex);
    names += names.empty() ? "" : ", ";
    names += name;
    return depth.open++;
}
int nvtxRangePop() {
    depth.expect(depth.open > 0);
    return --depth.open;
}
// The names so far, for tests; cut where the buffer ends.
void fake_ranges(char *to, size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    snprintf(to, size, "%s", names.c_str());
}
}
