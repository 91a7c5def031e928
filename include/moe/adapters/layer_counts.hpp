#pragma once
/// @file
/// How many adapters each layer of a model gets (Gao et al. 2024, "Higher layers need more LoRA experts", MoLA).

#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// `groups` numbers over `layers` layers: equal runs of neighbours, the first numbers at the bottom; where they do not
/// divide, lower runs are the longer ones. MoLA's best has {2, 4, 6, 8} over 32 layers. Throws ConfigError for fewer
/// layers than groups.
inline std::vector<Index> expert_counts(Index layers, const std::vector<Index>& groups) {
  const Index count = Index(groups.size());
  detail::require<ConfigError>(count > 0 && layers >= count, "moe::expert_counts: ", count, " groups of ", layers,
                               " layers; each group needs a layer.");
  std::vector<Index> result;
  for (Index g = 0; g < count; ++g) {
    for (Index l = 0; l < layers / count + (g < layers % count ? 1 : 0); ++l) result.push_back(groups[std::size_t(g)]);
  }
  return result;
}

/// MoLA's shapes, and their mirror images, with as many adapters in total: 20 for each run of four layers.
namespace mola {
inline const std::vector<Index> triangle{8, 6, 4, 2};           ///< more below
inline const std::vector<Index> inverted_triangle{2, 4, 6, 8};  ///< more above: the paper's best
inline const std::vector<Index> hourglass{8, 2, 2, 8};          ///< more at both ends
inline const std::vector<Index> diamond{2, 8, 8, 2};            ///< more in the middle
inline const std::vector<Index> rectangle{5, 5, 5, 5};          ///< alike
}  // namespace mola

MOE_NAMESPACE_END
