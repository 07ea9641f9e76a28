// Group collectives of libmagi_attn for C++17, part of magi_attn.hpp.
//
// SPDX-License-Identifier: Apache-2.0
#ifndef MAGI_ATTN_GROUP_HPP
#define MAGI_ATTN_GROUP_HPP

#include <magi_attn.hpp>

namespace magi {

inline magi_group_piece group_piece(magi_range rows, std::int32_t peer) {
    return {rows, peer, 0};
}
inline magi_group_tensor group_tensor(std::int64_t row_elements, magi_dtype dtype) {
    return {row_elements, dtype, 0};
}

// What one rank sends and receives in a group.
class group_plan : public detail::handle<magi_group_plan, magi_group_plan_destroy> {
  public:
    using handle::handle;
    group_plan(comm_ref comm, const magi_group_args &args, const magi_config *config = nullptr)
        : handle(detail::out<magi_group_plan *>(
              [&](auto *p) { return magi_group_plan_create(comm.get(), &args, config, p); })) {}
    // flags: MAGI_GROUP_*.
    group_plan(comm_ref comm, std::int64_t local_rows, span<const magi_group_piece> sends, std::int64_t received_rows,
               span<const magi_group_piece> receives, span<const magi_group_tensor> tensors, std::uint32_t flags = 0,
               const magi_config *config = nullptr)
        : group_plan(comm,
                     magi_group_args{sizeof(magi_group_args), local_rows, received_rows, sends.data(), sends.size(),
                                     receives.data(), receives.size(), tensors.data(), tensors.size(), flags, 0},
                     config) {}

    void prepare(magi_stream stream = nullptr) const { check(magi_group_plan_prepare(get(), stream)); }
    std::size_t workspace_size() const {
        return detail::out<std::size_t>([&](auto *p) { return magi_group_plan_workspace_size(get(), p); });
    }
};

namespace detail {

// As many tensors of one parameter as of the other.
inline std::size_t count(const char *function, const char *name, span<const magi_tensor> given,
                         span<const magi_tensor> wanted) {
    if (given.size() != wanted.size()) {
        throw error(MAGI_STATUS_INVALID_ARGUMENT, std::string(function) + ": " + name + " has " +
                                                      std::to_string(given.size()) + " tensors; it must have " +
                                                      std::to_string(wanted.size()));
    }
    return given.size();
}

} // namespace detail

// Group collectives; the last tensors are the output.
inline void group_cast(const group_plan &plan, span<const magi_tensor> local, span<const magi_tensor> received,
                       magi_stream stream = nullptr) {
    check(magi_group_cast(plan.get(), local.data(), received.data(),
                          detail::count("magi::group_cast", "received", received, local), stream));
}
inline void group_reduce(const group_plan &plan, magi_group_op op, span<const magi_tensor> partial, bool accumulate,
                         span<const magi_tensor> local, magi_stream stream = nullptr) {
    check(magi_group_reduce(plan.get(), op, partial.data(), accumulate, local.data(),
                            detail::count("magi::group_reduce", "local", local, partial), stream));
}

} // namespace magi

#endif
