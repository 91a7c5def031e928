#include "runs.hpp"

#include <fmt/format.h>

#include <fstream>

#include "configuration.hpp"
#include "files.hpp"
#include "machine.hpp"
#include "progress.hpp"

namespace {

using Json = nlohmann::json;

/// A run's report from an earlier session, if it is complete and was made with the same options.
Json finished(const Options& options, const Corpus& corpus) {
  std::ifstream file(options.stem() + ".json");
  const Json run = file ? Json::parse(file, nullptr, false) : Json();
  if (!run.is_object() || run.value("interrupted", true)) return {};
  return run.at("configuration") == configuration(options, corpus) ? run : Json();
}

}  // namespace

Json train_in_turn(const std::vector<PlannedRun>& plan, const Corpus& corpus, bool go_on, const std::string& command,
                   const std::function<void(const Json&)>& done) {
  Json comparison = report_frame(command);
  for (std::size_t i = 0; i < plan.size() && !text::interrupted(); ++i) {
    Options one = plan[i].options;
    Json run = go_on ? finished(one, corpus) : Json();
    if (run.is_null()) {
      const bool unfinished = go_on && std::ifstream(one.stem() + ".safetensors").good();
      if (unfinished) one.resume = one.stem() + ".safetensors";
      fmt::print(stderr, "[{}/{}] {}, seed {}{}\n", i + 1, plan.size(), plan[i].title, one.seed,
                 unfinished ? ", going on" : "");
      run = plan[i].train(one);
      write_json(one.stem() + ".json", run);
    }
    if (run.value("interrupted", false)) break;
    comparison["runs"].push_back(run);
    done(comparison);
  }
  return comparison;
}
