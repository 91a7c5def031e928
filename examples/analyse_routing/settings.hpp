#pragma once
/// @file
/// What the command line says, and the records it names.

#include <string>
#include <vector>

#include "../train_text/routing_file.hpp"

struct Settings {
  std::vector<std::string> files;
  std::vector<std::size_t> layers;  // those to show
  std::int64_t top = 8;             // bytes an expert, pairs a layer
  std::int64_t minimum = 10;        // choices that a byte or a pair needs to be listed
};
