// Per-row work around the attention kernels: the start of a running result, delta, and the sink.
//
// SPDX-License-Identifier: Apache-2.0
#include "helper/walk.cuh"

#define MINUS_INFINITY (-1.0 / 0.0)

MAGI_DEVICE f64 sink_logit(const magi_sinks &sinks, i64 token, int sink, i64 head) {
    return load(sinks.dtype, sinks.data + token * sinks.token + sink * sinks.sink + head * sinks.head);
}

// lse = logsumexp of the token's sinks, max_logits = -inf. The output's zeros are another launch.
extern "C" __global__ void __launch_bounds__(256)
    attn_init(const __grid_constant__ magi_view lse, const __grid_constant__ magi_sinks sinks, float *max_logits,
              long long max_step, long long tokens, int heads) {
    const i64 total = tokens * heads;
    for (i64 index = first_index(); index < total; index += index_step()) {
        const i64 token = divide(index, heads), head = index - token * heads;
        f64 largest = MINUS_INFINITY;
        for (int s = 0; s < sinks.count; s++) {
            largest = fmax(largest, sink_logit(sinks, token, s, head));
        }
        // Where no logit is larger than -inf, their plain sum is -inf or NaN; the maximum has dropped a NaN.
        const bool none = largest == MINUS_INFINITY;
        f64 sum = none ? MINUS_INFINITY : 0;
        for (int s = 0; s < sinks.count; s++) {
            const f64 logit = sink_logit(sinks, token, s, head);
            sum += none ? logit : exp(logit - largest);
        }
        const f64 start = none ? sum : largest + log(sum);
        store(lse.dtype, lse.data + token * lse.token + head * lse.head, start);
    }
    if (max_logits != nullptr) {
        for (i64 head = first_index(); head < heads; head += index_step()) {
            *(float *)((char *)max_logits + head * max_step) = (float)MINUS_INFINITY;
        }
    }
}

template <class A, class B> struct Products {
    typedef f32 type;
};
template <class B> struct Products<f64, B> {
    typedef f64 type;
};
template <class A> struct Products<A, f64> {
    typedef f64 type;
};
template <> struct Products<f64, f64> {
    typedef f64 type;
};

template <class W> MAGI_DEVICE W warp_sum(W x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

// delta = sum over the width of out * dout, a warp for each token and head; four elements a lane at a time with `wide`.
template <class A, class B>
MAGI_DEVICE void delta_rows(const magi_view &out, const magi_view &dout, const magi_view &delta, i64 tokens, int heads,
                            int width, int wide) {
    typedef typename Products<A, B>::type W;
    const i64 total = tokens * heads;
    for (i64 index = warp_index(); index < total; index += warp_count()) {
        const i64 token = divide(index, heads), head = index - token * heads;
        const char *const a = out.data + token * out.token + head * out.head;
        const char *const b = dout.data + token * dout.token + head * dout.head;
        W sum = 0;
        if (wide) {
            for (int i = lane(); i < width / 4; i += 32) {
                const Pack<A, 4> x = ((const Pack<A, 4> *)a)[i];
                const Pack<B, 4> y = ((const Pack<B, 4> *)b)[i];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sum += product((W)widen(x.x[j]), (W)widen(y.x[j]));
                }
            }
        } else {
            for (int i = lane(); i < width; i += 32) {
                sum += product((W)widen(((const A *)a)[i]), (W)widen(((const B *)b)[i]));
            }
        }
        sum = warp_sum(sum);
        if (lane() == 0) {
            store(delta.dtype, delta.data + token * delta.token + head * delta.head, sum);
        }
    }
}

#define DELTA(A, B)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) attn_delta_##A##_##B(                                            \
        const __grid_constant__ magi_view out, const __grid_constant__ magi_view dout,                                 \
        const __grid_constant__ magi_view delta, long long tokens, int heads, int width, int wide) {                   \
        delta_rows<A, B>(out, dout, delta, tokens, heads, width, wide);                                                \
    }
MAGI_EACH_PAIR(DELTA)

// -exp(sink - lse) * delta. A sink of -inf weighs nothing, even where the query sees nothing else (lse = -inf).
MAGI_DEVICE f64 sink_gradient(f64 z, const magi_view &lse, const magi_view &delta, i64 token, i64 head) {
    if (z == MINUS_INFINITY) {
        return 0;
    }
    const f64 p = exp(z - load(lse.dtype, lse.data + token * lse.token + head * lse.head));
    return -p * load(delta.dtype, delta.data + token * delta.token + head * delta.head);
}

// Sinks of their own for every token: each gradient is one product.
extern "C" __global__ void __launch_bounds__(256)
    sink_backward_tokens(const __grid_constant__ magi_sinks sinks, const __grid_constant__ magi_sinks dsinks,
                         const __grid_constant__ magi_view lse, const __grid_constant__ magi_view delta,
                         long long tokens, int heads) {
    const i64 row = (i64)heads * sinks.count, total = tokens * row;
    for (i64 index = first_index(); index < total; index += index_step()) {
        const i64 token = divide(index, row), rest = index - token * row;
        const int sink = (int)(rest / heads);
        const i64 head = rest - (i64)sink * heads;
        char *const to = dsinks.data + token * dsinks.token + sink * dsinks.sink + head * dsinks.head;
        store(dsinks.dtype, to, sink_gradient(sink_logit(sinks, token, sink, head), lse, delta, token, head));
    }
}

// Sinks that all tokens share: a block sums the gradients of one sink and head, always in the same order.
extern "C" __global__ void __launch_bounds__(512)
    sink_backward_shared(const __grid_constant__ magi_sinks sinks, const __grid_constant__ magi_sinks dsinks,
                         const __grid_constant__ magi_view lse, const __grid_constant__ magi_view delta,
                         long long tokens, int heads) {
    __shared__ f64 partial[16];
    const int sink = (int)(blockIdx.x / heads);
    const i64 head = blockIdx.x - (i64)sink * heads;
    const f64 z = sink_logit(sinks, 0, sink, head);
    f64 sum = 0;
    for (i64 token = threadIdx.x; token < tokens; token += blockDim.x) {
        sum += sink_gradient(z, lse, delta, token, head);
    }
    sum = warp_sum(sum);
    if (lane() == 0) {
        partial[threadIdx.x >> 5] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = warp_sum(threadIdx.x < blockDim.x >> 5 ? partial[threadIdx.x] : 0.0);
        if (threadIdx.x == 0) {
            store(dsinks.dtype, dsinks.data + sink * dsinks.sink + head * dsinks.head, sum);
        }
    }
}

// dst[h] = the largest of src[0..rows][h], -inf without rows. Steps are bytes.
extern "C" __global__ void __launch_bounds__(256) max_rows(const char *src, long long row, long long column, char *dst,
                                                           long long dst_step, long long rows, int columns) {
    for (i64 h = first_index(); h < columns; h += index_step()) {
        float most = (float)MINUS_INFINITY;
        for (i64 r = 0; r < rows; r++) {
            const float x = *(const float *)(src + r * row + h * column);
            most = x > most ? x : most;
        }
        *(float *)(dst + h * dst_step) = most;
    }
}

// Passes some time: what became ready on another stream at the same moment is on the device before what follows.
extern "C" __global__ void __launch_bounds__(32) stand_by(int microseconds) {
    for (int i = 0; i < microseconds; i++) {
        __nanosleep(1000);
    }
}
