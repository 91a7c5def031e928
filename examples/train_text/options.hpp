#pragma once
/// @file
/// What the command line says.

#include <cstdint>
#include <moe/core/types.hpp>
#include <string>
#include <vector>

struct Options {
  std::string model = "mixtral";
  std::vector<std::string> text;  // one file a domain
  std::string out = "out";
  std::string resume;
  moe::Index steps = 700;
  std::uint64_t seed = 1;
  moe::Index batch = 16, sequence = 128;  // sequences a step, bytes a sequence
  moe::Index hidden = 128, layers = 3, heads = 4;
  double learning_rate = 3e-3;
  bool json = false;  // the report on standard output, progress on standard error
};
