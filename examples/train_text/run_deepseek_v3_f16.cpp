/// @file
/// DeepSeek-V3 in float16.
#include "run_deepseek_v3.hpp"

nlohmann::json run_deepseek_v3_f16(const Options& options, const Corpus& corpus) {
  return run_deepseek_v3_in<moe::float16>(options, corpus);
}
