#pragma once
/// @file
/// Logit sources without parameters: logits from elsewhere, and none.

#include "moe/routing/linear_logits.hpp"

MOE_NAMESPACE_BEGIN

/// The router's input is the logits: set Batch::router_input to (T, E) and MoEConfig::router_hidden to E. Their
/// gradient comes back in tape.drouter_input.
struct GivenLogits {
  using policy = kind::logits;
  template <class, class>
  using Parameters = NoParameters;

  template <class Real, class Space>
  NoParameters parameters(const RouterShape& shape) const {
    detail::require<ConfigError>(shape.hidden == shape.experts, "moe::GivenLogits: the router's input has width ",
                                 shape.hidden, ", but there are ", shape.experts,
                                 " experts. Set MoEConfig::router_hidden to the number of experts.");
    return {};
  }

  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const NoParameters&,
               const Matrix<Real, Space>& logits) const {
    Kokkos::parallel_for("moe::GivenLogits", detail::Range<Space>(ctx.space, 0, Index(x.extent(0))),
                         detail::CopyRow<Real, Space>{x, logits});
  }

  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>&,
                const NoParameters&, const Matrix<Real, Space>& dx, NoParameters&) const {
    Kokkos::parallel_for("moe::GivenLogits", detail::Range<Space>(ctx.space, 0, Index(dx.extent(0))),
                         detail::CopyRow<Real, Space>{dlogits, dx});
  }
};

/// All logits are 0 and nothing is learned: for choices by a table.
struct NoLogits {
  using policy = kind::logits;
  static constexpr bool constant = true;
  template <class, class>
  using Parameters = NoParameters;

  template <class Real, class Space>
  NoParameters parameters(const RouterShape&) const {
    return {};
  }
  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>&, const NoParameters&,
               const Matrix<Real, Space>& logits) const {
    detail::fill(ctx.space, logits, Real(0));
  }
  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>&, const Matrix<const Real, Space>&,
                const NoParameters&, const Matrix<Real, Space>& dx, NoParameters&) const {
    detail::fill(ctx.space, dx, Real(0));
  }
};

MOE_NAMESPACE_END
