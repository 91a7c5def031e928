#pragma once
/// @file
/// What the processor at hand can run.

#include <string_view>

#include "moe/version.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Do the processor and the system run an instruction set of micro_kernel.hpp?
inline bool processor_runs(std::string_view set) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (set == "avx2") return avx2;
  if (set == "avx512") return avx2 && avx512;
  if (set == "avx512_bf16")
    return avx2 && avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#endif
  return set == "baseline";
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
