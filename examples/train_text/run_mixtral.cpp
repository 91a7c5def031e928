/// @file
/// Mixtral: two of 8 SwiGLU experts, none dropped.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_mixtral(const Options& options, const Corpus& corpus) {
  using Layer = moe::Mixtral;
  const moe::SwitchBalanceLoss loss(options.balanced ? 1e-2 : 0.0);
  auto make_layer = [&](moe::Index number) {
    return Layer(
        Layer::Config{
            .hidden = options.hidden, .intermediate = 2 * options.hidden, .experts = 8, .layer = std::uint32_t(number)},
        loss, moe::Seed{options.seed});
  };
  return text::Trainer<Layer>(options, corpus, make_layer).run();
}
