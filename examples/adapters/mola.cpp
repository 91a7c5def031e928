/// @file
/// MoLA: few experts in the first layers, more in the last ones, top-2, with a balance loss.
#include "adapters.hpp"

namespace adapt {

/// From 2 experts in the first layer to 6 in the last, 4 in the mean.
Json run_mola(const Task& task) {
  const Index last = task.base.options.layers - 1, rank = rank_of(task, 4);
  return adapt_by<moe::MoLA>(task, [&](Index number) {
    return Size{last == 0 ? 4 : 2 + Index(std::lround(4.0 * double(number) / double(last))), rank};
  });
}

}  // namespace adapt
