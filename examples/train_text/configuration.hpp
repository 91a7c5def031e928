#pragma once
/// @file
/// What must be the same for a run to go on, or to count as done.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "options.hpp"
#include "text.hpp"

inline nlohmann::json configuration(const Options& options, const Corpus& corpus) {
  auto domains = nlohmann::json::array();
  for (const Domain& domain : corpus.domains())
    domains.push_back(fmt::format("{} ({} bytes)", domain.name, domain.training.size() + domain.validation.size()));
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
          {"text", domains}};
}
