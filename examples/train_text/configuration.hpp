#pragma once
/// @file
/// What must be the same for a run to go on, or to count as done; and how a checkpoint says it.

#include <fmt/format.h>

#include <moe/io/safetensors.hpp>
#include <nlohmann/json.hpp>

#include "options.hpp"
#include "text.hpp"

/// Each text as "name (bytes)".
inline nlohmann::json domain_names(const Corpus& corpus) {
  auto domains = nlohmann::json::array();
  for (const Domain& domain : corpus.domains())
    domains.push_back(fmt::format("{} ({} bytes)", domain.name, domain.training.size() + domain.validation.size()));
  return domains;
}

inline nlohmann::json configuration(const Options& options, const Corpus& corpus) {
  return {{"model", options.model},
          {"precision", options.precision},
          {"balanced", options.balanced},
          {"seed", options.seed},
          {"batch", options.batch},
          {"sequence", options.sequence},
          {"microbatches", options.microbatches},
          {"hidden", options.hidden},
          {"layers", options.layers},
          {"heads", options.heads},
          {"steps", options.steps},
          {"learning_rate", options.learning_rate},
          {"text", domain_names(corpus)}};
}

/// What a checkpoint says of its run: "configuration", as above, and where it stands. Throws moe::IoError.
inline nlohmann::json run_of_checkpoint(const std::string& path) {
  const moe::SafetensorsReader file(path);
  const auto found = file.metadata().find("train_text");
  moe::detail::require<moe::IoError>(found != file.metadata().end(), "train_text: '", path,
                                     "' is no checkpoint of train_text.");
  return nlohmann::json::parse(found->second);
}
