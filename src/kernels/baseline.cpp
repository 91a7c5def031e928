#define MOE_KERNELS_FOR baseline
#include "table.hpp"
