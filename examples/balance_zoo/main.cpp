// balance_zoo: trains the demo's model under every way of balancing its experts, and reports what each costs and
// brings.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "../train_text/configuration.hpp"
#include "../train_text/files.hpp"
#include "../train_text/machine.hpp"
#include "../train_text/progress.hpp"
#include "../train_text/runs.hpp"
#include "measures.hpp"
#include "methods.hpp"
#include "report.hpp"

namespace {

using Json = nlohmann::json;

void list() {
  fmt::print("{:<26}{:>9}  {}\n", "method", "strength", "what it does");
  for (const zoo::Method& method : zoo::methods())
    fmt::print("{:<26}{:>9}  {}\n", method.name, method.strength > 0 ? fmt::format("{:g}", method.strength) : "-",
               method.about);
}

/// Refuses a folder whose results were made otherwise, before any is replaced.
void check_folder(const std::vector<PlannedRun>& plan, const Corpus& corpus) {
  for (const PlannedRun& planned : plan) {
    const std::string path = planned.options.stem() + ".json";
    std::ifstream file(path);
    const Json run = file ? Json::parse(file, nullptr, false) : Json();
    if (!run.is_object()) continue;
    const Json mine = configuration(planned.options, corpus);
    for (const auto& [key, value] : run.at("configuration").items()) {
      moe::detail::require<moe::ConfigError>(mine.value(key, Json()) == value, "balance_zoo: '", path,
                                             "' was made with ", key, " ", value.dump(), ", but this run has ",
                                             mine.value(key, Json()).dump(), ". Choose another --out.");
    }
  }
}

/// Every method with every seed, seeds outermost: a stopped zoo has seen as many seeds of each as it could.
std::vector<PlannedRun> plan_of(const Options& options, const std::vector<zoo::Method>& chosen, int seeds,
                                const Corpus& corpus) {
  std::vector<PlannedRun> plan;
  for (int seed = 0; seed < seeds; ++seed) {
    for (const zoo::Method& method : chosen) {
      Options one = options;
      one.model = method.name;
      one.seed = options.seed + std::uint64_t(seed);
      plan.push_back({one, method.title, [method, &corpus](const Options& now) {
                        return method.train(now, corpus, method.setting(method.strength));
                      }});
    }
  }
  return plan;
}

/// The comparison with what the report needs beside the runs' own numbers.
Json described(Json comparison) {
  for (Json& run : comparison["runs"]) {
    const zoo::Method method = zoo::method(run.at("model"));
    run["title"] = method.title;
    run["about"] = method.about + (method.strength > 0 ? fmt::format(": {:g}", method.strength) : "");
    run["family"] = int(method.family);
    if (!method.note.empty()) run["note"] = method.note;
    run["balance"] = zoo::measures(run);
  }
  return comparison;
}

/// The methods by name; "all" stands for every one as it is.
std::vector<zoo::Method> choose(const std::vector<std::string>& names) {
  std::vector<zoo::Method> chosen;
  for (const std::string& name : names) {
    if (name == "all") {
      chosen.insert(chosen.end(), zoo::methods().begin(), zoo::methods().end());
    } else {
      chosen.push_back(zoo::method(name));
    }
  }
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j)
      moe::detail::require<moe::ConfigError>(chosen[i].name != chosen[j].name, "balance_zoo: --methods: '",
                                             chosen[i].name, "' is named twice. Once will do.");
  }
  return chosen;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.out = "out/balance_zoo";
  options.steps = 1500;
  options.batch = 8;
  options.microbatches = 1;
  options.validations = 16;
  std::vector<std::string> names{"all"};
  int seeds = 3;
  bool quick = false, listing = false;
  CLI::App app{
      "Trains a small byte-level transformer under every way of balancing its experts, and writes one report: maximum "
      "violation and validation loss over training, and the trade-off between them. Runs that are complete in --out "
      "are "
      "not repeated, and one that was stopped goes on."};
  const auto positive = CLI::PositiveNumber;
  app.option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--methods", names, "some of them, also with another strength: all,switch@0.1")
      ->delimiter(',')
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--list", listing, "name the methods and end");
  auto* steps = app.add_option("--steps", options.steps, "optimiser steps of a run")->check(CLI::Range(1, 100000000));
  app.add_option("--seed", options.seed, "the first seed, of weights, data and noise");
  app.add_option("--seeds", seeds, "runs of each method")->check(positive);
  app.add_option("--out", options.out, "folder for runs and the report");
  app.add_option("--text", options.text, "files to train on, each a domain (default: English and German sayings, C++)")
      ->check(CLI::ExistingFile)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--quick", quick, "a tiny model and few steps, to see that all works");
  app.add_flag("--json", options.json, "the comparison on standard output");
  CLI11_PARSE(app, argc, argv);
  if (listing) {
    list();
    return 0;
  }
  if (quick) {
    options.batch = 6;
    options.sequence = 16;
    options.hidden = 16;
    options.layers = 1;
    if (steps->count() == 0) options.steps = 20;
  }

  Kokkos::ScopeGuard kokkos(argc, argv);
  try {
    const std::vector<zoo::Method> chosen = choose(names);
    if (options.text.empty()) options.text = default_text("balance_zoo", MOE_DEFAULT_TEXT, "--text FILE...");
    const Corpus corpus(options.text, options.sequence);
    prepare_folder("balance_zoo", options.out);
    const std::vector<PlannedRun> plan = plan_of(options, chosen, seeds, corpus);
    check_folder(plan, corpus);
    text::catch_interrupts();
    const std::string command = command_line("balance_zoo", argc, argv);
    const Json comparison = described(train_in_turn(plan, corpus, true, command, [&](const Json& so_far) {
      const Json& last = so_far.at("runs").back();
      Options done = options;
      done.model = last.at("model");
      done.seed = last.at("seed");
      std::filesystem::remove(done.stem() + ".safetensors");  // it was for going on
      const Json full = described(so_far);
      write_json(options.out + "/comparison.json", full);
      zoo::write_report(options.out, full);
    }));
    std::FILE* out = options.json ? stderr : stdout;
    if (options.json) fmt::print("{}\n", comparison.dump());
    fmt::print(out, "\n{}", zoo::terminal_table(comparison));
    if (text::interrupted())
      fmt::print(out, "\nInterrupted. The same command goes on: what is done is in {}.\n", options.out);
    else
      fmt::print(out, "\nReport: {}/report.html\n", options.out);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
