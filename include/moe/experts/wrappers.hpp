#pragma once
/// @file
/// Experts around experts: some that do nothing, and outputs of unit size.

#include "moe/experts/ffn.hpp"

MOE_NAMESPACE_BEGIN

/// What the extra experts of `WithExtraExperts` give: their input (LongCat-Flash's zero-computation experts), or
/// nothing (null experts, which let a token use fewer real ones).
struct IdentityOutput {};
struct NullOutput {};

namespace detail {

/// Rows of the experts behind the first `real` ones: to = from, or 0.
template <class T, class Space>
struct ExtraRows {
  DispatchPlan<Space> plan;
  Index real;
  bool identity;
  Matrix<T, Space> from, to;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r < plan.expert_offsets(real) || r >= plan.expert_offsets(plan.experts)) return;
    team.each(Index(to.extent(1)), [&](Index h) { to(r, h) = identity ? from(r, h) : T(0); });
  }
};

}  // namespace detail

/// The last `extra` of a layer's E experts compute nothing; the others are `Inner`'s.
template <class Inner, int extra, class Output = IdentityOutput>
struct WithExtraExperts {
  using policy = kind::experts;
  static constexpr bool identity = std::is_same_v<Output, IdentityOutput>;
  static_assert(extra > 0, "moe::WithExtraExperts<Inner, n>: n is the number of extra experts, at least 1.");
  Inner inner{};

  template <class T, class Space>
  using Parameters = typename Inner::template Parameters<T, Space>;
  template <class T, class Space>
  using Saved = typename Inner::template Saved<T, Space>;

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    detail::require<ConfigError>(shape.experts > extra, "moe::WithExtraExperts: ", extra, " of ", shape.experts,
                                 " experts compute nothing; none is left to compute.");
    return inner.template parameters<T, Space>({shape.experts - extra, shape.hidden, shape.intermediate});
  }

  template <class T, class Space, class P, class S>
  void forward(Context<Space>& ctx, const Matrix<T, Space>& rows, const DispatchPlan<Space>& plan, const P& p,
               const Matrix<T, Space>& out, S& saved) const {
    inner.forward(ctx, rows, real_plan(plan), p, out, saved);
    pass<T>(ctx, plan, rows, out);
  }

  template <class T, class Space, class P, class S>
  void backward(Context<Space>& ctx, const Matrix<T, Space>& dout, const DispatchPlan<Space>& plan, const P& p,
                const Matrix<T, Space>& rows, const S& saved, const Matrix<T, Space>& drows, P& gradients) const {
    pass<T>(ctx, plan, dout, drows);  // first: the inner experts may use up dout
    inner.backward(ctx, dout, real_plan(plan), p, rows, saved, drows, gradients);
  }

  template <class T, class Space>
  auto workspace(typename Context<Space>::Scratch& scratch, Index rows, const Parameters<T, Space>& p) const
      -> decltype(inner.template workspace<T, Space>(scratch, rows, p)) {
    return inner.template workspace<T, Space>(scratch, rows, p);
  }

 private:
  template <class Space>
  static DispatchPlan<Space> real_plan(DispatchPlan<Space> plan) {
    plan.experts -= extra;
    return plan;
  }
  template <class T, class Space>
  static void pass(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<T, Space>& from,
                   const Matrix<T, Space>& to) {
    detail::each_wide_row(ctx.space, "moe::WithExtraExperts", plan.rows, Index(to.extent(1)),
                          detail::ExtraRows<T, Space>{plan, plan.experts - extra, identity, from, to});
  }
};

/// How `NormalizedExperts` norms: to unit length; or u / rms(u) with u = out * (1 + w), w trained and shared by all
/// experts (Muse Spark's post_expert_norm).
struct UnitLength {};
struct ScaledUnitRms {};

namespace detail {

/// out = raw * scale / sqrt(mean or sum of squares + epsilon), and its pullback; scale is 1 + w, or 1.
template <class T, class Space>
struct NormExpertRow {
  using Real = RouterReal<T>;
  DispatchPlan<Space> plan;
  Matrix<T, Space> raw, out;
  Vector<T, Space> weight;  // (H) or empty
  Real epsilon;
  bool mean;
  Matrix<T, Space> dout;  // empty: forward. In: of out; out: of raw
  Matrix<Real, Space> dscaled;

  KOKKOS_FUNCTION Real scale(Index h) const { return weight.data() == nullptr ? Real(1) : Real(1) + Real(weight(h)); }
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) {
      team.each(Index(dscaled.extent(1)), [&](Index h) { dscaled(r, h) = 0; });
      return;
    }
    const Index width = raw.extent(1);
    const Real squares =
        team.sum<Real>(width, [&](Index h) { return Real(raw(r, h)) * scale(h) * Real(raw(r, h)) * scale(h); });
    const Real n = mean ? Real(width) : Real(1), inverse = Real(1) / Kokkos::sqrt(squares / n + epsilon);
    if (dout.data() == nullptr) {
      team.each(width, [&](Index h) { out(r, h) = T(Real(raw(r, h)) * scale(h) * inverse); });
      return;
    }
    const Real dot =
        team.sum<Real>(width, [&](Index h) { return Real(raw(r, h)) * scale(h) * inverse * Real(dout(r, h)); });
    team.each(width, [&](Index h) {
      const Real u = Real(raw(r, h)) * scale(h) * inverse, g = inverse * (Real(dout(r, h)) - u * dot / n);
      if (dscaled.data() != nullptr) dscaled(r, h) = g * Real(raw(r, h));
      dout(r, h) = T(g * scale(h));
    });
  }
};

}  // namespace detail

/// Each expert's output normed. With UnitLength the router alone says how long a token's update is: the geometric view
/// of routing, in which experts give directions.
template <class Inner, class Norm = UnitLength>
struct NormalizedExperts {
  using policy = kind::experts;
  static constexpr bool weighted = std::is_same_v<Norm, ScaledUnitRms>;
  double epsilon = 1e-6;  ///< under the square root
  Inner inner{};

  template <class T, class Space>
  struct Parameters : Inner::template Parameters<T, Space> {
    Vector<T, Space> norm;  ///< (H), 0 at the start, where trained
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      Inner::template Parameters<T, Space>::visit(f, same...);
      if constexpr (weighted) f("post_expert_norm.weight", same.norm...);
    }
  };
  template <class T, class Space>
  struct Saved {
    typename Inner::template Saved<T, Space> inner;
    Matrix<T, Space> raw;  ///< (R, H)
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    Parameters<T, Space> p{inner.template parameters<T, Space>(shape), {}};
    if constexpr (weighted) p.norm = Vector<T, Space>("moe::post_expert_norm", shape.hidden);
    return p;
  }

  template <class T, class Space>
  void forward(Context<Space>& ctx, const Matrix<T, Space>& rows, const DispatchPlan<Space>& plan,
               const Parameters<T, Space>& p, const Matrix<T, Space>& out, Saved<T, Space>& saved) const {
    detail::shape(saved.raw, "moe::raw", out.extent(0), out.extent(1));
    inner.forward(ctx, rows, plan, p, saved.raw, saved.inner);
    norm(ctx, plan, p, saved, out, {}, {});
  }

  template <class T, class Space>
  void backward(Context<Space>& ctx, const Matrix<T, Space>& dout, const DispatchPlan<Space>& plan,
                const Parameters<T, Space>& p, const Matrix<T, Space>& rows, const Saved<T, Space>& saved,
                const Matrix<T, Space>& drows, Parameters<T, Space>& gradients) const {
    using Real = RouterReal<T>;
    typename Context<Space>::Scratch scratch(ctx);
    Matrix<Real, Space> dscaled;
    if constexpr (weighted) dscaled = scratch.template matrix<Real>(dout.extent(0), dout.extent(1));
    norm(ctx, plan, p, saved, {}, dout, dscaled);
    if constexpr (weighted) {
      Kokkos::parallel_for("moe::NormalizedExperts::weight",
                           detail::Range<Space>(ctx.space, 0, Index(gradients.norm.size())),
                           detail::SumRows<Real, T, Space>{dscaled, gradients.norm});
    }
    using InnerParameters = typename Inner::template Parameters<T, Space>;
    inner.backward(ctx, dout, plan, static_cast<const InnerParameters&>(p), rows, saved.inner, drows,
                   static_cast<InnerParameters&>(gradients));
  }

  template <class T, class Space>
  auto workspace(typename Context<Space>::Scratch& scratch, Index rows, const Parameters<T, Space>& p) const
      -> std::enable_if_t<sizeof(inner.template workspace<T, Space>(scratch, rows, p), p.down) != 0, Saved<T, Space>> {
    return {inner.template workspace<T, Space>(scratch, rows, p), scratch.template matrix<T>(rows, p.down.extent(1))};
  }

 private:
  template <class T, class Space>
  void norm(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Parameters<T, Space>& p,
            const Saved<T, Space>& saved, const Matrix<T, Space>& out, const Matrix<T, Space>& dout,
            const Matrix<RouterReal<T>, Space>& dscaled) const {
    detail::each_row(
        ctx.space, "moe::NormalizedExperts", plan.rows,
        detail::NormExpertRow<T, Space>{plan, saved.raw, out, p.norm, RouterReal<T>(epsilon), weighted, dout, dscaled});
  }
};

MOE_NAMESPACE_END
