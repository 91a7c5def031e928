#pragma once
/// @file
/// `ElementwiseLowRank`: adapters that multiply the frozen weight entry by entry (FLoRA).

#include "moe/adapters/adapter_input.hpp"
#include "moe/kernels/gemm.hpp"

MOE_NAMESPACE_BEGIN

/// y = sum_e w_e sum_j b_ej * (W (a_ej * x)), entry by entry, j < r: the map of weight W * (B_e A_e) (Wen and Chaudhuri
/// 2023, "Batched low-rank adaptation of foundation models", section 3.2: Y = A o ((B o X) W0)). One frozen product of
/// rank times as many rows serves a batch in which every row has its own adapter. The first of the r pairs starts at
/// one, the b of the others at zero: y starts as W x. Config::alpha does not matter.
struct ElementwiseLowRank {
  using policy = kind::adapters;

  template <class T, class Space>
  using Parameters = LowRank<T, Space>;
  template <class T, class Space>
  struct Saved {
    Matrix<T, Space> product;  ///< (r R, out) W (a_ej * x), j by j
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(const LowRankShape& shape) const {
    detail::require<ConfigError>(shape.adapters > 0 && shape.rank > 0 && shape.in > 0 && shape.out > 0,
                                 "moe::ElementwiseLowRank: ", shape.adapters, " adapters of rank ", shape.rank,
                                 " for a map of ", shape.in, " to ", shape.out, "; all must be positive.");
    return {detail::allocate_zeros<Tensor3<T, Space>>("moe::lora_A", shape.adapters, shape.rank, shape.in),
            detail::allocate_zeros<Tensor3<T, Space>>("moe::lora_B", shape.adapters, shape.out, shape.rank)};
  }
  template <class T, class Space>
  void start(const Space& space, const LowRank<T, Space>& p) const;

  template <class T, class Space, bool all>
  void forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const LowRank<T, Space>& p,
               const Matrix<T, Space>& y, Saved<T, Space>& saved) const;
  template <class T, class Space, bool all>
  void backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Matrix<T, Space>& dy,
                const LowRank<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                const Vector<RouterReal<T>, Space>& dweight, LowRank<T, Space>& gradients) const;
};

namespace detail {

template <class T, class Space>
struct StartElementwise {
  LowRank<T, Space> p;
  KOKKOS_FUNCTION void operator()(Index e) const {
    for (Index i = 0; i < p.in(); ++i) p.a(e, 0, i) = T(1);
    for (Index o = 0; o < p.out(); ++o) {
      for (Index j = 0; j < p.rank(); ++j) p.b(e, o, j) = j == 0 ? T(1) : T(0);
    }
  }
};

/// What all kernels here know of row q = j R + r.
template <class T, class Space>
struct ElementwiseRows {
  using Real = RouterReal<T>;
  DispatchPlan<Space> plan;
  Assignments<Real, Space> assignments;
  Vector<const Real, Space> weight;  // (A)
  Tensor3<const T, Space> a, b;
  KOKKOS_FUNCTION Index expert(Index r) const { return assignments.expert(plan.row_assignment(r)); }
};

/// to(j R + r) = a_ej * x(token)
template <class T, class Space>
struct ElementwiseIn {
  ElementwiseRows<T, Space> rows;
  Matrix<const T, Space> x;
  Matrix<T, Space> to;  // (r R, in)
  KOKKOS_FUNCTION void operator()(Index q, const Team& team) const {
    using Real = RouterReal<T>;
    const Index r = q % rows.plan.rows, j = q / rows.plan.rows, t = rows.plan.row_token(r);
    const Index e = t < 0 ? 0 : rows.expert(r);
    team.each(Index(to.extent(1)),
              [&](Index i) { to(q, i) = t < 0 ? T(0) : T(Real(rows.a(e, j, i)) * Real(x(t, i))); });
  }
};

/// y(t) = bias + the weighted sum of b_ej * product(j R + r), for tokens that have rows.
template <class T, class Space>
struct ElementwiseOut {
  ElementwiseRows<T, Space> rows;
  Matrix<const T, Space> product;
  Vector<const T, Space> bias;  // (out), or empty
  Matrix<T, Space> y;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Real = RouterReal<T>;
    const auto& plan = rows.plan;
    const Index begin = plan.token_offsets(t), end = plan.token_offsets(t + 1), rank = rows.b.extent(2);
    if (begin == end) return;
    team.each(Index(y.extent(1)), [&](Index o) {
      Real sum = bias.data() == nullptr ? Real(0) : Real(bias(o));
      for (Index n = begin; n < end; ++n) {
        const Index r = plan.token_rows(n), e = rows.expert(r);
        const Real w = rows.weight(plan.row_assignment(r));
        for (Index j = 0; j < rank; ++j) sum += w * Real(rows.b(e, o, j)) * Real(product(j * plan.rows + r, o));
      }
      y(t, o) = T(sum);
    });
  }
};

/// dproduct(j R + r) = w b_ej * dy; the weight's gradient from j = 0 on by one team a row r.
template <class T, class Space>
struct ElementwisePull {
  ElementwiseRows<T, Space> rows;
  Matrix<const T, Space> product, dy;
  Matrix<T, Space> dproduct;
  Vector<RouterReal<T>, Space> dweight;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    using Real = RouterReal<T>;
    const auto& plan = rows.plan;
    const Index t = plan.row_token(r), a = plan.row_assignment(r), rank = rows.b.extent(2);
    const Index e = t < 0 ? 0 : rows.expert(r);
    const Real w = t < 0 ? Real(0) : rows.weight(a);
    Real dot = 0;  // of this lane
    team.each(Index(dy.extent(1)), [&](Index o) {
      for (Index j = 0; j < rank; ++j) {
        const Index q = j * plan.rows + r;
        const Real g = t < 0 ? Real(0) : Real(rows.b(e, o, j)) * Real(dy(t, o));
        if (t >= 0) dot += g * Real(product(q, o));
        dproduct(q, o) = T(w * g);
      }
    });
    dot = team.total_of(dot);
    if (t >= 0) team.single([&] { dweight(a) = dot; });
  }
};

/// db(e, o, j) += sum over e's rows of w product * dy; item = (e out + o) rank + j.
template <class T, class Space>
struct ElementwiseUpGradient {
  ElementwiseRows<T, Space> rows;
  Matrix<const T, Space> product, dy;
  Tensor3<T, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index item) const {
    using Real = RouterReal<T>;
    const auto& plan = rows.plan;
    const Index rank = gradient.extent(2), out = gradient.extent(1), j = item % rank, o = item / rank % out,
                e = item / rank / out;
    Real sum = 0;
    for (Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r) {
      const Index t = plan.row_token(r);
      if (t >= 0) sum += rows.weight(plan.row_assignment(r)) * Real(product(j * plan.rows + r, o)) * Real(dy(t, o));
    }
    gradient(e, o, j) = T(Real(gradient(e, o, j)) + sum);
  }
};

/// da(e, j, i) += sum over e's rows of dscaled * x; item = (e rank + j) in + i.
template <class T, class Space>
struct ElementwiseDownGradient {
  ElementwiseRows<T, Space> rows;
  Matrix<const T, Space> x, dscaled;
  Tensor3<T, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index item) const {
    using Real = RouterReal<T>;
    const auto& plan = rows.plan;
    const Index in = gradient.extent(2), rank = gradient.extent(1), i = item % in, j = item / in % rank,
                e = item / in / rank;
    Real sum = 0;
    for (Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r) {
      const Index t = plan.row_token(r);
      if (t >= 0) sum += Real(dscaled(j * plan.rows + r, i)) * Real(x(t, i));
    }
    gradient(e, j, i) = T(Real(gradient(e, j, i)) + sum);
  }
};

/// dx(t) += sum over its rows of a_ej * dscaled; takes W x's gradient away from tokens that have rows.
template <class T, class Space>
struct ElementwiseInputGradient {
  ElementwiseRows<T, Space> rows;
  Matrix<const T, Space> dscaled;
  Matrix<T, Space> dx, dy;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Real = RouterReal<T>;
    const auto& plan = rows.plan;
    const Index begin = plan.token_offsets(t), end = plan.token_offsets(t + 1), rank = rows.a.extent(1);
    if (begin == end) return;
    team.each(Index(dx.extent(1)), [&](Index i) {
      Real sum = Real(dx(t, i));
      for (Index n = begin; n < end; ++n) {
        const Index r = plan.token_rows(n), e = rows.expert(r);
        for (Index j = 0; j < rank; ++j) sum += Real(rows.a(e, j, i)) * Real(dscaled(j * plan.rows + r, i));
      }
      dx(t, i) = T(sum);
    });
    team.each(Index(dy.extent(1)), [&](Index o) { dy(t, o) = T(0); });
  }
};

template <class T, class Space, bool all>
ElementwiseRows<T, Space> elementwise_rows(const AdapterInput<T, Space, all>& in, const LowRank<T, Space>& p) {
  return {in.mixture.plan, in.mixture.routing.assignments, in.mixture.weight, p.a, p.b};
}

}  // namespace detail

template <class T, class Space>
void ElementwiseLowRank::start(const Space& space, const LowRank<T, Space>& p) const {
  Kokkos::parallel_for("moe::ElementwiseLowRank::start", detail::Range<Space>(space, 0, p.adapters()),
                       detail::StartElementwise<T, Space>{p});
}

template <class T, class Space, bool all>
void ElementwiseLowRank::forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const LowRank<T, Space>& p,
                                 const Matrix<T, Space>& y, Saved<T, Space>& saved) const {
  using M = Matrix<const T, Space>;
  const auto rows = detail::elementwise_rows(in, p);
  const Index count = p.rank() * rows.plan.rows;
  typename Context<Space>::Scratch scratch(ctx);
  auto scaled = scratch.template matrix<T>(count, p.in());
  detail::shape(saved.product, "moe::ElementwiseLowRank", count, p.out());
  detail::each_wide_row(ctx.space, "moe::ElementwiseLowRank::in", count, p.in(),
                        detail::ElementwiseIn<T, Space>{rows, in.x, scaled});
  kernels::dense_forward<T, Space, false>(ctx.space, M(scaled), in.weight, saved.product);
  detail::each_wide_row(ctx.space, "moe::ElementwiseLowRank::out", in.tokens(), p.out(),
                        detail::ElementwiseOut<T, Space>{rows, saved.product, in.bias, y});
}

template <class T, class Space, bool all>
void ElementwiseLowRank::backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in,
                                  const Matrix<T, Space>& dy, const LowRank<T, Space>& p, const Saved<T, Space>& saved,
                                  const Matrix<T, Space>& dx, const Vector<RouterReal<T>, Space>& dweight,
                                  LowRank<T, Space>& gradients) const {
  using M = Matrix<const T, Space>;
  const auto rows = detail::elementwise_rows(in, p);
  const Index count = p.rank() * rows.plan.rows;
  typename Context<Space>::Scratch scratch(ctx);
  auto dproduct = scratch.template matrix<T>(count, p.out()), dscaled = scratch.template matrix<T>(count, p.in());
  detail::fill(ctx.space, dweight, RouterReal<T>(0));
  detail::each_row(ctx.space, "moe::ElementwiseLowRank::pull", rows.plan.rows,
                   detail::ElementwisePull<T, Space>{rows, saved.product, dy, dproduct, dweight});
  detail::each(ctx.space, "moe::ElementwiseLowRank::up", Index(p.b.size()),
               detail::ElementwiseUpGradient<T, Space>{rows, saved.product, dy, gradients.b});
  kernels::dense_backward_rows<T, Space, false>(ctx.space, M(dproduct), in.weight, dscaled, false);
  detail::each(ctx.space, "moe::ElementwiseLowRank::down", Index(p.a.size()),
               detail::ElementwiseDownGradient<T, Space>{rows, in.x, dscaled, gradients.a});
  detail::each_row(ctx.space, "moe::ElementwiseLowRank::input", in.tokens(),
                   detail::ElementwiseInputGradient<T, Space>{rows, dscaled, dx, dy});
}

MOE_NAMESPACE_END
