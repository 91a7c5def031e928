// train_text: trains a small byte-level language model with mixtures of experts on real text.
#include <CLI/CLI.hpp>
#include <iostream>
#include <moe/balance/load.hpp>
#include <sstream>

#include "compare.hpp"
#include "elementwise.hpp"
#include "files.hpp"
#include "machine.hpp"
#include "models.hpp"
#include "progress.hpp"
#include "stages.hpp"

namespace {

/// What a run ends with: validation, loads, a sample.
void print(std::FILE* out, const nlohmann::json& run) {
  fmt::print(out, "\nValidation, bits per byte:\n");
  for (const auto& [name, bits] : run.at("validation_bits_per_byte").items())
    fmt::print(out, "  {:<12} {:.3f}\n", name, double(bits));
  int layer = 0;
  for (const auto& load : run.at("load")) {
    if (load.at("routed").size() == 1) {
      fmt::print(out, "\nLayer {} in the last pass: {} of {} tokens go through.\n", layer++,
                 load.at("kept").at(0).get<moe::Index>(), load.at("tokens").get<moe::Index>());
      continue;
    }
    std::ostringstream text;
    text << moe::LoadReport{load.at("tokens"), load.at("routed"), load.at("kept")};
    fmt::print(out, "\nLoad of layer {} in the last pass:\n{}", layer++, text.str());
  }
  fmt::print(out, "\nA sample (the first 64 bytes are given):\n{}\n", run.at("sample").get<std::string>());
  if (run.contains("note")) fmt::print(out, "\n{}\n", run.at("note").get<std::string>());
}

void run_one(const Options& options, const Corpus& corpus, const std::string& command) {
  std::FILE* out = options.json ? stderr : stdout;
  const nlohmann::json run = run_model(options, corpus);
  const moe::Index steps = run.at("steps");
  const bool interrupted = run.at("interrupted");
  if (!interrupted) print(out, run);
  write_single_report(options, run, command);
  if (options.json) std::cout << run.dump() << '\n';
  if (interrupted) {
    fmt::print(out, "Stopped after step {}; go on with --resume and the same options\n", steps);
  } else {
    fmt::print(out, "{} steps in {:.0f} s, {:.0f} tokens/s. Checkpoint {}, report {}/report.html\n", steps,
               run.at("seconds").get<double>(), run.at("tokens_per_second").get<double>(),
               run.at("checkpoint").get<std::string>(), options.out);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Trains a small byte-level transformer with mixtures of experts on real text, or compares several of them."};
  std::vector<std::string> names;
  for (const auto& [name, entry] : models()) names.push_back(name);
  bool comparing = false, long_run = false;
  std::string balance = "default";
  const auto positive = CLI::PositiveNumber;
  app.option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  auto* model = app.add_option("--model", options.model, "which mixture")->check(CLI::IsMember(names));
  app.add_option(
         "--precision", options.precision,
         "of parameters, activations and gradients; bf16 and f16 (mixtral, deepseek-v3) have f32 masters and sums")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  auto* compares = app.add_flag("--compare", comparing, "train several at equal tokens")->excludes(model);
  app.add_option("--among", options.among,
                 "what to compare (default: all but mixtures of heads); named twice in a row: once unbalanced")
      ->needs(compares)
      ->delimiter(',')
      ->check(CLI::IsMember(names))
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--long", long_run, "with --compare: three seeds, 1500 steps (without: one seed, 600 steps)");
  app.add_option("--balance", balance, "none: no balance losses, no bias, to see the collapse")
      ->excludes(compares)
      ->check(CLI::IsMember({"default", "none"}))
      ->capture_default_str();
  app.add_option("--text", options.text, "files to train on, each a domain (default: English and German sayings, C++)")
      ->check(CLI::ExistingFile)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  auto* steps = app.add_option("--steps", options.steps, "optimiser steps")->check(CLI::Range(1, 100000000));
  app.add_option("--seed", options.seed, "of weights, data and noise");
  app.add_option("--out", options.out, "folder for checkpoints and reports");
  auto* resume =
      app.add_option("--resume", options.resume, "go on: from FILE, or from what is in --out")->expected(0, 1);
  app.add_option("--batch", options.batch, "sequences a step")->check(positive);
  app.add_option("--microbatches", options.microbatches, "passes a step, gradients accumulated")->check(positive);
  app.add_option("--sequence", options.sequence, "bytes a sequence")->check(CLI::Range(8, 1 << 20));
  app.add_option("--hidden", options.hidden, "width")->check(positive);
  app.add_option("--layers", options.layers, "blocks")->check(positive);
  app.add_option("--heads", options.heads, "attention heads")->check(positive);
  app.add_option("--learning-rate", options.learning_rate, "peak")->check(positive);
  app.add_option("--loss-scale", options.loss_scale, "in f16, at first")->check(CLI::Range(1.0, 0x1p127));
  app.add_option("--checkpoint-every", options.checkpoint_every, "steps")->check(positive);
  app.add_flag("--export-routing", options.export_routing, "write routing decisions, for analyse_routing and as CSV");
  app.add_option("--corrupt-batch", options.corrupt_batch, "a drill: make this batch noise, and see it skipped");
  app.add_flag("--json", options.json, "the report on standard output");
  CLI11_PARSE(app, argc, argv);
  options.balanced = balance == "default";
  if (comparing && steps->count() == 0) options.steps = long_run ? 1500 : 600;

  const std::string command = command_line("train_text", argc, argv);
  Kokkos::ScopeGuard kokkos(argc, argv);
  try {
    if (options.text.empty()) options.text = default_text("train_text", MOE_DEFAULT_TEXT, "--text FILE...");
    const Corpus corpus(options.text, options.sequence);
    prepare_folder("train_text", options.out);
    const bool go_on = resume->count() > 0;
    if (go_on && options.resume.empty() && !comparing) options.resume = options.stem() + ".safetensors";
    std::FILE* out = options.json ? stderr : stdout;
    fmt::print(out, "{} on {} domains:", comparing ? "Comparing mixtures" : options.name(), corpus.domains().size());
    for (const Domain& domain : corpus.domains())
      fmt::print(out, " {} ({} kB)", domain.name, domain.training.size() / 1000);
    fmt::print(out, "\n");
    std::fflush(out);
    text::catch_interrupts();
    text::Stages::watch();
    if (comparing) {
      compare(options, corpus, long_run ? 3 : 1, go_on, command);
    } else {
      run_one(options, corpus, command);
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
