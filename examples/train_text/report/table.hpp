#pragma once
/// @file
/// The comparison as a table for a terminal, and what it says in a sentence.

#include <nlohmann/json.hpp>
#include <string>

namespace report {

/// One line a model, seeds averaged, the best first; then the result in sentences.
std::string terminal_table(const nlohmann::json& comparison);

}  // namespace report
