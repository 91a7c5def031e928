#pragma once
/// @file
/// The models to choose from. Each is compiled in a file of its own; all use about the same arithmetic a token.

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "options.hpp"
#include "text.hpp"

nlohmann::json run_dense(const Options&, const Corpus&);
nlohmann::json run_switch(const Options&, const Corpus&);
nlohmann::json run_gshard(const Options&, const Corpus&);
nlohmann::json run_mixtral(const Options&, const Corpus&);
nlohmann::json run_deepseek_v3(const Options&, const Corpus&);

using RunModel = nlohmann::json (*)(const Options&, const Corpus&);

inline const std::map<std::string, RunModel>& models() {
  static const std::map<std::string, RunModel> all{{"dense", run_dense},
                                                   {"switch", run_switch},
                                                   {"gshard", run_gshard},
                                                   {"mixtral", run_mixtral},
                                                   {"deepseek-v3", run_deepseek_v3}};
  return all;
}
