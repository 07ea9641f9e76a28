// Tensors, random numbers and element types for the C test programs.
#ifndef MAGI_CTEST_TENSOR_H
#define MAGI_CTEST_TENSOR_H

#include "test.h"

// Describes `data` as dense `[a]`, `[a, b]` or `[a, b, c]`, whichever `ndim` says.
static inline magi_tensor tensor_of(void *data, int32_t dtype, int32_t ndim, int64_t a, int64_t b, int64_t c) {
    int64_t shape[3];
    shape[0] = a;
    shape[1] = b;
    shape[2] = c;
    magi_tensor t;
    CHECK_OK(magi_tensor_init(data, dtype, ndim, shape, &t));
    return t;
}

// Memory that is there; a count of 0 gives NULL, as a rank without tokens has it.
static inline void *memory(size_t bytes) {
    if (bytes == 0) {
        return NULL;
    }
    void *p = malloc(bytes);
    CHECK(p != NULL);
    return p;
}

// Uniform in [-1, 1).
static inline double draw(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(*state >> 11) * 0x1p-52 - 1.0;
}

static inline size_t element_size(int32_t dtype) {
    switch (dtype) {
    case MAGI_DTYPE_F64:
    case MAGI_DTYPE_I64:
        return 8;
    case MAGI_DTYPE_F32:
    case MAGI_DTYPE_I32:
        return 4;
    case MAGI_DTYPE_BF16:
    case MAGI_DTYPE_F16:
    case MAGI_DTYPE_I16:
        return 2;
    default:
        return 1;
    }
}

// Rounds to a multiple of 2^exponent, ties to even.
static inline double round_to_step(double x, int exponent) {
    return ldexp(nearbyint(ldexp(x, -exponent)), exponent);
}

// The value nearest to x that a dtype holds (bf16 and f16: of normal size or smaller).
static inline double rounded(int32_t dtype, double x) {
    if (dtype == MAGI_DTYPE_F64 || x == 0 || isnan(x) || isinf(x)) {
        return x;
    }
    if (dtype == MAGI_DTYPE_F32) {
        return (float)x;
    }
    const int digits = dtype == MAGI_DTYPE_BF16 ? 7 : 10, least = dtype == MAGI_DTYPE_BF16 ? -126 : -14;
    int exponent = ilogb(x);
    if (exponent < least) {
        exponent = least;
    }
    return round_to_step(x, exponent - digits);
}

// Writes element i; x is rounded.
static inline void store(int32_t dtype, void *data, int64_t i, double x) {
    if (dtype == MAGI_DTYPE_F64) {
        ((double *)data)[i] = x;
    } else if (dtype == MAGI_DTYPE_F32) {
        ((float *)data)[i] = (float)x;
    } else if (dtype == MAGI_DTYPE_BF16) {
        const float f = (float)rounded(dtype, x);
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16 | (isnan(x) ? 0x40u : 0u));
    } else {
        const double r = rounded(dtype, x), a = fabs(r);
        unsigned bits = signbit(r) ? 0x8000u : 0u;
        if (isnan(r)) {
            bits |= 0x7e00u;
        } else if (a >= 65520) {
            bits |= 0x7c00u;
        } else if (a >= 0x1p-14) {
            const int exponent = ilogb(a);
            bits |= (unsigned)(exponent + 15) << 10 | (unsigned)(ldexp(a, 10 - exponent) - 1024);
        } else {
            bits |= (unsigned)ldexp(a, 24);
        }
        ((uint16_t *)data)[i] = (uint16_t)bits;
    }
}

// Reads element i.
static inline double load(int32_t dtype, const void *data, int64_t i) {
    if (dtype == MAGI_DTYPE_F64) {
        return ((const double *)data)[i];
    }
    if (dtype == MAGI_DTYPE_F32) {
        return ((const float *)data)[i];
    }
    const unsigned bits = ((const uint16_t *)data)[i];
    if (dtype == MAGI_DTYPE_BF16) {
        const uint32_t wide = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &wide, sizeof f);
        return f;
    }
    const int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    double a;
    if (exponent == 31) {
        a = fraction != 0 ? (double)NAN : (double)INFINITY;
    } else if (exponent == 0) {
        a = ldexp(fraction, -24);
    } else {
        a = ldexp(1024 + fraction, exponent - 25);
    }
    return bits & 0x8000u ? -a : a;
}

// Every element within `bound` times the largest of `want` (at least 1); infinities must agree, NaN fails.
static inline void check_close(const char *what, const double *have, const double *want, int64_t n, double bound) {
    double scale = 1;
    for (int64_t i = 0; i < n; i++) {
        if (isfinite(want[i]) && fabs(want[i]) > scale) {
            scale = fabs(want[i]);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        if (!(have[i] == want[i] || fabs(have[i] - want[i]) <= bound * scale)) {
            FAIL("%s[%lld] is %.17g, must be %.17g within %g", what, (long long)i, have[i], want[i], bound * scale);
        }
    }
}

#endif
