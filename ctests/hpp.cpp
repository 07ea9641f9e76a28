// The C++ header: handles, exceptions, spans, tensors, and every function of it.
#include <magi_attn.hpp>

#include "test.h"

#include <array>
#include <functional>

static_assert(!std::is_copy_constructible_v<magi::comm> && std::is_nothrow_move_constructible_v<magi::comm>);
static_assert(!std::is_copy_constructible_v<magi::mask> && std::is_nothrow_move_constructible_v<magi::mask>);
static_assert(!std::is_copy_assignable_v<magi::key> && std::is_nothrow_move_assignable_v<magi::key>);
static_assert(std::is_base_of_v<std::runtime_error, magi::error>);
static_assert(sizeof(magi::key) == sizeof(void *));
static_assert(magi::dtype_of<const double>() == MAGI_DTYPE_F64 && magi::dtype_of<float>() == MAGI_DTYPE_F32);
static_assert(magi::dtype_of<std::int64_t>() == MAGI_DTYPE_I64 && magi::dtype_of<long long>() == MAGI_DTYPE_I64);
static_assert(magi::dtype_of<int>() == MAGI_DTYPE_I32 && magi::dtype_of<short>() == MAGI_DTYPE_I16);
static_assert(magi::dtype_of<signed char>() == MAGI_DTYPE_I8 && magi::dtype_of<unsigned char>() == MAGI_DTYPE_U8);
static_assert(magi::dtype_of<bool>() == MAGI_DTYPE_BOOL);

namespace {

constexpr std::int64_t tokens = 40, heads = 2, dim = 8;

// `call` throws magi::error with this status, and a message that mentions the part.
void throws(magi_status want, const char *part, const std::function<void()> &call) {
    try {
        call();
    } catch (const magi::error &e) {
        CHECK_INT(e.status(), want);
        CHECK_HAS(e.what(), part);
        return;
    }
    FAIL("nothing was thrown; it must be %d with %s", static_cast<int>(want), part);
}

magi::mask causal() {
    return magi::mask({magi::slice({0, tokens}, {0, tokens}, MAGI_MASK_TYPE_CAUSAL)}, tokens, tokens);
}

void spans() {
    int array[3] = {1, 2, 3};
    std::vector<int> vector{4, 5};
    const std::array<int, 4> fixed{6, 7, 8, 9};
    magi::span<int> a(array), b(vector), c(array, 2), none;
    magi::span<const int> d(fixed), e(vector), f(std::as_const(vector)), g(a);
    CHECK(a.size() == 3 && b.size() == 2 && c.size() == 2 && d.size() == 4 && e.size() == 2 && f.size() == 2);
    CHECK(none.empty() && none.data() == nullptr && none.begin() == none.end() && g.data() == array);
    a[1] = 20;
    int sum = 0;
    for (int x : a) {
        sum += x;
    }
    CHECK_INT(sum, 24);
    const auto size = [](magi::span<const std::int64_t> s) { return s.size(); };
    CHECK(size({5, 6, 7}) == 3 && size({}) == 0 && size(std::vector<std::int64_t>(9)) == 9);
}

// What can be said of communicators over NCCL without a device.
void nccl() {
    magi_nccl_config config = magi::nccl_config();
    CHECK_INT(config.size, sizeof config);
    throws(MAGI_STATUS_INVALID_ARGUMENT, "id is not one", [&] { magi::comm::create_nccl({}, 0, 1, 0, &config); });
    throws(MAGI_STATUS_NULL_POINTER, "nccl_comm", [] { magi::comm::adopt_nccl(nullptr); });
    config.port = -1;
    throws(MAGI_STATUS_INVALID_ARGUMENT, "port is -1", [&] { magi::comm::create_from_env(&config); });
    try {
        const magi_unique_id id = magi::unique_id();
        CHECK(id.bytes[0] != 0);
    } catch (const magi::error &e) {
        CHECK_INT(e.status(), MAGI_STATUS_NOT_SUPPORTED);
    }
}

void masks() {
    CHECK_INT(magi::compute_pad_size(19, 4, 3), 5);
    const magi_attn_shape asked = magi::attn_shape(2, 1, 16, MAGI_DTYPE_F32);
    const std::string support = magi::explain_support(MAGI_DEVICE_TYPE_CPU, 0, asked, MAGI_WITH_BACKWARD);
    CHECK_HAS(support.c_str(), "forward: the CPU");
    CHECK_INT(magi::mask::from_dense({0xf1, 0xf3, 0xf7}, 1, 3, 4).area(), 6);
    throws(MAGI_STATUS_INVALID_ARGUMENT, "too few", [] { magi::mask::from_dense({1, 2}, 1, 3, 4); });
    CHECK_INT(magi::mask::from_prefix_tree({-1, 0, 0}, {4, 2, 3}).area(), 10 + (8 + 3) + (12 + 6));
    throws(MAGI_STATUS_INVALID_ARGUMENT, "lengths has 1", [] { magi::mask::from_prefix_tree({-1, 0}, {4}); });
    CHECK_INT(magi::mask::from_share_question(4, {2, 3}).area(), 10 + (8 + 3) + (12 + 6));
    CHECK_INT(magi::mask::from_video(4, 5, 1, true, false).area(), (2 + 3 + 4 + 3) * 25);
    magi::mask m = causal(), empty;
    CHECK(m.draw().find("40 queries") != std::string::npos);
    CHECK(m && !empty && empty.get() == nullptr);
    CHECK_INT(m.total_q(), tokens);
    CHECK_INT(m.total_k(), tokens);
    CHECK_INT(m.area(), tokens * (tokens + 1) / 2);
    const std::vector<magi_slice> slices = m.slices();
    CHECK(slices.size() == 1 && slices[0].mask_type == MAGI_MASK_TYPE_CAUSAL && slices[0].q.end == tokens);
    CHECK(magi::mask({}, 4, 6).slices().empty());
    const std::vector<std::int64_t> cu{0, 10, 25};
    CHECK_INT(magi::mask::from_cu_seqlens(cu, cu, true).area(), 10 * 11 / 2 + 15 * 16 / 2);
    CHECK_INT(magi::mask::from_cu_seqlens({0, 3}, {0, 4}, false).area(), 12);
    CHECK_INT(magi::mask::from_sliding_window(10, 10, 1, 0).area(), 19);
    CHECK_INT(magi::mask::from_block_causal({0, 6}, 2).area(), 2 * 2 + 2 * 4 + 2 * 6);

    // Moved from, a handle is empty; assigned to, it frees what it held (memcheck would tell).
    magi_mask *raw = m.get();
    magi::mask moved = std::move(m);
    CHECK(!m && moved.get() == raw);
    moved = causal();
    CHECK(moved);
    raw = moved.release();
    CHECK(!moved);
    moved.reset(raw);
    moved.reset();
    CHECK(!moved);

    throws(MAGI_STATUS_MASK_OVERLAP, "magi_mask_create: slices[0] and slices[1] both cover query 1, key 1",
           [] { magi::mask({magi::slice({0, 2}, {0, 2}), magi::slice({1, 3}, {1, 3})}, 4, 4); });
    throws(MAGI_STATUS_NULL_POINTER, "mask is NULL", [&] { moved.area(); });
    throws(MAGI_STATUS_INVALID_ARGUMENT, "cu_seqlens_k has 2 elements; it must have 3",
           [&] { magi::mask::from_cu_seqlens(cu, {0, 25}, true); });
}

void tensors() {
    const double data[6] = {};
    const magi_tensor t = magi::tensor(data, {3, 2});
    CHECK(t.data == data && t.dtype == MAGI_DTYPE_F64 && t.ndim == 2);
    CHECK(t.shape[0] == 3 && t.shape[1] == 2 && t.stride[0] == 2 && t.stride[1] == 1);
    const magi_tensor s = magi::tensor(data, MAGI_DTYPE_BF16, {2, 2}, {8, 1});
    CHECK(s.dtype == MAGI_DTYPE_BF16 && s.stride[0] == 8 && s.stride[1] == 1);
    CHECK(magi::tensor(nullptr, MAGI_DTYPE_F16, {0, 4}).data == nullptr);
    throws(MAGI_STATUS_INVALID_ARGUMENT, "1 strides for 2 dimensions", [&] { magi::tensor(data, {3, 2}, {2}); });
    throws(MAGI_STATUS_SHAPE_MISMATCH, "ndim is 9", [&] { magi::tensor(data, std::vector<std::int64_t>(20, 1)); });
    throws(MAGI_STATUS_SHAPE_MISMATCH, "shape[1] is -2", [&] { magi::tensor(data, {3, -2}); });
}

std::vector<double> numbers(std::size_t n, double phase) {
    std::vector<double> x(n);
    for (std::size_t i = 0; i < n; i++) {
        x[i] = std::sin(phase + 0.37 * static_cast<double>(i));
    }
    return x;
}

void close(const std::vector<double> &have, const std::vector<double> &want) {
    CHECK(have.size() == want.size());
    for (std::size_t i = 0; i < want.size(); i++) {
        CHECK_NEAR(have[i], want[i], 1e-12);
    }
}

// What one device makes of global tensors; ranks have to come to the same.
struct problem {
    std::vector<double> q = numbers(tokens * heads * dim, 1), k = numbers(tokens * dim, 2),
                        v = numbers(tokens * dim, 3), dout = numbers(tokens * heads * dim, 4);
    std::vector<double> out = q, lse = std::vector<double>(tokens * heads), dq = q, dk = k, dv = v;

    problem() {
        const magi::mask m = causal();
        const magi_tensor tq = wide(q), tk = narrow(k), tv = narrow(v), tdout = wide(dout), tout = wide(out),
                          tlse = magi::tensor(lse.data(), {tokens, heads}), tdq = wide(dq), tdk = narrow(dk),
                          tdv = narrow(dv);
        magi_forward_args f = magi::forward_args();
        f.q = &tq;
        f.k = &tk;
        f.v = &tv;
        f.out = &tout;
        f.lse = &tlse;
        CHECK_INT(magi::flex_flash_attn_forward_workspace_size(f), 0);
        magi::flex_flash_attn_forward(m, f);
        magi_backward_args b = magi::backward_args();
        b.q = &tq;
        b.k = &tk;
        b.v = &tv;
        b.out = &tout;
        b.lse = &tlse;
        b.dout = &tdout;
        b.dq = &tdq;
        b.dk = &tdk;
        b.dv = &tdv;
        magi_flex_options o = magi::flex_options();
        o.workspace_size = magi::flex_flash_attn_backward_workspace_size(b);
        CHECK(o.workspace_size > 0);
        throws(MAGI_STATUS_BUFFER_TOO_SMALL, "options.workspace_size is 0",
               [&] { magi::flex_flash_attn_backward(m, b); });
        std::vector<char> memory(o.workspace_size + 256);
        o.workspace = memory.data() + (256 - reinterpret_cast<std::uintptr_t>(memory.data()) % 256) % 256;
        magi::flex_flash_attn_backward(m, b, o);
    }

    static magi_tensor wide(const std::vector<double> &x) {
        return magi::tensor(x.data(), {static_cast<std::int64_t>(x.size()) / (heads * dim), heads, dim});
    }
    static magi_tensor narrow(const std::vector<double> &x) {
        return magi::tensor(x.data(), {static_cast<std::int64_t>(x.size()) / dim, 1, dim});
    }
};

// Every rank sends its two rows to the next one, and gets them back.
void group(magi::comm_ref comm) {
    const std::int32_t r = comm.rank(), n = comm.size(), next = (r + 1) % n, previous = (r + n - 1) % n;
    std::vector<double> local{r + 0.25, r + 0.5}, received(2), back{8, 9};
    const magi_tensor from = magi::tensor(local.data(), {2}), to = magi::tensor(received.data(), {2}),
                      sum = magi::tensor(back.data(), {2});
    const magi::group_plan plan(comm, 2, {magi::group_piece({0, 2}, next)}, 2, {magi::group_piece({0, 2}, previous)},
                                {magi::group_tensor(1, MAGI_DTYPE_F64)}, MAGI_GROUP_REDUCE);
    CHECK(plan.workspace_size() > 0);
    plan.prepare();
    magi::group_cast(plan, {from}, {to});
    CHECK(received[0] == previous + 0.25 && received[1] == previous + 0.5);
    magi::group_reduce(plan, MAGI_GROUP_OP_SUM, {to}, true, {sum});
    CHECK(back[0] == 8 + local[0] && back[1] == 9 + local[1]);
    magi::group_reduce(plan, MAGI_GROUP_OP_AVG, {to}, false, {sum});
    CHECK(back == local);
    throws(MAGI_STATUS_INVALID_ARGUMENT, "received has 2 tensors; it must have 1",
           [&] { magi::group_cast(plan, {from}, {to, to}); });
    throws(MAGI_STATUS_INVALID_ARGUMENT, "args.sends[0].peer is 9",
           [&] { magi::group_plan(comm, 2, {magi::group_piece({0, 2}, 9)}, 0, {}, {}); });
}

void joint(magi::comm_ref comm, const magi_attn_shape &shape) {
    std::vector<magi::mask> masks;
    masks.push_back(causal());
    masks.push_back(magi::mask::from_sliding_window(tokens, tokens, 5, 0));
    const std::vector<magi::key> keys = magi::key::create_joint(comm, masks, {1, 3}, shape);
    const std::vector<magi::key> alike = magi::key::create_joint(comm, masks, {}, shape);
    CHECK(keys.size() == 2 && alike.size() == 2 && keys[0].hash() != keys[1].hash());
    CHECK(keys[0].position_ids(MAGI_SIDE_Q) == keys[1].position_ids(MAGI_SIDE_Q));
    // The other ways to a key, on the same placement.
    CHECK(magi::key::last(comm).hash() == alike[1].hash());
    CHECK(keys[0].create_for_new_mask(masks[1]).hash() == keys[1].hash());
    const std::vector<std::int32_t> owners{2, 0, 1, 1, 2, 0, 1};
    const magi::key placed = magi::key::create_with_placement(comm, masks[0], shape, 6, owners);
    const std::vector<std::int64_t> ids = placed.position_ids(MAGI_SIDE_K);
    CHECK_INT(ids[0], comm.rank() == 0 ? 6 : comm.rank() == 1 ? 12 : 0);
    std::vector<std::int64_t> rolled(ids.size());
    const std::int64_t n = placed.local_tokens(MAGI_SIDE_K);
    magi::roll(placed, MAGI_SIDE_K, magi::tensor(ids.data(), {n}), 1, magi::tensor(rolled.data(), {n}));
    for (std::size_t i = 0; i < ids.size(); i++) {
        CHECK_INT(rolled[i], (ids[i] + tokens - 1) % tokens);
    }
    throws(MAGI_STATUS_INVALID_ARGUMENT, "1 weights for 2 masks",
           [&] { magi::key::create_joint(comm, masks, {1}, shape); });
    throws(MAGI_STATUS_INVALID_ARGUMENT, "n is 0", [&] { magi::key::create_joint(comm, {}, {}, shape); });
}

void rank(const problem &p, magi::comm_ref comm, std::int32_t rank) {
    CHECK_INT(comm.rank(), rank);
    CHECK_INT(comm.size(), 3);
    CHECK_INT(comm.async_error(), MAGI_STATUS_OK);
    comm.set_timeout(60000);
    const auto [device_type, device_index] = comm.device();
    CHECK(device_type == MAGI_DEVICE_TYPE_CPU && device_index == 0);
    const auto [inter, intra] = comm.split_mesh(3, 1);
    CHECK_INT(magi::comm_ref(inter).size(), 3);
    CHECK_INT(magi::comm_ref(intra).size(), 1);
    const magi::mask m = causal();
    const magi_attn_shape shape = magi::attn_shape(heads, 1, dim, MAGI_DTYPE_F64);
    magi_config config = magi::config();
    config.chunk_size = 3;
    config.profile = 1;
    config.degree_forward = config.degree_backward = 1;
    const magi::key key(comm, m, shape, config), same(comm, m, shape, &config), other(comm, m, shape);
    CHECK(key.hash() == same.hash() && key.hash() != other.hash());
    key.prepare();
    CHECK(key.workspace_size() > 0);
    CHECK_INT(key.stats().area, m.area());
    const std::int64_t n = key.local_tokens(MAGI_SIDE_Q);
    CHECK_INT(key.rank_stats(rank).tokens_q, n);
    const magi_stage_stats stage = key.stage_stats(MAGI_PASS_BACKWARD, rank, 0);
    CHECK(stage.size == sizeof stage &&
          stage.area + key.stage_stats(MAGI_PASS_BACKWARD, rank, 1).area == key.rank_stats(rank).area);
    const std::string words = key.explain();
    CHECK_HAS(words.c_str(), "forward pass of this rank");
    CHECK(words.back() == '\n' && key.draw().find("</svg>") != std::string::npos);
    throws(MAGI_STATUS_INVALID_ARGUMENT, "config.profile", [&] { other.trace(); });
    CHECK_INT(key.stats().tokens_inter_host, -1);
    comm.set_mesh(1, 3);
    CHECK_INT(key.stats().tokens_inter_host, 0);
    joint(comm, shape);
    group(comm);
    const std::vector<std::int64_t> ids = key.position_ids(MAGI_SIDE_Q);
    CHECK_INT(ids.size(), n);

    const auto rows = static_cast<std::size_t>(n);
    std::vector<double> q(rows * heads * dim), k(rows * dim), v = k, dout = q, out = q, lse(rows * heads), dq = q,
                                                              dk = k, dv = k;
    magi::dispatch(key, MAGI_SIDE_Q, p.wide(p.q), p.wide(q));
    magi::dispatch(key, MAGI_SIDE_K, p.narrow(p.k), p.narrow(k));
    magi::dispatch(key, MAGI_SIDE_K, p.narrow(p.v), p.narrow(v));
    magi::undispatch_backward(key, MAGI_SIDE_Q, p.wide(p.dout), false, p.wide(dout));
    CHECK_NEAR(q[0], p.q[static_cast<std::size_t>(ids[0] * heads * dim)], 0);
    const magi_tensor tq = p.wide(q), tk = p.narrow(k), tv = p.narrow(v), tdout = p.wide(dout), tout = p.wide(out),
                      tlse = magi::tensor(lse.data(), {n, heads}), tdq = p.wide(dq), tdk = p.narrow(dk),
                      tdv = p.narrow(dv);
    magi_forward_args f = magi::forward_args();
    f.q = &tq;
    f.k = &tk;
    f.v = &tv;
    f.out = &tout;
    f.lse = &tlse;
    magi::calc_attn_forward(key, f);
    magi_backward_args b = magi::backward_args();
    b.q = &tq;
    b.k = &tk;
    b.v = &tv;
    b.out = &tout;
    b.lse = &tlse;
    b.dout = &tdout;
    b.dq = &tdq;
    b.dk = &tdk;
    b.dv = &tdv;
    magi::calc_attn_backward(key, b);
    CHECK(key.stage_times(MAGI_PASS_BACKWARD, 1).pass_ns > 0);
    CHECK(key.trace().find("backward stage 1: compute") != std::string::npos);
    CHECK(key.draw_profile().find("measured above predicted") != std::string::npos);

    std::vector<double> whole(p.q.size()), half(p.k.size());
    magi::undispatch(key, MAGI_SIDE_Q, tout, p.wide(whole));
    close(whole, p.out);
    magi::dispatch_backward(key, MAGI_SIDE_Q, tdq, p.wide(whole));
    close(whole, p.dq);
    magi::undispatch(key, MAGI_SIDE_K, tdk, p.narrow(half));
    close(half, p.dk);
    magi::undispatch(key, MAGI_SIDE_K, tdv, p.narrow(half));
    close(half, p.dv);
    const std::size_t mine = static_cast<std::size_t>(tokens) / 3 + (rank < tokens % 3);
    std::vector<double> share(mine * dim), again(rows * dim);
    magi::undispatch_sharded(key, MAGI_SIDE_K, tk, p.narrow(share));
    magi::dispatch_sharded(key, MAGI_SIDE_K, p.narrow(share), p.narrow(again));
    CHECK(again == k);
    magi::undispatch_backward(key, MAGI_SIDE_K, p.narrow(p.k), true, p.narrow(again));
    for (std::size_t i = 0; i < again.size(); i++) {
        CHECK_NEAR(again[i], 3 * k[i], 1e-12);
    }
}

struct own_error {
    int number;
};

// What a rank throws comes out of run_local as it was, and wakes the others.
void exceptions() {
    try {
        magi::run_local(2, [](magi::comm_ref comm, std::int32_t rank) {
            if (rank == 1) {
                throw own_error{42};
            }
            const magi::mask m = causal();
            magi::key(comm, m, magi::attn_shape(2, 1, 8, MAGI_DTYPE_F64)).prepare();
            FAIL("a rank went on alone");
        });
        FAIL("nothing was thrown");
    } catch (const own_error &e) {
        CHECK_INT(e.number, 42);
    }
    // A rank that throws because of another is not the one that is heard.
    throws(MAGI_STATUS_TIMEOUT, "rank 0 waited 50ms for rank 1", [] {
        magi::run_local(3, [](magi::comm_ref comm, std::int32_t rank) {
            comm.set_timeout(rank == 0 ? 50 : 60000);
            const magi::mask m = causal();
            const magi::key key(comm, m, magi::attn_shape(2, 1, 8, MAGI_DTYPE_F64));
            while (rank == 1 && comm.async_error() == MAGI_STATUS_OK) {
            }
            key.prepare();
        });
    });
    throws(MAGI_STATUS_INVALID_ARGUMENT, "world_size is -1",
           [] { magi::run_local(-1, [](magi::comm_ref, std::int32_t) {}); });
    std::function<void(magi::comm_ref, std::int32_t)> function = [](magi::comm_ref comm, std::int32_t) {
        throw magi::error(MAGI_STATUS_NOT_SUPPORTED, "rank " + std::to_string(comm.rank()));
    };
    throws(MAGI_STATUS_NOT_SUPPORTED, "rank 0", [&] { magi::run_local(1, function); });
}

void comms() {
    std::vector<magi::comm> ranks = magi::comm::create_local(2);
    CHECK_INT(ranks.size(), 2);
    const magi::comm_ref second(ranks[1]);
    CHECK_INT(second.rank(), 1);
    second.abort("enough");
    CHECK_INT(magi::comm_ref(ranks[0]).async_error(), MAGI_STATUS_ABORTED);
    const magi::mask m = causal();
    throws(MAGI_STATUS_ABORTED, "enough", [&] { magi::key(ranks[0], m, magi::attn_shape(2, 1, 8, MAGI_DTYPE_F64)); });
    ranks = magi::comm::create_local(1);
    const magi::key key(ranks[0], m, magi::attn_shape(2, 1, 8, MAGI_DTYPE_F64, 16));
    ranks.clear();
    throws(MAGI_STATUS_COMM_DESTROYED, "the communicator was destroyed", [&] { key.prepare(); });
    throws(MAGI_STATUS_INVALID_ARGUMENT, "world_size is 0", [] { magi::comm::create_local(0); });
}

} // namespace

int main() {
    spans();
    masks();
    nccl();
    tensors();
    const problem p;
    magi::run_local(3, [&](magi::comm_ref comm, std::int32_t r) { rank(p, comm, r); });
    exceptions();
    comms();
    return 0;
}
