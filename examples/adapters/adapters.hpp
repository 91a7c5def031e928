#pragma once
/// @file
/// Adapters in the place of a model's feed-forward layers, and their sizes at about equal trained parameters.

#include <moe/models/adapters.hpp>

#include "adaptation.hpp"

namespace adapt {

/// Experts and rank of a layer.
struct Size {
  Index experts, rank;
};

/// The rank at which `experts` adapters have about the parameters of one of rank --rank.
inline Index rank_of(const Task& task, double experts) {
  return std::max<Index>(1, Index(std::lround(double(task.settings.rank) / experts)));
}

/// The feed-forward layer whose three projections are such a `Linear` each, with a router of its own: as the papers of
/// these mixtures have it.
template <class Linear>
struct FeedForwardOf;
template <class... Policies>
struct FeedForwardOf<moe::AdaptedLinear<Policies...>> {
  using type = moe::ProjectionAdaptedFFN<moe::SwiGLU, Policies...>;
};

/// Trains the adapters that `size(number)` says, experts and rank, of each layer. `values` are policies with values.
template <class Linear, class SizeOf, class... Values>
Json adapt_by(const Task& task, const SizeOf& size, const Values&... values) {
  using FeedForward = typename FeedForwardOf<Linear>::type;
  using Block = text::BlockOf<FeedForward>;
  Frozen frozen;
  Json sizes = Json::array();
  auto make = [&](Index number, const auto& up, const auto& down) {
    const auto [experts, rank] = size(number);
    sizes.push_back({{"experts", experts}, {"rank", rank}});
    const Index hidden = task.base.options.hidden;
    const moe::AdaptedFFNConfig config{.hidden = hidden,
                                       .intermediate = Index(up.extent(1)) / 2,
                                       .experts = experts,
                                       .rank = rank,
                                       .alpha = task.settings.scaling * double(rank),
                                       .layer = std::uint32_t(number)};
    return FeedForward(config, moe::FrozenFFN<float>{up, down}, moe::Seed{task.seed}, values...);
  };
  auto model = with_adapters<Block>(task, frozen, make);
  Json report = Adaptation<Block, AdaptersAlone<Block>>(task, std::move(model), frozen).run(task.settings.steps);
  report["layers"] = sizes;
  return report;
}

}  // namespace adapt
