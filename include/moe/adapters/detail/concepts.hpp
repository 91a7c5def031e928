#pragma once
/// @file
/// What adapted layers ask of their policies and of the frozen weights, and the one sentence each misfit gets.

#include "moe/adapters/adapter_input.hpp"
#include "moe/kernels/gemm.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class P>
inline constexpr bool is_adapted_policy = is_kind<P, kind::router, kind::adapters, kind::capacity, kind::loss,
                                                  kind::adapter_loss, kind::space, kind::precision>;
template <class P>
inline constexpr bool fits_adapters = !is_kind<P, kind::adapters> || HasParameterStructs<P>;

/// Says what is wrong with one argument of an adapted layer.
template <class P>
struct CheckAdaptedPolicy {
  static_assert(
      is_adapted_policy<P>,
      "moe: this argument is not a policy of adapted layers. They take a Router<...>, a form of adapters such "
      "as LowRankAdapters<>, a CapacityPolicy<...>, losses, On<Space> and Precision<...>; scorings, "
      "selections and the like go into Router<...>.");
  static_assert(fits_adapters<P>,
                "moe: these adapters lack a member. They need `Parameters<T, Space>`, `Saved<T, Space>`, `parameters`, "
                "`start`, `forward` and `backward`; see moe/adapters/adapter_input.hpp.");
};
template <int routers, int adapters>
struct CheckAdaptedCounts {
  static_assert(routers <= 1, "moe: two routers are given; an adapted layer has one. Keep one of them.");
  static_assert(adapters <= 1, "moe: two forms of adapters are given; an adapted layer has one. Keep one of them.");
};

/// What layers of several adapted maps hand on in place of a value that is not the maps'.
struct NoValue {};

/// Throws where a frozen weight is missing or has not its shape.
template <class T, class Space>
void check_frozen(const char* layer, const Matrix<const T, Space>& weight, Index out, Index in) {
  require<ShapeError>(weight.is_allocated(), layer,
                      ": no frozen weight. Assign the layer's `base`, or give it to the constructor.");
  require<ShapeError>(Index(weight.extent(0)) == out && Index(weight.extent(1)) == in, layer,
                      ": the frozen weight has shape (", weight.extent(0), ", ", weight.extent(1), "), expected (", out,
                      ", ", in, ").");
}

/// The same for one of ExpertFFN's arrays, of one expert.
template <class T, class Space>
void check_frozen(const char* layer, const Tensor3<const T, Space>& weight, Index out, Index in) {
  require<ShapeError>(weight.is_allocated(), layer,
                      ": no frozen weight. Assign the layer's `base`, or give it to the constructor.");
  require<ShapeError>(weight.extent(0) == 1 && Index(weight.extent(1)) == out && Index(weight.extent(2)) == in, layer,
                      ": the frozen weight has shape (", weight.extent(0), ", ", weight.extent(1), ", ",
                      weight.extent(2), "), expected (1, ", out, ", ", in, ").");
}

template <class T, class Space>
void check_router_input(const char* layer, const Batch<T, Space>& batch, Index width) {
  const auto& given = batch.router_input;
  if (!given.is_allocated()) return;
  require<ShapeError>(Index(given.extent(0)) == batch.tokens() && Index(given.extent(1)) == width, layer,
                      "::forward: router_input has shape (", given.extent(0), ", ", given.extent(1), "), expected (",
                      batch.tokens(), ", ", width, "). Set the config's router_hidden to its width.");
}

template <class T, class Space>
struct AddFrozenBias {
  Vector<const T, Space> bias;
  Matrix<T, Space> y;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    team.each(Index(y.extent(1)), [&](Index i) { y(t, i) = T(RouterReal<T>(y(t, i)) + RouterReal<T>(bias(i))); });
  }
};

/// y = W x + bias.
template <class T, class Space>
void frozen_forward(Context<Space>& ctx, const Matrix<const T, Space>& weight, const Vector<const T, Space>& bias,
                    const Matrix<const T, Space>& x, const Matrix<T, Space>& y) {
  kernels::dense_forward<T, Space, false>(ctx.space, x, weight, y);
  if (bias.is_allocated())
    each_wide_row(ctx.space, "moe::frozen_bias", Index(y.extent(0)), Index(y.extent(1)),
                  AddFrozenBias<T, Space>{bias, y});
}

}  // namespace detail

MOE_NAMESPACE_END
