#pragma once
/// @file
/// The zoo's result in sentences, computed from the numbers: none claims more than they show.

#include <string>
#include <vector>

#include "../train_text/report/data.hpp"

namespace zoo {

/// A method's bits per byte less those of "none", the mean and deviation over the seeds that both have.
report::Estimate against_none(const report::Model& model, const std::vector<report::Model>& models);

std::string headline(const std::vector<report::Model>& models);
std::vector<std::string> remarks(const std::vector<report::Model>& models);

}  // namespace zoo
