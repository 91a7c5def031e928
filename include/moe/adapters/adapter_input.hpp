#pragma once
/// @file
/// What adapters of a frozen map see of a batch, and the contract of a form of adapters.
///
/// A form is a struct with `using policy = moe::kind::adapters;` and
///
///     template <class T, class Space> struct Parameters;         // with visit; see core/parameter.hpp
///     template <class T, class Space> struct Saved;              // what backward needs
///     parameters<T, Space>(const LowRankShape&) const            // arrays of zeros
///     start(space, parameters) const                             // after weights were drawn: what starts elsewhere
///     forward(ctx, input, parameters, y, saved) const            // y (T, out) holds W x (+ bias), and is changed
///     backward(ctx, input, dy, parameters, saved, dx, dweight, gradients) const
///         // dy (T, out) becomes the gradient of W x; adds to dx (T, in) and gradients; overwrites dweight (A)
///
/// `static constexpr bool reads_output = true`: its router reads W x, where the batch gives no input of its own.

#include "moe/adapters/low_rank.hpp"
#include "moe/attention/detail/head_routing.hpp"

MOE_NAMESPACE_BEGIN

/// What adapters of one map work on. `all`: every token takes all adapters, in order (AllExperts without capacity), so
/// that dense products over their ranks side by side take the place of rows sorted by adapter.
template <class T, class Space, bool all>
struct AdapterInput {
  using Real = RouterReal<T>;
  static constexpr bool takes_all = all;
  const Batch<T, Space>& batch;             ///< its x is not the map's where the map lies inside a layer
  Matrix<const T, Space> x;                 ///< (T, in) what the map reads
  Matrix<const T, Space> weight;            ///< (out, in) frozen
  Vector<const T, Space> bias;              ///< (out), or empty
  const HeadRouting<Real, Space>& mixture;  ///< choices, weights after drops, and rows
  double alpha = 1;                         ///< of the scaling
  std::uint32_t map = 0;                    ///< number of the map in its layer: keys dropout

  Index tokens() const { return Index(x.extent(0)); }
  Index experts() const { return mixture.plan.experts; }
};

namespace detail {

template <class Form>
constexpr bool reads_output() {
  if constexpr (requires { Form::reads_output; }) {
    return Form::reads_output;
  } else {
    return false;
  }
}
/// Do all tokens take all adapters, so that dense products serve?
template <class Router, class Capacity>
inline constexpr bool takes_all = says_takes_all<typename Router::Selection>() && !Capacity::drops && !Capacity::pads;

/// Weights (T, E) of adapters that all tokens take; skipped and padded ones are 0.
template <class Real, class Space>
struct MixingWeights {
  Vector<const Real, Space> weight;        // (T E)
  Vector<const std::uint8_t, Space> live;  // (T E), or empty: all
  Index experts;
  KOKKOS_FUNCTION Real operator()(Index t, Index e) const {
    const Index a = t * experts + e;
    return live.data() == nullptr || live(a) != 0 ? weight(a) : Real(0);
  }
};

template <class T, class Space>
struct ClearPaddedRow {
  Vector<const std::uint8_t, Space> mask;
  Matrix<T, Space> rows;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    if (is_padding<Space>(mask, t)) team.each(Index(rows.extent(1)), [&](Index i) { rows(t, i) = T(0); });
  }
};

/// Padded tokens' rows become 0.
template <class T, class Space>
void clear_padding(const Space& space, const Vector<const std::uint8_t, Space>& mask, const Matrix<T, Space>& rows) {
  if (!mask.is_allocated()) return;
  each_wide_row(space, "moe::clear_padding", Index(rows.extent(0)), Index(rows.extent(1)),
                ClearPaddedRow<T, Space>{mask, rows});
}

}  // namespace detail

MOE_NAMESPACE_END
