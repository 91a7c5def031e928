#define MOE_KERNELS_FOR avx512
#include "table.hpp"
