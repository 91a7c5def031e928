#include <Kokkos_Core.hpp>
#include <cstdio>
#include <moe/version.hpp>
#if defined(MOE_COMPILED_KERNELS)
#  include <moe/kernels/cpu/micro_kernels.hpp>
#endif

int main() {
  const Kokkos::ScopeGuard kokkos;
  std::printf("moe %d.%d.%d\n", MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH);
#if defined(MOE_COMPILED_KERNELS)
  std::printf("kernels for %s\n", moe::instruction_set());
#endif
}
