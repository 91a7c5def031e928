#pragma once
/// @file
/// Several models trained alike, one after another, and a table of what came of it.

#include <nlohmann/json.hpp>
#include <string>

#include "options.hpp"
#include "text.hpp"

/// Trains every model with `seeds` seeds; writes each run's report, and after each the table, comparison.json and
/// report.html so far. With `go_on`, runs that are complete in the output folder are taken from there. `command` is
/// what the report says it was made by.
void compare(const Options& options, const Corpus& corpus, int seeds, bool go_on, const std::string& command);

/// The page and the pictures of one run.
void write_single_report(const Options& options, const nlohmann::json& run, const std::string& command);
