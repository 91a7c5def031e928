/// @file
/// LoRAMoE: all experts mixed, and a loss that keeps half of them for the old domains and half for the new one.
#include <moe/balance/localised_balance_loss.hpp>

#include "adapters.hpp"

namespace adapt {

/// Four experts. Sequences of the old domains are of task 1; without --replay there are none, and the loss balances.
Json run_loramoe(const Task& task) {
  using Linear = moe::LoRAMoELayer<moe::LocalisedBalanceLoss>;
  const Index rank = rank_of(task, 4);
  return adapt_by<Linear>(task, [&](Index) { return Size{4, rank}; });
}

}  // namespace adapt
