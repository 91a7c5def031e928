#pragma once
/// @file
/// What programs that train several models share: their texts, their folder, and runs in turn that can be stopped.

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "options.hpp"
#include "text.hpp"

/// The texts that the build prepared, one a domain. `program` begins what it throws.
std::vector<std::string> default_text(const std::string& program);

/// Makes an output folder, or refuses it before any work is done for it.
void prepare(const std::string& program, const std::string& folder);

/// What a report says it was made by: the arguments, but not --out.
std::string command_line(const std::string& program, int argc, char** argv);

/// A comparison without runs: the command, today, this machine.
nlohmann::json frame(const std::string& command);

/// Replaces a file whole.
void write_json(const std::string& path, const nlohmann::json& json);

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
