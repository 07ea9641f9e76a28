// Elements of the attention dtypes: how each is read, added to and rounded.
//
// SPDX-License-Identifier: Apache-2.0
#ifndef MAGI_ATTN_KERNELS_HELPER_ELEMENT_CUH
#define MAGI_ATTN_KERNELS_HELPER_ELEMENT_CUH

#include "../ptx/convert.cuh"

typedef long long i64;

struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};
typedef float f32;
typedef double f64;

// Consecutive elements, read and written at once.
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T x[N];
};

// ---- reading
MAGI_DEVICE f32 widen(bf16 x) {
    return ptx::bits_f32((unsigned)x.bits << 16);
}
MAGI_DEVICE f32 widen(f16 x) {
    return ptx::f16_to_f32(x.bits);
}
MAGI_DEVICE f32 widen(f32 x) {
    return x;
}
MAGI_DEVICE f64 widen(f64 x) {
    return x;
}

// ---- rounding to nearest even, once
MAGI_DEVICE void narrow(f64 &to, f64 x) {
    to = x;
}
MAGI_DEVICE void narrow(f64 &to, f32 x) {
    to = x;
}
MAGI_DEVICE void narrow(f32 &to, f32 x) {
    to = x;
}
MAGI_DEVICE void narrow(f32 &to, f64 x) {
    to = (f32)x;
}
MAGI_DEVICE void narrow(bf16 &to, f32 x) {
    to.bits = ptx::f32_to_bf16(x);
}
MAGI_DEVICE void narrow(f16 &to, f32 x) {
    to.bits = ptx::f32_to_f16(x);
}

// The f32 towards zero whose last bit says whether something was cut: rounding it again to 8 or 11 bits gives what
// rounding x once would.
MAGI_DEVICE f32 cut_to_odd(f64 x) {
    const f32 cut = ptx::f64_to_f32_cut(x);
    return (f64)cut == x ? cut : ptx::bits_f32(ptx::f32_bits(cut) | 1);
}
MAGI_DEVICE void narrow(bf16 &to, f64 x) {
    narrow(to, cut_to_odd(x));
}
MAGI_DEVICE void narrow(f16 &to, f64 x) {
    narrow(to, cut_to_odd(x));
}

// ---- adding: the type in which the sum of From and To, rounded to To, is what rounding the exact sum once gives.
// f32 is wide enough where both have at most 11 bits and one format, or where the result is f32.
template <class From, class To> struct Sum {
    typedef f64 type;
};
template <> struct Sum<f32, f32> {
    typedef f32 type;
};
template <> struct Sum<bf16, f32> {
    typedef f32 type;
};
template <> struct Sum<f16, f32> {
    typedef f32 type;
};
template <> struct Sum<bf16, bf16> {
    typedef f32 type;
};
template <> struct Sum<f16, f16> {
    typedef f32 type;
};

template <class From, class To> MAGI_DEVICE void assign(To &to, From from) {
    narrow(to, widen(from));
}

template <class From, class To> MAGI_DEVICE void add(To &to, From from) {
    typedef typename Sum<From, To>::type S;
    narrow(to, (S)widen(from) + (S)widen(to));
}

MAGI_DEVICE bool is_nan(f32 x) {
    return x != x;
}
MAGI_DEVICE bool is_nan(f64 x) {
    return x != x;
}

// ---- of an element of delta: a row that sees nothing has out 0, and its dout, whatever it holds, reaches no gradient
template <class W> MAGI_DEVICE W product(W out, W dout) {
    return out == 0 ? (W)0 : out * dout;
}

// ---- one element whose dtype is known at run time only: for a few scalars a row
enum { F64 = 0, F32 = 1, BF16 = 2, F16 = 3 };

MAGI_DEVICE int size_of(int dtype) {
    return dtype == F64 ? 8 : dtype == F32 ? 4 : 2;
}

MAGI_DEVICE f64 load(int dtype, const char *at) {
    switch (dtype) {
    case F64:
        return *(const f64 *)at;
    case F32:
        return *(const f32 *)at;
    case BF16:
        return widen(*(const bf16 *)at);
    default:
        return widen(*(const f16 *)at);
    }
}

MAGI_DEVICE void store(int dtype, char *at, f64 x) {
    switch (dtype) {
    case F64:
        *(f64 *)at = x;
        break;
    case F32:
        *(f32 *)at = (f32)x;
        break;
    case BF16:
        narrow(*(bf16 *)at, x);
        break;
    default:
        narrow(*(f16 *)at, x);
        break;
    }
}

// ---- one kernel for each dtype, or pair of dtypes: name_<first>_<second>
#define MAGI_EACH_DTYPE(make) make(f64) make(f32) make(bf16) make(f16)
#define MAGI_EACH_PAIR(make)                                                                                           \
    make(f64, f64) make(f64, f32) make(f64, bf16) make(f64, f16) make(f32, f64) make(f32, f32) make(f32, bf16)         \
        make(f32, f16) make(bf16, f64) make(bf16, f32) make(bf16, bf16) make(bf16, f16) make(f16, f64) make(f16, f32)  \
            make(f16, bf16) make(f16, f16)

#endif
