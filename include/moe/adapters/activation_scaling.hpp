#pragma once
/// @file
/// `ActivationScaling`: mixtures of vectors that scale what a frozen map gives (MoV).

#include "moe/adapters/adapter_input.hpp"

MOE_NAMESPACE_BEGIN

/// y = (W x) * sum_e w_e l_e, entry by entry: the vectors are merged before use (Zadouri et al. 2023, "Pushing mixture
/// of experts to the limit", MoV, over Liu et al. 2022, "(IA)^3"). The router reads W x, as the authors' code does, or
/// Batch::router_input. Vectors start at one. Config::rank and alpha do not matter.
struct ActivationScaling {
  using policy = kind::adapters;
  static constexpr bool reads_output = true;

  template <class T, class Space>
  struct Parameters {
    Matrix<T, Space> vector;  ///< (E, out)
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("ia3_l", same.vector...);
    }
  };
  template <class T, class Space>
  struct Saved {
    Matrix<T, Space> base;  ///< (T, out) W x
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(const LowRankShape& shape) const {
    detail::require<ConfigError>(shape.adapters > 0 && shape.out > 0, "moe::ActivationScaling: ", shape.adapters,
                                 " vectors of ", shape.out, " numbers; both must be positive.");
    return {detail::allocate_zeros<Matrix<T, Space>>("moe::ia3_l", shape.adapters, shape.out)};
  }
  template <class T, class Space>
  void start(const Space& space, const Parameters<T, Space>& p) const {
    detail::fill(space, p.vector, T(1));
  }

  template <class T, class Space, bool all>
  void forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Parameters<T, Space>& p,
               const Matrix<T, Space>& y, Saved<T, Space>& saved) const;
  template <class T, class Space, bool all>
  void backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Matrix<T, Space>& dy,
                const Parameters<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                const Vector<RouterReal<T>, Space>& dweight, Parameters<T, Space>& gradients) const;
};

namespace detail {

/// to(t) = from(t) * the merged vector; a token that no vector took keeps what it had.
template <class T, class Real, class Space>
struct ScaleToken {
  DispatchPlan<Space> plan;
  Assignments<Real, Space> assignments;
  Vector<const Real, Space> weight;  // (A)
  Matrix<const T, Space> vector;     // (E, out)
  Matrix<const T, Space> from;
  Matrix<T, Space> to;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index begin = plan.token_offsets(t), end = plan.token_offsets(t + 1);
    team.each(Index(to.extent(1)), [&](Index i) {
      Real factor = begin == end ? Real(1) : Real(0);
      for (Index n = begin; n < end; ++n) {
        const Index a = plan.row_assignment(plan.token_rows(n));
        factor += weight(a) * Real(vector(assignments.expert(a), i));
      }
      to(t, i) = T(factor * Real(from(t, i)));
    });
  }
};

/// dweight(a) = sum over dy * base * vector, for row r's assignment.
template <class T, class Real, class Space>
struct ScaleWeightGradient {
  DispatchPlan<Space> plan;
  Assignments<Real, Space> assignments;
  Matrix<const T, Space> vector, base, dy;
  Vector<Real, Space> dweight;  // (A)
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index a = plan.row_assignment(r);
    if (a < 0) return;
    const Index t = plan.row_token(r), e = assignments.expert(a);
    const Real sum = team.sum<Real>(Index(base.extent(1)),
                                    [&](Index i) { return Real(dy(t, i)) * Real(base(t, i)) * Real(vector(e, i)); });
    team.single([&] { dweight(a) = sum; });
  }
};

/// gradient(e, i) += sum over e's rows of weight * dy * base; item = e * width + i.
template <class T, class Real, class Space>
struct ScaleVectorGradient {
  DispatchPlan<Space> plan;
  Vector<const Real, Space> weight;
  Matrix<const T, Space> base, dy;
  Matrix<T, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index width = gradient.extent(1), e = item / width, i = item % width;
    Real sum = 0;
    for (Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r) {
      const Index t = plan.row_token(r);
      if (t >= 0) sum += weight(plan.row_assignment(r)) * Real(dy(t, i)) * Real(base(t, i));
    }
    gradient(e, i) = T(Real(gradient(e, i)) + sum);
  }
};

}  // namespace detail

template <class T, class Space, bool all>
void ActivationScaling::forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in,
                                const Parameters<T, Space>& p, const Matrix<T, Space>& y,
                                Saved<T, Space>& saved) const {
  using Real = RouterReal<T>;
  const Index out = y.extent(1);
  const auto& mixture = in.mixture;
  detail::shape(saved.base, "moe::ActivationScaling", in.tokens(), out);
  if (in.tokens() != 0) Kokkos::deep_copy(ctx.space, saved.base, y);
  detail::each_wide_row(ctx.space, "moe::ActivationScaling", in.tokens(), out,
                        detail::ScaleToken<T, Real, Space>{mixture.plan, mixture.routing.assignments, mixture.weight,
                                                           p.vector, saved.base, y});
}

template <class T, class Space, bool all>
void ActivationScaling::backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Matrix<T, Space>& dy,
                                 const Parameters<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>&,
                                 const Vector<RouterReal<T>, Space>& dweight, Parameters<T, Space>& gradients) const {
  using Real = RouterReal<T>;
  const auto& plan = in.mixture.plan;
  const auto& assignments = in.mixture.routing.assignments;
  detail::fill(ctx.space, dweight, Real(0));
  detail::each_row(ctx.space, "moe::ActivationScaling::weight", plan.rows,
                   detail::ScaleWeightGradient<T, Real, Space>{plan, assignments, p.vector, saved.base, dy, dweight});
  detail::each(ctx.space, "moe::ActivationScaling::vector", Index(p.vector.size()),
               detail::ScaleVectorGradient<T, Real, Space>{plan, in.mixture.weight, saved.base, dy, gradients.vector});
  detail::each_wide_row(ctx.space, "moe::ActivationScaling::base", in.tokens(), Index(dy.extent(1)),
                        detail::ScaleToken<T, Real, Space>{plan, assignments, in.mixture.weight, p.vector, dy, dy});
}

MOE_NAMESPACE_END
