#pragma once
/// @file
/// The result in sentences, computed from the numbers: none claims more than they show.

#include <string>
#include <vector>

#include "data.hpp"

namespace report {

/// The result in one sentence.
std::string headline(const std::vector<Model>& models);
/// What has to be said with it: seeds, losses that cannot be compared, what balancing did.
std::vector<std::string> remarks(const std::vector<Model>& models);

/// "2.104 ± 0.012", or "–".
std::string plus_minus(const Estimate& estimate, int decimals);

/// The first comparable mixture, the best where losses are known; null where there is none.
const Model* best_mixture(const std::vector<Model>& models);
/// A balanced model and the same one without balancing, where both are there; else the best mixture and null.
std::pair<const Model*, const Model*> balanced_and_not(const std::vector<Model>& models);

}  // namespace report
