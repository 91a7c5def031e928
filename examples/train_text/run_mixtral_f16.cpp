/// @file
/// Mixtral in float16.
#include "run_mixtral.hpp"

nlohmann::json run_mixtral_f16(const Options& options, const Corpus& corpus) {
  return run_mixtral_in<moe::float16>(options, corpus);
}
