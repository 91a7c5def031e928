#pragma once
/// @file
/// DeepSeek-V3 in small: three of 16 narrow experts from two of four groups, one shared expert, balanced by the bias.
#include "models.hpp"
#include "trainer.hpp"

template <class T>
nlohmann::json run_deepseek_v3_in(const Options& options, const Corpus& corpus) {
  using Router = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::GroupLimit<4, 2, moe::BestTwo>, moe::BiasBalancer,
                             moe::NormalizeSum, moe::Scale>;
  using Layer = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, moe::SharedExperts<1>, moe::SequenceBalanceLoss,
                              moe::Precision<T, float>>;
  const Router router{moe::Scale{1.5},
                      moe::BiasBalancer{options.balanced ? 0.01 : 0.0}};  // a short run: ten times the paper's rate
  const moe::SequenceBalanceLoss loss(options.balanced ? 1e-4 : 0.0);
  auto make_block = [&](moe::Index number) {
    return text::block_of(options, number,
                          Layer(typename Layer::Config{.hidden = options.hidden,
                                                       .intermediate = options.hidden,
                                                       .experts = 16,
                                                       .layer = std::uint32_t(number)},
                                router, loss, moe::Seed{options.seed}));
  };
  return text::Trainer<text::BlockOf<Layer>>(options, corpus, make_block).run();
}
