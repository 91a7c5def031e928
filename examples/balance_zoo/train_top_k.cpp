/// @file
/// The two best experts by probability and bias: every method that is a loss or a bias. Where there is no bias its rate
/// is 0, and it stays 0.
#include "train.hpp"

nlohmann::json zoo::train_top_k(const Options& options, const Corpus& corpus, const Setting& setting) {
  using Router = moe::Router<moe::Softmax, moe::TopK<2>, moe::BiasBalancer, moe::NormalizeSum>;
  using Layer = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, ChosenLosses>;
  return train<Layer>(options, corpus, AsItIs{},
                      Router{moe::BiasBalancer{.rate = setting.bias_rate, .rule = setting.bias_rule}},
                      ChosenLosses{setting.losses});
}
