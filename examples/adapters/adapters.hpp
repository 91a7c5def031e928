#pragma once
/// @file
/// Adapters in the place of a model's feed-forward layers, and their sizes at about equal trained parameters.

#include "adaptation.hpp"
#include "projections.hpp"

namespace adapt {

/// Numbers of the three projections of a feed-forward layer that do not depend on the method.
struct Widths {
  double hidden, intermediate;

  /// Of adapters of rank 1 on all three.
  double adapter() const { return 3 * (hidden + intermediate); }
  double down() const { return 2 * hidden + intermediate; }    // what the A read
  double up() const { return 2 * intermediate + hidden; }      // what the B write
  double router() const { return 2 * hidden + intermediate; }  // for one expert
};

inline Widths widths(const Task& task) {
  return {double(task.base.options.hidden), 4.0 * double(task.base.options.hidden)};  // as text::dense_feed_forward
}

/// The rank at which `experts` adapters have about the parameters of one of rank --rank.
inline Index rank_of(const Task& task, double experts) {
  return std::max<Index>(1, Index(std::lround(double(task.settings.rank) / experts)));
}

/// A feed-forward layer of one method.
template <class Linear>
using Layer = AdaptedProjections<Linear>;

/// Trains the adapters that `size(number)` says, experts and rank, of each layer. `values` are policies with values.
template <class Linear, class Size, class... Values>
Json adapt_by(const Task& task, const Size& size, const Values&... values) {
  using Block = text::BlockOf<AdaptedProjections<Linear>>;
  Frozen frozen;
  Json sizes = Json::array();
  auto make = [&](Index number, const auto& up, const auto& down) {
    const auto [experts, rank] = size(number);
    sizes.push_back({{"experts", experts}, {"rank", rank}});
    const Index hidden = task.base.options.hidden;
    const ProjectionsConfig config{.hidden = hidden,
                                   .intermediate = Index(up.extent(1)) / 2,
                                   .experts = experts,
                                   .rank = rank,
                                   .alpha = task.settings.scaling * double(rank),
                                   .layer = std::uint32_t(number)};
    return AdaptedProjections<Linear>(config, up, down, moe::Seed{task.seed}, values...);
  };
  auto model = with_adapters<Block>(task, frozen, make);
  Json report = Adaptation<Block, AdaptersAlone<Block>>(task, std::move(model), frozen).run(task.settings.steps);
  report["layers"] = sizes;
  return report;
}

/// Experts and rank of a layer.
struct Size {
  Index experts, rank;
};

}  // namespace adapt
