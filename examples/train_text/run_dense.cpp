/// @file
/// A dense FFN: a mixture of one expert.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_dense(const Options& options, const Corpus& corpus) {
  using Layer = moe::MoELayer<moe::Router<moe::Softmax, moe::TopK<1>>, moe::ExpertFFN<moe::SwiGLU>>;
  auto make_layer = [&](moe::Index number) {
    return Layer(
        Layer::Config{
            .hidden = options.hidden, .intermediate = 4 * options.hidden, .experts = 1, .layer = std::uint32_t(number)},
        moe::Seed{options.seed});
  };
  return text::Trainer<Layer>(options, corpus, make_layer).run();
}
