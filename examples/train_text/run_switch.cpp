/// @file
/// Switch: one of 8 ReLU experts.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_switch(const Options& options, const Corpus& corpus) {
  using Layer = moe::Switch;
  const moe::SwitchBalanceLoss loss(options.balanced ? 1e-2 : 0.0);
  auto make_block = [&](moe::Index number) {
    return text::block_of(options, number,
                          Layer(Layer::Config{.hidden = options.hidden,
                                              .intermediate = 6 * options.hidden,
                                              .experts = 8,
                                              .layer = std::uint32_t(number)},
                                loss, moe::Seed{options.seed}));
  };
  return text::Trainer<text::BlockOf<Layer>>(options, corpus, make_block).run();
}
