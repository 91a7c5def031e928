#pragma once
/// @file
/// Choices of attention experts: a routing with its plan, made once and read by every product that it serves, and the
/// losses on it.

#include <optional>
#include <vector>

#include "moe/balance/load.hpp"
#include "moe/balance/losses.hpp"
#include "moe/combine/combine.hpp"
#include "moe/combine/renormalize.hpp"
#include "moe/dispatch/dispatch.hpp"
#include "moe/layers/concepts.hpp"
#include "moe/layers/detail/parts.hpp"

MOE_NAMESPACE_BEGIN

/// A routing under its capacity: what load_report and LoadStatistics::add read, too.
template <class Real, class Space = Kokkos::DefaultExecutionSpace>
struct HeadRouting {
  moe::Routing<Real, Space> routing;
  Vector<Real, Space> weight;  ///< (A) after drops
  DispatchPlan<Space> plan;
};

namespace detail {

template <class Router>
inline constexpr bool routes_heads = RowSelection<typename Router::Selection>;

/// Says what is wrong with the router of a mixture of attention heads.
template <class Router>
struct CheckHeadRouter {
  static_assert(
      routes_heads<Router>,
      "moe: attention needs as many heads of every token, but this router's selection gives tokens any number "
      "of experts. Use a token's own choice such as TopK.");
};

/// Values of losses, coefficients included, and the stream that they are computed on.
template <class Space>
struct LossValues {
  std::optional<Space> space;    ///< the stream of the last forward
  Vector<double, Space> losses;  ///< (number of losses)

  /// The sum of the layer's losses, coefficients included. Waits for the device.
  double loss() const {
    double sum = 0;
    for (double value : loss_values()) sum += value;
    return sum;
  }
  /// Each loss in the order of the layer's arguments. Waits for the device.
  std::vector<double> loss_values() const { return read_losses<Space>(space, losses, "moe::Tape::loss_values"); }
};

/// The key of a router of heads' draws: a feed-forward layer of the same number, and other sides, draw other numbers.
inline std::uint32_t head_draws(std::uint32_t layer, int side) {
  return layer ^ (side == 0 ? 0x400000u : 0xC00000u);  // the layer's upper byte is not in the key
}

/// What acts on one routing, forward and backward.
template <class Router, class Capacity, class Losses, class Values, class T, class Space>
struct HeadRouter {
  using Real = RouterReal<T>;
  const Router& router;
  const Capacity& capacity;
  const Values& values;  // of the losses, among others
  Index experts;
  std::uint32_t layer;  // keys the draws
  static constexpr Index losses = length<Losses>;

  void forward(Context<Space>& ctx, const Batch<T, Space>& batch,
               const typename Router::template Parameters<Real, Space>& parameters,
               const typename Router::template Buffers<Real, Space>& buffers, HeadRouting<Real, Space>& to) const {
    router.forward(ctx, batch, parameters, buffers, experts, to.routing, layer);
    const auto& assignments = to.routing.assignments;
    dispatch(ctx, assignments, batch, experts, capacity, to.plan, layer);
    if (capacity.renormalize != Renormalize::never) {
      shape(to.weight, "moe::weight", assignments.bound);
      renormalize(ctx, assignments, to.plan, capacity.renormalize, to.weight);
    } else {
      to.weight = assignments.weight;
    }
  }

  /// Adds each loss to its entry.
  void add_losses(Context<Space>& ctx, const Batch<T, Space>& batch, const HeadRouting<Real, Space>& of,
                  double* to) const {
    each_loss(Losses{}, values, [&](const auto& loss, Index number) {
      loss.value(ctx, batch, of.routing, Vector<double, Space>(to + number, 1));
    });
  }

  /// From the gradient of the weights after drops, which is used up, to that of the input, added to dx (T, H).
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch,
                const typename Router::template Parameters<Real, Space>& parameters, const HeadRouting<Real, Space>& of,
                const Vector<Real, Space>& dweight, double loss_scale, const Matrix<T, Space>& dx,
                typename Router::template Parameters<Real, Space>& gradients) const {
    typename Context<Space>::Scratch scratch(ctx);
    const Index tokens = batch.tokens();
    const auto zeros = [&](bool wanted) {
      if (!wanted) return Matrix<Real, Space>{};
      auto matrix = scratch.template matrix<Real>(tokens, experts);
      fill(ctx.space, matrix, Real(0));
      return matrix;
    };
    const bool noisy = of.routing.clean_logits.is_allocated();
    if (capacity.renormalize != Renormalize::never)
      renormalize_backward(ctx, of.routing.assignments, of.plan, capacity.renormalize, dweight);
    const RoutingGradients<Real, Space> to{dweight, zeros(true), zeros(true), zeros(noisy), zeros(noisy)};
    each_loss(Losses{}, values,
              [&](const auto& loss, Index) { loss.backward(ctx, batch, of.routing, loss_scale, to); });
    router.backward(ctx, batch, parameters, of.routing, to, dx, gradients);
  }
};

template <class Space>
void check_counts(const char* layer, const LoadStatistics<Space>& statistics, Index experts) {
  require<ShapeError>(Index(statistics.counts().extent(0)) == experts, layer, "::update_balance: counts of ",
                      statistics.counts().extent(0), " experts for a router of ", experts,
                      ". Add the forward passes' plans to the statistics first.");
}

/// Moves a router's balancing bias by counts of its experts.
template <class Router, class Buffers, class Space>
void update_balance(const char* layer, Context<Space>& ctx, const Router& router, Index experts, Buffers& buffers,
                    const LoadStatistics<Space>& statistics) {
  check_counts(layer, statistics, experts);
  using Counts = Vector<const Index, Space>;
  router.update_balance(ctx, buffers, Counts(statistics.counts()), Counts(statistics.tokens()));
}

}  // namespace detail

MOE_NAMESPACE_END
