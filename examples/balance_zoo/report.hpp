#pragma once
/// @file
/// The zoo's report: a page, its pictures, a table.
///
/// A comparison is {"command", "date", "machine", "runs": [run...]}, a run what train_text's report/report.hpp says,
/// and beside it "family" (the number of a Family), "about", and "balance" (see measures.hpp).

#include <nlohmann/json.hpp>
#include <string>

namespace zoo {

/// Writes folder/report.html and folder/{trade_off,violation,validation,validation_gap}.svg, each whole or not at all.
void write_report(const std::string& folder, const nlohmann::json& comparison);

/// One line a method, seeds averaged; then what it shows in sentences.
std::string terminal_table(const nlohmann::json& comparison);

}  // namespace zoo
