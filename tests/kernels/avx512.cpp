#include "moe/kernels/cpu/micro_kernels.hpp"

const char* compiled_for_avx512() {
  return moe::instruction_set();
}
