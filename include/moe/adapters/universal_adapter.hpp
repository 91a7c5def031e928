#pragma once
/// @file
/// Forms around a form: `WithUniversal`, an adapter that serves every token beside the chosen ones, and
/// `FrozenAdapters`, whose mixing alone is trained.

#include "moe/adapters/low_rank_adapters.hpp"

MOE_NAMESPACE_BEGIN

/// The universal adapter's weight: what the chosen ones leave of one, or one.
struct RemainingWeight {};
struct FullWeight {};

/// y of `Inner`, plus u(t) scaling B A x with one adapter for every token. u = 1 - sum of the token's weights (Gou et
/// al. 2023, "MoCLE": w routed + (1 - w) universal), or FullWeight: 1 (a shared path; MLoRE, MITLoRA). The
/// scaling is that of one of Inner's adapters.
template <class InnerForm = LowRankAdapters<>, class Share = RemainingWeight>
struct WithUniversal {
  using policy = kind::adapters;
  using Inner = InnerForm;
  static constexpr bool remaining = std::is_same_v<Share, RemainingWeight>;
  static_assert(std::is_same_v<Share, RemainingWeight> || std::is_same_v<Share, FullWeight>,
                "moe::WithUniversal: the universal adapter's weight is RemainingWeight or FullWeight.");
  Inner inner{};

  template <class T, class Space>
  struct Parameters {
    typename Inner::template Parameters<T, Space> inner;
    LowRank<T, Space> universal;  ///< one adapter
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(inner)::visit(f, same.inner...);
      decltype(universal)::visit(detail::Prefixed{f, "universal."}, same.universal...);
    }
  };
  template <class T, class Space>
  struct Saved {
    typename Inner::template Saved<T, Space> inner;
    Matrix<T, Space> down;               ///< (T, r) the universal A x
    Vector<RouterReal<T>, Space> share;  ///< (T) u
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(LowRankShape shape) const {
    auto own = inner.template parameters<T, Space>(shape);
    shape.adapters = 1;
    return {own, LowRankAdapters<>{}.template parameters<T, Space>(shape)};
  }
  template <class T, class Space>
  void start(const Space& space, const Parameters<T, Space>& p) const {
    inner.start(space, p.inner);
    LowRankAdapters<>{}.start(space, p.universal);
  }

  template <class T, class Space, bool all>
  void forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Parameters<T, Space>& p,
               const Matrix<T, Space>& y, Saved<T, Space>& saved) const;
  template <class T, class Space, bool all>
  void backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Matrix<T, Space>& dy,
                const Parameters<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                const Vector<RouterReal<T>, Space>& dweight, Parameters<T, Space>& gradients) const;

 private:
  template <class T, class Space, bool all>
  static double factor(const AdapterInput<T, Space, all>& in, const Parameters<T, Space>& p) {
    return Inner::scaling(in.alpha, {in.experts(), p.universal.in(), p.universal.out(), p.universal.rank()});
  }
};

/// Low-rank adapters that are not trained, trained apart before: only the router is (Buehler and Buehler 2024,
/// "X-LoRA"). They are in no visit, so that no optimiser and no checkpoint sees them: assign their arrays to
/// `parameters.adapters.frozen`; where a layer has several maps, to that of each: layer.q().parameters.adapters.frozen.
template <class InnerForm = LowRankAdapters<>>
struct FrozenAdapters {
  using policy = kind::adapters;
  using Inner = InnerForm;

  template <class T, class Space>
  struct Parameters {
    LowRank<T, Space> frozen;
    template <class F, class... Same>
    static void visit(F&&, Same&...) {}
  };
  template <class T, class Space>
  using Saved = typename Inner::template Saved<T, Space>;
  Inner inner{};

  static double scaling(double alpha, const LowRankShape& shape) { return Inner::scaling(alpha, shape); }
  template <class T, class Space>
  Parameters<T, Space> parameters(const LowRankShape& shape) const {
    return {inner.template parameters<T, Space>(shape)};
  }
  template <class T, class Space>
  void start(const Space&, const Parameters<T, Space>&) const {}

  template <class T, class Space, bool all>
  void forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Parameters<T, Space>& p,
               const Matrix<T, Space>& y, Saved<T, Space>& saved) const {
    inner.forward(ctx, in, p.frozen, y, saved);
  }
  template <class T, class Space, bool all>
  void backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Matrix<T, Space>& dy,
                const Parameters<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                const Vector<RouterReal<T>, Space>& dweight, Parameters<T, Space>&) const {
    LowRank<T, Space> none;  // gradients are not even computed
    inner.backward(ctx, in, dy, p.frozen, saved, dx, dweight, none);
  }
};

namespace detail {

/// share(t) = 1, or 1 - the sum of the weights of the token's rows; 0 in padding.
template <class Real, class Space>
struct UniversalShare {
  DispatchPlan<Space> plan;
  Vector<const Real, Space> weight;  // (A)
  Vector<const std::uint8_t, Space> mask;
  Vector<Real, Space> share;
  bool remaining;
  KOKKOS_FUNCTION void operator()(Index t) const {
    Real sum = 0;
    for (Index n = plan.token_offsets(t); remaining && n < plan.token_offsets(t + 1); ++n)
      sum += weight(plan.row_assignment(plan.token_rows(n)));
    share(t) = is_padding<Space>(mask, t) ? Real(0) : Real(1) - sum;
  }
};
/// Its backward: the weights' gradients, in place.
template <class Real, class Space>
struct UniversalShareGradient {
  DispatchPlan<Space> plan;
  Vector<const Real, Space> dshare;
  Vector<Real, Space> dweight;
  KOKKOS_FUNCTION void operator()(Index t) const {
    for (Index n = plan.token_offsets(t); n < plan.token_offsets(t + 1); ++n)
      dweight(plan.row_assignment(plan.token_rows(n))) -= dshare(t);
  }
};

}  // namespace detail

template <class InnerForm, class Share>
template <class T, class Space, bool all>
void WithUniversal<InnerForm, Share>::forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in,
                                              const Parameters<T, Space>& p, const Matrix<T, Space>& y,
                                              Saved<T, Space>& saved) const {
  using Real = RouterReal<T>;
  inner.forward(ctx, in, p.inner, y, saved.inner);
  detail::shape(saved.share, "moe::universal_share", in.tokens());
  detail::shape(saved.down, "moe::universal_down", in.tokens(), p.universal.rank());
  detail::each(
      ctx.space, "moe::universal_share", in.tokens(),
      detail::UniversalShare<Real, Space>{in.mixture.plan, in.mixture.weight, in.batch.mask, saved.share, remaining});
  detail::low_rank_mixture<T, Space>(ctx, in.x, p.universal, {saved.share, {}, 1}, factor(in, p), saved.down, y);
}

template <class InnerForm, class Share>
template <class T, class Space, bool all>
void WithUniversal<InnerForm, Share>::backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in,
                                               const Matrix<T, Space>& dy, const Parameters<T, Space>& p,
                                               const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                                               const Vector<RouterReal<T>, Space>& dweight,
                                               Parameters<T, Space>& gradients) const {
  using Real = RouterReal<T>;
  using M = Matrix<const T, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  auto dshare = scratch.template vector<Real>(in.tokens());
  inner.backward(ctx, in, dy, p.inner, saved.inner, dx, dweight, gradients.inner);
  detail::low_rank_mixture_backward<T, Space>(ctx, in.x, p.universal, {saved.share, {}, 1}, factor(in, p),
                                              M(saved.down), M(dy), dx, dshare, gradients.universal);
  if constexpr (remaining)
    detail::each(ctx.space, "moe::universal_share", in.tokens(),
                 detail::UniversalShareGradient<Real, Space>{in.mixture.plan, dshare, dweight});
}

MOE_NAMESPACE_END
