#pragma once
/// @file
/// `ContrastiveExpertLoss`: draws what one adapter gives together, and what different adapters give apart.

#include "moe/adapters/low_rank_adapters.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * mean over rows i, which other rows of the same adapter follow or precede, of
///   -1/|P(i)| sum over p in P(i) of log(exp(s_ip) / sum over j != i of exp(s_ij)),  s_ij = cos(o_i, o_j) /
///   temperature,
/// where o_i = B_e A_e x is what adapter e gave for one of its tokens and P(i) are its other outputs: InfoNCE with the
/// outputs of one expert as each other's positives, those of other experts as negatives (Luo et al. 2024, "MoELoRA").
/// All pairs of the batch's chosen rows are compared: the cost grows with the square of their number. A policy of
/// AdaptedLinear with LowRankAdapters<>.
struct ContrastiveExpertLoss {
  using policy = kind::adapter_loss;
  double coefficient = 1e-2;
  double temperature = 0.07;

  template <class T, class Space, bool all>
  void value(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const LowRank<T, Space>& p,
             const Vector<double, Space>& slot) const;
  /// Adds scale * gradient to dx and gradients.
  template <class T, class Space, bool all>
  void backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const LowRank<T, Space>& p, double scale,
                const Matrix<T, Space>& dx, const LowRank<T, Space>& gradients) const;
};

namespace detail {

/// The rows that are compared, at length one.
template <class Real, class Space>
struct ContrastRows {
  DispatchPlan<Space> plan;
  Matrix<const Real, Space> unit;  // (R, out) o / |o|
  Real inverse_temperature;

  /// Rows of the expert of row r: [begin, end); empty for rows behind the last.
  KOKKOS_FUNCTION Index expert(Index r) const { return expert_of(plan, r); }
  KOKKOS_FUNCTION bool live(Index r) const { return plan.row_token(r) >= 0; }
  KOKKOS_FUNCTION Index last() const { return plan.expert_offsets(plan.experts); }
  KOKKOS_FUNCTION Real similarity(const Team& team, Index i, Index j) const {
    return inverse_temperature *
           team.sum<Real>(Index(unit.extent(1)), [&](Index k) { return unit(i, k) * unit(j, k); });
  }
  KOKKOS_FUNCTION Index others(Index i, Index e) const {
    Index count = 0;
    for (Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r) count += live(r) && r != i;
    return count;
  }
};

template <class T, class Real, class Space>
struct UnitRow {
  DispatchPlan<Space> plan;
  Matrix<const T, Space> rows;
  Matrix<Real, Space> unit;
  Vector<Real, Space> inverse;  // (R) 1 / |o|
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const bool live = plan.row_token(r) >= 0;
    const Real squares = team.sum<Real>(Index(unit.extent(1)),
                                        [&](Index i) { return live ? Real(rows(r, i)) * Real(rows(r, i)) : Real(0); });
    const Real scale = squares > Real(0) ? Real(1) / Kokkos::sqrt(squares) : Real(0);
    team.each(Index(unit.extent(1)), [&](Index i) { unit(r, i) = live ? scale * Real(rows(r, i)) : Real(0); });
    team.single([&] { inverse(r) = scale; });
  }
};

/// The loss of each row, its log-sum-exp, and its number of positives (0: no anchor).
template <class Real, class Space>
struct ContrastRow {
  ContrastRows<Real, Space> rows;
  Vector<Real, Space> total;              // (R)
  Vector<double, Space> loss, positives;  // (R)
  KOKKOS_FUNCTION void operator()(Index i, const Team& team) const {
    Real most = 0, sum = 0, same = 0;
    const bool live = rows.live(i);
    const Index e = live ? rows.expert(i) : 0, count = live ? rows.others(i, e) : 0;
    if (count > 0) {
      most = rows.inverse_temperature;  // cosines are at most one
      for (Index j = 0; j < rows.last(); ++j) {
        if (j == i || !rows.live(j)) continue;
        const Real s = rows.similarity(team, i, j);
        sum += Kokkos::exp(s - most);
        if (j >= rows.plan.expert_offsets(e) && j < rows.plan.expert_offsets(e + 1)) same += s;
      }
    }
    team.single([&] {
      const Real log_total = count > 0 ? most + Kokkos::log(sum) : Real(0);
      total(i) = log_total;
      loss(i) = count > 0 ? double(log_total - same / Real(count)) : 0.0;
      positives(i) = double(count);
    });
  }
};

/// Adds the mean over anchors to slot; `share` becomes factor / anchors.
template <class Space>
struct ContrastSum {
  Vector<const double, Space> loss, positives;
  double factor;
  Vector<double, Space> slot, share;  // each or empty
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0, anchors = 0;
    for (Index r = 0; r < Index(loss.extent(0)); ++r) {
      if (positives(r) == 0) continue;
      sum += loss(r);
      anchors += 1;
    }
    if (slot.data() != nullptr && anchors > 0) slot(0) += factor * sum / anchors;
    if (share.data() != nullptr) share(0) = anchors > 0 ? factor / anchors : 0.0;
  }
};

/// The gradient of o_i: of both places of every pair, through the lengths.
template <class T, class Real, class Space>
struct ContrastGradient {
  ContrastRows<Real, Space> rows;
  Vector<const Real, Space> total, inverse;
  Vector<const double, Space> positives, share;
  Matrix<Real, Space> work;  // (R, out)
  Matrix<T, Space> drows;
  KOKKOS_FUNCTION void operator()(Index i, const Team& team) const {
    const Index width = drows.extent(1);
    const bool live = rows.live(i);
    const Index e = live ? rows.expert(i) : 0;
    team.each(width, [&](Index k) { work(i, k) = 0; });
    for (Index j = 0; live && j < rows.last(); ++j) {
      if (j == i || !rows.live(j)) continue;
      const bool same = j >= rows.plan.expert_offsets(e) && j < rows.plan.expert_offsets(e + 1);
      const Real s = rows.similarity(team, i, j);
      const Real own = slope(i, s, same), others = slope(j, s, same), factor = own + others;
      team.each(width, [&](Index k) { work(i, k) += factor * rows.unit(j, k); });
    }
    const Real along = team.sum<Real>(width, [&](Index k) { return work(i, k) * rows.unit(i, k); });
    const Real scale = live ? inverse(i) * rows.inverse_temperature * Real(share(0)) : Real(0);
    team.each(width, [&](Index k) { drows(i, k) = T(scale * (work(i, k) - along * rows.unit(i, k))); });
  }
  /// Of the loss of anchor i by its similarity s to another row.
  KOKKOS_FUNCTION Real slope(Index i, Real s, bool same) const {
    if (positives(i) == 0) return 0;
    return Kokkos::exp(s - total(i)) - (same ? Real(1) / Real(positives(i)) : Real(0));
  }
};

/// What adapters give for their tokens, as unit vectors, compared with one another: what value and backward share.
template <class T, class Space>
struct ContrastPass {
  using Real = RouterReal<T>;
  Matrix<T, Space> rows, down, out;
  Matrix<Real, Space> unit;
  Vector<Real, Space> inverse, total;
  Vector<double, Space> loss, positives;
  ContrastRows<Real, Space> compared;

  template <bool all>
  ContrastPass(Context<Space>& ctx, typename Context<Space>::Scratch& scratch, const AdapterInput<T, Space, all>& in,
               const LowRank<T, Space>& p, double temperature)
      : rows(scratch.template matrix<T>(in.mixture.plan.rows, p.in())),
        down(scratch.template matrix<T>(in.mixture.plan.rows, p.rank())),
        out(scratch.template matrix<T>(in.mixture.plan.rows, p.out())),
        unit(scratch.template matrix<Real>(in.mixture.plan.rows, p.out())),
        inverse(scratch.template vector<Real>(in.mixture.plan.rows)),
        total(scratch.template vector<Real>(in.mixture.plan.rows)),
        loss(scratch.template vector<double>(in.mixture.plan.rows)),
        positives(scratch.template vector<double>(in.mixture.plan.rows)),
        compared{in.mixture.plan, unit, Real(1 / temperature)} {
    const auto& plan = in.mixture.plan;
    gather(ctx, in.x, plan, rows);
    low_rank_rows<T, Space>(ctx, plan, Matrix<const T, Space>(rows), p, {}, 1, down, out, false);
    each_row(ctx.space, "moe::ContrastiveExpertLoss::unit", plan.rows,
             UnitRow<T, Real, Space>{plan, out, unit, inverse});
    each_row(ctx.space, "moe::ContrastiveExpertLoss", plan.rows,
             ContrastRow<Real, Space>{compared, total, loss, positives});
  }
};

}  // namespace detail

template <class T, class Space, bool all>
void ContrastiveExpertLoss::value(Context<Space>& ctx, const AdapterInput<T, Space, all>& in,
                                  const LowRank<T, Space>& p, const Vector<double, Space>& slot) const {
  typename Context<Space>::Scratch scratch(ctx);
  const detail::ContrastPass<T, Space> pass(ctx, scratch, in, p, temperature);
  detail::each(ctx.space, "moe::ContrastiveExpertLoss::sum", 1,
               detail::ContrastSum<Space>{pass.loss, pass.positives, coefficient, slot, {}});
}

template <class T, class Space, bool all>
void ContrastiveExpertLoss::backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in,
                                     const LowRank<T, Space>& p, double scale, const Matrix<T, Space>& dx,
                                     const LowRank<T, Space>& gradients) const {
  using Real = RouterReal<T>;
  using M = Matrix<const T, Space>;
  const auto& plan = in.mixture.plan;
  typename Context<Space>::Scratch scratch(ctx);
  const detail::ContrastPass<T, Space> pass(ctx, scratch, in, p, temperature);
  auto drows = scratch.template matrix<T>(plan.rows, p.in());
  auto work = scratch.template matrix<Real>(plan.rows, p.out());
  auto share = scratch.template vector<double>(1);
  detail::each(ctx.space, "moe::ContrastiveExpertLoss::sum", 1,
               detail::ContrastSum<Space>{pass.loss, pass.positives, scale * coefficient, {}, share});
  detail::each_row(ctx.space, "moe::ContrastiveExpertLoss::backward", plan.rows,
                   detail::ContrastGradient<T, Real, Space>{pass.compared, pass.total, pass.inverse, pass.positives,
                                                            share, work, pass.out});
  detail::low_rank_rows_backward<T, Space>(ctx, plan, M(pass.rows), p, {}, 1, M(pass.down), M(pass.out), drows, false,
                                           {}, gradients);
  detail::add_token_rows<T, Space>(ctx.space, plan, M(drows), dx);
}

MOE_NAMESPACE_END
