#define MOE_KERNELS_FOR avx512_bf16
#include "table.hpp"
