/// @file
/// A mixture of depths: every other block is passed by seven tokens in eight, in order of a learned number. A predictor
/// learns to choose without the tokens behind; validation and text go by it.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_mixture_of_depths(const Options& options, const Corpus& corpus) {
  using Dense = text::BlockOf<text::DenseFeedForward>;
  using Inner = moe::TransformerBlock<moe::SelfAttention<>, text::DenseFeedForward>;
  using Depths = moe::MixtureOfDepths<Inner, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  using Pair = moe::Sequential<Dense, Depths>;
  auto make_block = [&](moe::Index number) {
    const moe::Index first = 2 * number, second = first + 1;
    const moe::Seed seed{options.seed};
    Inner inner(moe::SelfAttention<>(text::attention_config(options, second), seed),
                text::dense_feed_forward(options, second));
    return Pair(text::block_of(options, first, text::dense_feed_forward(options, first)),
                Depths({.capacity = 0.125, .layer = std::uint32_t(second)}, std::move(inner),
                       moe::DepthPredictor{.width = options.hidden}, seed));
  };
  return text::Trainer<Pair>(options, corpus, make_block).run();
}
