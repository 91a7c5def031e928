#pragma once
/// @file
/// The interface of low-rank arithmetic: many adapters, each with few rows of one batch (Hu et al. 2021, "LoRA"; many
/// in one batch: Chen et al. 2023, "Punica"). Every sum runs in a fixed order that depends on neither threads nor other
/// adapters' rows.

#include "moe/core/blocks.hpp"
#include "moe/core/context.hpp"
#include "moe/core/each_row.hpp"
#include "moe/kernels/cpu/low_rank.hpp"
#include "moe/kernels/gemm.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

namespace detail {

/// to(r, :) = factor(r) from(r, :); zeros behind the last adapter, and in rows that lie nowhere.
template <class T, class Space>
struct ScaleLowRank {
  LowRankRows<T, Space> rows;
  Index adapters;
  Matrix<const T, Space> from;
  Matrix<T, Space> to;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    using Real = RouterReal<T>;
    const bool live = r < rows.offsets(adapters) && rows.place(r) >= 0;
    team.each(Index(to.extent(1)), [&](Index j) { to(r, j) = live ? T(rows.factor(r) * Real(from(r, j))) : T(0); });
  }
};

/// The gradient of a row's factor, and dhidden from that of the scaled one.
template <class T, class Space>
struct PullLowRankScale {
  LowRankRows<T, Space> rows;
  Index adapters;
  Matrix<const T, Space> hidden;
  Matrix<T, Space> dhidden;
  Vector<RouterReal<T>, Space> dscale;  // or empty
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    using Real = RouterReal<T>;
    if (r >= rows.offsets(adapters)) return;
    Real sum = 0;  // of this lane
    const Real factor = rows.factor(r);
    team.each(Index(hidden.extent(1)), [&](Index j) {
      sum += Real(dhidden(r, j)) * Real(hidden(r, j));
      dhidden(r, j) = T(factor * Real(dhidden(r, j)));
    });
    sum = team.total_of(sum);
    if (dscale.data() != nullptr) team.single([&] { dscale(r) = sum; });
  }
};

/// to(place(r), :) = or += from(r, :).
template <class T, class Space>
struct PlaceLowRank {
  LowRankRows<T, Space> rows;
  Index adapters;
  Matrix<const T, Space> from;
  Matrix<T, Space> to;
  bool add;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    using Real = RouterReal<T>;
    if (r >= rows.offsets(adapters) || rows.place(r) < 0) return;
    const Index place = rows.place(r);
    team.each(Index(to.extent(1)),
              [&](Index h) { to(place, h) = add ? T(Real(to(place, h)) + Real(from(r, h))) : from(r, h); });
  }
};

/// to(r, :) = from(place(r), :), or zeros.
template <class T, class Space>
struct TakeLowRank {
  LowRankRows<T, Space> rows;
  Index adapters;
  Matrix<const T, Space> from;
  Matrix<T, Space> to;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= rows.offsets(adapters)) return;
    const Index place = rows.place(r), width = to.extent(1);
    moe::detail::copy_row<T>(team, to.data() + r * width, place < 0 ? nullptr : from.data() + place * width, width);
  }
};

template <class T, class Space>
cpu::LowRankPass<T, Space> low_rank_pass(const LowRankRows<T, Space>& rows, const Tensor3<const T, Space>& a,
                                         const Tensor3<const T, Space>& b) {
  return {rows,
          cpu::LowRankProducts<RouterReal<T>>::make(),
          nullptr,
          a.data(),
          b.data(),
          Index(b.extent(0)),
          Index(a.extent(2)),
          Index(b.extent(1)),
          Index(b.extent(2))};
}

/// As the grouped products take them.
template <class T, class Space>
Vector<Index, Space> offsets_of(const LowRankRows<T, Space>& rows) {
  return Vector<Index, Space>(const_cast<Index*>(rows.offsets.data()), rows.offsets.extent(0));
}

}  // namespace detail

/// out(place(r), :) = or += factor(r) B_n A_n x(place(r), :), for the rows r of each adapter n; others stay as they
/// are. x (., in), a (N, r, in), b (N, out, r), out (., out). hidden (R, r) takes A_n x, which backward reads.
template <class T, class Space>
void low_rank_forward(Context<Space>& ctx, const LowRankRows<T, Space>& rows, const Matrix<const T, Space>& x,
                      const Tensor3<const T, Space>& a, const Tensor3<const T, Space>& b,
                      const Matrix<T, Space>& hidden, const Matrix<T, Space>& out, bool add) {
  const Index adapters = b.extent(0), rank = b.extent(2);
  if (rows.rows == 0 || adapters == 0 || rank == 0) return;
  if constexpr (moe::detail::device_path<Space>) {
    typename Context<Space>::Scratch scratch(ctx);
    const auto offsets = detail::offsets_of(rows);
    auto scaled = scratch.template matrix<T>(rows.rows, rank);
    auto update = scratch.template matrix<T>(rows.rows, b.extent(1));
    GroupedOptions options;
    options.number = rows.number.data();
    grouped_forward<T, Space>(ctx.space, offsets, x, a, hidden, options);
    moe::detail::each_row(ctx.space, "moe::low_rank::scale", rows.rows,
                          detail::ScaleLowRank<T, Space>{rows, adapters, hidden, scaled});
    grouped_forward<T, Space>(ctx.space, offsets, scaled, b, update);
    moe::detail::each_wide_row(ctx.space, "moe::low_rank::place", rows.rows, Index(out.extent(1)),
                               detail::PlaceLowRank<T, Space>{rows, adapters, update, out, add});
  } else {
    cpu::run_low_rank(
        ctx.space, "moe::low_rank::forward",
        cpu::LowRankForward<T, Space>{detail::low_rank_pass(rows, a, b), x.data(), out.data(), hidden.data(), add});
  }
}

/// From dout (., out): adds to gradients.a and gradients.b, writes or adds (`add`) gradients.x(place(r), :), and gives
/// the rows' factors their gradients. hidden (R, r) as forward left it.
template <class T, class Space>
void low_rank_backward(Context<Space>& ctx, const LowRankRows<T, Space>& rows, const Matrix<const T, Space>& x,
                       const Tensor3<const T, Space>& a, const Tensor3<const T, Space>& b,
                       const Matrix<const T, Space>& hidden, const Matrix<const T, Space>& dout,
                       const LowRankGradients<T, Space>& gradients, bool add) {
  const Index adapters = b.extent(0), rank = b.extent(2);
  if (rows.rows == 0 || adapters == 0 || rank == 0) return;
  typename Context<Space>::Scratch scratch(ctx);
  auto dhidden = scratch.template matrix<T>(rows.rows, rank);
  if constexpr (moe::detail::device_path<Space>) {
    const auto offsets = detail::offsets_of(rows);
    auto scaled = scratch.template matrix<T>(rows.rows, rank);
    auto dupdate = scratch.template matrix<T>(rows.rows, b.extent(1));
    moe::detail::each_wide_row(ctx.space, "moe::low_rank::take", rows.rows, Index(b.extent(1)),
                               detail::TakeLowRank<T, Space>{rows, adapters, dout, dupdate});
    grouped_backward_rows<T, Space>(ctx.space, offsets, dupdate, b, dhidden);
    moe::detail::each_row(ctx.space, "moe::low_rank::pull_scale", rows.rows,
                          detail::PullLowRankScale<T, Space>{rows, adapters, hidden, dhidden, gradients.scale});
    if (gradients.b.data() != nullptr) {
      moe::detail::each_row(ctx.space, "moe::low_rank::scale", rows.rows,
                            detail::ScaleLowRank<T, Space>{rows, adapters, hidden, scaled});
      grouped_backward_weight<T, Space>(ctx.space, offsets, dupdate, scaled, gradients.b);
    }
    if (gradients.a.data() != nullptr) {
      GroupedOptions options;
      options.number = rows.number.data();
      grouped_backward_weight<T, Space>(ctx.space, offsets, dhidden, x, gradients.a, options);
    }
    if (gradients.x.data() != nullptr) {
      auto dx = scratch.template matrix<T>(rows.rows, a.extent(2));
      grouped_backward_rows<T, Space>(ctx.space, offsets, dhidden, a, dx);
      moe::detail::each_wide_row(ctx.space, "moe::low_rank::place", rows.rows, Index(dx.extent(1)),
                                 detail::PlaceLowRank<T, Space>{rows, adapters, dx, gradients.x, add});
    }
  } else {
    const auto pass = detail::low_rank_pass(rows, a, b);
    cpu::run_low_rank(
        ctx.space, "moe::low_rank::hidden",
        cpu::LowRankPullHidden<T, Space>{pass, dout.data(), hidden.data(), dhidden.data(), gradients.scale.data()});
    cpu::run_low_rank(
        ctx.space, "moe::low_rank::columns",
        cpu::LowRankPullColumns<T, Space>{pass, x.data(), dout.data(), hidden.data(), dhidden.data(),
                                          gradients.a.data(), gradients.b.data(), gradients.x.data(), add});
  }
}

}  // namespace kernels

MOE_NAMESPACE_END
