#include "compare.hpp"

#include <fmt/format.h>

#include "files.hpp"
#include "machine.hpp"
#include "models.hpp"
#include "progress.hpp"
#include "report/report.hpp"
#include "report/table.hpp"
#include "runs.hpp"

using Json = nlohmann::json;

void write_single_report(const Options& options, const Json& run, const std::string& command) {
  write_json(options.stem() + ".json", run);
  Json comparison = report_frame(command);
  comparison["runs"].push_back(run);
  write_report(options.out, comparison);
}

namespace {

/// What a run would refuse, before the others are trained.
void check(const Options& options) {
  models().at(options.model).in(options);
  moe::detail::require<moe::ConfigError>(options.model != "mixture-of-depths" || options.layers % 2 == 0,
                                         "train_text: a mixture of depths alternates with dense layers, so ",
                                         options.layers,
                                         " layers do not do. Give --layers 2, or leave it out: --among.");
  moe::detail::require<moe::ConfigError>(options.model != "moa" || options.heads % 2 == 0,
                                         "train_text: a mixture of attention heads splits heads in two, so ",
                                         options.heads, " do not do. Give --heads 2, or leave it out: --among.");
}

}  // namespace

void compare(const Options& options, const Corpus& corpus, int seeds, bool go_on, const std::string& command) {
  std::FILE* out = options.json ? stderr : stdout;
  const std::vector<std::string> usual{"dense",       "switch",      "gshard",        "mixtral",
                                       "deepseek-v3", "deepseek-v3", "expert-choice", "mixture-of-depths"};
  std::vector<Options> plan;
  for (int seed = 0; seed < seeds; ++seed) {
    const std::vector<std::string>& names = options.among.empty() ? usual : options.among;
    for (std::size_t i = 0; i < names.size(); ++i) {
      Options one = options;
      one.balanced = i == 0 || names[i - 1] != names[i];  // the second of a model goes unbalanced
      one.model = names[i];
      one.seed = options.seed + std::uint64_t(seed);
      check(one);
      for (const Options& other : plan) {
        moe::detail::require<moe::ConfigError>(other.stem() != one.stem(), "train_text: --among names ", one.model,
                                               " too often. Once, or twice in a row: the second goes unbalanced.");
      }
      plan.push_back(one);
    }
  }
  std::vector<PlannedRun> runs;
  for (const Options& one : plan)
    runs.push_back({one, models().at(one.model).title + (one.balanced ? "" : " without balancing"),
                    [&](const Options& now) { return run_model(now, corpus); }});
  const Json comparison = train_in_turn(runs, corpus, go_on, command, [&](const Json& so_far) {
    write_json(options.out + "/comparison.json", so_far);
    write_report(options.out, so_far);
  });
  if (options.json) {
    fmt::print("{}\n", comparison.dump());
  }
  fmt::print(out, "\n{}", report::terminal_table(comparison));
  if (text::interrupted())
    fmt::print(out, "\nInterrupted. Go on with: --compare --resume --out {} and the same options\n", options.out);
  fmt::print(out, "\nReport: {}/report.html\n", options.out);
}
