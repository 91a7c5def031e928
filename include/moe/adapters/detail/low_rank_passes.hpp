#pragma once
/// @file
/// Low-rank updates of many adapters: of rows sorted by adapter, and of tokens that take all adapters.

#include "moe/adapters/adapter_input.hpp"
#include "moe/kernels/gemm.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Throws where arrays, which may have been assigned, are not those of a layer.
template <class T, class Space>
void check_low_rank(const char* layer, const LowRank<T, Space>& p, bool shared, const LowRankShape& of) {
  const bool fits = p.adapters() == of.adapters && p.in() == of.in && p.out() == of.out && p.rank() == of.rank &&
                    Index(p.a.extent(1)) == of.rank && Index(p.a.extent(0)) == (shared ? 1 : of.adapters);
  require<ShapeError>(fits, layer, ": A (", p.a.extent(0), ", ", p.a.extent(1), ", ", p.in(), ") and B (", p.adapters(),
                      ", ", p.out(), ", ", p.rank(), ") in a layer of ", of.adapters, " adapters from ", of.in, " to ",
                      of.out, " of rank ", of.rank, ". Assign arrays of the layer's sizes.");
}

/// out_e (+)= rows_e weight_e^T. weight (E, N, K), or (1, N, K) for all; rows (R, K), out (R, N).
template <class T, class Space>
void adapter_rows(const Space& space, const DispatchPlan<Space>& plan, const Matrix<const T, Space>& rows,
                  const Tensor3<T, Space>& weight, const Matrix<T, Space>& out, bool accumulate = false) {
  const Index n = weight.extent(1), k = weight.extent(2), stride = weight.extent(0) == 1 ? 0 : n * k;
  auto product =
      kernels::Product<T>::over_rows(plan.expert_offsets.data(), plan.experts, rows.extent(0), n, k,
                                     {rows.data(), k, 1, 0}, {weight.data(), k, 1, stride}, out.data(), accumulate);
  product.rows_each = plan.rows_each;
  kernels::detail::run(space, product);
}

/// drows_e (+)= dout_e weight_e.
template <class T, class Space>
void adapter_rows_backward(const Space& space, const DispatchPlan<Space>& plan, const Matrix<const T, Space>& dout,
                           const Tensor3<T, Space>& weight, const Matrix<T, Space>& drows, bool accumulate = false) {
  const Index n = weight.extent(1), k = weight.extent(2), stride = weight.extent(0) == 1 ? 0 : n * k;
  auto product =
      kernels::Product<T>::over_rows(plan.expert_offsets.data(), plan.experts, dout.extent(0), k, n,
                                     {dout.data(), n, 1, 0}, {weight.data(), 1, k, stride}, drows.data(), accumulate);
  product.rows_each = plan.rows_each;
  kernels::detail::run(space, product);
}

template <class Space>
struct AllRows {
  DispatchPlan<Space> plan;
  Vector<Index, Space> offsets;  // (2)
  KOKKOS_FUNCTION void operator()(Index i) const { offsets(i) = i == 0 ? 0 : plan.expert_offsets(plan.experts); }
};

/// dweight_e += dout_e^T rows_e, or the sum of these where one weight serves all.
template <class T, class Space>
void adapter_weight_backward(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<const T, Space>& dout,
                             const Matrix<const T, Space>& rows, const Tensor3<T, Space>& dweight) {
  if (Index(dweight.extent(0)) == plan.experts) {
    kernels::grouped_backward_weight<T, Space>(ctx.space, plan.expert_offsets, dout, rows, dweight, {plan.rows_each});
    return;
  }
  typename Context<Space>::Scratch scratch(ctx);
  auto offsets = scratch.template vector<Index>(2);
  each(ctx.space, "moe::all_rows", 2, AllRows<Space>{plan, offsets});
  kernels::grouped_backward_weight<T, Space>(ctx.space, offsets, dout, rows, dweight);
}

/// v(r) = factor * weight(r) * u(r); zeros in padding.
template <class T, class Real, class Space>
struct WeighRanks {
  DispatchPlan<Space> plan;
  Vector<const Real, Space> weight;  // (A), or empty: 1
  Matrix<const T, Space> u;
  Matrix<T, Space> v;
  Real factor;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index a = plan.row_assignment(r);
    const Real w = a < 0 ? Real(0) : weight.data() == nullptr ? factor : factor * weight(a);
    team.each(Index(v.extent(1)), [&](Index j) { v(r, j) = a < 0 ? T(0) : T(w * Real(u(r, j))); });
  }
};

/// From dv(r) = B^T dout(r) to the gradients of the row's weight and of u, in place; fills v.
template <class T, class Real, class Space>
struct PullRanks {
  DispatchPlan<Space> plan;
  Vector<const Real, Space> weight;  // (A), or empty: 1
  Matrix<const T, Space> u;
  Matrix<T, Space> v, dv;
  Vector<Real, Space> dweight;  // (A), or empty: added to
  Real factor;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index a = plan.row_assignment(r);
    const Real w = a < 0 ? Real(0) : weight.data() == nullptr ? factor : factor * weight(a);
    Real dot = 0;  // of this lane
    team.each(Index(v.extent(1)), [&](Index j) {
      const Real up = a < 0 ? Real(0) : Real(u(r, j)), down = a < 0 ? Real(0) : Real(dv(r, j));
      dot += up * down;
      v(r, j) = T(w * up);
      dv(r, j) = T(w * down);
    });
    dot = team.total_of(dot);
    if (a >= 0 && dweight.data() != nullptr) team.single([&] { dweight(a) += factor * dot; });
  }
};

/// to(t) += the sum of its rows, in choice order.
template <class T, class Space>
struct AddTokenRows {
  DispatchPlan<Space> plan;
  Matrix<const T, Space> rows;
  Matrix<T, Space> to;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Sum = RouterReal<T>;
    const Index begin = plan.token_offsets(t), end = plan.token_offsets(t + 1);
    if (begin == end) return;
    team.each(Index(to.extent(1)), [&](Index i) {
      Sum sum = Sum(to(t, i));
      for (Index n = begin; n < end; ++n) sum += Sum(rows(plan.token_rows(n), i));
      to(t, i) = T(sum);
    });
  }
};
template <class T, class Space>
void add_token_rows(const Space& space, const DispatchPlan<Space>& plan, const Matrix<const T, Space>& rows,
                    const Matrix<T, Space>& to) {
  each_wide_row(space, "moe::add_token_rows", plan.tokens, Index(to.extent(1)), AddTokenRows<T, Space>{plan, rows, to});
}

/// out(r) (+)= factor weight(r) B A rows(r), for rows sorted by adapter; u (R, r) becomes A rows.
template <class T, class Space>
void low_rank_rows(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<const T, Space>& rows,
                   const LowRank<T, Space>& p, const Vector<const RouterReal<T>, Space>& weight, double factor,
                   const Matrix<T, Space>& u, const Matrix<T, Space>& out, bool accumulate) {
  using Real = RouterReal<T>;
  using M = Matrix<const T, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  auto v = scratch.template matrix<T>(plan.rows, p.rank());
  adapter_rows<T, Space>(ctx.space, plan, rows, p.a, u);
  each_row(ctx.space, "moe::low_rank::weigh", plan.rows, WeighRanks<T, Real, Space>{plan, weight, u, v, Real(factor)});
  adapter_rows<T, Space>(ctx.space, plan, M(v), p.b, out, accumulate);
}

/// Its backward: drows (R, in) is overwritten, or added to; dweight (A) and gradients, where
/// given, are added to.
template <class T, class Space>
void low_rank_rows_backward(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<const T, Space>& rows,
                            const LowRank<T, Space>& p, const Vector<const RouterReal<T>, Space>& weight, double factor,
                            const Matrix<const T, Space>& u, const Matrix<const T, Space>& dout,
                            const Matrix<T, Space>& drows, bool accumulate, const Vector<RouterReal<T>, Space>& dweight,
                            const LowRank<T, Space>& gradients) {
  using Real = RouterReal<T>;
  using M = Matrix<const T, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  auto v = scratch.template matrix<T>(plan.rows, p.rank()), dv = scratch.template matrix<T>(plan.rows, p.rank());
  adapter_rows_backward<T, Space>(ctx.space, plan, dout, p.b, dv);
  each_row(ctx.space, "moe::low_rank::pull", plan.rows,
           PullRanks<T, Real, Space>{plan, weight, u, v, dv, dweight, Real(factor)});
  if (gradients.b.is_allocated()) {
    adapter_weight_backward<T, Space>(ctx, plan, dout, M(v), gradients.b);
    adapter_weight_backward<T, Space>(ctx, plan, M(dv), rows, gradients.a);
  }
  adapter_rows_backward<T, Space>(ctx.space, plan, M(dv), p.a, drows, accumulate);
}

/// side(e r + j, o) = b(e, o, j): the ups of all adapters side by side.
template <class T, class Space>
struct UpsSideBySide {
  Tensor3<const T, Space> b;
  Matrix<T, Space> side;
  KOKKOS_FUNCTION void operator()(Index row, const Team& team) const {
    const Index rank = b.extent(2), e = row / rank, j = row % rank;
    team.each(Index(side.extent(1)), [&](Index o) { side(row, o) = b(e, o, j); });
  }
};
/// The gradient's way back: db(e, o, j) += side(e r + j, o).
template <class T, class Space>
struct AddUps {
  Matrix<const T, Space> side;
  Tensor3<T, Space> db;
  KOKKOS_FUNCTION void operator()(Index row, const Team& team) const {
    using Sum = RouterReal<T>;
    const Index rank = db.extent(2), e = row / rank, j = row % rank;
    team.each(Index(side.extent(1)), [&](Index o) { db(e, o, j) = T(Sum(db(e, o, j)) + Sum(side(row, o))); });
  }
};

/// v(t, e r + j) = factor weight(t, e) u(t, e r + j); where the downs are shared, u(t, j).
template <class T, class Real, class Space>
struct MixRanks {
  MixingWeights<Real, Space> weight;
  Matrix<const T, Space> u;  // (T, E r) or (T, r)
  Matrix<T, Space> v;        // (T, E r)
  Index rank;
  Real factor;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index width = u.extent(1);
    team.each(Index(v.extent(1)), [&](Index i) {
      const Real w = weight(t, i / rank);
      v(t, i) = w == Real(0) ? T(0) : T(factor * w * Real(u(t, i % width)));
    });
  }
};

/// From dv (T, E r) to the weights' gradients and to du, of u's shape; fills v.
template <class T, class Real, class Space>
struct PullMixture {
  MixingWeights<Real, Space> weight;
  Matrix<const T, Space> u, dv;
  Matrix<T, Space> v, du;
  Vector<Real, Space> dweight;  // (T E), overwritten
  Index rank;
  Real factor;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index width = u.extent(1), experts = weight.experts;
    team.each(Index(v.extent(1)), [&](Index i) {
      const Real w = weight(t, i / rank);
      v(t, i) = w == Real(0) ? T(0) : T(factor * w * Real(u(t, i % width)));
    });
    team.each(width, [&](Index i) {
      Real sum = 0;
      for (Index k = i; k < experts * rank; k += width) {
        const Real w = weight(t, k / rank);
        if (w != Real(0)) sum += w * Real(dv(t, k));
      }
      du(t, i) = T(factor * sum);
    });
    team.each(experts, [&](Index e) {
      Real dot = 0;
      for (Index k = e * rank; k < (e + 1) * rank; ++k) dot += Real(u(t, k % width)) * Real(dv(t, k));
      dweight(t * experts + e) = factor * dot;
    });
  }
};

/// y(t) += factor sum_e weight(t, e) B_e A_e x(t); u (T, E r) becomes all A_e x, or (T, r) that of the shared A.
template <class T, class Space>
void low_rank_mixture(Context<Space>& ctx, const Matrix<const T, Space>& x, const LowRank<T, Space>& p,
                      const MixingWeights<RouterReal<T>, Space>& weight, double factor, const Matrix<T, Space>& u,
                      const Matrix<T, Space>& y) {
  using Real = RouterReal<T>;
  using M = Matrix<const T, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  const Index ranks = p.adapters() * p.rank(), tokens = x.extent(0);
  auto side = scratch.template matrix<T>(ranks, p.out()), v = scratch.template matrix<T>(tokens, ranks);
  each_wide_row(ctx.space, "moe::low_rank::side_by_side", ranks, p.out(), UpsSideBySide<T, Space>{p.b, side});
  kernels::dense_forward<T, Space, false>(ctx.space, x, M(p.a.data(), u.extent(1), p.in()), u);
  each_row(ctx.space, "moe::low_rank::mix", tokens, MixRanks<T, Real, Space>{weight, u, v, p.rank(), Real(factor)});
  kernels::dense_backward_rows<T, Space, false>(ctx.space, M(v), M(side), y, true);
}

/// Its backward. Adds to dx and gradients, where there are some; overwrites dweight (T E).
template <class T, class Space>
void low_rank_mixture_backward(Context<Space>& ctx, const Matrix<const T, Space>& x, const LowRank<T, Space>& p,
                               const MixingWeights<RouterReal<T>, Space>& weight, double factor,
                               const Matrix<const T, Space>& u, const Matrix<const T, Space>& dy,
                               const Matrix<T, Space>& dx, const Vector<RouterReal<T>, Space>& dweight,
                               const LowRank<T, Space>& gradients) {
  using Real = RouterReal<T>;
  using M = Matrix<const T, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  const Index ranks = p.adapters() * p.rank(), tokens = x.extent(0), width = u.extent(1);
  auto side = scratch.template matrix<T>(ranks, p.out()), v = scratch.template matrix<T>(tokens, ranks),
       dv = scratch.template matrix<T>(tokens, ranks), du = scratch.template matrix<T>(tokens, width);
  each_wide_row(ctx.space, "moe::low_rank::side_by_side", ranks, p.out(), UpsSideBySide<T, Space>{p.b, side});
  kernels::dense_forward<T, Space, false>(ctx.space, dy, M(side), dv);
  each_row(ctx.space, "moe::low_rank::pull_mixture", tokens,
           PullMixture<T, Real, Space>{weight, u, dv, v, du, dweight, p.rank(), Real(factor)});
  if (gradients.b.is_allocated()) {
    fill(ctx.space, side, T(0));
    kernels::dense_backward_weight<T, Space, false>(ctx.space, M(v), dy, side);
    each_wide_row(ctx.space, "moe::low_rank::add_ups", ranks, p.out(), AddUps<T, Space>{side, gradients.b});
    kernels::dense_backward_weight<T, Space, false>(ctx.space, M(du), x,
                                                    Matrix<T, Space>(gradients.a.data(), width, p.in()));
  }
  kernels::dense_backward_rows<T, Space, false>(ctx.space, M(du), M(p.a.data(), width, p.in()), dx, true);
}

}  // namespace detail

MOE_NAMESPACE_END
