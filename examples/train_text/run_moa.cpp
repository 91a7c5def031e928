/// @file
/// A mixture of attention heads (MoA): two of 8 experts attend for a token, with keys in common, before a dense FFN.
#include "models.hpp"
#include "trainer.hpp"

nlohmann::json run_moa(const Options& options, const Corpus& corpus) {
  using Attention = moe::MixtureOfAttentionHeads<moe::SwitchBalanceLoss>;
  const moe::SwitchBalanceLoss loss(options.balanced ? 1e-2 : 0.0);
  moe::detail::require<moe::ConfigError>(options.heads % 2 == 0, "train_text: --model moa splits ", options.heads,
                                         " heads among the two experts of a token. Give an even number: --heads 2.");
  auto make_block = [&](moe::Index number) {
    const moe::AttentionConfig dense = text::attention_config(options, number);
    return text::block_of(Attention({.hidden = options.hidden,
                                     .experts = 8,
                                     .key_heads = options.heads / 2,
                                     .head_width = dense.width(),
                                     .layer = std::uint32_t(number)},
                                    loss, moe::Seed{options.seed}),
                          text::dense_feed_forward(options, number));
  };
  using Block = decltype(make_block(0));
  return text::Trainer<Block>(options, corpus, make_block).run();
}
