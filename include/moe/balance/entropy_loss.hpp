#pragma once
/// @file
/// `EntropyLoss`: the regulariser of sigma-MoE and SwitchHead.

#include "moe/balance/gate_losses.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * sum_e p_e log p_e, p the mean over tokens of softmax(logits): the negative entropy of the mean choice,
/// -log E where all experts are as likely and 0 where one has all (Csordás et al. 2023, "Approximating two-layer
/// feedforward networks for efficient transformers"). With `groups`, experts are that many groups of neighbours with a
/// softmax each, and the loss is the mean of theirs: the heads of SwitchHead (Csordás et al. 2024), which sets it.
struct EntropyLoss {
  using policy = kind::loss;
  double coefficient = 1e-3;
  Index groups = 1;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;

 private:
  template <class Real, class Space>
  void check(const Routing<Real, Space>& routing) const {
    detail::require<ConfigError>(groups > 0 && Index(routing.logits.extent(1)) % groups == 0,
                                 "moe::EntropyLoss: ", routing.logits.extent(1), " experts do not divide into ", groups,
                                 " groups.");
  }
};

namespace detail {

/// parts(chunk, e): the sum of e's probabilities in a chunk of tokens.
template <class Real, class Space>
struct ProbabilityChunk {
  Matrix<Real, Space> logits;
  Vector<const std::uint8_t, Space> mask;
  Index groups;
  Matrix<double, Space> parts;
  KOKKOS_FUNCTION void operator()(Index c) const {
    const Index tokens = logits.extent(0), size = Index(logits.extent(1)) / groups;
    const Index last = (c + 1) * loss_chunk < tokens ? (c + 1) * loss_chunk : tokens;
    for (Index e = 0; e < Index(parts.extent(1)); ++e) parts(c, e) = 0;
    for (Index t = c * loss_chunk; t < last; ++t) {
      if (is_padding<Space>(mask, t)) continue;
      for (Index g = 0; g < groups; ++g) {
        const Row<const Real> z{row_of(logits, t).data + g * size, size};
        const Real total = log_sum_exp(z);
        for (Index e = 0; e < size; ++e) parts(c, g * size + e) += double(Kokkos::exp(z[e] - total));
      }
    }
  }
};

/// The value into slot, and slope(e) = d value / d p_e / n, each where it is given; one work item.
template <class Space>
struct NegativeEntropy {
  Vector<const double, Space> sums;
  Vector<const std::uint8_t, Space> mask;
  Index tokens;
  double factor;
  Vector<double, Space> slope, slot;
  KOKKOS_FUNCTION void operator()(Index) const {
    const double n = double(live_tokens<Space>(mask, 0, tokens));
    double sum = 0;
    for (Index e = 0; e < Index(sums.extent(0)); ++e) {
      const double p = n > 0 ? sums(e) / n : 0.0, log_p = p > 0 ? Kokkos::log(p) : 0.0;
      sum += p * log_p;
      if (slope.data() != nullptr) slope(e) = n > 0 ? factor * (log_p + 1) / n : 0.0;
    }
    if (slot.data() != nullptr) slot(0) += factor * sum;
  }
};

template <class Real, class Space>
struct EntropyGradient {
  Matrix<Real, Space> logits;
  Vector<const std::uint8_t, Space> mask;
  Index groups;
  Vector<const double, Space> slope;
  Matrix<Real, Space> dlogits;
  KOKKOS_FUNCTION void operator()(Index t) const {
    if (is_padding<Space>(mask, t)) return;
    const Index size = Index(logits.extent(1)) / groups;
    for (Index first = 0; first < groups * size; first += size) {
      const Row<const Real> z{row_of(logits, t).data + first, size};
      const Real total = log_sum_exp(z);
      Real mean = 0;
      for (Index e = 0; e < size; ++e) mean += Kokkos::exp(z[e] - total) * Real(slope(first + e));
      for (Index e = 0; e < size; ++e)
        dlogits(t, first + e) += Kokkos::exp(z[e] - total) * (Real(slope(first + e)) - mean);
    }
  }
};

}  // namespace detail

template <class T, class Real, class Space>
void EntropyLoss::value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                        const Vector<double, Space>& slot) const {
  check(routing);
  typename Context<Space>::Scratch scratch(ctx);
  auto sums = detail::column_sums<Real>(ctx, scratch, batch.tokens(), Index(routing.logits.extent(1)),
                                        detail::ProbabilityChunk<Real, Space>{routing.logits, batch.mask, groups, {}});
  Kokkos::parallel_for(
      "moe::EntropyLoss", detail::Range<Space>(ctx.space, 0, 1),
      detail::NegativeEntropy<Space>{sums, batch.mask, batch.tokens(), coefficient / double(groups), {}, slot});
}

template <class T, class Real, class Space>
void EntropyLoss::backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                           double scale, const RoutingGradients<Real, Space>& to) const {
  check(routing);
  typename Context<Space>::Scratch scratch(ctx);
  const Index experts = routing.logits.extent(1);
  auto sums = detail::column_sums<Real>(ctx, scratch, batch.tokens(), experts,
                                        detail::ProbabilityChunk<Real, Space>{routing.logits, batch.mask, groups, {}});
  auto slope = scratch.template vector<double>(experts);
  Kokkos::parallel_for("moe::EntropyLoss", detail::Range<Space>(ctx.space, 0, 1),
                       detail::NegativeEntropy<Space>{
                           sums, batch.mask, batch.tokens(), scale * coefficient / double(groups), slope, {}});
  Kokkos::parallel_for("moe::EntropyLoss::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
                       detail::EntropyGradient<Real, Space>{routing.logits, batch.mask, groups, slope, to.dlogits});
}

MOE_NAMESPACE_END
