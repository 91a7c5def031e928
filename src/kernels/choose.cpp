// The table of the best instruction set that this processor runs. Compiled for the least of them.
#include <cstdlib>

#include "moe/kernels/cpu/micro_kernels.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

namespace baseline {
MicroKernels table();
}
#if defined(__x86_64__)
namespace avx2 {
MicroKernels table();
}
namespace avx512 {
MicroKernels table();
}
namespace avx512_bf16 {
MicroKernels table();
}
#endif

namespace {

struct Set {
  std::string_view name;
  MicroKernels (*table)();
};
/// The best first.
constexpr Set sets[] = {
#if defined(__x86_64__)
    {"avx512_bf16", avx512_bf16::table},
    {"avx512", avx512::table},
    {"avx2", avx2::table},
#endif
    {"baseline", baseline::table}};

MicroKernels choose() {
  const char* forced = std::getenv("MOE_INSTRUCTION_SET");
  const std::string_view wanted = forced == nullptr ? "" : forced;
  std::string all, running;
  bool known = false;
  for (const Set& set : sets) {
    const bool runs = processor_runs(set.name), matches = wanted.empty() || set.name == wanted;
    if (runs && matches) return set.table();
    known = known || matches;
    all.append(all.empty() ? "" : ", ").append(set.name);
    if (runs) running.append(running.empty() ? "" : ", ").append(set.name);
  }
  moe::detail::require<ConfigError>(known, "moe: MOE_INSTRUCTION_SET=", wanted,
                                    " names no instruction set of moe::kernels. It has ", all, ".");
  throw ConfigError(moe::detail::sentence("moe: MOE_INSTRUCTION_SET=", wanted, ", which this processor lacks. It runs ",
                                          running, "."));
}

}  // namespace

const MicroKernels& compiled_micro_kernels() {
  static const MicroKernels table = choose();
  return table;
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
