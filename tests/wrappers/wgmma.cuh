// kernels/ptx/wgmma.cuh for the processor. A product is done when its group is waited for, and some time later, as late
// as it may be: what shared memory holds then is what counts.
#pragma once
#include "math.cuh"
#include "memory.cuh"

static void wgmma_fence() {}
static void wgmma_commit() {
    Thread &t = threads[threadIdx.x];
    t.groups.push_back(std::move(t.products));
    t.products.clear();
    t.commits++;
}
template <int N> static void wgmma_wait() {
    if (threads[threadIdx.x].groups.size() > N) {
        hold_up();
    }
    for (auto &groups = threads[threadIdx.x].groups; groups.size() > N; groups.pop_front()) {
        for (const Work &w : groups.front()) {
            w();
        }
    }
}
template <int N> static void pin(float (&)[N]) {}
template <int N> static void pin(u32 (&)[N][4]) {}

static constexpr u64 smem_desc(u32 address, u32 leading, u32 stride) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}

// Element (r, k) of an operand that a descriptor names; r counts along M or N.
static float element(u64 desc, int r, int k, bool k_major) {
    const u32 first = (u32)(desc & 0x3FFF) << 4, leading = (u32)(desc >> 16 & 0x3FFF) << 4;
    const u32 stride = (u32)(desc >> 32 & 0x3FFF) << 4;
    u32 address;
    if (k_major) {
        address = first + r / 8 * stride + r % 8 * 128 + 2 * k;
    } else {
        const u32 column = (first & 127) / 2 + r;
        if (column >= 64 && (first & 127 || leading < 1024)) {
            fail("a product that leaves its chunk of columns");
        }
        address = (first & ~127u) + column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2;
    }
    u16 bits;
    memcpy(&bits, at(swizzled(address)), 2);
    return widened(bits);
}

// d (+)= a b of one k16 step: what thread `self` of a warpgroup has of it.
template <int N, class A> static void multiply(float (&d)[N], const A &a, u64 b, bool k_major, int add, unsigned self) {
    float of_a[2][16], of_b[16];
    for (int e = 0; e < 32; e++) {
        of_a[e / 16][e % 16] = a(16 * (self / 32 % 4) + self % 32 / 4 + 8 * (e / 16), e % 16);
    }
    for (int i = 0; i < N / 2; i++) {
        for (int k = 0; k < 16; k++) {
            of_b[k] = element(b, 8 * (i / 2) + 2 * (self & 3) + i % 2, k, k_major);
        }
        for (int h = 0; h < 2; h++) {
            double sum = 0;
            for (int k = 0; k < 16; k++) {
                sum += (double)of_a[h][k] * of_b[k];
            }
            float &x = d[4 * (i / 2) + 2 * h + i % 2];
            x = (float)(add ? x + sum : sum);
        }
    }
}
template <int N> static void later(float (&d)[N], u64 a, u64 b, bool a_k_major, bool b_k_major, int add) {
    const unsigned self = threadIdx.x;
    threads[self].products.push_back(
        [=, &d] { multiply(d, [=](int r, int k) { return element(a, r, k, a_k_major); }, b, b_k_major, add, self); });
}
template <int N> static void wgmma_ss(float (&d)[N], u64 a, u64 b, int add) {
    later(d, a, b, true, true, add);
}
template <int N> static void wgmma_ss_t(float (&d)[N], u64 a, u64 b, int add) {
    later(d, a, b, false, false, add);
}
template <int N> static void wgmma_ss_at(float (&d)[N], u64 a, u64 b, int add) {
    later(d, a, b, false, true, add);
}
template <int N> static void wgmma_ss_bt(float (&d)[N], u64 a, u64 b, int add) {
    later(d, a, b, true, false, add);
}
template <int N> static void from_registers(float (&d)[N], const u32 (&a)[4], u64 b, bool b_k_major, int add) {
    const unsigned self = threadIdx.x;
    std::array<u32, 4> own;
    memcpy(own.data(), a, 16);
    show(own);
    std::array<std::array<u32, 4>, 4> quad;
    for (u32 i = 0; i < 4; i++) {
        quad[i] = seen<std::array<u32, 4>>((self & ~3u) + i);
    }
    __syncwarp();
    threads[self].products.push_back([=, &d] {
        const auto of_a = [=](int r, int k) {
            return widened((u16)(quad[k % 8 / 2][k / 8 * 2 + r % 16 / 8] >> 16 * (k & 1)));
        };
        multiply(d, of_a, b, b_k_major, add, self);
    });
}
template <int N> static void wgmma_rs_t(float (&d)[N], const u32 (&a)[4], u64 b, int add) {
    from_registers(d, a, b, false, add);
}
