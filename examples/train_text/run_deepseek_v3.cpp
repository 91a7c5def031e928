/// @file
/// DeepSeek-V3 in f32.
#include "run_deepseek_v3.hpp"

nlohmann::json run_deepseek_v3(const Options& options, const Corpus& corpus) {
  return run_deepseek_v3_in<float>(options, corpus);
}
