#pragma once
/// @file
/// The base model as it is loaded, a model with other feed-forward layers made of it, and which of its arrays are
/// trained.

#include <fmt/format.h>

#include <bit>
#include <moe/io/checkpoint.hpp>
#include <validation.hpp>

#include "methods.hpp"

namespace adapt {

using BaseModel = text::Transformer<text::BlockOf<text::DenseFeedForward>>;

/// Throws moe::IoError or moe::ShapeError where the checkpoint does not hold just the arrays of a dense model.
inline BaseModel load_base(const Task& task) {
  const Options& options = task.base.options;
  BaseModel model(options.hidden, options.layers, moe::Seed{}, [&](Index number) {
    return text::block_of(options, number, text::dense_feed_forward(options, number));
  });
  moe::load_model(task.settings.checkpoint, model.parameters, model.buffers);
  return model;
}

/// The arrays of a base model that nobody may change; empty where all are trained.
struct Frozen {
  typename BaseModel::Parameters arrays;

  bool empty() const { return arrays.blocks.empty(); }
  double count() const {
    double total = 0;
    if (!empty())
      BaseModel::Parameters::visit([&](std::string_view, const auto& view) { total += double(view.size()); }, arrays);
    return total;
  }
  /// FNV-1a over all of their bits.
  std::string fingerprint() const {
    std::uint64_t hash = 14695981039346656037u;
    auto add = [&](std::string_view, const auto& view) {
      const auto host = text::on_host(view);
      for (std::size_t i = 0; i < host.size(); ++i)
        hash = (hash ^ std::bit_cast<std::uint32_t>(host.data()[i])) * 1099511628211u;
    };
    if (!empty()) BaseModel::Parameters::visit(add, arrays);
    return fmt::format("{:016x}", hash);
  }
};

/// Trains every array.
template <class Model>
struct Everything {
  using Arrays = typename Model::Parameters;
  static Arrays of(const typename Model::Parameters& parameters) { return parameters; }  // views: the same memory
  static void freeze(typename Model::Gradients&) {}
};

/// Trains what the feed-forward layers hold: adapters and routers. Their frozen weights are no parameters of theirs.
template <class Block>
struct AdaptersAlone {
  using Model = text::Transformer<Block>;
  using Layer = typename Block::FeedForward::Parameters;

  struct Arrays {
    std::vector<Layer> layers;
    template <class F, class First, class... Same>
    static void visit(F&& f, First& first, Same&... same) {
      for (std::size_t i = 0; i < first.layers.size(); ++i) {
        const std::string prefix = "blocks." + std::to_string(i) + ".feed_forward.";
        auto named = [&](std::string_view name, auto&... views) { f(prefix + std::string(name), views...); };
        Layer::visit(named, first.layers[i], same.layers[i]...);
      }
    }
  };
  static Arrays of(const typename Model::Parameters& parameters) {
    Arrays arrays;
    for (const auto& block : parameters.blocks) arrays.layers.push_back(block.feed_forward);
    return arrays;
  }
  /// Leaves the others' gradients empty, so that none is computed and none takes memory.
  static void freeze(typename Model::Gradients& gradients) {
    gradients.embedding = gradients.head = {};
    gradients.norm = {};
    for (std::size_t i = 0; i < gradients.blocks.size(); ++i) {
      auto& block = gradients.of_blocks[i];
      block.attention_norm = block.feed_forward_norm = {};
      Block::Attention::Parameters::visit([](std::string_view, auto& view) { view = {}; }, block.of_attention);
      block.attention = block.of_attention;
      gradients.blocks[i] = block;
    }
  }
};

/// The base model with other feed-forward layers, which `make(number, up, down)` builds over the frozen weights of the
/// base's: up (1, 2I, H), gates first, and down (1, H, I). All other arrays are the base's own, and `frozen` gets them.
template <class Block, class Make>
text::Transformer<Block> with_adapters(const Task& task, Frozen& frozen, const Make& make) {
  const Options& options = task.base.options;
  BaseModel base = load_base(task);
  frozen.arrays = base.parameters;
  auto make_block = [&](Index number) {
    const auto& arrays = base.parameters.blocks[std::size_t(number)];
    const auto& experts = arrays.feed_forward.experts;
    Block block = text::block_of(std::move(base.blocks()[std::size_t(number)].attention()),
                                 make(number, experts.up, experts.down));
    block.parameters.attention_norm = arrays.attention_norm;
    block.parameters.feed_forward_norm = arrays.feed_forward_norm;
    return block;
  };
  text::Transformer<Block> model(options.hidden, options.layers, moe::Seed{task.seed}, make_block);
  model.parameters.embedding = base.parameters.embedding;
  model.parameters.head = base.parameters.head;
  model.parameters.norm = base.parameters.norm;
  return model;
}

}  // namespace adapt
