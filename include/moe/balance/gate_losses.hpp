#pragma once
/// @file
/// Losses on the gates themselves: importance and load (Shazeer et al. 2017), and the policy gradient.

#include "moe/balance/losses.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * CV(importance)^2, importance_e the sum of e's combine weights over the batch (Shazeer et al. 2017, eq.
/// 6 and 7; 0.1 there). CV^2 is the population variance over mean^2 + 1e-10, as in the authors' code: 0 at balance,
/// E / K - 1 where K experts have all alike.
struct ImportanceLoss {
  using policy = kind::loss;
  double coefficient = 0.1;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;
};

/// coefficient * CV(load)^2, load_e the sum of P(x, e): the probability that e is among the k chosen if its noise alone
/// is drawn anew (Shazeer et al. 2017, appendix A; 0.1 there). 0 where all experts are as likely, E / K - 1 where
/// the same K always win. Wants NoisyLogits, and acts only while its noise does.
struct LoadLoss {
  using policy = kind::loss;
  double coefficient = 0.1;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;
};

/// The policy gradient (REINFORCE; Bengio et al. 2015, "Conditional computation in neural networks"; Clark et al. 2022,
/// RL-R): -coefficient * mean over tokens of (r - baseline) * log softmax(z) of the first choice. Rewards r (T) are
/// Batch::rewards, read when backward runs: fill them between forward and backward. Choices should be sampled:
/// GumbelSampling. The value is that of the rewards as they are when forward runs.
struct ReinforceLoss {
  using policy = kind::loss;
  double coefficient = 1;
  double baseline = 0;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;

 private:
  template <class T, class Space>
  static void check(const Batch<T, Space>& batch) {
    detail::require<ShapeError>(Index(batch.rewards.extent(0)) == batch.tokens(),
                                "moe::ReinforceLoss: ", batch.rewards.extent(0), " rewards for ", batch.tokens(),
                                " tokens. Set Batch::rewards, a view of shape (T) to fill before backward.");
  }
};

namespace detail {

/// sums(e) = sum of parts(t, e) over live tokens, in order.
template <class Real, class Space>
struct SumColumns {
  Matrix<const double, Space> parts;
  Vector<double, Space> sums;
  KOKKOS_FUNCTION void operator()(Index e) const {
    double sum = 0;
    for (Index c = 0; c < Index(parts.extent(0)); ++c) sum += parts(c, e);
    sums(e) = sum;
  }
};

/// parts(chunk, e): the sum of e's combine weights in a chunk of tokens.
template <class Real, class Space>
struct ImportanceChunk {
  Assignments<Real, Space> assignments;
  Matrix<double, Space> parts;
  KOKKOS_FUNCTION void operator()(Index c) const {
    for (Index e = 0; e < Index(parts.extent(1)); ++e) parts(c, e) = 0;
    const Index last = (c + 1) * loss_chunk < assignments.tokens ? (c + 1) * loss_chunk : assignments.tokens;
    for (Index t = c * loss_chunk; t < last; ++t) {
      for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
        if (assignments.expert(a) != no_expert) parts(c, assignments.expert(a)) += double(assignments.weight(a));
      }
    }
  }
};

/// slope(e) = d CV^2 / d sums(e), and the value into slot, times factor; one work item.
template <class Space>
struct SquaredVariation {
  Vector<const double, Space> sums;
  double factor;
  Vector<double, Space> slope, slot;  // each may be empty
  KOKKOS_FUNCTION void operator()(Index) const {
    const Index n = sums.extent(0);
    double mean = 0, variance = 0;
    for (Index e = 0; e < n; ++e) mean += sums(e) / double(n);
    for (Index e = 0; e < n; ++e) variance += (sums(e) - mean) * (sums(e) - mean) / double(n);
    const double divisor = mean * mean + 1e-10;
    if (slot.data() != nullptr) slot(0) += factor * variance / divisor;
    if (slope.data() == nullptr) return;
    for (Index e = 0; e < n; ++e) {
      const double dvariance = 2 * (sums(e) - mean), dmean = -variance / divisor * 2 * mean;
      slope(e) = factor * (dvariance + dmean) / (double(n) * divisor);
    }
  }
};

template <class Real, class Space>
struct ImportanceGradient {
  Assignments<Real, Space> assignments;
  Vector<const double, Space> slope;
  Vector<Real, Space> dweight;
  KOKKOS_FUNCTION void operator()(Index t) const {
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
      if (assignments.expert(a) != no_expert) dweight(a) += Real(slope(assignments.expert(a)));
    }
  }
};

/// Who must be beaten: the k-th largest of the other experts' noisy logits.
template <class Real, class Space>
struct NoisyLoad {
  Routing<Real, Space> routing;
  Vector<const std::uint8_t, Space> mask;

  /// The experts with the k-th and the (k+1)-th largest logits (-1: there is none), lowest first among equals.
  KOKKOS_FUNCTION void thresholds(Index t, ExpertId& last_in, ExpertId& first_out) const {
    const Index k = routing.assignments.uniform_k, experts = routing.logits.extent(1);
    last_in = first_out = no_expert;
    for (Index e = 0; e < experts; ++e) {
      Index better = 0;
      for (Index o = 0; o < experts; ++o) {
        const bool above = routing.logits(t, o) > routing.logits(t, e);
        better += above || (routing.logits(t, o) == routing.logits(t, e) && o < e) ? 1 : 0;
      }
      if (better == k - 1) last_in = ExpertId(e);
      if (better == k) first_out = ExpertId(e);
    }
  }
  /// (clean - threshold) / deviation of expert e, and who is the threshold.
  KOKKOS_FUNCTION double margin(Index t, Index e, ExpertId last_in, ExpertId first_out, ExpertId& beaten) const {
    const bool in = first_out == no_expert || routing.logits(t, e) > routing.logits(t, first_out);
    beaten = in ? first_out : last_in;
    if (beaten == no_expert) return 40;  // every expert is chosen
    return (double(routing.clean_logits(t, e)) - double(routing.logits(t, beaten))) / double(routing.deviation(t, e));
  }
};

template <class Real, class Space>
struct LoadChunk {
  NoisyLoad<Real, Space> load;
  Matrix<double, Space> parts;
  KOKKOS_FUNCTION void operator()(Index c) const {
    const Index experts = parts.extent(1), tokens = load.routing.logits.extent(0);
    for (Index e = 0; e < experts; ++e) parts(c, e) = 0;
    const Index last = (c + 1) * loss_chunk < tokens ? (c + 1) * loss_chunk : tokens;
    for (Index t = c * loss_chunk; t < last; ++t) {
      if (is_padding<Space>(load.mask, t)) continue;
      ExpertId in, out, beaten;
      load.thresholds(t, in, out);
      for (Index e = 0; e < experts; ++e)
        parts(c, e) += 0.5 * (1 + Kokkos::erf(load.margin(t, e, in, out, beaten) * 0.7071067811865476));
    }
  }
};

/// Through clean logits, deviation, and the threshold, which is a noisy logit.
template <class Real, class Space>
struct LoadGradient {
  NoisyLoad<Real, Space> load;
  Vector<const double, Space> slope;
  RoutingGradients<Real, Space> to;
  KOKKOS_FUNCTION void operator()(Index t) const {
    if (is_padding<Space>(load.mask, t)) return;
    ExpertId in, out, beaten;
    load.thresholds(t, in, out);
    for (Index e = 0; e < Index(slope.extent(0)); ++e) {
      const double margin = load.margin(t, e, in, out, beaten), deviation = double(load.routing.deviation(t, e));
      if (beaten == no_expert) continue;
      const double g = slope(e) * 0.3989422804014327 * Kokkos::exp(-0.5 * margin * margin) / deviation;
      to.dclean(t, e) += Real(g);
      to.ddeviation(t, e) -= Real(g * margin);
      to.dlogits(t, beaten) -= Real(g);
    }
  }
};

template <class Real, class Space>
struct ReinforceTerm {
  Routing<Real, Space> routing;
  Vector<const std::uint8_t, Space> mask;
  Vector<const float, Space> rewards;
  double factor, baseline;
  Vector<double, Space> slot;
  Matrix<Real, Space> dlogits;

  KOKKOS_FUNCTION ExpertId first_choice(Index t) const {
    const auto& a = routing.assignments;
    return a.begin(t) < a.end(t) && !is_padding<Space>(mask, t) ? a.expert(a.begin(t)) : no_expert;
  }
  KOKKOS_FUNCTION double live() const {
    const Index n = live_tokens<Space>(mask, 0, routing.assignments.tokens);
    return n > 0 ? double(n) : 1.0;
  }
};

template <class Real, class Space>
struct ReinforceValue : ReinforceTerm<Real, Space> {
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0;
    for (Index t = 0; t < this->routing.assignments.tokens; ++t) {
      const ExpertId e = this->first_choice(t);
      if (e == no_expert) continue;
      const Row<Real> z = row_of(this->routing.logits, t);
      sum += (double(this->rewards(t)) - this->baseline) * double(z[e] - log_sum_exp(Row<const Real>{z.data, z.size}));
    }
    this->slot(0) += this->factor * sum / this->live();
  }
};

template <class Real, class Space>
struct ReinforceGradient : ReinforceTerm<Real, Space> {
  Vector<const Index, Space> tokens;  // (1) live ones
  KOKKOS_FUNCTION void operator()(Index t) const {
    const ExpertId chosen = this->first_choice(t);
    if (chosen == no_expert) return;
    const Row<Real> z = row_of(this->routing.logits, t);
    const Real total = log_sum_exp(Row<const Real>{z.data, z.size});
    const Real g = Real(this->factor * (double(this->rewards(t)) - this->baseline) / double(tokens(0)));
    for (Index e = 0; e < z.size; ++e)
      this->dlogits(t, e) += g * ((e == chosen ? Real(1) : Real(0)) - Kokkos::exp(z[e] - total));
  }
};

/// Column sums of a loss by chunks.
template <class Real, class Space, class Chunk>
Vector<double, Space> column_sums(Context<Space>& ctx, typename Context<Space>::Scratch& scratch, Index tokens,
                                  Index experts, Chunk chunk) {
  chunk.parts = scratch.template matrix<double>(chunks_of(tokens), experts);
  auto sums = scratch.template vector<double>(experts);
  Kokkos::parallel_for("moe::loss::chunks", detail::Range<Space>(ctx.space, 0, chunks_of(tokens)), chunk);
  Kokkos::parallel_for("moe::loss::columns", detail::Range<Space>(ctx.space, 0, experts),
                       SumColumns<Real, Space>{chunk.parts, sums});
  return sums;
}

}  // namespace detail

template <class T, class Real, class Space>
void ImportanceLoss::value(Context<Space>& ctx, const Batch<T, Space>&, const Routing<Real, Space>& routing,
                           const Vector<double, Space>& slot) const {
  typename Context<Space>::Scratch scratch(ctx);
  const auto& assignments = routing.assignments;
  auto sums = detail::column_sums<Real>(ctx, scratch, assignments.tokens, Index(routing.logits.extent(1)),
                                        detail::ImportanceChunk<Real, Space>{assignments, {}});
  Kokkos::parallel_for("moe::ImportanceLoss", detail::Range<Space>(ctx.space, 0, 1),
                       detail::SquaredVariation<Space>{sums, coefficient, {}, slot});
}

template <class T, class Real, class Space>
void ImportanceLoss::backward(Context<Space>& ctx, const Batch<T, Space>&, const Routing<Real, Space>& routing,
                              double scale, const RoutingGradients<Real, Space>& to) const {
  typename Context<Space>::Scratch scratch(ctx);
  const auto& assignments = routing.assignments;
  const Index experts = routing.logits.extent(1);
  auto sums = detail::column_sums<Real>(ctx, scratch, assignments.tokens, experts,
                                        detail::ImportanceChunk<Real, Space>{assignments, {}});
  auto slope = scratch.template vector<double>(experts);
  Kokkos::parallel_for("moe::ImportanceLoss", detail::Range<Space>(ctx.space, 0, 1),
                       detail::SquaredVariation<Space>{sums, scale * coefficient, slope, {}});
  Kokkos::parallel_for("moe::ImportanceLoss::backward", detail::Range<Space>(ctx.space, 0, assignments.tokens),
                       detail::ImportanceGradient<Real, Space>{assignments, slope, to.dweight});
}

namespace detail {

/// Is there noise whose load can be estimated? Refuses routers that never have any.
template <class Real, class Space>
bool has_load(const Routing<Real, Space>& routing) {
  require<ConfigError>(routing.clean_logits.is_allocated() && routing.assignments.uniform_k != 0,
                       "moe::LoadLoss: the router has no trainable noise, or no fixed number of choices. Give it "
                       "NoisyLogits and TopK.");
  return routing.noisy;
}

}  // namespace detail

template <class T, class Real, class Space>
void LoadLoss::value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                     const Vector<double, Space>& slot) const {
  if (!detail::has_load(routing)) return;
  typename Context<Space>::Scratch scratch(ctx);
  auto sums = detail::column_sums<Real>(ctx, scratch, batch.tokens(), Index(routing.logits.extent(1)),
                                        detail::LoadChunk<Real, Space>{{routing, batch.mask}, {}});
  Kokkos::parallel_for("moe::LoadLoss", detail::Range<Space>(ctx.space, 0, 1),
                       detail::SquaredVariation<Space>{sums, coefficient, {}, slot});
}

template <class T, class Real, class Space>
void LoadLoss::backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                        double scale, const RoutingGradients<Real, Space>& to) const {
  if (!detail::has_load(routing)) return;
  typename Context<Space>::Scratch scratch(ctx);
  const Index experts = routing.logits.extent(1);
  auto sums = detail::column_sums<Real>(ctx, scratch, batch.tokens(), experts,
                                        detail::LoadChunk<Real, Space>{{routing, batch.mask}, {}});
  auto slope = scratch.template vector<double>(experts);
  Kokkos::parallel_for("moe::LoadLoss", detail::Range<Space>(ctx.space, 0, 1),
                       detail::SquaredVariation<Space>{sums, scale * coefficient, slope, {}});
  Kokkos::parallel_for("moe::LoadLoss::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
                       detail::LoadGradient<Real, Space>{{routing, batch.mask}, slope, to});
}

template <class T, class Real, class Space>
void ReinforceLoss::value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                          const Vector<double, Space>& slot) const {
  check(batch);
  Kokkos::parallel_for(
      "moe::ReinforceLoss", detail::Range<Space>(ctx.space, 0, 1),
      detail::ReinforceValue<Real, Space>{{routing, batch.mask, batch.rewards, -coefficient, baseline, slot, {}}});
}

template <class T, class Real, class Space>
void ReinforceLoss::backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                             double scale, const RoutingGradients<Real, Space>& to) const {
  check(batch);
  typename Context<Space>::Scratch scratch(ctx);
  auto live = scratch.template vector<Index>(1);
  Kokkos::parallel_for("moe::ReinforceLoss::count", detail::Range<Space>(ctx.space, 0, 1),
                       detail::CountLive<Space>{batch.mask, batch.tokens(), live});
  Kokkos::parallel_for("moe::ReinforceLoss::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
                       detail::ReinforceGradient<Real, Space>{
                           {routing, batch.mask, batch.rewards, -coefficient * scale, baseline, {}, to.dlogits}, live});
}

MOE_NAMESPACE_END
