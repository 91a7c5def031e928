#pragma once
/// @file
/// Runs in turn, which can be stopped and go on.

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "options.hpp"
#include "text.hpp"

struct PlannedRun {
  Options options;
  std::string title;
  std::function<nlohmann::json(const Options&)> train;  // returns the run's report
};

/// Trains each in turn and returns the comparison of those that are complete, which `done` also gets after each. With
/// `go_on`, runs that are complete in the output folder are taken from there, and one that was stopped goes on. Ctrl-C
/// ends it.
nlohmann::json train_in_turn(const std::vector<PlannedRun>& plan, const Corpus& corpus, bool go_on,
                             const std::string& command, const std::function<void(const nlohmann::json&)>& done);
