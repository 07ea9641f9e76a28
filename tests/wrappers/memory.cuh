// kernels/ptx/memory.cuh for the processor.
#pragma once
#include "barrier.cuh"

// What a tensor map knows; TensorMap holds its address. Sizes count elements, strides bytes.
struct Map {
    u8 *data;
    int rank, element, swizzle;
    i64 size[4], stride[4];
    int box[4];
    mutable std::vector<std::array<int, 4>> loaded = {}; // corners of boxes so far
};
static void tma_prefetch(const TensorMap *) {}

// Where an address of the 128-byte swizzle lies.
static u32 swizzled(u32 address) {
    return address ^ (address >> 7 & 7) << 4;
}

// Calls with (shared memory, memory or null outside the tensor) of each element of a box.
static void each_of_box(const Map &m, u32 address, const std::array<int, 4> &corner,
                        const std::function<void(u8 *, u8 *)> &call) {
    int count = 1;
    for (int i = 0; i < m.rank; i++) {
        count *= m.box[i];
    }
    for (int e = 0; e < count; e++) {
        u8 *p = m.data;
        bool inside = true;
        for (int i = 0, rest = e; i < m.rank; rest /= m.box[i++]) {
            const i64 x = corner[i] + rest % m.box[i];
            inside &= x >= 0 && x < m.size[i];
            p += x * m.stride[i];
        }
        const u32 to = address + e * m.element;
        call(at(m.swizzle ? swizzled(to) : to), inside ? p : nullptr);
    }
}

static void load_box(u32 to, const TensorMap *map, u32 bar, const std::array<int, 4> &corner) {
    const Map &m = *(const Map *)map->opaque[0];
    if (to % 128 || corner[0] * m.element % 16) {
        fail("a copy that the copy engine refuses");
    }
    m.loaded.push_back(corner);
    copies.push_back([=, &m] {
        each_of_box(m, to, corner, [&](u8 *s, u8 *g) {
            g ? (void)memcpy(s, g, m.element) : (void)memset(s, 0, m.element);
            mbarrier(bar).bytes -= m.element;
        });
        mbar_look(mbarrier(bar));
    });
    events++;
}
static void tma_load_3d(u32 to, const TensorMap *m, u32 bar, int c0, int c1, int c2) {
    load_box(to, m, bar, {c0, c1, c2, 0});
}
static void tma_load_4d(u32 to, const TensorMap *m, u32 bar, int c0, int c1, int c2, int c3) {
    load_box(to, m, bar, {c0, c1, c2, c3});
}
static void tma_add_3d(const TensorMap *map, u32 from, int c0, int c1, int c2) {
    const Map &m = *(const Map *)map->opaque[0];
    auto &groups = threads[threadIdx.x].adding;
    if (groups.empty()) {
        groups.push_back(std::make_shared<int>(0));
    }
    const std::shared_ptr<int> group = groups.back();
    ++*group;
    copies.push_back([=, &m] {
        each_of_box(m, from, {c0, c1, c2, 0}, [](u8 *s, u8 *g) {
            if (g) {
                *(float *)g += *(float *)s;
            }
        });
        --*group;
    });
    events++;
}
static void bulk_commit() {
    threads[threadIdx.x].adding.push_back(std::make_shared<int>(0));
}
template <int N> static void bulk_wait_read() {
    auto &groups = threads[threadIdx.x].adding; // the last one is not committed
    while (groups.size() > N + 1) {
        while (*groups.front() > 0) {
            give_way();
        }
        groups.pop_front();
    }
}

template <class T, size_t N> static void put(void *to, const T (&x)[N]) {
    if ((u64)to % sizeof x) {
        fail("an address that is not a multiple of the access");
    }
    memcpy(to, x, sizeof x);
}
static void st_global_v4(void *p, u32 a, u32 b, u32 c, u32 d) {
    put(p, {a, b, c, d});
}
static void st_global_f32x4(float *p, float a, float b, float c, float d) {
    put(p, {a, b, c, d});
}
static void st_global_f32x2(float *p, float a, float b) {
    put(p, {a, b});
}
static float4 ld_global_f32x4(const float *p) {
    return {p[0], p[1], p[2], p[3]};
}
static float2 ld_global_f32x2(const float *p) {
    return {p[0], p[1]};
}
static void st_shared_v4(u32 a, u32 x, u32 y, u32 z, u32 w) {
    put(at(a), {x, y, z, w});
}
static void st_shared_f32x2(u32 a, float x, float y) {
    put(at(a), {x, y});
}
static void ld_shared_v4(u32 (&w)[4], u32 a) {
    memcpy(w, at(a), 16);
}
static float2 ld_shared_f32x2(u32 a) {
    float2 x;
    memcpy(&x, at(a), 8);
    return x;
}
static void st_shared_f32(u32 a, float x) {
    put(at(a), {x});
}
static void stmatrix_x4(u32 a, u32 r0, u32 r1, u32 r2, u32 r3) {
    const u32 words[4] = {r0, r1, r2, r3}, lane = threadIdx.x & 31, warp = threadIdx.x & ~31u;
    show(a);
    for (u32 m = 0; m < 4; m++) {
        memcpy(at(seen<u32>(warp + 8 * m + lane / 4)) + 4 * (lane & 3), &words[m], 4);
    }
    __syncwarp();
}
static void stmatrix_x4_trans(u32 a, u32 r0, u32 r1, u32 r2, u32 r3) {
    const u32 words[4] = {r0, r1, r2, r3}, lane = threadIdx.x & 31, warp = threadIdx.x & ~31u;
    show(a);
    for (u32 m = 0; m < 4; m++) {
        for (u32 e = 0; e < 2; e++) {
            const u16 element = words[m] >> 16 * e;
            memcpy(at(seen<u32>(warp + 8 * m + 2 * (lane & 3) + e)) + lane / 4 * 2, &element, 2);
        }
    }
    __syncwarp();
}
