/// @file
/// DeepSeek-V3 in bfloat16.
#include "run_deepseek_v3.hpp"

nlohmann::json run_deepseek_v3_bf16(const Options& options, const Corpus& corpus) {
  return run_deepseek_v3_in<moe::bfloat16>(options, corpus);
}
