// train_text: trains a small byte-level language model with mixtures of experts on real text.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>

#include "models.hpp"
#include "progress.hpp"

namespace {

/// The texts that the build prepared, one a domain.
std::vector<std::string> default_text() {
  std::vector<std::string> files;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(MOE_DEFAULT_TEXT, ignored)) {
    if (entry.path().extension() == ".txt") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) throw moe::IoError("train_text: the default text is gone. Give your own: --text FILE...");
  return files;
}

/// Refuses an output folder before any work is done for it.
void prepare(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::string probe = folder + "/.probe";
  const bool writable = !error && std::ofstream(probe).good();
  std::filesystem::remove(probe, error);
  if (!writable) throw moe::IoError("train_text: cannot write to '" + folder + "'. Choose another --out.");
}

void run(Options& options) {
  if (options.text.empty()) options.text = default_text();
  const Corpus corpus(options.text, options.sequence);
  prepare(options.out);
  std::FILE* out = options.json ? stderr : stdout;
  fmt::print(out, "{} on {} domains:", options.model, corpus.domains().size());
  for (const Domain& domain : corpus.domains())
    fmt::print(out, " {} ({} kB)", domain.name, domain.training.size() / 1000);
  fmt::print(out, "\n");
  std::fflush(out);

  text::catch_interrupts();
  const nlohmann::json report = models().at(options.model)(options, corpus);
  const std::string path = options.out + "/" + options.model + ".json";
  std::ofstream file(path);
  file << report.dump(2) << '\n';
  if (options.json) std::cout << report.dump() << '\n';
  const std::string checkpoint = report.at("checkpoint");
  if (report.at("interrupted").get<bool>()) {
    fmt::print(out, "Stopped after step {}; go on with --resume {}\n", report.at("steps").get<moe::Index>(),
               checkpoint);
  } else {
    fmt::print(out, "{} steps in {:.0f} s. Checkpoint {}, report {}\n", report.at("steps").get<moe::Index>(),
               report.at("seconds").get<double>(), checkpoint, path);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Trains a small byte-level transformer with mixtures of experts on real text."};
  std::vector<std::string> names;
  for (const auto& [name, run] : models()) names.push_back(name);
  app.add_option("--model", options.model, "which mixture")->check(CLI::IsMember(names))->capture_default_str();
  app.add_option("--text", options.text, "files to train on, each a domain (default: English and German sayings, C++)")
      ->check(CLI::ExistingFile);
  app.add_option("--steps", options.steps, "optimiser steps")->check(CLI::Range(1, 100000000))->capture_default_str();
  app.add_option("--seed", options.seed, "of weights, data and noise")->capture_default_str();
  app.add_option("--out", options.out, "folder for checkpoint and report")->capture_default_str();
  app.add_option("--resume", options.resume, "go on from a checkpoint of the same configuration")
      ->check(CLI::ExistingFile);
  app.add_option("--batch", options.batch, "sequences a step")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--sequence", options.sequence, "bytes a sequence")->check(CLI::Range(8, 4096))->capture_default_str();
  app.add_option("--hidden", options.hidden, "width")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--layers", options.layers, "blocks")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--heads", options.heads, "attention heads")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--learning-rate", options.learning_rate, "peak")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--json", options.json, "the report on standard output");
  CLI11_PARSE(app, argc, argv);

  Kokkos::ScopeGuard kokkos(argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
