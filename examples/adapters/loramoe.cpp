/// @file
/// LoRAMoE: all experts mixed, and a loss that keeps some for the old domains and some for the new one.
#include "adapters.hpp"

namespace adapt {

/// Four experts: two for sequences of the old domains (task 1, where --replay shows some), two for the new one's.
Json run_loramoe(const Task& task) {
  using Linear = moe::AdaptedLinear<moe::Router<moe::Softmax, moe::AllExperts>>;
  const Index rank = rank_of(task, 4);
  return adapt_by<Linear>(task, [&](Index) { return Size{4, rank}; });
}

}  // namespace adapt
