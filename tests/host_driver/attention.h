// What stands in for the backward kernels where there is no GPU: the same parameters and lists, tensors through tensor
// maps as the driver for tests writes them, sums one after the other in double. One thread of one block does all of it.
#pragma once

// A tensor map of the driver for tests. Dimension 0 is the innermost; strides are bytes.
struct alignas(64) Map {
    char *data;
    uint64_t dims[5], strides[4];
    uint32_t box[5];
    int rank, type;

    // Inside the tensor, or NULL.
    char *at(std::initializer_list<int64_t> index, int size) const {
        char *p = data;
        int d = 0;
        for (const int64_t i : index) {
            if (i < 0 || (uint64_t)i >= dims[d]) {
                return nullptr;
            }
            p += i * (d == 0 ? size : strides[d - 1]);
            d++;
        }
        return p;
    }
};
static_assert(sizeof(Map) == 128, "as large as a tensor map");

// The driver's name of f16 among types of elements.
enum { MAP_F16 = 6 };

static void expect(bool holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "the driver for tests: %s\n", what);
        abort();
    }
}

struct BackwardMaps {
    Map q, dout, k[2], v[2], stats, dq;
};
struct BackwardQueriesMaps {
    Map q, dout, k[2], v[2], stats;
};

// {rows, step, threads, shared bytes, floats of a piece}: small, so that lists have many tiles.
static int magi_attn_backward_sizes[5] = {16, 8, 160, 1024, 0};
static int magi_attn_backward_queries_sizes[4] = {16, 8, 160, 1024};

// An element of the map's type, 0 beyond the tensor.
static double wide(const Map &m, const char *p) {
    return p == nullptr ? 0.0 : m.type == MAP_F16 ? widen(*(const f16 *)p) : widen(*(const bf16 *)p);
}

// The element of a row of a head. One copy brings all columns, or one for each 64.
static double element(const Map &m, int token, int head, int column, int copies) {
    return wide(m, copies == 1 && m.dims[2] > 1 ? m.at({column % 64, token, column / 64, head}, 2)
                                                : m.at({column, token, 0, head}, 2));
}

static bool sees(const magi_tile &t, const magi_item &i, const magi_row_limits *limits, int row, int token) {
    const int between = token - (t.row0 + row);
    if (row < i.row0 || row >= i.row1 || token < i.run0 || token >= i.run1 || between < i.lo || between > i.hi) {
        return false;
    }
    return i.limits < 0 || (limits[i.limits + row].lo <= token && token < limits[i.limits + row].hi);
}

// lse and delta of a query and of the one behind it.
static const magi_backward_pair &pair(const Map &stats, int query, int head) {
    return *(const magi_backward_pair *)stats.at({2 * (query & ~1), query & 1, head}, 4);
}

// A query and a key that see each other, of one query head: its P, and dS times the scale.
template <class Maps, class Params>
static void cell(const Maps &maps, const Params &p, int query, int key, int source, int head, double &weight,
                 double &slope) {
    const Map &k = maps.k[source], &v = maps.v[source];
    const int head_kv = head / p.group;
    double s = 0, dp = 0;
    for (int c = 0; c < HEAD_DIM_MOST; c++) {
        s += element(maps.q, query, head, c, p.copies_k) * element(k, key, head_kv, c, p.copies_k);
        dp += element(maps.dout, query, head, c, p.copies_v) * element(v, key, head_kv, c, p.copies_v);
    }
    const magi_backward_pair &own = pair(maps.stats, query, head);
    if (query > 0) {
        const magi_backward_pair &before = pair(maps.stats, query - 1, head);
        expect(before.lse2[1] == own.lse2[0] && before.delta[1] == own.delta[0], "a query and the pair before it");
    }
    // With a softcap of its tanh, whose slope is a factor of dS.
    const double x = p.softcap_scale > 0 ? tanh(s * (double)p.softcap_scale) : s;
    weight = exp2(x * (double)p.scale_log2 - own.lse2[0]);
    slope = weight * (dp - own.delta[0]) * p.scale * (p.softcap_scale > 0 ? 1 - x * x : 1);
}

// `inputs`: a map of the inputs' dtype.
static void store_gradient(void *to, int64_t at, double x, bool f32_out, bool add, const Map &inputs) {
    if (f32_out) {
        float *const y = (float *)to + at;
        *y = (float)(x + (add ? *y : 0.0f));
    } else if (inputs.type == MAP_F16) {
        narrow(*((f16 *)to + at), (f32)x);
    } else {
        narrow(*((bf16 *)to + at), (f32)x);
    }
}

static void take_counters(int *counters) {
    expect(counters[0] == 0 && counters[1] == 0, "counters are not 0 before a launch");
}

static void magi_attn_backward(const BackwardMaps maps, const magi_attn_backward_params p) {
    if (threadIdx.x != 0 || blockIdx.x != 0) {
        return;
    }
    take_counters(p.counters);
    expect(p.counters[2] == 0 && p.counters[3] == 0, "parts were begun before a launch");
    expect(p.splits == 1 && p.heads_kv % p.section == 0, "splits or sections");
    expect(p.tokens_q == 0 || (maps.stats.box[0] == 16 && maps.stats.box[1] == 1), "the box of row sums");
    expect(p.dq == nullptr || p.tokens_q == 0 || (maps.dq.box[0] == 32 && maps.dq.box[1] == 8), "the box of dq");
    for (int w = 0; w < p.tile_count * p.heads_kv; w++) {
        const magi_tile t = p.tiles[w / p.heads_kv];
        const int head_kv = w % p.heads_kv;
        std::vector<double> dk(t.rows * p.head_dim), dv(t.rows * p.head_dim_v);
        for (int g = 0; g < p.group; g++) {
            const int head = head_kv * p.group + g;
            for (int j = 0; j < t.items; j++) {
                const magi_item item = p.items[t.item0 + j];
                expect(item.start == item.run0, "a step that begins before its run");
                for (int query = item.run0; query < item.run1; query++) {
                    for (int row = 0; row < t.rows; row++) {
                        double weight, slope;
                        if (!sees(t, item, p.limits, row, query)) {
                            continue;
                        }
                        cell(maps, p, query, t.row0 + row, t.source, head, weight, slope);
                        for (int c = 0; c < p.head_dim; c++) {
                            dk[row * p.head_dim + c] += slope * element(maps.q, query, head, c, p.copies_k);
                            if (p.dq != nullptr) {
                                const double k = element(maps.k[t.source], t.row0 + row, head_kv, c, p.copies_k);
                                float *const sum = (float *)maps.dq.at({c, query, head}, 4);
                                expect((char *)sum - (char *)p.dq == (query * p.dq_token + head * p.dq_head + c) * 4,
                                       "dq and its map");
                                *sum += (float)(slope * k);
                            }
                        }
                        for (int c = 0; c < p.head_dim_v; c++) {
                            dv[row * p.head_dim_v + c] += weight * element(maps.dout, query, head, c, p.copies_v);
                        }
                    }
                }
            }
        }
        const bool f32_out = p.flags & MAGI_BACKWARD_OUT_F32, add = p.flags & MAGI_BACKWARD_ACCUMULATE;
        for (int row = 0; row < t.rows; row++) {
            const int64_t key = t.row0 + row;
            for (int c = 0; c < p.head_dim; c++) {
                store_gradient(p.dk[t.source], key * p.dk_token[t.source] + head_kv * p.dk_head[t.source] + c,
                               dk[row * p.head_dim + c], f32_out, add, maps.q);
            }
            for (int c = 0; c < p.head_dim_v; c++) {
                store_gradient(p.dv[t.source], key * p.dv_token[t.source] + head_kv * p.dv_head[t.source] + c,
                               dv[row * p.head_dim_v + c], f32_out, add, maps.q);
            }
        }
    }
}

static void magi_attn_backward_queries(const BackwardQueriesMaps maps, const magi_attn_backward_queries_params p) {
    if (threadIdx.x != 0 || blockIdx.x != 0) {
        return;
    }
    take_counters(p.counters);
    expect(p.units % p.section == 0, "sections");
    expect(maps.stats.box[0] == 32 && maps.stats.box[1] == 1, "the box of row sums");
    for (int w = 0; w < p.tile_count * p.units; w++) {
        const magi_tile t = p.tiles[w / p.units];
        const int head = w % p.units;
        for (int row = 0; row < t.rows; row++) {
            std::vector<double> dq(p.head_dim);
            for (int j = 0; j < t.items; j++) {
                const magi_item item = p.items[t.item0 + j];
                for (int key = item.run0; key < item.run1; key++) {
                    double weight, slope;
                    if (!sees(t, item, p.limits, row, key)) {
                        continue;
                    }
                    cell(maps, p, t.row0 + row, key, item.source, head, weight, slope);
                    for (int c = 0; c < p.head_dim; c++) {
                        dq[c] += slope * element(maps.k[item.source], key, head / p.group, c, p.copies_k);
                    }
                }
            }
            for (int c = 0; c < p.head_dim; c++) {
                store_gradient(p.dq, (t.row0 + row) * p.dq_token + head * p.dq_head + c, dq[c],
                               p.flags & MAGI_BACKWARD_QUERIES_F32, p.flags & MAGI_BACKWARD_QUERIES_ACCUMULATE, maps.q);
            }
        }
    }
}
