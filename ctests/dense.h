// Textbook attention over a matrix of visible cells, in double: what the library's results are compared with.
#ifndef MAGI_CTEST_DENSE_H
#define MAGI_CTEST_DENSE_H

#include "tensor.h"

typedef struct {
    int64_t tq, tk, hq, hkv, d, dv;
    double scale, softcap;      // softcap 0: none
    const unsigned char *cells; // [tq, tk], 1 where visible
    const double *sink;         // NULL, [sinks, hq], or [tq, sinks, hq] with sink_per_token
    int64_t sinks;
    int sink_per_token;
} dense_problem;

// Whether the slice shows cell (q, k), from the definition of its type.
static inline int slice_shows(const magi_slice *s, int64_t q, int64_t k) {
    if (q < s->q.start || q >= s->q.end || k < s->k.start || k >= s->k.end) {
        return 0;
    }
    const int upper = k - q <= s->k.end - s->q.end, lower = k - q >= s->k.start - s->q.start;
    switch (s->mask_type) {
    case MAGI_MASK_TYPE_FULL:
        return 1;
    case MAGI_MASK_TYPE_CAUSAL:
        return upper;
    case MAGI_MASK_TYPE_INV_CAUSAL:
        return lower;
    default:
        return upper && lower;
    }
}

// The matrix of the slices' cells, and how many are visible.
static inline int64_t fill_cells(const magi_slice *slices, size_t n, int64_t tq, int64_t tk, unsigned char *cells) {
    int64_t area = 0;
    for (int64_t q = 0; q < tq; q++) {
        for (int64_t k = 0; k < tk; k++) {
            cells[q * tk + k] = 0;
            for (size_t i = 0; i < n; i++) {
                if (slice_shows(&slices[i], q, k)) {
                    CHECK(cells[q * tk + k] == 0);
                    cells[q * tk + k] = 1;
                    area++;
                }
            }
        }
    }
    return area;
}

static inline double dense_sink(const dense_problem *p, int64_t q, int64_t s, int64_t h) {
    return p->sink[((p->sink_per_token ? q * p->sinks : 0) + s) * p->hq + h];
}

// Logits of one row, and the derivative of each by its scaled dot product. -inf where nothing is seen.
static inline void dense_row(const dense_problem *p, const double *q, const double *k, int64_t row, int64_t h,
                             double *logits, double *slopes) {
    const int64_t g = h / (p->hq / p->hkv);
    for (int64_t c = 0; c < p->tk; c++) {
        logits[c] = -INFINITY;
        slopes[c] = 0;
        if (p->cells[row * p->tk + c]) {
            double dot = 0;
            for (int64_t e = 0; e < p->d; e++) {
                dot += q[(row * p->hq + h) * p->d + e] * k[(c * p->hkv + g) * p->d + e];
            }
            dot *= p->scale;
            const double t = p->softcap > 0 ? tanh(dot / p->softcap) : 0;
            logits[c] = p->softcap > 0 ? p->softcap * t : dot;
            slopes[c] = 1 - t * t;
        }
    }
}

// logsumexp of the row's logits and sinks; -inf of nothing.
static inline double dense_lse(const dense_problem *p, const double *logits, int64_t row, int64_t h) {
    double most = -INFINITY, sum = 0;
    for (int64_t c = 0; c < p->tk; c++) {
        most = fmax(most, logits[c]);
    }
    for (int64_t s = 0; p->sink != NULL && s < p->sinks; s++) {
        most = fmax(most, dense_sink(p, row, s, h));
    }
    if (isinf(most)) {
        return -INFINITY;
    }
    for (int64_t c = 0; c < p->tk; c++) {
        sum += exp(logits[c] - most);
    }
    for (int64_t s = 0; p->sink != NULL && s < p->sinks; s++) {
        sum += exp(dense_sink(p, row, s, h) - most);
    }
    return most + log(sum);
}

// out [tq, hq, dv], lse [tq, hq], max_logits [hq].
static inline void dense_forward(const dense_problem *p, const double *q, const double *k, const double *v, double *out,
                                 double *lse, double *max_logits) {
    double *logits = (double *)memory((size_t)(p->tk + 1) * 16), *slopes = logits + p->tk;
    for (int64_t h = 0; h < p->hq; h++) {
        const int64_t g = h / (p->hq / p->hkv);
        max_logits[h] = -INFINITY;
        for (int64_t row = 0; row < p->tq; row++) {
            dense_row(p, q, k, row, h, logits, slopes);
            const double total = dense_lse(p, logits, row, h);
            lse[row * p->hq + h] = total;
            double *o = &out[(row * p->hq + h) * p->dv];
            memset(o, 0, (size_t)p->dv * sizeof *o);
            for (int64_t c = 0; c < p->tk; c++) {
                if (!p->cells[row * p->tk + c]) {
                    continue;
                }
                max_logits[h] = fmax(max_logits[h], logits[c]);
                const double weight = exp(logits[c] - total);
                for (int64_t e = 0; e < p->dv; e++) {
                    o[e] += weight * v[(c * p->hkv + g) * p->dv + e];
                }
            }
        }
    }
    free(logits);
}

// Gradients of sum(out * dout); all four outputs are set. dsink has the sink's shape and may be NULL without one.
static inline void dense_backward(const dense_problem *p, const double *q, const double *k, const double *v,
                                  const double *dout, double *dq, double *dk, double *dv, double *dsink) {
    double *logits = (double *)memory((size_t)(p->tk + 1) * 24);
    double *slopes = logits + p->tk, *dweight = slopes + p->tk;
    memset(dq, 0, (size_t)(p->tq * p->hq * p->d) * sizeof *dq);
    memset(dk, 0, (size_t)(p->tk * p->hkv * p->d) * sizeof *dk);
    memset(dv, 0, (size_t)(p->tk * p->hkv * p->dv) * sizeof *dv);
    if (p->sink != NULL) {
        memset(dsink, 0, (size_t)((p->sink_per_token ? p->tq : 1) * p->sinks * p->hq) * sizeof *dsink);
    }
    for (int64_t h = 0; h < p->hq; h++) {
        const int64_t g = h / (p->hq / p->hkv);
        for (int64_t row = 0; row < p->tq; row++) {
            const double *o = &dout[(row * p->hq + h) * p->dv];
            double mean = 0;
            dense_row(p, q, k, row, h, logits, slopes);
            const double total = dense_lse(p, logits, row, h);
            for (int64_t c = 0; c < p->tk; c++) {
                dweight[c] = 0;
                if (!p->cells[row * p->tk + c]) {
                    continue;
                }
                const double weight = exp(logits[c] - total);
                for (int64_t e = 0; e < p->dv; e++) {
                    dweight[c] += o[e] * v[(c * p->hkv + g) * p->dv + e];
                    dv[(c * p->hkv + g) * p->dv + e] += weight * o[e];
                }
                mean += weight * dweight[c];
            }
            for (int64_t c = 0; c < p->tk; c++) {
                if (!p->cells[row * p->tk + c]) {
                    continue;
                }
                const double ds = exp(logits[c] - total) * (dweight[c] - mean) * slopes[c] * p->scale;
                for (int64_t e = 0; e < p->d; e++) {
                    dq[(row * p->hq + h) * p->d + e] += ds * k[(c * p->hkv + g) * p->d + e];
                    dk[(c * p->hkv + g) * p->d + e] += ds * q[(row * p->hq + h) * p->d + e];
                }
            }
            for (int64_t s = 0; p->sink != NULL && s < p->sinks; s++) {
                const double weight = exp(dense_sink(p, row, s, h) - total);
                dsink[((p->sink_per_token ? row * p->sinks : 0) + s) * p->hq + h] -= weight * mean;
            }
        }
    }
    free(logits);
}

#endif
