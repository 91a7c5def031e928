// analyse_routing: what experts specialise in, and how stable that is, from the files of train_text --export-routing.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <numeric>

#include "json.hpp"
#include "tables.hpp"

namespace {

RoutingRecord read(const std::string& path) {
  RoutingRecord record = read_routing(path);
  moe::detail::require<moe::DataError>(!record.byte.empty() && !record.layers.empty(), "analyse_routing: '", path,
                                       "' has ", record.byte.size(), " tokens and ", record.layers.size(),
                                       " layers: nothing to analyse.");
  return record;
}

void run(Settings& settings, std::int64_t layer, bool json) {
  std::vector<RoutingRecord> records;
  for (const std::string& file : settings.files) {
    records.push_back(read(file));
    const std::size_t i = records.size() - 1;
    if (i > 0) analysis::require_comparable(file, records[i], settings.files[i - 1], records[i - 1]);
  }
  const std::size_t layers = records[0].layers.size();
  settings.layers.resize(layers);
  std::iota(settings.layers.begin(), settings.layers.end(), 0);
  if (layer >= 0) {
    moe::detail::require<moe::ConfigError>(std::size_t(layer) < layers, "analyse_routing: there is no layer ", layer,
                                           " among ", layers, ", which are counted from 0.");
    settings.layers = {std::size_t(layer)};
  }
  if (json) {
    // Names of domains and files are bytes of any kind; what is no UTF-8 is replaced.
    std::cout << analysis_json(settings, records).dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  } else if (records.size() == 1) {
    print_analysis(settings, records[0]);
  } else {
    print_comparison(settings, records);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  bool json = false;
  std::int64_t layer = -1;  // all
  CLI::App app{
      "Analyses routing decisions that train_text --export-routing wrote. One file: load, specialisation by domain and "
      "byte, and pairs of experts, layer by layer. Several files of one run, in the order of their steps: how these "
      "move, and how much of the routing stays."};
  app.add_option("files", settings.files, "*.routing.safetensors")->required()->option_text("FILE...");
  app.add_flag("--json", json, "everything as JSON");
  const CLI::Range natural(0, 1000000000), positive(1, 1000000000);
  app.add_option("--layer", layer, "only this layer, counted from 0")->check(natural);
  app.add_option("--top", settings.top, "bytes an expert and pairs a layer")->check(positive)->capture_default_str();
  app.add_option("--minimum", settings.minimum, "choices that a byte or a pair needs to be listed")
      ->check(positive)
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  try {
    run(settings, layer, json);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
