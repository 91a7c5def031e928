// adapters: adapts a language model of train_text to a new text by full training and by mixtures of LoRA experts, and
// measures what each costs, gains and forgets.
#include <CLI/CLI.hpp>
#include <files.hpp>
#include <iostream>
#include <machine.hpp>
#include <progress.hpp>
#include <stages.hpp>

#include "methods.hpp"
#include "page.hpp"

namespace {

using namespace adapt;

/// A result of an earlier session, where it is complete and of the same settings.
Json finished(const Task& task) {
  std::ifstream file(task.stem + ".json");
  const Json run = file ? Json::parse(file, nullptr, false) : Json();
  return run.is_object() && run.value("configuration", Json()) == task.configuration ? run : Json();
}

/// Every method on every seed; the files of the report follow each result.
void run_all(const Settings& settings, const std::string& command) {
  std::FILE* out = settings.json ? stderr : stdout;
  const Base base = read_base(settings);
  const Index length = base.options.sequence;
  const Texts texts{Corpus(settings.old, length), Corpus({settings.text}, length),
                    Corpus(with(settings.old, settings.text), length)};
  check_texts(settings, base, texts);
  prepare_folder("adapters", settings.out);
  const std::string fresh = texts.fresh.domains().front().name;
  fmt::print(out, "A model of {} steps on", base.configuration.at("steps").get<Index>());
  for (const Domain& domain : texts.old.domains()) fmt::print(out, " {}", domain.name);
  fmt::print(out, " learns {} ({} kB)", fresh, texts.fresh.domains().front().training.size() / 1000);
  if (settings.replay > 0)
    fmt::print(out, ", and sees the old texts in {:.0f}% of its sequences", 100 * settings.replay);
  fmt::print(out, ".\n");
  std::fflush(out);

  Json report = report_frame(command);
  report["new"] = fresh;
  report["replay"] = settings.replay;
  report["steps"] = settings.steps;
  report["tokens_per_step"] = settings.batch * length;
  const std::size_t total = settings.methods.size() * std::size_t(settings.seeds);
  std::size_t number = 0;
  for (Index s = 0; s < settings.seeds && !text::interrupted(); ++s) {
    for (const Method& method : methods()) {
      if (std::find(settings.methods.begin(), settings.methods.end(), method.name) == settings.methods.end()) continue;
      ++number;
      const std::uint64_t seed = settings.seed + std::uint64_t(s);
      const double rate = settings.learning_rate > 0 ? settings.learning_rate : method.learning_rate;
      const Task task{settings,
                      base,
                      texts,
                      seed,
                      rate,
                      fmt::format("{}/{}-{}", settings.out, method.name, seed),
                      configuration(settings, base, texts, method.name, rate, seed)};
      Json run = settings.resume ? finished(task) : Json();
      if (run.is_null()) {
        fmt::print(stderr, "[{}/{}] {}, seed {}\n", number, total, method.title, task.seed);
        run = method.run(task);
        if (run.value("interrupted", false)) break;
        run["method"] = method.name;
        run["title"] = method.title;
        run["configuration"] = task.configuration;
        write_json(task.stem + ".json", run);
      }
      report["runs"].push_back(run);
      write_json(settings.out + "/adapters.json", report);
      write_page(settings.out, report);
    }
  }
  if (settings.json) std::cout << report.dump() << '\n';
  fmt::print(out, "\n{}", terminal_table(report));
  if (text::interrupted())
    fmt::print(out, "\nInterrupted. Go on with: --resume --out {} and the same options\n", settings.out);
  if (!report["runs"].empty()) fmt::print(out, "\nReport: {}/adapters.html\n", settings.out);
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  settings.checkpoint = MOE_DEMO_CHECKPOINT;
  for (const Method& method : methods()) settings.methods.push_back(method.name);
  const std::vector<std::string> names = settings.methods;
  CLI::App app{
      "Adapts a dense model of train_text to a new text by full training and by mixtures of LoRA experts: what each "
      "trains, costs, gains and forgets."};
  const auto positive = CLI::PositiveNumber;
  app.option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--checkpoint", settings.checkpoint, "the base: train_text --model dense, as the demo leaves it");
  app.add_option("--text", settings.text, "the new domain (default: Italian sayings)")->check(CLI::ExistingFile);
  app.add_option("--old", settings.old, "what the base was trained on, a file a domain (default: train_text's)")
      ->check(CLI::ExistingFile)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--methods", settings.methods, "which, by commas")
      ->delimiter(',')
      ->check(CLI::IsMember(names))
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--steps", settings.steps, "optimiser steps")->check(CLI::Range(1, 100000000));
  app.add_option("--batch", settings.batch, "sequences a step")->check(positive);
  app.add_option("--seed", settings.seed, "of adapters, data and noise");
  app.add_option("--seeds", settings.seeds, "how many, from --seed on")->check(positive);
  app.add_option("--rank", settings.rank, "of LoRA; mixtures get about as many trained parameters")->check(positive);
  app.add_option("--scaling", settings.scaling, "alpha / rank")->check(positive);
  app.add_option("--replay", settings.replay, "share of sequences from the old domains, for every method")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--learning-rate", settings.learning_rate, "peak (default: 1e-3 for full training, 4e-3 for adapters)")
      ->check(positive);
  app.add_option("--out", settings.out, "folder for adapters and reports");
  app.add_flag("--resume", settings.resume, "methods that --out has results of, with the same options, are done");
  app.add_flag("--json", settings.json, "the report on standard output");
  CLI11_PARSE(app, argc, argv);

  Kokkos::ScopeGuard kokkos(argc, argv);
  try {
    if (settings.old.empty()) settings.old = default_text("adapters", MOE_DEFAULT_TEXT, "--old FILE...");
    if (settings.text.empty()) settings.text = default_text("adapters", MOE_NEW_TEXT, "--text FILE").front();
    text::catch_interrupts();
    text::Stages::watch_bytes();
    run_all(settings, command_line("adapters", argc, argv));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
