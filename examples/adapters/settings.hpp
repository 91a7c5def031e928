#pragma once
/// @file
/// What the command line of adapters says, and the base model and texts that it names.

#include <configuration.hpp>
#include <string>
#include <vector>

namespace adapt {

using moe::Index;
using Json = nlohmann::json;

struct Settings {
  std::string checkpoint;        // the base model: dense, of train_text
  std::vector<std::string> old;  // what it was trained on, one file a domain
  std::string text;              // the new domain
  std::string out = "adapted";   // folder of results
  std::vector<std::string> methods;
  Index steps = 300;
  std::uint64_t seed = 1;
  Index seeds = 1;
  Index batch = 16;          // sequences a step
  Index rank = 16;           // of LoRA; the others get about its number of trained parameters
  double scaling = 2;        // alpha / rank
  double replay = 0;         // share of sequences from the old domains
  double learning_rate = 0;  // 0: each method's own
  bool resume = false;       // results in `out` that were made with the same settings count
  bool json = false;         // the report on standard output
};

/// The base model's sizes and run, as its checkpoint says.
struct Base {
  Options options;
  Json configuration;
};

/// Texts of a run: the old domains, the new one, and all of them in that order.
struct Texts {
  Corpus old, fresh, all;
};

inline std::vector<std::string> with(std::vector<std::string> files, const std::string& one) {
  files.push_back(one);
  return files;
}

/// Throws moe::IoError where there is no such checkpoint, moe::ConfigError where it is of another model than dense, or
/// of other texts.
inline Base read_base(const Settings& settings) {
  std::ifstream file(settings.checkpoint);
  moe::detail::require<moe::IoError>(file.good(), "adapters: there is no base model '", settings.checkpoint,
                                     "'. Make one by `cmake --workflow --preset demo`, or by `train_text --model dense "
                                     "--steps 600 --out DIR` and give "
                                     "--checkpoint DIR/dense-1.safetensors.");
  Base base;
  base.configuration = run_of_checkpoint(settings.checkpoint).at("configuration");
  const Json& made = base.configuration;
  moe::detail::require<moe::ConfigError>(
      made.at("model") == "dense" && made.at("precision") == "f32", "adapters: '", settings.checkpoint, "' is a model ",
      made.at("model").dump(), " in ", made.at("precision").dump(), ". Give one of train_text --model dense, in f32.");
  base.options.model = "dense";
  base.options.hidden = made.at("hidden");
  base.options.layers = made.at("layers");
  base.options.heads = made.at("heads");
  base.options.sequence = made.at("sequence");
  base.options.batch = settings.batch;
  return base;
}

/// Throws moe::ConfigError where the old texts are not those of the base model.
inline void check_texts(const Settings& settings, const Base& base, const Texts& texts) {
  const Json here = domain_names(texts.old);
  moe::detail::require<moe::ConfigError>(base.configuration.at("text") == here, "adapters: '", settings.checkpoint,
                                         "' was trained on ", base.configuration.at("text").dump(),
                                         ", but the old domains here are ", here.dump(),
                                         ". Give its texts: --old FILE..., or make it again.");
}

/// What must be the same for a result to count as done.
inline Json configuration(const Settings& settings, const Base& base, const Texts& texts, const std::string& method,
                          double learning_rate, std::uint64_t seed) {
  return {{"method", method},           {"seed", seed},
          {"steps", settings.steps},    {"batch", settings.batch},
          {"rank", settings.rank},      {"scaling", settings.scaling},
          {"replay", settings.replay},  {"learning_rate", learning_rate},
          {"base", base.configuration}, {"text", domain_names(texts.all)}};
}

}  // namespace adapt
