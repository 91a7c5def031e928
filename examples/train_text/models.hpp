#pragma once
/// @file
/// The models to choose from. Each is compiled in a file of its own, one a precision. Mixtures of experts have the same
/// parameters at work on a token as the dense model, a mixture of depths fewer.

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "options.hpp"
#include "text.hpp"

nlohmann::json run_dense(const Options&, const Corpus&);
nlohmann::json run_switch(const Options&, const Corpus&);
nlohmann::json run_gshard(const Options&, const Corpus&);
nlohmann::json run_mixtral(const Options&, const Corpus&);
nlohmann::json run_mixtral_bf16(const Options&, const Corpus&);
nlohmann::json run_mixtral_f16(const Options&, const Corpus&);
nlohmann::json run_deepseek_v3(const Options&, const Corpus&);
nlohmann::json run_deepseek_v3_bf16(const Options&, const Corpus&);
nlohmann::json run_deepseek_v3_f16(const Options&, const Corpus&);
nlohmann::json run_expert_choice(const Options&, const Corpus&);
nlohmann::json run_mixture_of_depths(const Options&, const Corpus&);
nlohmann::json run_moa(const Options&, const Corpus&);
nlohmann::json run_switchhead(const Options&, const Corpus&);

struct ModelEntry {
  using Run = nlohmann::json (*)(const Options&, const Corpus&);
  Run run;
  std::string title, note;
  Run bf16, f16;  // null where it does not train in 16 bits

  /// Throws moe::ConfigError for a precision that the model is not compiled for.
  Run in(const Options& options) const {
    const Run found = options.precision == "bf16" ? bf16 : options.precision == "f16" ? f16 : run;
    moe::detail::require<moe::ConfigError>(found != nullptr, "train_text: ", options.model,
                                           " trains in f32 only; --precision ", options.precision,
                                           " goes with --model mixtral and --model deepseek-v3.");
    return found;
  }
};

inline const std::map<std::string, ModelEntry>& models() {
  static const std::map<std::string, ModelEntry> all{
      {"dense", {run_dense, "Dense", "", nullptr, nullptr}},
      {"switch", {run_switch, "Switch", "", nullptr, nullptr}},
      {"gshard", {run_gshard, "GShard", "", nullptr, nullptr}},
      {"mixtral", {run_mixtral, "Mixtral", "", run_mixtral_bf16, run_mixtral_f16}},
      {"deepseek-v3", {run_deepseek_v3, "DeepSeek-V3", "", run_deepseek_v3_bf16, run_deepseek_v3_f16}},
      {"expert-choice",
       {run_expert_choice, "Expert choice",
        "An expert compares a token with later ones of its sequence, so this model sees a little of what it predicts: "
        "its loss is no fair comparison, and it cannot generate text token by token.",
        nullptr, nullptr}},
      {"mixture-of-depths", {run_mixture_of_depths, "Mixture of depths", "", nullptr, nullptr}},
      {"moa", {run_moa, "Mixture of attention heads", "", nullptr, nullptr}},
      {"switchhead", {run_switchhead, "SwitchHead", "", nullptr, nullptr}}};
  return all;
}

/// Trains one model and adds its title and caveat to the report.
inline nlohmann::json run_model(const Options& options, const Corpus& corpus) {
  const ModelEntry& entry = models().at(options.model);
  nlohmann::json report = entry.in(options)(options, corpus);
  report["title"] = entry.title + (options.precision == "f32" ? "" : " in " + options.precision) +
                    (options.balanced ? "" : ", --balance none");
  if (!entry.note.empty()) report["note"] = entry.note;
  return report;
}
