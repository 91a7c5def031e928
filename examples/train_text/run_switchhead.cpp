/// @file
/// SwitchHead: heads with two of 5 experts each for values and for outputs, a third narrower than those of dense
/// attention, before a dense FFN.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_switchhead(const Options& options, const Corpus& corpus) {
  using Attention = moe::SwitchHead<2, moe::EntropyLoss>;
  const moe::EntropyLoss loss{.coefficient = options.balanced ? 1e-3 : 0.0};
  auto make_block = [&](moe::Index number) {
    const moe::AttentionConfig dense = text::attention_config(options, number);
    return text::block_of(Attention({.hidden = options.hidden,
                                     .heads = options.heads,
                                     .experts = 5,
                                     .head_width = std::max<moe::Index>(2, dense.width() / 3 * 2),
                                     .layer = std::uint32_t(number)},
                                    loss, moe::Seed{options.seed}),
                          text::dense_feed_forward(options, number));
  };
  using Block = decltype(make_block(0));
  return text::Trainer<Block>(options, corpus, make_block).run();
}
