// check_golden FILE...: how far this library's layers are from tensors that an independent implementation made.
#include <CLI/CLI.hpp>

#include "golden.hpp"

int main(int argc, char** argv) {
  CLI::App app{"Compares layers with goldens: safetensors files of inputs, parameters, outputs and gradients."};
  std::vector<std::string> files;
  double tolerance = 1e-5;
  app.add_option("FILE", files, "goldens; family and configuration come from their metadata")->required();
  app.add_option("--tolerance", tolerance, "largest error allowed, relative to a tensor's largest element")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  Kokkos::ScopeGuard kokkos(argc, argv);
  int failures = 0;
  for (const std::string& file : files) {
    try {
      const golden::Golden golden(file);
      std::printf("%s (%s)\n", file.c_str(), golden.family().c_str());
      const bool good = golden::check(golden, tolerance);
      std::printf("  %s\n", good ? "agrees" : "DISAGREES");
      failures += !good;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      ++failures;
    }
  }
  return failures == 0 ? 0 : 1;
}
