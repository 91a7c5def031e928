#pragma once
/// @file
/// The models to choose from. Each is compiled in a file of its own; all have the same parameters at work on a token.

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "options.hpp"
#include "text.hpp"

nlohmann::json run_dense(const Options&, const Corpus&);
nlohmann::json run_switch(const Options&, const Corpus&);
nlohmann::json run_gshard(const Options&, const Corpus&);
nlohmann::json run_mixtral(const Options&, const Corpus&);
nlohmann::json run_deepseek_v3(const Options&, const Corpus&);
nlohmann::json run_expert_choice(const Options&, const Corpus&);

struct ModelEntry {
  nlohmann::json (*run)(const Options&, const Corpus&);
  std::string title, note;
};

inline const std::map<std::string, ModelEntry>& models() {
  static const std::map<std::string, ModelEntry> all{
      {"dense", {run_dense, "Dense", ""}},
      {"switch", {run_switch, "Switch", ""}},
      {"gshard", {run_gshard, "GShard", ""}},
      {"mixtral", {run_mixtral, "Mixtral", ""}},
      {"deepseek-v3", {run_deepseek_v3, "DeepSeek-V3", ""}},
      {"expert-choice",
       {run_expert_choice, "Expert choice",
        "An expert compares a token with later ones of its sequence, so this model sees a little of what it predicts: "
        "its loss is no fair comparison, and it cannot generate text token by token."}}};
  return all;
}

/// Trains one model and adds its title and caveat to the report.
inline nlohmann::json run_model(const Options& options, const Corpus& corpus) {
  const ModelEntry& entry = models().at(options.model);
  nlohmann::json report = entry.run(options, corpus);
  report["title"] = entry.title + (options.balanced ? "" : ", --balance none");
  if (!entry.note.empty()) report["note"] = entry.note;
  return report;
}
