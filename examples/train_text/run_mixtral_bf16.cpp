/// @file
/// Mixtral in bfloat16.
#include "run_mixtral.hpp"

nlohmann::json run_mixtral_bf16(const Options& options, const Corpus& corpus) {
  return run_mixtral_in<moe::bfloat16>(options, corpus);
}
