#pragma once
/// @file
/// `MergedWeight`: low-rank updates added into a frozen weight, and taken out again to the bit.

#include <algorithm>
#include <vector>

#include "moe/adapters/low_rank.hpp"
#include "moe/adapters/weighted_update.hpp"
#include "moe/core/each_row.hpp"
#include "moe/kernels/gemm.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// weight = T(weight + delta)
template <class T, class Space>
struct MergeRow {
  using Real = RouterReal<T>;
  Matrix<Real, Space> delta;
  Matrix<T, Space> weight;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index width = weight.extent(1);
    T* to = weight.data() + r * width;
    const Real* from = delta.data() + r * width;
    team.each_apart(width, [=](Index i) { to[i] = T(Real(to[i]) + from[i]); });
  }
};

}  // namespace detail

/// A weight into which updates of a `LowRank` are merged in place: W becomes W + the sum of scaling_n * B_n A_n (Hu et
/// al. 2021, section 4.1), so that the updated map costs what the plain one does.
///
///     moe::MergedWeight merged(weight);            // (out, in), or (E, out, in): experts
///     merged.merge(ctx, update, {{3, alpha / r}});  // update 3
///     merged.unmerge(ctx);                          // the weight's own bits again
///
/// Floating-point subtraction does not undo an addition, so a merge keeps what it overwrites: as many bytes as the
/// weight has (of experts, the slices merged), allocated by merge and given back by unmerge. Sums are in float (double
/// beside double) and round once. Work goes to ctx.space; unmerge waits for it.
///
/// An object that goes leaves the weight as it is, merged or not. While merged, the weight must not be changed
/// otherwise: unmerge writes the old bits over it.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
class MergedWeight {
 public:
  /// weight (out, in)
  explicit MergedWeight(const Matrix<T, Space>& weight) : kept_(1) {
    detail::require<ShapeError>(weight.is_allocated() && weight.span_is_contiguous(),
                                "moe::MergedWeight: the weight is empty, or its rows lie apart. Give a whole "
                                "moe::Matrix.");
    slices_.push_back(weight);
  }
  /// weight (E, out, in): each slice is merged on its own
  explicit MergedWeight(const Tensor3<T, Space>& weight) : kept_(weight.extent(0)) {
    detail::require<ShapeError>(weight.is_allocated() && weight.span_is_contiguous(),
                                "moe::MergedWeight: the weights are empty, or their rows lie apart. Give a whole "
                                "moe::Tensor3.");
    for (std::size_t e = 0; e < kept_.size(); ++e)
      slices_.push_back(Kokkos::subview(weight, e, Kokkos::ALL(), Kokkos::ALL()));
  }
  MergedWeight(const MergedWeight&) = delete;
  MergedWeight& operator=(const MergedWeight&) = delete;
  MergedWeight(MergedWeight&&) = default;
  MergedWeight& operator=(MergedWeight&&) = default;

  Index slices() const { return Index(slices_.size()); }
  /// Is an update in any slice?
  bool merged() const {
    return std::any_of(kept_.begin(), kept_.end(), [](const auto& kept) { return kept.is_allocated(); });
  }
  /// Is one in slice e?
  bool merged(Index e) const {
    check_slice(e);
    return kept_[std::size_t(e)].is_allocated();
  }

  /// Adds a sum of updates into an (out, in) weight. Throws ShapeError where they do not fit it, ConfigError for an
  /// update that is not there, Error where one is merged already; nothing is changed then.
  template <class U>
  void merge(Context<Space>& ctx, const LowRank<U, Space>& update, const std::vector<WeightedUpdate>& of) {
    detail::require<ShapeError>(slices() == 1, "moe::MergedWeight::merge: the weight has ", slices(),
                                " slices. Say which, or use merge_each.");
    merge(ctx, Index(0), update, of);
  }
  /// The same into slice e.
  template <class U>
  void merge(Context<Space>& ctx, Index e, const LowRank<U, Space>& update, const std::vector<WeightedUpdate>& of) {
    check_merge(e, update, of);
    add(ctx, e, update, of);
  }
  /// Adds scaling * B_e A_e into each slice e: update has one for each expert, as AdaptedExperts trains them.
  template <class U>
  void merge_each(Context<Space>& ctx, const LowRank<U, Space>& update, double scaling) {
    detail::require<ShapeError>(update.adapters() == slices(), "moe::MergedWeight::merge_each: ", update.adapters(),
                                " updates for ", slices(), " slices; each slice takes the one of its number.");
    for (Index e = 0; e < slices(); ++e) check_merge(e, update, {{e, scaling}});
    for (Index e = 0; e < slices(); ++e) add(ctx, e, update, {{e, scaling}});
  }

  /// Puts the bits from before the merge back, in all slices that have one. Throws Error where none has.
  void unmerge(Context<Space>& ctx) {
    detail::require<Error>(merged(), "moe::MergedWeight::unmerge: nothing is merged.");
    for (Index e = 0; e < slices(); ++e)
      if (merged(e)) unmerge(ctx, e);
  }
  /// The same in slice e.
  void unmerge(Context<Space>& ctx, Index e) {
    detail::require<Error>(merged(e), "moe::MergedWeight::unmerge: nothing is merged into slice ", e, ".");
    auto& kept = kept_[std::size_t(e)];
    Kokkos::deep_copy(ctx.space, slices_[std::size_t(e)], kept);
    ctx.space.fence("moe::MergedWeight::unmerge");  // before its memory goes
    kept = {};
  }

 private:
  using Real = RouterReal<T>;
  static constexpr Index block = 256;  // rows whose update is in scratch memory at a time

  void check_slice(Index e) const {
    detail::require<ConfigError>(e >= 0 && e < slices(), "moe::MergedWeight: slice ", e, " of ", slices(), ".");
  }

  template <class U>
  void check_merge(Index e, const LowRank<U, Space>& update, const std::vector<WeightedUpdate>& of) const {
    check_slice(e);
    const auto& weight = slices_[std::size_t(e)];
    detail::require<ShapeError>(update.out() == Index(weight.extent(0)) && update.in() == Index(weight.extent(1)),
                                "moe::MergedWeight::merge: an update of a map from ", update.in(), " to ", update.out(),
                                " for a weight (out, in) of shape (", weight.extent(0), ", ", weight.extent(1), ").");
    detail::check_updates("moe::MergedWeight::merge", update, of);
    detail::require<Error>(!kept_[std::size_t(e)].is_allocated(), "moe::MergedWeight::merge: slice ", e,
                           " has an update merged already. Unmerge it first; several at once go into one merge.");
  }

  template <class U>
  void add(Context<Space>& ctx, Index e, const LowRank<U, Space>& update, const std::vector<WeightedUpdate>& of) {
    const auto& weight = slices_[std::size_t(e)];
    auto& kept = kept_[std::size_t(e)];
    kept = detail::allocate<Matrix<T, Space>>("moe::MergedWeight", weight.extent(0), weight.extent(1));
    Kokkos::deep_copy(ctx.space, kept, weight);

    typename Context<Space>::Scratch scratch(ctx);
    const Index out = update.out(), in = update.in(), rank = update.rank(), width = rank * Index(of.size());
    auto b = scratch.template matrix<Real>(out, width), a = scratch.template matrix<Real>(width, in);
    detail::stack_updates(ctx.space, update, of, b, a);
    auto delta = scratch.template matrix<Real>(std::min(block, out), in);
    for (Index first = 0; first < out; first += block) {
      const Index rows = std::min(block, out - first);
      const Matrix<Real, Space> part(delta.data(), rows, in);
      kernels::dense_backward_rows<Real, Space>(ctx.space,
                                                Matrix<const Real, Space>(b.data() + first * width, rows, width),
                                                Matrix<const Real, Space>(a), part, false);
      detail::each_wide_row(ctx.space, "moe::MergedWeight", rows, in,
                            detail::MergeRow<T, Space>{part, Matrix<T, Space>(weight.data() + first * in, rows, in)});
    }
  }

  std::vector<Matrix<T, Space>> slices_;  // (out, in) each, views of the weight
  std::vector<Matrix<T, Space>> kept_;    // what a merge overwrote; empty where none is
};

MOE_NAMESPACE_END
