#include <Kokkos_Core.hpp>
#include <cstdio>
#include <moe/version.hpp>

int main() {
  const Kokkos::ScopeGuard kokkos;
  std::printf("moe %d.%d.%d\n", MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH);
}
