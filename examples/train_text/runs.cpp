#include "runs.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <thread>

#include "configuration.hpp"
#include "files.hpp"
#include "progress.hpp"

namespace {

using Json = nlohmann::json;

/// The processor's name, its cores and the widest instructions this program was compiled for.
std::string machine() {
  std::ifstream file("/proc/cpuinfo");
  std::string name = "unknown processor";
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) {
      name = line.substr(line.find(':') + 2);
      break;
    }
  }
#if defined(__AVX512F__)
  const char* instructions = "AVX-512";
#elif defined(__AVX2__)
  const char* instructions = "AVX2";
#else
  const char* instructions = "baseline instructions";
#endif
  return fmt::format("{}, {} cores, {}", name, std::thread::hardware_concurrency(), instructions);
}

/// A run's report from an earlier session, if it is complete and was made with the same options.
Json finished(const Options& options, const Corpus& corpus) {
  std::ifstream file(options.stem() + ".json");
  const Json run = file ? Json::parse(file, nullptr, false) : Json();
  if (!run.is_object() || run.value("interrupted", true)) return {};
  return run.at("configuration") == configuration(options, corpus) ? run : Json();
}

}  // namespace

std::vector<std::string> default_text(const std::string& program) {
  std::vector<std::string> files;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(MOE_DEFAULT_TEXT, ignored)) {
    if (entry.path().extension() == ".txt") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) throw moe::IoError(program + ": the default text is gone. Give your own: --text FILE...");
  return files;
}

void prepare(const std::string& program, const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::string probe = folder + "/.probe";
  const bool writable = !error && std::ofstream(probe).good();
  std::filesystem::remove(probe, error);
  if (!writable) throw moe::IoError(program + ": cannot write to '" + folder + "'. Choose another --out.");
}

std::string command_line(const std::string& program, int argc, char** argv) {
  std::string command = program;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--out")
      ++i;  // where it went is nobody's business
    else
      command += std::string(" ") + argv[i];
  }
  return command;
}

Json frame(const std::string& command) {
  return {{"command", command},
          {"date", fmt::format("{:%Y-%m-%d}", fmt::localtime(std::time(nullptr)))},
          {"machine", machine()},
          {"runs", Json::array()}};
}

void write_json(const std::string& path, const Json& json) {
  write_whole(path, json.dump(1) + "\n");
}

Json train_in_turn(const std::vector<PlannedRun>& plan, const Corpus& corpus, bool go_on, const std::string& command,
                   const std::function<void(const Json&)>& done) {
  Json comparison = frame(command);
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
