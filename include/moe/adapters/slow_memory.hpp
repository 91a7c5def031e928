#pragma once
/// @file
/// Two memories of one adapter (Ren et al. 2024, "Analyzing and reducing catastrophic forgetting in parameter efficient
/// tuning", I-LoRA): a slow average of the fast adapter's weights, and the loss that holds both together on old inputs.

#include "moe/core/batch.hpp"
#include "moe/core/context.hpp"
#include "moe/core/each_row.hpp"
#include "moe/core/parameter.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class T>
struct MoveAverage {
  const T* fast;
  T* slow;
  RouterReal<T> decay;
  KOKKOS_FUNCTION void operator()(Index i) const {
    using Real = RouterReal<T>;
    slow[i] = T(decay * Real(slow[i]) + (Real(1) - decay) * Real(fast[i]));
  }
};

/// d = y - other in live rows; parts(t) = its squares.
template <class T, class Space>
struct ConsistencyRow {
  Matrix<const T, Space> y, other;
  Vector<const std::uint8_t, Space> mask;
  double factor;                // of the gradient: 2 coefficient / (live H), the count found by the caller
  Vector<double, Space> count;  // (1) live tokens
  Vector<double, Space> parts;  // (T), or empty
  Matrix<T, Space> dy;          // added to, or empty
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const bool live = !is_padding<Space>(mask, t) && count(0) > 0;
    const Index width = y.extent(1);
    double sum = 0;  // of this lane
    team.each(width, [&](Index i) {
      const double d = live ? double(y(t, i)) - double(other(t, i)) : 0.0;
      sum += d * d;
      if (dy.data() != nullptr && live) dy(t, i) = T(double(dy(t, i)) + factor * d / count(0));
    });
    sum = team.total_of(sum);
    if (parts.data() != nullptr) team.single([&] { parts(t) = sum; });
  }
};
template <class Space>
struct ConsistencyCount {
  Vector<const std::uint8_t, Space> mask;
  Index tokens;
  Vector<double, Space> count;
  KOKKOS_FUNCTION void operator()(Index) const { count(0) = double(live_tokens<Space>(mask, 0, tokens)); }
};
template <class Space>
struct ConsistencySum {
  Vector<const double, Space> parts, count;
  double factor;
  Vector<double, Space> slot;
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0;
    for (Index t = 0; t < Index(parts.extent(0)); ++t) sum += parts(t);
    if (count(0) > 0) slot(0) += factor * sum / count(0);
  }
};

}  // namespace detail

/// slow = decay * slow + (1 - decay) * fast, array by array of a layer's parameters: once an optimiser step. Start the
/// slow ones as a copy.
template <class Parameters, class Space>
void move_average(Context<Space>& ctx, const Parameters& fast, const Parameters& slow, double decay) {
  detail::require<ConfigError>(decay >= 0 && decay <= 1, "moe::move_average: decay ", decay,
                               "; it must lie between 0 and 1.");
  auto move = [&](std::string_view, const auto& from, const auto& to) {
    using T = typename std::decay_t<decltype(to)>::value_type;
    if (!to.is_allocated() || to.size() == 0) return;
    Kokkos::parallel_for("moe::move_average", detail::Range<Space>(ctx.space, 0, Index(to.size())),
                         detail::MoveAverage<T>{from.data(), to.data(), RouterReal<T>(decay)});
  };
  Parameters::visit(move, fast, slow);
}

/// coefficient * mean over live tokens and columns of (fast - slow)^2, where both are what the two memories gave for
/// the same (replayed) batch: I-LoRA's consistency loss. The slow memory gets no gradient.
struct ConsistencyLoss {
  double coefficient = 1;

  /// Adds to the double behind slot.
  template <class T, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Matrix<const T, Space>& fast,
             const std::type_identity_t<Matrix<const T, Space>>& slow, const Vector<double, Space>& slot) const {
    typename Context<Space>::Scratch scratch(ctx);
    auto count = scratch.template vector<double>(1), parts = scratch.template vector<double>(batch.tokens());
    rows(ctx, batch, fast, slow, 0, count, parts, {});
    detail::each(ctx.space, "moe::ConsistencyLoss::sum", 1,
                 detail::ConsistencySum<Space>{parts, count, per_column(fast), slot});
  }
  /// Adds scale * gradient to dfast (T, H).
  template <class T, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Matrix<const T, Space>& fast,
                const std::type_identity_t<Matrix<const T, Space>>& slow, double scale,
                const std::type_identity_t<Matrix<T, Space>>& dfast) const {
    typename Context<Space>::Scratch scratch(ctx);
    auto count = scratch.template vector<double>(1);
    rows(ctx, batch, fast, slow, 2 * scale * per_column(fast), count, {}, dfast);
  }

 private:
  template <class View>
  double per_column(const View& fast) const {
    return fast.extent(1) > 0 ? coefficient / double(fast.extent(1)) : 0;
  }
  template <class T, class Space>
  static void rows(Context<Space>& ctx, const Batch<T, Space>& batch, const Matrix<const T, Space>& fast,
                   const Matrix<const T, Space>& slow, double factor, const Vector<double, Space>& count,
                   const Vector<double, Space>& parts, const Matrix<T, Space>& dfast) {
    const Index tokens = batch.tokens();
    for (const auto* y : {&fast, &slow})
      detail::require<ShapeError>(Index(y->extent(0)) == tokens && y->extent(1) == fast.extent(1),
                                  "moe::ConsistencyLoss: outputs of shape (", y->extent(0), ", ", y->extent(1),
                                  ") for ", tokens, " tokens and ", fast.extent(1), " columns.");
    detail::each(ctx.space, "moe::ConsistencyLoss::count", 1,
                 detail::ConsistencyCount<Space>{batch.mask, tokens, count});
    detail::each_row(ctx.space, "moe::ConsistencyLoss", tokens,
                     detail::ConsistencyRow<T, Space>{fast, slow, batch.mask, factor, count, parts, dfast});
  }
};

MOE_NAMESPACE_END
