// `<set>::table()` for the instruction set MOE_KERNELS_FOR. Where the file is compiled for another set, make_table is
// not found. Nothing else may be included: code shared with other sets would run on processors that lack this one.
#include "moe/kernels/cpu/kernel_table.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu::MOE_KERNELS_FOR {

MicroKernels table() {
  return make_table<>();
}

}  // namespace kernels::cpu::MOE_KERNELS_FOR

MOE_NAMESPACE_END
