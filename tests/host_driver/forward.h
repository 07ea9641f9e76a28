// What stands in for the forward kernel where there is no GPU, as in attention.h. Pieces lie in the workspace in an
// order of its own, and whoever comes last joins them.
#pragma once

struct ForwardMaps {
    Map q, k[2], v[2], out;
};

// {rows, step, threads, shared bytes}: small, so that lists have many tiles, and long ones are cut.
static int magi_attn_forward_sizes[4] = {16, 8, 160, 1024};

// Factor of a natural logarithm to base 2.
static const double LOG2E = 1.4426950408889634;

// A row's output relative to its sum of exponentials, of which log2 is kept.
struct ForwardRow {
    std::vector<double> out;
    double lse2 = -INFINITY;

    // Adds a part, whose output is relative to its own sum.
    template <class Theirs> void join(double their_lse2, const Theirs &theirs) {
        if (their_lse2 == -INFINITY) {
            return;
        }
        const double top = std::fmax(lse2, their_lse2);
        const double total = top + log2(exp2(lse2 - top) + exp2(their_lse2 - top));
        const double mine = exp2(lse2 - total), weight = exp2(their_lse2 - total);
        for (size_t c = 0; c < out.size(); c++) {
            out[c] = out[c] * mine + theirs((int)c) * weight;
        }
        lse2 = total;
    }
};

// Keys or values of both sources, [tokens, columns] of each head.
struct Keys {
    std::vector<std::vector<double>> heads[2];
    int columns;

    Keys(const Map (&maps)[2], const int (&tokens)[2], int heads_kv, int columns, int copies) : columns(columns) {
        for (int s = 0; s < 2; s++) {
            for (int h = 0; h < heads_kv && tokens[s] > 0; h++) {
                heads[s].emplace_back();
                for (int64_t i = 0; i < (int64_t)tokens[s] * columns; i++) {
                    heads[s][h].push_back(element(maps[s], (int)(i / columns), h, (int)(i % columns), copies));
                }
            }
        }
    }
    const double *row(int source, int head, int token) const { return &heads[source][head][(int64_t)token * columns]; }
};

struct Forward {
    const ForwardMaps &maps;
    const magi_attn_forward_params &p;
    Keys k, v;
    std::vector<double> maxima; // of heads

    Forward(const ForwardMaps &maps, const magi_attn_forward_params &p)
        : maps(maps), p(p), k(maps.k, p.tokens_k, p.units / p.group, (int)maps.q.dims[0], p.copies_k),
          v(maps.v, p.tokens_k, p.units / p.group, p.head_dim_v, p.copies_v), maxima(p.units * p.pack, -INFINITY) {}

    // A query of one head over the keys that it sees of a tile's items.
    ForwardRow look(const magi_tile &t, int token, int head) {
        ForwardRow row = {std::vector<double>(p.head_dim_v)};
        const int columns = k.columns, head_kv = head / p.pack / p.group;
        std::vector<double> q(columns);
        for (int c = 0; c < columns; c++) {
            q[c] = wide(maps.q, maps.q.at({c, head % p.pack, t.row0 + token, head / p.pack}, 2));
        }
        for (int j = 0; j < t.items; j++) {
            const magi_item item = p.items[t.item0 + j];
            expect(item.start == item.run0, "a step that begins before its run");
            for (int key = item.run0; key < item.run1; key++) {
                if (!sees(t, item, p.limits, token, key)) {
                    continue;
                }
                const double *const to = k.row(item.source, head_kv, key);
                double s = 0;
                for (int c = 0; c < columns; c++) {
                    s += q[c] * to[c];
                }
                s = (p.softcap_scale == 0 ? s : tanh(s * p.softcap_scale)) * p.scale_log2;
                maxima[head] = std::fmax(maxima[head], s / LOG2E);
                const double *const values = v.row(item.source, head_kv, key);
                row.join(s, [values](int c) { return values[c]; });
            }
        }
        return row;
    }

    // Leaves a piece; the last to come takes all of them in their order. Whether that was this one.
    bool leave(ForwardRow &row, const magi_tile &t, int unit, int r) {
        const int count = t.pieces >> 16, piece = t.pieces & 0xffff, rows = magi_attn_forward_sizes[0];
        const auto place = [&](int i) { return ((int64_t)(t.slot + i) * p.units + unit) * rows + r; };
        for (int c = 0; c < p.head_dim_v; c++) {
            p.piece_out[place(piece) * p.head_dim_v + c] = (float)row.out[c];
        }
        p.piece_lse[place(piece)] = (float)row.lse2;
        if (p.piece_done[(int64_t)t.slot * p.units + unit] < count - 1) {
            return false;
        }
        row = {std::vector<double>(p.head_dim_v)};
        for (int i = 0; i < count; i++) {
            const float *const theirs = p.piece_out + place(i) * p.head_dim_v;
            row.join(p.piece_lse[place(i)], [theirs](int c) { return (double)theirs[c]; });
        }
        return true;
    }

    void store(ForwardRow &row, int64_t token, int head) {
        if (p.sink != nullptr) {
            for (int i = 0; i < p.sinks; i++) {
                const float z = p.sink[token * p.sink_token + i * p.sink_row + head * p.sink_head];
                row.join(z * LOG2E, [](int) { return 0.0; });
            }
        }
        float *const lse = p.lse == nullptr ? nullptr : p.lse + token * p.lse_token + head * p.lse_head;
        if (p.flags & MAGI_FORWARD_ACCUMULATE) {
            const float *const earlier = p.earlier + token * p.earlier_token + head * p.earlier_head;
            row.join(*lse * LOG2E, [earlier](int c) { return (double)earlier[c]; });
        }
        if (lse != nullptr) {
            *lse = (float)(row.lse2 / LOG2E);
        }
        for (int c = 0; c < p.head_dim_v; c++) {
            const int64_t at = token * p.out_token + head * p.out_head + c;
            if (p.flags & MAGI_FORWARD_OUT_F32) {
                ((float *)p.out)[at] = (float)row.out[c];
            } else if (maps.q.type == MAP_F16) {
                narrow(((f16 *)p.out)[at], (f32)row.out[c]);
            } else {
                narrow(((bf16 *)p.out)[at], (f32)row.out[c]);
            }
        }
    }

    void tile(const magi_tile &t, int unit) {
        const int pieces = t.pieces >> 16;
        expect(t.rows * p.pack <= magi_attn_forward_sizes[0], "more rows than a tile has");
        for (int r = 0; r < t.rows * p.pack; r++) {
            expect(r * p.pack_inverse >> 16 == r / p.pack, "the token of a row");
            const int token = r / p.pack, head = unit * p.pack + r % p.pack;
            ForwardRow row = look(t, token, head);
            if (pieces <= 1 || leave(row, t, unit, r)) {
                store(row, t.row0 + token, head);
            }
        }
        if (pieces > 1) {
            int &done = p.piece_done[(int64_t)t.slot * p.units + unit];
            done = done == pieces - 1 ? 0 : done + 1;
        }
    }
};

static void magi_attn_forward(const ForwardMaps maps, const magi_attn_forward_params p) {
    if (threadIdx.x != 0 || blockIdx.x != 0) {
        return;
    }
    take_counters(p.counters);
    expect(p.units % p.section == 0 && p.units % p.group == 0, "sections or groups");
    const int box = magi_attn_forward_sizes[0] / p.pack;
    expect(maps.q.box[1] == (unsigned)p.pack && maps.q.box[2] == (unsigned)box, "the box of queries");
    Forward forward(maps, p);
    for (int w = 0; w < p.tile_count * p.units; w++) {
        forward.tile(p.tiles[w / p.units], w % p.units);
    }
    for (int h = 0; p.max_logits != nullptr && h < p.units * p.pack; h++) {
        expect(p.maxima[h] == 0, "maxima are not 0 before a launch");
        const float m = (float)forward.maxima[h];
        p.max_logits[h] = p.flags & MAGI_FORWARD_ACCUMULATE ? std::fmax(m, p.max_logits[h]) : m;
    }
}
