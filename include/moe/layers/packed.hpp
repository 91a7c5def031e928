#pragma once
/// @file
/// `pack`: a layer for inference, made from a trained one.

#include "moe/combine/packed_shared_experts.hpp"
#include "moe/experts/fp8_ffn.hpp"
#include "moe/experts/wrappers.hpp"
#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// What a policy becomes: experts and shared experts take packed weights, others stay.
template <class P, class Weight>
struct PackedPolicy {
  using type = P;
  static P value(const P& from) { return from; }
};
template <class Activation, class BiasChoice, class Weight>
struct PackedPolicy<ExpertFFN<Activation, BiasChoice>, Weight> {
  using type = PackedFFN<Activation, BiasChoice, Weight>;
  static type value(const ExpertFFN<Activation, BiasChoice>& from) { return {from.activation}; }
};
template <class Activation, class BiasChoice>
struct PackedPolicy<ExpertFFN<Activation, BiasChoice>, float8_e4m3> {
  static_assert(std::is_same_v<BiasChoice, NoBias>,
                "moe::pack<moe::float8_e4m3>: experts with biases have no FP8 form. Pack as moe::bfloat16.");
  using type = FP8FFN<Activation>;
  static type value(const ExpertFFN<Activation, BiasChoice>& from) { return {from.activation}; }
};
template <class Inner, int extra, class Output, class Weight>
struct PackedPolicy<WithExtraExperts<Inner, extra, Output>, Weight> {
  using type = WithExtraExperts<typename PackedPolicy<Inner, Weight>::type, extra, Output>;
  static type value(const WithExtraExperts<Inner, extra, Output>& from) {
    return {PackedPolicy<Inner, Weight>::value(from.inner)};
  }
};
template <int n, class Activation, class Gate, class Weight>
struct PackedPolicy<SharedExperts<n, Activation, Gate>, Weight> {
  using type =
      std::conditional_t<std::is_same_v<Weight, float8_e4m3>, SharedExperts<n, Activation, Gate, FP8FFN<Activation>>,
                         PackedSharedExperts<n, Activation, Gate, Weight>>;
  static type value(const SharedExperts<n, Activation, Gate>& from) { return {from.activation, from.intermediate}; }
};

/// The precision of a layer packed as T, and what its weights are beside it.
template <class T>
struct PackedAs {
  using Scalar = T;
  using Weight = LikeTokens;
};
template <>
struct PackedAs<std::int8_t> {
  using Scalar = float;
  using Weight = std::int8_t;
};

template <>
struct PackedAs<float8_e4m3> {
  using Scalar = bfloat16;
  using Weight = float8_e4m3;
};

/// The packed layer's type: each policy packed, and the precision.
template <class Policies, class T>
struct PackedLayer;
template <class... Policies, class T>
struct PackedLayer<List<Policies...>, T> {
  using Weight = typename PackedAs<T>::Weight;
  using Numbers = Precision<typename PackedAs<T>::Scalar, float>;
  static constexpr bool own_experts = count_kind<kind::experts, Policies...> != 0;
  using type = std::conditional_t<own_experts, MoELayer<typename PackedPolicy<Policies, Weight>::type..., Numbers>,
                                  MoELayer<typename PackedPolicy<Policies, Weight>::type...,
                                           typename PackedPolicy<ExpertFFN<>, Weight>::type, Numbers>>;
};

/// All policies but the precision.
template <class Kept, class... Policies>
struct WithoutPrecision {
  using type = Kept;
};
template <class... Kept, class First, class... Rest>
struct WithoutPrecision<List<Kept...>, First, Rest...>
    : WithoutPrecision<std::conditional_t<is_kind<First, kind::precision>, List<Kept...>, List<Kept..., First>>,
                       Rest...> {};

/// Elements as another type.
template <class From, class To>
struct ConvertElement {
  const From* from;
  To* to;
  KOKKOS_FUNCTION void operator()(Index i) const { to[i] = To(from[i]); }
};

template <class Layer, class T>
struct PackLayer;
template <class... Policies, class T>
struct PackLayer<MoELayer<Policies...>, T> {
  using Layer = MoELayer<Policies...>;
  using Space = typename Layer::Space;
  using Kept = typename WithoutPrecision<List<>, Policies...>::type;
  static constexpr bool packs = one_of<T, float, bfloat16, std::int8_t, float8_e4m3>;
  static_assert(packs,
                "moe::pack: packed weights are float, moe::bfloat16, std::int8_t or moe::float8_e4m3; say which: "
                "moe::pack<float>(layer).");
  using Packed = typename PackedLayer<Kept, std::conditional_t<packs, T, float>>::type;

  static Packed make(const Layer& layer) { return make(layer, Kept{}); }

 private:
  template <class... Ps>
  static Packed make(const Layer& layer, List<Ps...>) {
    Packed packed(layer.config(), PackedPolicy<Ps, typename PackedAs<T>::Weight>::value(layer.template value<Ps>())...);
    const Space space{};
    copy(space, layer.parameters.router, packed.parameters.router);
    copy(space, layer.buffers.router, packed.buffers.router);
    copy(space, layer.parameters.experts, packed.parameters.experts);
    copy(space, layer.parameters.latent, packed.parameters.latent);
    copy_parts(space, layer.parameters.branches, packed.parameters.branches);
    copy_parts(space, layer.parameters.outputs, packed.parameters.outputs);
    return packed;
  }

  template <class From, class To>
  static void copy(const Space& space, const From& from, To& to) {
    if constexpr (requires { to.assign(space, from); }) {
      to.assign(space, from);
    } else if constexpr (requires { to.ffn.assign(space, from.ffn); }) {  // shared experts in FP8
      to.ffn.assign(space, from.ffn);
      if (from.gate.is_allocated()) convert(space, from.gate, to.gate);
    } else {
      To::visit(
          [&](std::string_view, const auto& source, auto& target) {
            if (!source.is_allocated()) return;
            if (target.size() != source.size()) shape_like(source, target);
            convert(space, source, target);
          },
          from, to);
    }
  }
  template <class Source, class Target>
  static void convert(const Space& space, const Source& source, const Target& target) {
    using From = typename Source::non_const_value_type;
    using To = typename Target::non_const_value_type;
    Kokkos::parallel_for("moe::pack", detail::Range<Space>(space, 0, Index(source.size())),
                         ConvertElement<From, To>{source.data(), target.data()});
    space.fence("moe::pack");
  }
  template <class Source, class Target>
  static void shape_like(const Source& source, Target& target) {
    target = Target(Kokkos::view_alloc(Kokkos::WithoutInitializing, source.label()), source.layout());
  }

  template <class From, class To>
  static void copy_parts(const Space& space, const From& from, To& to) {
    if constexpr (requires { to.rest; }) {
      copy(space, from.first, to.first);
      copy_parts(space, from.rest, to.rest);
    }
  }
};

}  // namespace detail

/// The type that `pack<T>` makes of a layer: the same policies, with `PackedFFN` for `ExpertFFN`, `PackedSharedExperts`
/// for `SharedExperts`, and Precision<T, float>; for int8 that is Precision<float>. In FP8 `FP8FFN` stands for both.
template <class Layer, class T = float>
using Packed = typename detail::PackLayer<Layer, T>::Packed;

/// A layer for inference on a host space, with the weights that `layer` has now, as T: float, bfloat16 or std::int8_t;
/// or on any space, as float8_e4m3.
///
///     auto fast = moe::pack<moe::bfloat16>(layer);
///     auto y = fast.forward(ctx, x);  // (T, H), bfloat16
///     auto small = moe::pack<std::int8_t>(layer);
///     auto z = small.forward(ctx, w);  // both (T, H), float
///
/// Sums are f32; those of int8 are exact, and PackedFFN says how weights and tokens become int8. Throws ConfigError
/// where such sums might not fit int32: H or I beyond 133,144. float8_e4m3 takes and gives bfloat16, and is made for
/// devices: see FP8FFN; gated experts, shared ones too, then need a width of a multiple of 128, else ConfigError.
///
/// Weights are laid out once, in the order in which the kernels read them; `layer` stays as it is, and later changes of
/// it do not reach the packed one. Experts of one's own, and NormalizedExperts, stay as they are, in T (beside int8:
/// float; beside float8_e4m3: bfloat16). Where I is not a multiple of 32, activations are also applied to zeros, and
/// have to be finite there. A token's sum runs over its experts in their order, not in the order of choice: the last
/// bits may differ from `layer`'s.
template <class T = float, class Layer>
Packed<Layer, T> pack(const Layer& layer) {
  return detail::PackLayer<Layer, T>::make(layer);
}

MOE_NAMESPACE_END
