#pragma once
/// @file
/// The ways to adapt a model. Each is compiled in one of four files.

#include <utility>

#include "settings.hpp"

namespace adapt {

/// One method on one seed.
struct Task {
  const Settings& settings;
  const Base& base;
  const Texts& texts;
  std::uint64_t seed = 1;
  double learning_rate = 0;
  std::string stem;    // files of its results begin with this
  Json configuration;  // what makes these results
};

Json run_frozen(const Task&);
Json run_full(const Task&);
Json run_lora(const Task&);
Json run_hydralora(const Task&);
Json run_mola(const Task&);
Json run_loramoe(const Task&);

struct Method {
  std::string name, title;
  Json (*run)(const Task&);
  double learning_rate;
  int color;  // of the report's
};

/// In the order of the table.
inline const std::vector<Method>& methods() {
  static const std::vector<Method> all{
      {"frozen", "Frozen base", run_frozen, 0, 8}, {"full", "Full fine-tuning", run_full, 1e-3, 0},
      {"lora", "LoRA", run_lora, 4e-3, 1},         {"hydralora", "HydraLoRA", run_hydralora, 4e-3, 2},
      {"mola", "MoLA", run_mola, 4e-3, 3},         {"loramoe", "LoRAMoE", run_loramoe, 4e-3, 5}};
  return all;
}

}  // namespace adapt
