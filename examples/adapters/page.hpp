#pragma once
/// @file
/// What adapting gained and forgot: as a table for a terminal, and as a page with pictures.

#include <nlohmann/json.hpp>
#include <string>

namespace adapt {

/// One line a method, means over its seeds.
std::string terminal_table(const nlohmann::json& report);

/// Writes adapters.html, which needs no other file, and its pictures as adapters.svg. Throws moe::IoError.
void write_page(const std::string& folder, const nlohmann::json& report);

}  // namespace adapt
