// Device memory of the driver for ranks: host memory that says which device it is of, and makes mistakes seen. New
// memory is NaN in every float type; freed memory is overwritten and kept for a while. What was written behind its end,
// or after it was freed, ends the process.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

struct Block {
    char *data;
    size_t bytes;
    int *context;
    bool own; // no other device reaches it
};

class Memory {
    enum { UNWRITTEN = 0xff, BEHIND = 0xfd, FREED = 0xa5, GUARD = 256 };
    static constexpr size_t KEPT = (size_t)64 << 20;

    std::mutex mutex;
    std::map<char *, Block> taken;
    std::deque<Block> freed;
    size_t freed_bytes = 0;

    static void expect(const char *from, size_t bytes, unsigned char value, const char *what) {
        for (size_t i = 0; i < bytes; i++) {
            if ((unsigned char)from[i] != value) {
                fprintf(stderr, "the driver for tests: device memory was written %s\n", what);
                abort();
            }
        }
    }
    static void expect_untouched(const Block &block) { expect(block.data, block.bytes, FREED, "after it was freed"); }

  public:
    // NULL if there is none.
    char *take(size_t bytes, int *context) {
        char *const data = (char *)aligned_alloc(256, (bytes + GUARD + 255) / 256 * 256);
        if (data == nullptr) {
            return nullptr;
        }
        memset(data, UNWRITTEN, bytes);
        memset(data + bytes, BEHIND, GUARD);
        std::lock_guard<std::mutex> lock(mutex);
        taken[data] = {data, bytes, context, false};
        return data;
    }
    // What begins there is nobody's from now on, and `free` comes when nothing uses it any more. False if nothing does.
    bool give_up(char *data, Block &block) {
        std::lock_guard<std::mutex> lock(mutex);
        const auto found = taken.find(data);
        if (found == taken.end()) {
            return false;
        }
        block = found->second;
        taken.erase(found);
        return true;
    }
    void free(const Block &block) {
        expect(block.data + block.bytes, GUARD, BEHIND, "behind its end");
        memset(block.data, FREED, block.bytes);
        std::lock_guard<std::mutex> lock(mutex);
        freed.push_back(block);
        for (freed_bytes += block.bytes; freed_bytes > KEPT;) {
            const Block oldest = freed.front();
            freed.pop_front();
            freed_bytes -= oldest.bytes;
            expect_untouched(oldest);
            ::free(oldest.data);
        }
    }
    // The context of the memory that an address lies in, or NULL.
    int *context_of(char *at) {
        std::lock_guard<std::mutex> lock(mutex);
        const auto after = taken.upper_bound(at);
        if (after == taken.begin()) {
            return nullptr;
        }
        const Block &block = std::prev(after)->second;
        return at < block.data + block.bytes ? block.context : nullptr;
    }
    void keep_from_peers(char *data) {
        std::lock_guard<std::mutex> lock(mutex);
        taken[data].own = true;
    }
    bool is_reachable(char *at) {
        std::lock_guard<std::mutex> lock(mutex);
        const auto after = taken.upper_bound(at);
        return after == taken.begin() || !std::prev(after)->second.own;
    }
    // At the end of the process: what is still there may be in use.
    void check() {
        std::lock_guard<std::mutex> lock(mutex);
        for (const Block &block : freed) {
            expect_untouched(block);
        }
        for (const auto &[data, block] : taken) {
            expect(data + block.bytes, GUARD, BEHIND, "behind its end");
        }
    }
};
