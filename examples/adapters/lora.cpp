/// @file
/// LoRA, and HydraLoRA, whose adapters share their A.
#include "adapters.hpp"

namespace adapt {

Json run_lora(const Task& task) {
  return adapt_by<moe::LoRA>(task, [&](Index) { return Size{1, task.settings.rank}; });
}

/// Three B to one A. The rank is such that gate, up and down together have LoRA's parameters.
Json run_hydralora(const Task& task) {
  const Index experts = 3;
  const double hidden = double(task.base.options.hidden), inner = 4 * hidden;  // as text::dense_feed_forward has it
  const double read = 2 * hidden + inner, written = 2 * inner + hidden;        // by A, by one B, at rank 1
  const double share = (read + written) / (read + double(experts) * written);
  const Index rank = std::max<Index>(1, Index(std::lround(double(task.settings.rank) * share)));
  return adapt_by<moe::HydraLoRA>(task, [&](Index) { return Size{experts, rank}; });
}

}  // namespace adapt
