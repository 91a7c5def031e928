/// @file
/// GShard: two of 8 ReLU experts, first choices first.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_gshard(const Options& options, const Corpus& corpus) {
  using Layer = moe::GShard;
  const moe::GShardBalanceLoss loss(options.balanced ? 0.64 : 0.0);  // the paper's lacks a factor of E^2: 64 * 1e-2
  auto make_block = [&](moe::Index number) {
    return text::block_of(options, number,
                          Layer(Layer::Config{.hidden = options.hidden,
                                              .intermediate = 3 * options.hidden,
                                              .experts = 8,
                                              .layer = std::uint32_t(number)},
                                moe::gshard_capacity(), loss, moe::Seed{options.seed}));
  };
  return text::Trainer<text::BlockOf<Layer>>(options, corpus, make_block).run();
}
