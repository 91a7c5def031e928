#define MOE_KERNELS_FOR avx2
#include "table.hpp"
