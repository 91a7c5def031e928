#pragma once
/// @file
/// Mixtral: two of 8 SwiGLU experts, none dropped.
#include "models.hpp"
#include "trainer.hpp"

template <class T>
nlohmann::json run_mixtral_in(const Options& options, const Corpus& corpus) {
  using Layer = moe::MixtralLayer<moe::SwitchBalanceLoss, moe::Precision<T, float>>;
  const moe::SwitchBalanceLoss loss(options.balanced ? 1e-2 : 0.0);
  auto make_block = [&](moe::Index number) {
    return text::block_of(options, number,
                          Layer(typename Layer::Config{.hidden = options.hidden,
                                                       .intermediate = 2 * options.hidden,
                                                       .experts = 8,
                                                       .layer = std::uint32_t(number)},
                                loss, moe::Seed{options.seed}));
  };
  return text::Trainer<text::BlockOf<Layer>>(options, corpus, make_block).run();
}
