// The C ABI of libmagi_attn for C++17: handles that free themselves, statuses that are thrown, arguments with defaults.
//
// SPDX-License-Identifier: Apache-2.0
//
// A thin layer: every function here calls the C function of the same name and adds nothing to it, so that magi_attn.h
// is the reference of shapes, units, errors and thread rules.
#ifndef MAGI_ATTN_HPP
#define MAGI_ATTN_HPP

#include <magi_attn.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace magi {

// A call that did not return MAGI_STATUS_OK: its status, and the message of the C library.
class error : public std::runtime_error {
  public:
    error(magi_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    magi_status status() const noexcept { return status_; }

  private:
    magi_status status_;
};

// Throws what the calling thread's last call came to.
inline void check(magi_status status) {
    if (status != MAGI_STATUS_OK) {
        throw error(status, magi_last_error_message());
    }
}

// `size` elements at `data`, owned by somebody else: from a pointer and a size, an array, or any container with data()
// and size(). A span made from a braced list or a temporary is good until the end of the full expression.
template <class T> class span {
  public:
    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N> constexpr span(T (&array)[N]) noexcept : data_(array), size_(N) {}
    template <class C,
              class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<C &>().data()), T *> &&
                                       std::is_convertible_v<decltype(std::declval<C &>().size()), std::size_t>>>
    constexpr span(C &&container) noexcept : data_(container.data()), size_(container.size()) {}
    template <class U = T, class = std::enable_if_t<std::is_const_v<U>>>
    constexpr span(std::initializer_list<std::remove_const_t<U>> list) noexcept : span(list.begin(), list.size()) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

// The magi_dtype of a C++ type; bf16 and f16 have none and are named.
template <class T> constexpr magi_dtype dtype_of() {
    using U = std::remove_const_t<T>;
    if constexpr (std::is_same_v<U, double>) {
        return MAGI_DTYPE_F64;
    } else if constexpr (std::is_same_v<U, float>) {
        return MAGI_DTYPE_F32;
    } else if constexpr (std::is_same_v<U, bool>) {
        return MAGI_DTYPE_BOOL;
    } else {
        static_assert(std::is_integral_v<U> && (std::is_signed_v<U> || sizeof(U) == 1), "no magi_dtype for this type");
        constexpr magi_dtype by_size[] = {MAGI_DTYPE_I8, MAGI_DTYPE_I16, MAGI_DTYPE_I32, MAGI_DTYPE_I64};
        return !std::is_signed_v<U> ? MAGI_DTYPE_U8
                                    : by_size[sizeof(U) == 1   ? 0
                                              : sizeof(U) == 2 ? 1
                                              : sizeof(U) == 4 ? 2
                                                               : 3];
    }
}

// A host tensor that somebody else owns: dense, or with the strides given (in elements). The C library does not write
// to tensors that are inputs, so that const data is accepted here.
inline magi_tensor tensor(const void *data, magi_dtype dtype, span<const std::int64_t> shape,
                          span<const std::int64_t> strides = {}) {
    magi_tensor t{};
    check(magi_tensor_init(const_cast<void *>(data), dtype,
                           static_cast<std::int32_t>(std::min<std::size_t>(shape.size(), 9)), shape.data(), &t));
    if (!strides.empty()) {
        if (strides.size() != shape.size()) {
            throw error(MAGI_STATUS_INVALID_ARGUMENT, "magi::tensor: there are " + std::to_string(strides.size()) +
                                                          " strides for " + std::to_string(shape.size()) +
                                                          " dimensions");
        }
        std::copy(strides.begin(), strides.end(), t.stride);
    }
    return t;
}

// As above, with the dtype of the pointer's type.
template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
magi_tensor tensor(T *data, span<const std::int64_t> shape, span<const std::int64_t> strides = {}) {
    return tensor(static_cast<const void *>(data), dtype_of<T>(), shape, strides);
}

// Argument structs with their defaults.
inline magi_config config() {
    magi_config c{};
    check(magi_config_init(&c, sizeof c));
    return c;
}
inline magi_forward_args forward_args() {
    return MAGI_FORWARD_ARGS_INIT;
}
inline magi_backward_args backward_args() {
    return MAGI_BACKWARD_ARGS_INIT;
}
inline magi_nccl_config nccl_config() {
    return MAGI_NCCL_CONFIG_INIT;
}
inline magi_flex_options flex_options() {
    return MAGI_FLEX_OPTIONS_INIT;
}
// head_dim_v 0: as head_dim.
inline magi_attn_shape attn_shape(std::int64_t heads_q, std::int64_t heads_kv, std::int64_t head_dim, magi_dtype dtype,
                                  std::int64_t head_dim_v = 0) {
    return {sizeof(magi_attn_shape), heads_q, heads_kv, head_dim, head_dim_v == 0 ? head_dim : head_dim_v, dtype, 0};
}
inline magi_slice slice(magi_range q, magi_range k, magi_mask_type type = MAGI_MASK_TYPE_FULL) {
    return {q, k, type, 0};
}

namespace detail {

// A C handle with its destroy function: can be moved, not copied, and frees what it holds.
template <class H, void (*destroy)(H *)> class handle {
  public:
    handle() noexcept = default;
    explicit handle(H *taken) noexcept : held_(taken) {}

    H *get() const noexcept { return held_.get(); }
    explicit operator bool() const noexcept { return held_ != nullptr; }
    // Gives the C handle away: the caller destroys it.
    H *release() noexcept { return held_.release(); }
    void reset(H *taken = nullptr) noexcept { held_.reset(taken); }

  private:
    struct deleter {
        void operator()(H *h) const noexcept { destroy(h); }
    };
    std::unique_ptr<H, deleter> held_;
};

// What an out-parameter was set to.
template <class T, class F> T out(F &&call) {
    T value{};
    check(call(&value));
    return value;
}

// The text that a function fills into a buffer.
template <class F> std::string text(F &&call) {
    std::size_t size = 0;
    check(call(nullptr, &size));
    std::string filled(size, '\0'); // with the zero byte that ends it
    check(call(&filled[0], &size));
    filled.pop_back();
    return filled;
}

} // namespace detail

// One rank of a communicator. `comm` owns it; functions take a `comm_ref`, which `comm` and `magi_comm *` turn into.
class comm : public detail::handle<magi_comm, magi_comm_destroy> {
  public:
    using handle::handle;

    // The ranks of a communicator inside this process, by rank.
    static std::vector<comm> create_local(std::int32_t world_size) {
        std::vector<magi_comm *> made(world_size > 0 ? static_cast<std::size_t>(world_size) : 1);
        std::vector<comm> ranks;
        ranks.reserve(made.size()); // so that nothing can be thrown while handles have no owner
        check(magi_comm_create_local(world_size, made.data()));
        for (magi_comm *c : made) {
            ranks.emplace_back(c);
        }
        return ranks;
    }
    // One rank over NCCL; see unique_id and nccl_config.
    static comm create_nccl(const magi_unique_id &id, std::int32_t rank, std::int32_t world_size, std::int32_t device,
                            const magi_nccl_config *config = nullptr) {
        return comm(detail::out<magi_comm *>(
            [&](auto *p) { return magi_comm_create_nccl(&id, rank, world_size, device, config, p); }));
    }
    // All processes of torchrun, mpirun or srun.
    static comm create_from_env(const magi_nccl_config *config = nullptr) {
        return comm(detail::out<magi_comm *>([&](auto *p) { return magi_comm_create_from_env(config, p); }));
    }
    // Over an ncclComm_t, which stays its owner's.
    static comm adopt_nccl(void *nccl_comm, const magi_nccl_config *config = nullptr) {
        return comm(detail::out<magi_comm *>([&](auto *p) { return magi_comm_adopt_nccl(nccl_comm, config, p); }));
    }
};

// The way of ranks to each other, made by one of them.
inline magi_unique_id unique_id() {
    return detail::out<magi_unique_id>([](auto *p) { return magi_unique_id_create(p); });
}

// A communicator that somebody else owns, as magi::run_local hands it out.
class comm_ref {
  public:
    comm_ref(magi_comm *c) noexcept : comm_(c) {}
    comm_ref(const comm &c) noexcept : comm_(c.get()) {}

    magi_comm *get() const noexcept { return comm_; }
    std::int32_t rank() const {
        return detail::out<std::int32_t>([&](auto *p) { return magi_comm_rank(comm_, p); });
    }
    std::int32_t size() const {
        return detail::out<std::int32_t>([&](auto *p) { return magi_comm_size(comm_, p); });
    }
    void set_timeout(std::int64_t milliseconds) const { check(magi_comm_set_timeout(comm_, milliseconds)); }
    void set_mesh(std::int32_t inter_size, std::int32_t intra_size) const {
        check(magi_comm_set_mesh(comm_, inter_size, intra_size));
    }
    // The ranks with this one's number on all hosts, and those of its host.
    std::pair<comm, comm> split_mesh(std::int32_t inter_size, std::int32_t intra_size) const {
        magi_comm *inter = nullptr, *intra = nullptr;
        check(magi_comm_split_mesh(comm_, inter_size, intra_size, &inter, &intra));
        return {comm(inter), comm(intra)};
    }
    // Where its tensors lie: a magi_device_type and an index.
    std::pair<std::int32_t, std::int32_t> device() const {
        std::pair<std::int32_t, std::int32_t> place{};
        check(magi_comm_device(comm_, &place.first, &place.second));
        return place;
    }
    // Bytes that this rank has sent to other ranks, and received from them.
    std::pair<std::int64_t, std::int64_t> traffic() const {
        std::pair<std::int64_t, std::int64_t> bytes{};
        check(magi_comm_traffic(comm_, &bytes.first, &bytes.second));
        return bytes;
    }
    // MAGI_STATUS_OK while the communicator is good.
    magi_status async_error() const noexcept { return magi_comm_async_error(comm_); }
    void abort(const char *reason = nullptr) const { check(magi_comm_abort(comm_, reason)); }

  private:
    magi_comm *comm_;
};

// Calls `run(comm_ref, rank)` on a thread for each rank and waits for all. What the rank threw that failed first, and
// not because of another, is thrown again here as it was. For its peers a rank that throws magi::error fails with that
// status, one that throws anything else with MAGI_STATUS_COMM_FAILED.
template <class F> void run_local(std::int32_t world_size, F &&run) {
    struct outcome {
        std::exception_ptr thrown;
        magi_status status = MAGI_STATUS_OK;
    };
    struct state {
        std::remove_reference_t<F> &run;
        std::mutex lock;
        std::vector<outcome> failures; // in the order they came; has room for all, so that adding one cannot throw

        magi_status failed(magi_status status) noexcept {
            const std::lock_guard<std::mutex> hold(lock);
            failures.push_back({std::current_exception(), status});
            return status;
        }
        static std::int32_t call(magi_comm *c, std::int32_t rank, void *userdata) noexcept {
            state &self = *static_cast<state *>(userdata);
            try {
                self.run(comm_ref(c), rank);
                return MAGI_STATUS_OK;
            } catch (const error &e) {
                return self.failed(e.status());
            } catch (...) {
                return self.failed(MAGI_STATUS_COMM_FAILED);
            }
        }
    };
    state shared{run, {}, {}};
    shared.failures.reserve(world_size > 0 ? static_cast<std::size_t>(world_size) : 0);
    const magi_status status = magi_local_run(world_size, &state::call, &shared);
    for (const outcome &o : shared.failures) {
        if (o.status == status) {
            std::rethrow_exception(o.thrown);
        }
    }
    check(status);
}

// Which keys every query sees. Immutable; every function of it may be called from any thread.
class mask : public detail::handle<magi_mask, magi_mask_destroy> {
  public:
    using handle::handle;
    mask(span<const magi_slice> slices, std::int64_t total_q, std::int64_t total_k)
        : handle(detail::out<magi_mask *>(
              [&](auto *p) { return magi_mask_create(slices.data(), slices.size(), total_q, total_k, p); })) {}

    static mask from_cu_seqlens(span<const std::int64_t> cu_seqlens_q, span<const std::int64_t> cu_seqlens_k,
                                bool causal, std::int64_t window_left = -1, std::int64_t window_right = -1,
                                std::int64_t global_window = 0) {
        if (cu_seqlens_q.size() != cu_seqlens_k.size()) {
            throw error(MAGI_STATUS_INVALID_ARGUMENT,
                        "magi::mask::from_cu_seqlens: cu_seqlens_k has " + std::to_string(cu_seqlens_k.size()) +
                            " elements; it must have " + std::to_string(cu_seqlens_q.size()));
        }
        return mask(detail::out<magi_mask *>([&](auto *p) {
            return magi_mask_create_from_cu_seqlens(cu_seqlens_q.data(), cu_seqlens_k.data(), cu_seqlens_q.size(),
                                                    causal, window_left, window_right, global_window, p);
        }));
    }
    static mask from_sliding_window(std::int64_t total_q, std::int64_t total_k, std::int64_t window_left,
                                    std::int64_t window_right, std::int64_t global_window = 0) {
        return mask(detail::out<magi_mask *>([&](auto *p) {
            return magi_mask_create_from_sliding_window(total_q, total_k, window_left, window_right, global_window, p);
        }));
    }
    static mask from_block_causal(span<const std::int64_t> cu_seqlens, std::int64_t block) {
        return mask(detail::out<magi_mask *>([&](auto *p) {
            return magi_mask_create_from_block_causal(cu_seqlens.data(), cu_seqlens.size(), block, p);
        }));
    }
    static mask from_dense(span<const std::uint8_t> bits, std::size_t row_bytes, std::int64_t total_q,
                           std::int64_t total_k) {
        const std::int64_t rows = std::max<std::int64_t>(total_q, 0);
        if (row_bytes != 0 && bits.size() / row_bytes < static_cast<std::size_t>(rows)) {
            throw error(MAGI_STATUS_INVALID_ARGUMENT,
                        "magi::mask::from_dense: bits has " + std::to_string(bits.size()) + " bytes, too few for " +
                            std::to_string(rows) + " rows of " + std::to_string(row_bytes));
        }
        return mask(detail::out<magi_mask *>(
            [&](auto *p) { return magi_mask_create_from_dense(bits.data(), row_bytes, total_q, total_k, p); }));
    }
    static mask from_prefix_tree(span<const std::int64_t> parents, span<const std::int64_t> lengths) {
        if (parents.size() != lengths.size()) {
            throw error(MAGI_STATUS_INVALID_ARGUMENT, "magi::mask::from_prefix_tree: lengths has " +
                                                          std::to_string(lengths.size()) + " elements; it must have " +
                                                          std::to_string(parents.size()));
        }
        return mask(detail::out<magi_mask *>([&](auto *p) {
            return magi_mask_create_from_prefix_tree(parents.data(), lengths.data(), parents.size(), p);
        }));
    }
    static mask from_share_question(std::int64_t prefix, span<const std::int64_t> answers) {
        return mask(detail::out<magi_mask *>(
            [&](auto *p) { return magi_mask_create_from_share_question(prefix, answers.data(), answers.size(), p); }));
    }
    static mask from_video(std::int64_t frames, std::int64_t tokens_per_frame, std::int64_t window, bool first_frame,
                           bool causal) {
        return mask(detail::out<magi_mask *>([&](auto *p) {
            return magi_mask_create_from_video(frames, tokens_per_frame, window, first_frame, causal, p);
        }));
    }

    // The picture, as SVG.
    std::string draw() const {
        return detail::text([&](char *svg, std::size_t *size) { return magi_mask_draw(get(), svg, size); });
    }
    std::int64_t total_q() const {
        return detail::out<std::int64_t>([&](auto *p) { return magi_mask_totals(get(), p, nullptr); });
    }
    std::int64_t total_k() const {
        return detail::out<std::int64_t>([&](auto *p) { return magi_mask_totals(get(), nullptr, p); });
    }
    std::int64_t area() const {
        return detail::out<std::int64_t>([&](auto *p) { return magi_mask_area(get(), p); });
    }
    std::vector<magi_slice> slices() const {
        std::size_t count = 0;
        check(magi_mask_slices(get(), nullptr, &count));
        std::vector<magi_slice> printed(count);
        check(magi_mask_slices(get(), printed.data(), &count));
        return printed;
    }
};

// A mask planned for the ranks of a communicator.
class key : public detail::handle<magi_key, magi_key_destroy> {
  public:
    using handle::handle;
    // Without a config: the defaults overlaid by the environment.
    key(comm_ref comm, const mask &mask, const magi_attn_shape &shape, const magi_config *config = nullptr)
        : handle(detail::out<magi_key *>(
              [&](auto *p) { return magi_key_create(comm.get(), mask.get(), &shape, config, p); })) {}
    key(comm_ref comm, const mask &mask, const magi_attn_shape &shape, const magi_config &config)
        : key(comm, mask, shape, &config) {}

    // The key that was made last on `comm`.
    static key last(comm_ref comm) {
        return key(detail::out<magi_key *>([&](auto *p) { return magi_comm_last_key(comm.get(), p); }));
    }
    // Tokens placed by the caller, chunk by chunk. Without owners_k keys lie with the queries, or in equal shares.
    static key create_with_placement(comm_ref comm, const mask &mask, const magi_attn_shape &shape,
                                     std::int64_t chunk_size, span<const std::int32_t> owners_q,
                                     span<const std::int32_t> owners_k = {}, const magi_config *config = nullptr) {
        return key(detail::out<magi_key *>([&](auto *p) {
            return magi_key_create_with_placement(comm.get(), mask.get(), &shape, config, chunk_size, owners_q.data(),
                                                  owners_q.size(), owners_k.data(), owners_k.size(), p);
        }));
    }
    // Another mask on the placement of this key. Without shape or config: those of this key.
    key create_for_new_mask(const mask &mask, const magi_attn_shape *shape = nullptr,
                            const magi_config *config = nullptr) const {
        return key(detail::out<magi_key *>(
            [&](auto *p) { return magi_key_create_for_new_mask(get(), mask.get(), shape, config, p); }));
    }
    // One key for each mask, all on one placement. Without weights every mask counts once.
    static std::vector<key> create_joint(comm_ref comm, span<const mask> masks, span<const std::int64_t> weights,
                                         const magi_attn_shape &shape, const magi_config *config = nullptr) {
        if (!weights.empty() && weights.size() != masks.size()) {
            throw error(MAGI_STATUS_INVALID_ARGUMENT, "magi::key::create_joint: there are " +
                                                          std::to_string(weights.size()) + " weights for " +
                                                          std::to_string(masks.size()) + " masks");
        }
        std::vector<const magi_mask *> handles;
        for (const mask &m : masks) {
            handles.push_back(m.get());
        }
        std::vector<magi_key *> made(masks.size() + 1); // so that there is memory to point to
        std::vector<key> keys;
        keys.reserve(masks.size()); // so that nothing can be thrown while handles have no owner
        check(magi_key_create_joint(comm.get(), handles.data(), weights.data(), masks.size(), &shape, config,
                                    made.data()));
        for (std::size_t i = 0; i < masks.size(); i++) {
            keys.emplace_back(made[i]);
        }
        return keys;
    }

    void prepare(magi_stream stream = nullptr) const { check(magi_key_prepare(get(), stream)); }
    std::int64_t local_tokens(magi_side side) const {
        return detail::out<std::int64_t>([&](auto *p) { return magi_key_local_tokens(get(), side, p); });
    }
    std::vector<std::int64_t> position_ids(magi_side side) const {
        std::size_t count = 0;
        check(magi_key_position_ids(get(), side, nullptr, &count));
        std::vector<std::int64_t> ids(count);
        check(magi_key_position_ids(get(), side, ids.data(), &count));
        return ids;
    }
    magi_key_stats stats() const {
        magi_key_stats s{};
        s.size = sizeof s;
        check(magi_key_get_stats(get(), &s));
        return s;
    }
    magi_rank_stats rank_stats(std::int32_t rank) const {
        magi_rank_stats s{};
        s.size = sizeof s;
        check(magi_key_get_rank_stats(get(), rank, &s));
        return s;
    }
    magi_stage_stats stage_stats(magi_pass pass, std::int32_t rank, std::int32_t stage) const {
        magi_stage_stats s{};
        s.size = sizeof s;
        check(magi_key_get_stage_stats(get(), pass, rank, stage, &s));
        return s;
    }
    // The plan in words.
    std::string explain() const {
        return detail::text([&](char *words, std::size_t *size) { return magi_key_explain(get(), words, size); });
    }
    // The picture of the plan, as SVG.
    std::string draw() const {
        return detail::text([&](char *svg, std::size_t *size) { return magi_key_draw(get(), svg, size); });
    }
    // What the last call of a pass was measured to do on this rank, with config.profile.
    magi_stage_times stage_times(magi_pass pass, std::int32_t stage) const {
        magi_stage_times t{};
        t.size = sizeof t;
        check(magi_key_get_stage_times(get(), pass, stage, &t));
        return t;
    }
    // The last measured calls in the trace event format.
    std::string trace() const {
        return detail::text([&](char *json, std::size_t *size) { return magi_key_trace(get(), json, size); });
    }
    // The picture of the last measured calls above what was predicted, as SVG.
    std::string draw_profile() const {
        return detail::text([&](char *svg, std::size_t *size) { return magi_key_draw_profile(get(), svg, size); });
    }
    std::size_t workspace_size() const {
        return detail::out<std::size_t>([&](auto *p) { return magi_key_workspace_size(get(), p); });
    }
    std::uint64_t hash() const {
        return detail::out<std::uint64_t>([&](auto *p) { return magi_key_hash(get(), p); });
    }
};

// Moving tokens; the last tensor is the output.
inline void dispatch(const key &key, magi_side side, const magi_tensor &x, const magi_tensor &local_x,
                     magi_stream stream = nullptr) {
    check(magi_dispatch(key.get(), side, &x, &local_x, stream));
}
inline void dispatch_backward(const key &key, magi_side side, const magi_tensor &dlocal_x, const magi_tensor &dx,
                              magi_stream stream = nullptr) {
    check(magi_dispatch_backward(key.get(), side, &dlocal_x, &dx, stream));
}
inline void undispatch(const key &key, magi_side side, const magi_tensor &local_x, const magi_tensor &x,
                       magi_stream stream = nullptr) {
    check(magi_undispatch(key.get(), side, &local_x, &x, stream));
}
// partial: each rank holds a part of the gradient; else all hold the whole.
inline void undispatch_backward(const key &key, magi_side side, const magi_tensor &dx, bool partial,
                                const magi_tensor &dlocal_x, magi_stream stream = nullptr) {
    check(magi_undispatch_backward(key.get(), side, &dx, partial, &dlocal_x, stream));
}
inline void dispatch_sharded(const key &key, magi_side side, const magi_tensor &share, const magi_tensor &local_x,
                             magi_stream stream = nullptr) {
    check(magi_dispatch_sharded(key.get(), side, &share, &local_x, stream));
}
inline void undispatch_sharded(const key &key, magi_side side, const magi_tensor &local_x, const magi_tensor &share,
                               magi_stream stream = nullptr) {
    check(magi_undispatch_sharded(key.get(), side, &local_x, &share, stream));
}
inline void roll(const key &key, magi_side side, const magi_tensor &local_x, std::int64_t shift,
                 const magi_tensor &local_y, std::int64_t valid = -1, magi_stream stream = nullptr) {
    check(magi_roll(key.get(), side, &local_x, shift, valid, &local_y, stream));
}
inline std::int64_t compute_pad_size(std::int64_t total, std::int64_t chunk_size, std::int32_t world_size) {
    return detail::out<std::int64_t>([&](auto *p) { return magi_compute_pad_size(total, chunk_size, world_size, p); });
}

// Attention over the ranks of a key.
inline void calc_attn_forward(const key &key, const magi_forward_args &args, magi_stream stream = nullptr) {
    check(magi_calc_attn_forward(key.get(), &args, stream));
}
inline void calc_attn_backward(const key &key, const magi_backward_args &args, magi_stream stream = nullptr) {
    check(magi_calc_attn_backward(key.get(), &args, stream));
}

// Attention on one device. A default-constructed mask stands for the ranges in the options.
inline void flex_flash_attn_forward(const mask &mask, const magi_forward_args &args,
                                    const magi_flex_options &options = flex_options(), magi_stream stream = nullptr) {
    check(magi_flex_flash_attn_forward(mask.get(), &args, &options, stream));
}
inline void flex_flash_attn_backward(const mask &mask, const magi_backward_args &args,
                                     const magi_flex_options &options = flex_options(), magi_stream stream = nullptr) {
    check(magi_flex_flash_attn_backward(mask.get(), &args, &options, stream));
}
inline std::size_t flex_flash_attn_forward_workspace_size(const magi_forward_args &args,
                                                          const magi_flex_options &options = flex_options()) {
    return detail::out<std::size_t>(
        [&](auto *p) { return magi_flex_flash_attn_forward_workspace_size(&args, &options, p); });
}
inline std::size_t flex_flash_attn_backward_workspace_size(const magi_backward_args &args,
                                                           const magi_flex_options &options = flex_options()) {
    return detail::out<std::size_t>(
        [&](auto *p) { return magi_flex_flash_attn_backward_workspace_size(&args, &options, p); });
}

// Which kernels compute on a device, in words. Throws with every reason when the calls cannot be computed there. flags:
// MAGI_WITH_*.
inline std::string explain_support(magi_device_type device_type, std::int32_t device_index,
                                   const magi_attn_shape &shape, std::uint32_t flags = 0,
                                   magi_backend backend = MAGI_BACKEND_DEFAULT, double softmax_scale = 0,
                                   double softcap = 0) {
    return detail::text([&](char *words, std::size_t *size) {
        return magi_explain_support(device_type, device_index, &shape, backend, softmax_scale, softcap, flags, words,
                                    size);
    });
}

} // namespace magi

#include <magi_attn_group.hpp>

#endif
