// Runs the unit tests with Kokkos initialised once around all of them.
#define CATCH_CONFIG_RUNNER  // version 2 puts its whole implementation here
#include <Kokkos_Core.hpp>
#include <moe_test/catch.hpp>

int main(int argc, char** argv) {
  const Kokkos::ScopeGuard kokkos;
  return Catch::Session().run(argc, argv);
}
