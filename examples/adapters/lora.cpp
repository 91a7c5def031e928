/// @file
/// LoRA, and HydraLoRA, whose adapters share their A.
#include "adapters.hpp"

namespace adapt {

Json run_lora(const Task& task) {
  return adapt_by<moe::AdaptedLinear<>>(task, [&](Index) { return Size{1, task.settings.rank}; });
}

/// Three B to one A, as in the paper's tables; the rank makes up for what they share.
Json run_hydralora(const Task& task) {
  using Linear = moe::AdaptedLinear<moe::Router<moe::Softmax, moe::AllExperts>, moe::LowRankAdapters<moe::SharedDown>>;
  const Widths w = widths(task);
  const Index experts = 3;
  const double parts = w.adapter() / (w.down() + double(experts) * w.up());
  const Index rank = std::max<Index>(1, Index(std::lround(double(task.settings.rank) * parts)));
  return adapt_by<Linear>(task, [&](Index) { return Size{experts, rank}; });
}

}  // namespace adapt
