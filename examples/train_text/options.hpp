#pragma once
/// @file
/// What the command line says.

#include <cstdint>
#include <moe/core/types.hpp>
#include <string>
#include <vector>

struct Options {
  std::string model = "mixtral";
  std::string precision = "f32";  // of parameters, activations and gradients; or bf16, f16
  bool balanced = true;           // else the losses weigh nothing and the balancing bias stands still
  std::vector<std::string> text;  // one file a domain
  std::string out = "out";
  std::string resume;  // a checkpoint to go on from
  moe::Index steps = 1200;
  std::uint64_t seed = 1;
  moe::Index batch = 16, microbatches = 2, sequence = 128;  // sequences a step, passes a step, bytes a sequence
  moe::Index hidden = 64, layers = 2, heads = 2;
  double learning_rate = 3e-3;
  double loss_scale = 65536;  // in f16, at first
  moe::Index checkpoint_every = 50;
  moe::Index validations = 8;  // in a run
  bool export_routing = false;
  moe::Index corrupt_batch = -1;   // a drill: this batch becomes noise
  std::vector<std::string> among;  // what to compare; empty: the usual ones
  bool json = false;               // the report on standard output, progress on standard error

  /// Files of a run begin with this.
  std::string stem() const { return out + "/" + name() + "-" + std::to_string(seed); }
  /// Of the model as it is trained here.
  std::string name() const {
    return model + (balanced ? "" : "-unbalanced") + (precision == "f32" ? "" : "-" + precision);
  }
};
