#pragma once
/// @file
/// `adapt_experts`: from a trained layer to one whose experts are frozen and have low-rank updates.

#include <string_view>

#include "moe/adapters/adapted_experts.hpp"
#include "moe/experts/wrappers.hpp"
#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// What a policy becomes in a layer with adapted experts.
template <class P>
struct AdaptedPolicy {
  using type = P;
  template <class Frozen>
  static P value(const P& from, const AdaptedExpertsOptions&, const Frozen&) {
    return from;
  }
};
template <class Activation, class BiasChoice>
struct AdaptedPolicy<ExpertFFN<Activation, BiasChoice>> {
  using type = AdaptedExperts<ExpertFFN<Activation, BiasChoice>>;
  template <class Frozen>
  static type value(const ExpertFFN<Activation, BiasChoice>& from, const AdaptedExpertsOptions& options,
                    const Frozen& frozen) {
    return {from, options, frozen};
  }
};
template <class Inner, int extra, class Output>
struct AdaptedPolicy<WithExtraExperts<Inner, extra, Output>> {
  using type = WithExtraExperts<typename AdaptedPolicy<Inner>::type, extra, Output>;
  template <class Frozen>
  static type value(const WithExtraExperts<Inner, extra, Output>& from, const AdaptedExpertsOptions& options,
                    const Frozen& frozen) {
    return {AdaptedPolicy<Inner>::value(from.inner, options, frozen)};
  }
};

/// Says which layers cannot be adapted.
template <class Experts>
struct CheckAdaptable {
  static_assert(!std::is_same_v<typename AdaptedPolicy<Experts>::type, Experts>,
                "moe::adapt_experts: the layer's experts must be an ExpertFFN<...>, or WithExtraExperts around one; "
                "others have no projections that this library knows of.");
};

template <class Layer>
struct AdaptLayer;
template <class... Policies>
struct AdaptLayer<MoELayer<Policies...>> {
  using Layer = MoELayer<Policies...>;
  using Experts = typename Layer::Experts;
  static_assert(sizeof(CheckAdaptable<Experts>) > 0);
  static constexpr bool own = count_kind<kind::experts, Policies...> != 0;
  using Adapted =
      std::conditional_t<own, MoELayer<typename AdaptedPolicy<Policies>::type...>,
                         MoELayer<typename AdaptedPolicy<Policies>::type..., typename AdaptedPolicy<Experts>::type>>;

  static Adapted make(const Layer& layer, const AdaptedExpertsOptions& options, Seed seed) {
    const auto value = [&]<class P>(const P& from) {
      return AdaptedPolicy<P>::value(from, options, layer.parameters.experts);
    };
    const auto build = [&](const auto&... more) {
      return Adapted(layer.config(), seed, value(layer.template value<Policies>())..., more...);
    };
    auto adapted = [&] {
      if constexpr (own) {
        return build();
      } else {
        return build(value(Experts{}));
      }
    }();
    const typename Layer::Space space{};
    const auto copy = [&](std::string_view, const auto& from, const auto& to) {
      if (from.is_allocated()) Kokkos::deep_copy(space, to, from);
    };
    decltype(adapted.parameters.router)::visit(copy, layer.parameters.router, adapted.parameters.router);
    decltype(adapted.buffers.router)::visit(copy, layer.buffers.router, adapted.buffers.router);
    space.fence("moe::adapt_experts");
    adapted.parameters.branches = layer.parameters.branches;
    adapted.parameters.outputs = layer.parameters.outputs;
    adapted.parameters.latent = layer.parameters.latent;
    return adapted;
  }
};

/// Passes on the arrays that are trained.
template <class F, bool with_router>
struct OnlyAdapters {
  F& f;
  template <class View, class... Views>
  void operator()(std::string_view name, View& view, Views&... views) const {
    const auto holds = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
    if (holds("lora_") || (with_router && holds("router."))) f(name, view, views...);
  }
};

}  // namespace detail

/// The layer that `adapt_experts` makes of a layer's type.
template <class Layer>
using Adapted = typename detail::AdaptLayer<Layer>::Adapted;

/// A layer whose experts are `layer`'s, frozen, with a fresh low-rank update for each: at first it computes what
/// `layer` does.
///
///     auto adapted = moe::adapt_experts(layer, {.rank = 8, .alpha = 16}, moe::Seed{1});
///     auto trained = moe::adapters_only(adapted);
///     moe::AdamW optimizer(trained);
///     auto gradients = adapted.gradients();
///     auto trained_gradients = moe::adapters_only(adapted, gradients);  // the same arrays
///     ...                                                               // forward, backward
///     optimizer.step(ctx, trained, trained_gradients, 1e-3);
///
/// The experts' arrays, those of branches (shared experts), outputs and latent spaces are `layer`'s own memory. The
/// router's, and its balancing bias, are copies, so that the router may be trained without changing `layer`; by
/// adapters_only it stays frozen. Shared experts' gradients are computed all the same, unless they are made empty:
/// gradients.branches.first.ffn = {}. Experts have to be an ExpertFFN, or WithExtraExperts around one. Waits for the
/// device.
template <class Layer>
Adapted<Layer> adapt_experts(const Layer& layer, const AdaptedExpertsOptions& options = {}, Seed seed = {}) {
  return detail::AdaptLayer<Layer>::make(layer, options, seed);
}

/// Parameters of which only low-rank updates are visited, and with `with_router` the router's arrays: what optimisers,
/// clipping and checkpoints of adapters take. A copy of views: it holds the arrays of the struct it was made from.
template <class Parameters, bool with_router = false>
struct AdaptersOnly : Parameters {
  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    Parameters::visit(detail::OnlyAdapters<std::remove_reference_t<F>, with_router>{f}, same...);
  }
};

/// The adapters among a layer's parameters, and among gradients of it.
template <bool with_router = false, class Layer>
AdaptersOnly<typename Layer::Parameters, with_router> adapters_only(const Layer& layer) {
  return {layer.parameters};
}
template <bool with_router = false, class Layer>
AdaptersOnly<typename Layer::Parameters, with_router> adapters_only(const Layer&,
                                                                    const typename Layer::Gradients& gradients) {
  return {static_cast<const typename Layer::Parameters&>(gradients)};
}

MOE_NAMESPACE_END
