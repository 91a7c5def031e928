#pragma once
/// @file
/// What a run says of balance.

#include <nlohmann/json.hpp>

namespace zoo {

/// Of a run's report, over the last fifth of its steps; layers averaged, dead experts added up:
///
///     "violation"          the maximum violation of a step's batch, mean over steps
///     "average_violation"  the maximum violation of the loads' mean over these steps
///     "load_entropy"       the entropy of that mean load in units of log E
///     "dead_experts"       experts with less than a tenth of their fair share of it
///     "milliseconds"       a step took
nlohmann::json measures(const nlohmann::json& run);

}  // namespace zoo
