/// @file
/// Every expert above a threshold of its own, which moves so that it gets an eighth of the tokens: two experts a token
/// on average, one to six of each.
#include "train.hpp"

nlohmann::json zoo::train_threshold(const Options& options, const Corpus& corpus, const Setting& setting) {
  using Router = moe::Router<moe::Sigmoid, moe::Threshold, moe::QuotaBalancer, moe::NormalizeSum>;
  using Layer = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, ChosenLosses>;
  const Router router{moe::Threshold{.threshold = 0.5, .cap = 6, .floor = 1},
                      moe::QuotaBalancer{.k = 2, .rate = setting.bias_rate, .rule = setting.bias_rule}};
  return train<Layer>(options, corpus, AsItIs{}, router, ChosenLosses{setting.losses});
}
