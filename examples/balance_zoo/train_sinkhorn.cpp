/// @file
/// The two best experts by a plan in which, while training, every expert gets as much.
#include "train.hpp"

nlohmann::json zoo::train_sinkhorn(const Options& options, const Corpus& corpus, const Setting& setting) {
  using Router = moe::Router<moe::Softmax, moe::Sinkhorn<2>, moe::ChooseByLogits, moe::NormalizeSum>;
  using Layer = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, ChosenLosses>;
  return train<Layer>(options, corpus, AsItIs{}, Router{}, ChosenLosses{setting.losses});
}
