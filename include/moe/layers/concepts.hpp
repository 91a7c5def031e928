#pragma once
/// @file
/// The contracts of a layer's policies, and the one sentence each misfit gets.

#include <tuple>

#include "moe/combine/shared_experts.hpp"
#include "moe/core/policy.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/layers/checkpointing.hpp"
#include "moe/routing/router.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The space in which a contract is probed.
using ProbeSpace = Kokkos::DefaultHostExecutionSpace;

template <class P>
concept HasParameterStructs = requires {
  typename P::template Parameters<float, ProbeSpace>;
  typename P::template Saved<float, ProbeSpace>;
};

}  // namespace detail

/// Rows to rows, forward and backward; see experts/ffn.hpp.
template <class P>
concept ExpertsPolicy = std::copyable<P> && detail::HasParameterStructs<P> &&
    requires(const P p, Context<detail::ProbeSpace>& ctx, ExpertShape shape,
             const DispatchPlan<detail::ProbeSpace> plan, Matrix<float, detail::ProbeSpace> rows,
             typename P::template Parameters<float, detail::ProbeSpace> parameters,
             typename P::template Saved<float, detail::ProbeSpace> saved) {
  p.template parameters<float, detail::ProbeSpace>(shape);
  p.forward(ctx, rows, plan, parameters, rows, saved);
};

namespace detail {

template <class P>
inline constexpr bool is_layer_policy =
    is_kind<P, kind::router, kind::experts, kind::capacity, kind::branch, kind::loss, kind::space, kind::precision,
            kind::input_map, kind::latent, kind::weight_place, kind::output, kind::recompute>;
template <class P>
inline constexpr bool fits_experts = !is_kind<P, kind::experts> || ExpertsPolicy<P>;
template <class P>
inline constexpr bool fits_layer = is_layer_policy<P>&& fits_experts<P>;

/// Says what is wrong with one argument of MoELayer<...>.
template <class P>
struct CheckLayerPolicy {
  static_assert(
      is_layer_policy<P>,
      "moe::MoELayer: this argument is not a layer policy. It takes a Router<...>, experts, a "
      "CapacityPolicy<...>, branches, losses, outputs, On<Space> and Precision<...>; scorings, selections and the "
      "like go into Router<...>; a custom policy says `using policy = moe::kind::experts;` (or loss, "
      "branch).");
  static_assert(fits_experts<P>,
                "moe::MoELayer: these experts lack a member. They need `Parameters<T, Space>`, `Saved<T, Space>`, "
                "`parameters<T, Space>(ExpertShape) const`, `forward(ctx, rows, plan, parameters, out, saved) const` "
                "and `backward(ctx, dout, plan, parameters, rows, saved, drows, gradients) const`.");
};

/// Can a layer put what these experts save into scratch memory?
template <class P>
inline constexpr bool has_workspace = requires(const P p, typename Context<ProbeSpace>::Scratch& scratch,
                                               const typename P::template Parameters<float, ProbeSpace> parameters) {
  p.template workspace<float, ProbeSpace>(scratch, Index(), parameters);
};

/// Can backward recompute what these experts save, if it is asked to?
template <class P, bool able>
struct CheckCheckpointing {
  static_assert(
      able,
      "moe::MoELayer: ActivationCheckpointing cannot recompute these experts, since they lack "
      "`workspace<T, Space>(scratch, rows, parameters) const`, which gives a Saved whose arrays lie in scratch "
      "memory. Add it as ExpertFFN has it, or leave ActivationCheckpointing out.");
};

template <int routers, int experts, int capacities, int spaces, int precisions, int latents, int input_maps,
          int checkpointings>
struct CheckLayerCounts {
  static_assert(checkpointings <= 1,
                "moe::MoELayer: two ActivationCheckpointing are given; a layer has one. Keep one of them.");
  static_assert(latents <= 1, "moe::MoELayer: two latent projections are given; a layer has one. Keep one of them.");
  static_assert(input_maps <= 1, "moe::MoELayer: two input maps are given; a layer has one. Keep one of them.");
  static_assert(routers <= 1, "moe::MoELayer: two routers are given; a layer has one. Keep one of them.");
  static_assert(experts <= 1, "moe::MoELayer: two kinds of experts are given; a layer has one. Keep one of them.");
  static_assert(capacities <= 1, "moe::MoELayer: two capacity policies are given; a layer has one. Keep one of them.");
  static_assert(spaces <= 1, "moe::MoELayer: two On<...> are given; a layer has one. Keep one of them.");
  static_assert(precisions <= 1, "moe::MoELayer: two Precision<...> are given; a layer has one. Keep one of them.");
};

template <class Value, bool known>
struct CheckLayerValue {
  static_assert(known,
                "moe::MoELayer: a value was given of a policy that this layer's type does not name. Add the policy "
                "to MoELayer<...>, or drop the value. (Values of router policies go into Router{...}.)");
};

/// What is wrong with an argument of forward or backward that should be a matrix of tokens.
template <class View, class T, class Space>
struct CheckMatrix {
  static constexpr bool is_view = Kokkos::is_view_v<View>;
  template <class V, bool view>
  struct Look {
    static constexpr bool rank = true, scalar = true, layout = true, memory = true;
  };
  template <class V>
  struct Look<V, true> {
    static constexpr bool rank = V::rank() == 2;
    static constexpr bool scalar = std::is_same_v<typename V::non_const_value_type, T>;
    static constexpr bool layout = std::is_same_v<typename V::array_layout, Kokkos::LayoutRight>;
    static constexpr bool memory = Kokkos::SpaceAccessibility<Space, typename V::memory_space>::accessible;
  };
  using L = Look<View, is_view>;
  static_assert(is_view,
                "moe::MoELayer: tokens must be a Kokkos view of shape (T, H): moe::Matrix<T, Space>, or wrap your "
                "memory with moe::as_matrix (moe/core/interop.hpp).");
  static_assert(!is_view || L::rank, "moe::MoELayer: tokens must have rank 2, (T, H). Flatten batch and sequence.");
  static_assert(!L::rank || L::scalar, "moe::MoELayer: the scalar type of the tokens is not the layer's Precision.");
  static_assert(!L::rank || !L::scalar || L::layout,
                "moe::MoELayer: tokens must be row-major (Kokkos::LayoutRight). Kokkos::View<float**> is "
                "column-major on CUDA: use moe::Matrix<T, Space>.");
  static_assert(!L::rank || !L::scalar || !L::layout || L::memory,
                "moe::MoELayer: the tokens lie in memory that the layer's space cannot reach. Copy them with "
                "Kokkos::deep_copy, or give the layer On<Space>.");
};

template <class View, class T, class Space>
inline constexpr bool is_token_matrix = false;
template <class View, class T, class Space>
requires(Kokkos::is_view_v<View>) inline constexpr bool is_token_matrix<View, T, Space> =
    View::rank() == 2 && std::is_same_v<typename View::non_const_value_type, T> &&
    std::is_same_v<typename View::array_layout, Kokkos::LayoutRight> &&
    Kokkos::SpaceAccessibility<Space, typename View::memory_space>::accessible;

}  // namespace detail

MOE_NAMESPACE_END
