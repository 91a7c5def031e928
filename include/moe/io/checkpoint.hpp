#pragma once
/// @file
/// Checkpoints: everything that a run needs to go on as if it had not stopped, in one safetensors file.

#include <charconv>
#include <set>
#include <string>

#include "moe/core/parameter.hpp"
#include "moe/io/safetensors.hpp"

MOE_NAMESPACE_BEGIN

/// Where a run stands, beside its arrays.
struct TrainingState {
  Index step = 0;           ///< optimiser steps done
  Index data_position = 0;  ///< how far the data has been read, in the reader's own unit
  std::uint64_t seed = 0;
};

namespace detail {

/// Calls f(name, view) for every array of a checkpoint: parameters and buffers.
template <class F, class Parameters, class Buffers>
void visit_model(F&& f, Parameters& parameters, Buffers& buffers) {
  std::remove_const_t<Parameters>::visit(f, parameters);
  std::remove_const_t<Buffers>::visit(f, buffers);
}

template <class F, class Optimizer>
void visit_optimizer(F&& f, const Optimizer& optimizer) {
  auto named = [&](const std::string& name, const auto& array) { f("optimizer." + name, array); };
  optimizer.visit(named);
}

inline Index metadata_number(const SafetensorsReader& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  require<IoError>(found != file.metadata().end(), "moe: '", file.path(), "' is no checkpoint: it has no '", key,
                   "' in its metadata.");
  std::uint64_t value = 0;
  const std::string& text = found->second;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  require<IoError>(end.ec == std::errc{} && end.ptr == text.data() + text.size(), "moe: '", file.path(), "' has ", key,
                   " '", text, "', which is no number.");
  return Index(value);
}

/// Checks that `visit` walks just the tensors that `expected` lets through; then it is safe to read.
struct CheckTensor {
  const SafetensorsReader& file;
  std::set<std::string>& known;
  template <class View>
  void operator()(std::string_view name, View& view) const {
    file.check(std::string(name), view);
    known.insert(std::string(name));
  }
};

struct ReadTensor {
  const SafetensorsReader& file;
  template <class View>
  void operator()(std::string_view name, View& view) const {
    file.read(std::string(name), view);
  }
};

struct WriteTensor {
  SafetensorsWriter& file;
  template <class View>
  void operator()(std::string_view name, View& view) const {
    file.add(std::string(name), view);
  }
};

inline void refuse_unknown(const SafetensorsReader& file, const std::set<std::string>& known) {
  for (const auto& [name, info] : file.tensors()) {
    const bool optimizer = name.rfind("optimizer.", 0) == 0;
    require<IoError>(optimizer || known.count(name) != 0, "moe: '", file.path(), "' holds a tensor '", name,
                     "' that this model does not have. Is it a checkpoint of another configuration?");
  }
}

}  // namespace detail

/// Writes parameters, buffers (balancing biases), the optimiser and the state. An older file is replaced whole or not
/// at all.
template <class Parameters, class Buffers, class Optimizer>
void save_checkpoint(const std::string& path, const Parameters& parameters, const Buffers& buffers,
                     const Optimizer& optimizer, const TrainingState& state,
                     const std::map<std::string, std::string>& metadata = {}) {
  SafetensorsWriter file;
  detail::visit_model(detail::WriteTensor{file}, parameters, buffers);
  detail::visit_optimizer(detail::WriteTensor{file}, optimizer);
  for (const auto& [key, value] : metadata) file.metadata(key, value);
  file.metadata("moe.step", std::to_string(state.step));
  file.metadata("moe.data_position", std::to_string(state.data_position));
  file.metadata("moe.seed", std::to_string(state.seed));
  file.metadata("moe.optimizer_step", std::to_string(optimizer.step_count));
  file.write(path);
}

/// Reads all of it back and returns the state. Everything is checked before the first array changes.
template <class Parameters, class Buffers, class Optimizer>
TrainingState load_checkpoint(const std::string& path, Parameters& parameters, Buffers& buffers, Optimizer& optimizer) {
  const SafetensorsReader file(path);
  std::set<std::string> known;
  detail::visit_model(detail::CheckTensor{file, known}, parameters, buffers);
  detail::visit_optimizer(detail::CheckTensor{file, known}, optimizer);
  detail::refuse_unknown(file, known);
  TrainingState state{detail::metadata_number(file, "moe.step"), detail::metadata_number(file, "moe.data_position"),
                      std::uint64_t(detail::metadata_number(file, "moe.seed"))};
  const Index optimizer_step = detail::metadata_number(file, "moe.optimizer_step");

  detail::visit_model(detail::ReadTensor{file}, parameters, buffers);
  detail::visit_optimizer(detail::ReadTensor{file}, optimizer);
  optimizer.step_count = optimizer_step;
  return state;
}

/// Reads the model alone, for inference.
template <class Parameters, class Buffers>
void load_model(const std::string& path, Parameters& parameters, Buffers& buffers) {
  const SafetensorsReader file(path);
  std::set<std::string> known;
  detail::visit_model(detail::CheckTensor{file, known}, parameters, buffers);
  detail::refuse_unknown(file, known);
  detail::visit_model(detail::ReadTensor{file}, parameters, buffers);
}

MOE_NAMESPACE_END
