#pragma once
/// @file
/// Cross entropy between logits and choices: teaches a token's own logit to say whether a choice over many tokens will
/// take it.

#include "moe/balance/losses.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * mean over tokens and experts of the binary cross entropy between sigmoid(z) and whether the expert was
/// among the token's choices, before drops (Raposo et al. 2024, "Mixture-of-Depths", section 3.5; 0.01 here). Logits
/// of the chosen are drawn above 0 and those of the others below, so that inference may choose by the sign of a logit,
/// without looking at later tokens. No gradient flows through the choice.
struct ChoiceCrossEntropy {
  using policy = kind::loss;
  double coefficient = 1e-2;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;
};

namespace detail {

/// Calls f(expert) once for each expert that token t chose.
template <class Real, class Space, class F>
KOKKOS_FUNCTION void each_choice(const Assignments<Real, Space>& assignments, Index t, const F& f) {
  for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
    const ExpertId e = assignments.expert(a);
    bool first = e != no_expert;
    for (Index earlier = assignments.begin(t); first && earlier < a; ++earlier) {
      first = assignments.expert(earlier) != e;
    }
    if (first) f(Index(e));
  }
}

/// The cross entropies of a chunk of tokens, added up: softplus(z) for every expert, less z for the chosen.
template <class Real, class Space>
struct ChoiceEntropyChunk {
  Routing<Real, Space> routing;
  Vector<const std::uint8_t, Space> mask;
  Vector<double, Space> parts;
  KOKKOS_FUNCTION void operator()(Index chunk) const {
    const Index first = chunk * loss_chunk, next = first + loss_chunk, tokens = routing.logits.extent(0);
    const Index last = next < tokens ? next : tokens;
    double sum = 0;
    for (Index t = first; t < last; ++t) {
      if (is_padding<Space>(mask, t)) continue;
      for (Index e = 0; e < Index(routing.logits.extent(1)); ++e) {
        const double z = double(routing.logits(t, e));
        sum += (z > 0 ? z : 0.0) + Kokkos::log1p(Kokkos::exp(-Kokkos::abs(z)));
      }
      each_choice(routing.assignments, t, [&](Index e) { sum -= double(routing.logits(t, e)); });
    }
    parts(chunk) = sum;
  }
};

/// d / dz = sigmoid(z) - chosen, over the number of live tokens.
template <class Real, class Space>
struct ChoiceEntropyGradient {
  Routing<Real, Space> routing;
  Vector<const std::uint8_t, Space> mask;
  Vector<Index, Space> live;
  double scale;
  Matrix<Real, Space> dlogits;
  KOKKOS_FUNCTION void operator()(Index t) const {
    if (is_padding<Space>(mask, t)) return;
    const Real factor = Real(scale / double(live(0)));
    for (Index e = 0; e < Index(dlogits.extent(1)); ++e)
      dlogits(t, e) += factor / (Real(1) + Kokkos::exp(-routing.logits(t, e)));
    each_choice(routing.assignments, t, [&](Index e) { dlogits(t, e) -= factor; });
  }
};

}  // namespace detail

template <class T, class Real, class Space>
void ChoiceCrossEntropy::value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                               const Vector<double, Space>& slot) const {
  typename Context<Space>::Scratch scratch(ctx);
  const Index chunks = detail::chunks_of(batch.tokens());
  auto parts = scratch.template vector<double>(chunks + 1);
  Kokkos::parallel_for("moe::ChoiceCrossEntropy", detail::Range<Space>(ctx.space, 0, chunks),
                       detail::ChoiceEntropyChunk<Real, Space>{routing, batch.mask, parts});
  Kokkos::parallel_for("moe::ChoiceCrossEntropy::sum", detail::Range<Space>(ctx.space, 0, 1),
                       detail::ZLossSum<Space>{parts, chunks, batch.mask, batch.tokens(),
                                               coefficient / double(routing.logits.extent(1)), slot});
}

template <class T, class Real, class Space>
void ChoiceCrossEntropy::backward(Context<Space>& ctx, const Batch<T, Space>& batch,
                                  const Routing<Real, Space>& routing, double scale,
                                  const RoutingGradients<Real, Space>& to) const {
  typename Context<Space>::Scratch scratch(ctx);
  auto live = scratch.template vector<Index>(1);
  Kokkos::parallel_for("moe::ChoiceCrossEntropy::count", detail::Range<Space>(ctx.space, 0, 1),
                       detail::CountLive<Space>{batch.mask, batch.tokens(), live});
  Kokkos::parallel_for(
      "moe::ChoiceCrossEntropy::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
      detail::ChoiceEntropyGradient<Real, Space>{routing, batch.mask, live,
                                                 scale * coefficient / double(routing.logits.extent(1)), to.dlogits});
}

MOE_NAMESPACE_END
