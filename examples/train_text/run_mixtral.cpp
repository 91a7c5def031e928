/// @file
/// Mixtral in f32.
#include "run_mixtral.hpp"

nlohmann::json run_mixtral(const Options& options, const Corpus& corpus) {
  return run_mixtral_in<float>(options, corpus);
}
