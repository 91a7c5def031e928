#pragma once
/// @file
/// The demo's model with a layer of the zoo: two of 16 narrow SwiGLU experts a token, whatever balances them.
#include "../train_text/trainer.hpp"
#include "methods.hpp"

namespace zoo {

/// A layer that starts as its initialisation left it.
struct AsItIs {
  template <class Layer>
  void operator()(const Layer&) const {}
};

/// `values`: of the layer's router and losses. `prepare(layer)` may change its first weights.
template <class Layer, class Prepare, class... Values>
nlohmann::json train(const Options& options, const Corpus& corpus, const Prepare& prepare, const Values&... values) {
  auto make_block = [&](moe::Index number) {
    Layer layer(typename Layer::Config{.hidden = options.hidden,
                                       .intermediate = options.hidden,
                                       .experts = experts,
                                       .layer = std::uint32_t(number)},
                values..., moe::Seed{options.seed});
    prepare(layer);
    return text::block_of(options, number, std::move(layer));
  };
  return text::Trainer<text::BlockOf<Layer>>(options, corpus, make_block).run();
}

}  // namespace zoo
