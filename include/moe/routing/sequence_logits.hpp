#pragma once
/// @file
/// Sentence-level routing: one decision for all tokens of a sequence.

#include "moe/routing/linear_logits.hpp"

MOE_NAMESPACE_BEGIN

/// The logits of `Inner` for the mean of a sequence's tokens, padding left out, given to each of them (Kudugunta et al.
/// 2021, "Beyond distillation", sentence-level routing; Octavius; MOA). It looks ahead: no model that generates text
/// token by token can use it on its own output.
template <class Inner = LinearLogits>
struct SequenceMeanLogits {
  using policy = kind::logits;
  Inner inner{};

  template <class Real, class Space>
  using Parameters = typename Inner::template Parameters<Real, Space>;
  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    return inner.template parameters<Real, Space>(shape);
  }

  template <class T, class Real, class Space, class P>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
               const Matrix<const Real, Space>& x, const P& p, Routing<Real, Space>& routing) const;
  template <class T, class Real, class Space, class P>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
                const Routing<Real, Space>& routing, const RoutingGradients<Real, Space>& of,
                const Matrix<const Real, Space>& x, const P& p, const Matrix<Real, Space>& dx, P& gradients) const;
};

namespace detail {

/// to(s) = sum of from(t) over the sequence's live tokens, divided by their number if `mean`; item = s * width + i.
template <class Real, class Space>
struct ReduceSequence {
  Groups<Space> sequences;
  Vector<const std::uint8_t, Space> mask;
  Matrix<const Real, Space> from;
  Matrix<Real, Space> to;
  bool mean;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index width = from.extent(1), s = item / width, i = item % width;
    const Index begin = sequences.begin(s), end = sequences.end(s), live = live_tokens<Space>(mask, begin, end);
    Real sum = 0;
    for (Index t = begin; t < end; ++t) sum += is_padding<Space>(mask, t) ? Real(0) : from(t, i);
    to(s, i) = mean && live > 0 ? sum / Real(live) : sum;
  }
};

/// to(t) = from(its sequence), divided by the sequence's live tokens if `mean`; zeros in padding.
template <class Real, class Space>
struct SpreadSequence {
  Groups<Space> sequences;
  Vector<const std::uint8_t, Space> mask;
  Matrix<const Real, Space> from;
  Matrix<Real, Space> to;
  bool mean;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index s = sequences.of(t);
    const bool padding = is_padding<Space>(mask, t);
    const Index live = mean && !padding ? live_tokens<Space>(mask, sequences.begin(s), sequences.end(s)) : 1;
    for (Index i = 0; i < Index(to.extent(1)); ++i) to(t, i) = padding ? Real(0) : from(s, i) / Real(live);
  }
};

}  // namespace detail

template <class Inner>
template <class T, class Real, class Space, class P>
void SequenceMeanLogits<Inner>::forward(Context<Space>& ctx, const Batch<T, Space>& batch,
                                        const detail::RowDraws<Space>&, const Matrix<const Real, Space>& x, const P& p,
                                        Routing<Real, Space>& routing) const {
  using Range = detail::Range<Space>;
  if (batch.tokens() == 0) return;
  const auto sequences = detail::groups(Scope::sequence(), batch);
  typename Context<Space>::Scratch scratch(ctx);
  auto mean = scratch.template matrix<Real>(sequences.count, x.extent(1));
  auto logits = scratch.template matrix<Real>(sequences.count, routing.logits.extent(1));
  Kokkos::parallel_for("moe::SequenceMeanLogits::mean", Range(ctx.space, 0, Index(mean.size())),
                       detail::ReduceSequence<Real, Space>{sequences, batch.mask, x, mean, true});
  inner.forward(ctx, Matrix<const Real, Space>(mean), p, logits);
  Kokkos::parallel_for("moe::SequenceMeanLogits::spread", Range(ctx.space, 0, batch.tokens()),
                       detail::SpreadSequence<Real, Space>{sequences, batch.mask, logits, routing.logits, false});
}

template <class Inner>
template <class T, class Real, class Space, class P>
void SequenceMeanLogits<Inner>::backward(Context<Space>& ctx, const Batch<T, Space>& batch,
                                         const detail::RowDraws<Space>&, const Routing<Real, Space>&,
                                         const RoutingGradients<Real, Space>& of, const Matrix<const Real, Space>& x,
                                         const P& p, const Matrix<Real, Space>& dx, P& gradients) const {
  using Range = detail::Range<Space>;
  using M = Matrix<const Real, Space>;
  if (batch.tokens() == 0) return;
  const auto sequences = detail::groups(Scope::sequence(), batch);
  typename Context<Space>::Scratch scratch(ctx);
  auto mean = scratch.template matrix<Real>(sequences.count, x.extent(1)),
       dmean = scratch.template matrix<Real>(sequences.count, x.extent(1));
  auto dlogits = scratch.template matrix<Real>(sequences.count, of.dlogits.extent(1));
  Kokkos::parallel_for("moe::SequenceMeanLogits::mean", Range(ctx.space, 0, Index(mean.size())),
                       detail::ReduceSequence<Real, Space>{sequences, batch.mask, x, mean, true});
  Kokkos::parallel_for("moe::SequenceMeanLogits::sum", Range(ctx.space, 0, Index(dlogits.size())),
                       detail::ReduceSequence<Real, Space>{sequences, batch.mask, of.dlogits, dlogits, false});
  inner.backward(ctx, M(dlogits), M(mean), p, dmean, gradients);
  Kokkos::parallel_for("moe::SequenceMeanLogits::spread", Range(ctx.space, 0, batch.tokens()),
                       detail::SpreadSequence<Real, Space>{sequences, batch.mask, dmean, dx, true});
}

MOE_NAMESPACE_END
