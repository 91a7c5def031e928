#pragma once
/// @file
/// S-BASE (Clark et al. 2022, "Unified scaling laws for routed language models"; Megatron-LM's sinkhorn): balanced
/// assignment relaxed to a plan of optimal transport, so that loads are nearly equal at little cost.

#include <limits>

#include "moe/routing/balanced_assignment.hpp"

MOE_NAMESPACE_BEGIN

/// The k best experts of each token. While training, by the plan exp(key + f_t + g_e) of its group of n tokens, in
/// which each token's row sums to 1 and each expert's column to n / E; otherwise by its keys. Of equals the lowest
/// expert; keys of -infinity are never chosen. Padding gets nothing and is not counted in n. Weights are the scores'.
///
/// Keys are to be logits: put ChooseByLogits beside it. Megatron-LM's scores are Sigmoid's for k = 1, else Softmax's.
/// Its plan is the same but for a factor n and for where it stops.
///
/// Two kernels an iteration, none waited for by a device; hosts leave off early. Results do not depend on threads.
template <int fixed_k = 1>
struct Sinkhorn {
  using policy = kind::selection;
  int k = fixed_k;
  Scope scope = Scope::batch();  ///< the tokens whose plan is balanced
  double tolerance = 1e-3;       ///< ends once no column is off by more than this share; rows are then about as exact
  int max_iterations = 100;      ///< ends in any case: balance may be out of reach where keys are -infinity

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(k > 0 && k <= shape.experts, "moe::Sinkhorn: cannot choose ", k, " of ", shape.experts,
                                 " experts. Choose 1 to ", shape.experts, ".");
    detail::require<ConfigError>(tolerance >= 0 && max_iterations > 0, "moe::Sinkhorn: tolerance is ", tolerance,
                                 " and max_iterations ", max_iterations, "; at least 0 and 1 work.");
  }

  template <class T, class Space>
  Index bound(const Batch<T, Space>& batch, Index) const {
    return batch.tokens() * k;
  }

  template <class T, class Real, class Space>
  void select(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch,
              Assignments<Real, Space>& assignments) const;

  /// Throws where a graph is captured that cannot hold it.
  template <class Space>
  static void check_capture(const Context<Space>& ctx) {
    if (!detail::device_path<Space> && ctx.training)
      detail::refuse_capture(ctx.space, "On hosts moe::Sinkhorn, which tests for convergence,",
                             "Capture on a device, where it runs max_iterations, or with ctx.training = false.");
  }

  /// Turns keys (T, E) into the plan's logarithm, in place: -infinity for padding and where a key was.
  template <class T, class Real, class Space>
  void log_plan(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch) const;
};

namespace detail {

/// The state of the iteration, and its kernels.
template <class Real, class Space>
struct SinkhornPlan {
  Groups<Space> groups;
  Matrix<Real, Space> keys;                // (T, E)
  Vector<const std::uint8_t, Space> mask;  // (T) or empty
  double tolerance;
  Vector<Real, Space> row;      // (T) f; -infinity for padding and for tokens without an expert
  Matrix<Real, Space> column;   // (G, E) g
  Matrix<double, Space> error;  // (2, G E) how far each column was off, before the last step and before the one to come
  int now = 0;                  // which of the two is the last step's

  /// Key (t, e) without NaN and +infinity; large ones are cut so that no sum below overflows.
  KOKKOS_FUNCTION Real key(Index t, Index e) const {
    const Real infinity = Kokkos::Experimental::infinity_v<Real>, most = Kokkos::Experimental::finite_max_v<Real> / 8;
    const Real value = keys(t, e);
    if (!(value > -infinity)) return -infinity;
    return value > most ? most : value < -most ? -most : value;
  }

  KOKKOS_FUNCTION bool settled(Index g) const {
    bool all = true;
    for (Index i = g * Index(keys.extent(1)); i < (g + 1) * Index(keys.extent(1)); ++i)
      all = all && error(now, i) <= tolerance;
    return all;
  }
};

/// f_t = -log sum_e exp(key + g_e).
template <class Real, class Space>
struct SinkhornRow {
  SinkhornPlan<Real, Space> plan;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index g = plan.groups.of(t), experts = plan.keys.extent(1);
    if (plan.settled(g)) return;
    const Real infinity = Kokkos::Experimental::infinity_v<Real>;
    plan.row(t) = -infinity;
    if (is_padding<Space>(plan.mask, t)) return;
    const Team team;
    const Real top = team.max<Real>(experts, [&](Index e) { return plan.key(t, e) + plan.column(g, e); });
    if (top == -infinity) return;
    const double sum = team.sum<double>(
        experts, [&](Index e) { return double(Kokkos::exp(plan.key(t, e) + plan.column(g, e) - top)); });
    plan.row(t) = -top - Real(Kokkos::log(sum));
  }
};

/// g_e = log(n / E) - log sum_t exp(key + f_t); item = g * E + e. Notes how far the column was off.
template <class Real, class Space>
struct SinkhornColumn {
  SinkhornPlan<Real, Space> plan;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index experts = plan.keys.extent(1), g = item / experts, e = item % experts;
    double& error = plan.error(1 - plan.now, item);
    error = plan.error(plan.now, item);
    if (plan.settled(g)) return;
    error = 0;
    const Real infinity = Kokkos::Experimental::infinity_v<Real>;
    const Index begin = plan.groups.begin(g), end = plan.groups.end(g);
    Index tokens = 0;
    Real top = -infinity;
    for (Index t = begin; t < end; ++t) {
      if (plan.row(t) == -infinity) continue;
      ++tokens;
      const Real entry = plan.key(t, e) + plan.row(t);
      top = entry > top ? entry : top;
    }
    if (top == -infinity) return;  // nobody can take this expert
    double sum = 0;
    for (Index t = begin; t < end; ++t) sum += double(Kokkos::exp(plan.key(t, e) + plan.row(t) - top));
    const Real before = plan.column(g, e), after = Real(Kokkos::log(double(tokens) / double(experts) / sum)) - top;
    plan.column(g, e) = after;
    error = Kokkos::abs(Kokkos::exp(double(before) - double(after)) - 1);
  }
};

/// key + f_t + g_e, in place.
template <class Real, class Space>
struct SinkhornEntries {
  SinkhornPlan<Real, Space> plan;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index g = plan.groups.of(t);
    for (Index e = 0; e < Index(plan.keys.extent(1)); ++e)
      plan.keys(t, e) = plan.key(t, e) + plan.row(t) + plan.column(g, e);
  }
};

}  // namespace detail

template <int fixed_k>
template <class T, class Real, class Space>
void Sinkhorn<fixed_k>::log_plan(Context<Space>& ctx, const Matrix<Real, Space>& keys,
                                 const Batch<T, Space>& batch) const {
  const Index tokens = keys.extent(0), experts = keys.extent(1);
  if (tokens == 0) return;
  const auto groups = detail::groups(scope, batch);
  typename Context<Space>::Scratch scratch(ctx);
  detail::SinkhornPlan<Real, Space> plan{groups,
                                         keys,
                                         batch.mask,
                                         tolerance,
                                         scratch.template vector<Real>(tokens),
                                         scratch.template matrix<Real>(groups.count, experts),
                                         scratch.template matrix<double>(2, groups.count * experts)};
  detail::fill(ctx.space, plan.column, Real(0));
  detail::fill(ctx.space, plan.error, std::numeric_limits<double>::infinity());
  using Range = detail::Range<Space>;
  for (int i = 0; i < max_iterations; ++i) {
    Kokkos::parallel_for("moe::Sinkhorn::rows", Range(ctx.space, 0, tokens), detail::SinkhornRow<Real, Space>{plan});
    Kokkos::parallel_for("moe::Sinkhorn::columns", Range(ctx.space, 0, groups.count * experts),
                         detail::SinkhornColumn<Real, Space>{plan});
    plan.now = 1 - plan.now;
    if constexpr (!detail::device_path<Space>) {
      ctx.space.fence("moe::Sinkhorn");
      bool settled = true;
      for (Index g = 0; g < groups.count; ++g) settled = settled && plan.settled(g);
      if (settled) break;
    }
  }
  Kokkos::parallel_for("moe::Sinkhorn::entries", Range(ctx.space, 0, tokens),
                       detail::SinkhornEntries<Real, Space>{plan});
}

template <int fixed_k>
template <class T, class Real, class Space>
void Sinkhorn<fixed_k>::select(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch,
                               Assignments<Real, Space>& assignments) const {
  check_capture(ctx);
  if (ctx.training) log_plan(ctx, keys, batch);
  detail::choose_largest(ctx, keys, batch, k, assignments);
}

MOE_NAMESPACE_END
