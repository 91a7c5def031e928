/// @file
/// GShard: two of 8 ReLU experts, first choices first.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_gshard(const Options& options, const Corpus& corpus) {
  using Layer = moe::GShard;
  auto make_layer = [&](moe::Index number) {
    return Layer(
        Layer::Config{
            .hidden = options.hidden, .intermediate = 3 * options.hidden, .experts = 8, .layer = std::uint32_t(number)},
        moe::gshard_capacity(), moe::Seed{options.seed});
  };
  return text::Trainer<Layer>(options, corpus, make_layer).run();
}
