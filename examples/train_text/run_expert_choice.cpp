/// @file
/// Expert choice: each of 8 SwiGLU experts takes the quarter of the tokens it scores highest.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_expert_choice(const Options& options, const Corpus& corpus) {
  using Layer = moe::MoELayer<moe::Router<moe::Softmax, moe::ExpertChoice>, moe::ExpertFFN<moe::SwiGLU>>;
  const Layer::Router router{moe::ExpertChoice{.capacity_factor = 2, .scope = moe::Scope::sequence()}};
  auto make_block = [&](moe::Index number) {
    return text::block_of(options, number,
                          Layer(Layer::Config{.hidden = options.hidden,
                                              .intermediate = 2 * options.hidden,
                                              .experts = 8,
                                              .layer = std::uint32_t(number)},
                                router, moe::Seed{options.seed}));
  };
  return text::Trainer<text::BlockOf<Layer>>(options, corpus, make_block).run();
}
