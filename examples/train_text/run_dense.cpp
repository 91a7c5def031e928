/// @file
/// A dense FFN: a mixture of one expert.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_dense(const Options& options, const Corpus& corpus) {
  auto make_block = [&](moe::Index number) {
    return text::block_of(options, number, text::dense_feed_forward(options, number));
  };
  return text::Trainer<text::BlockOf<text::DenseFeedForward>>(options, corpus, make_block).run();
}
