/// @file
/// Experts choose: each takes the eighth of a sequence's tokens that it scores highest.
#include "train.hpp"

nlohmann::json zoo::train_expert_choice(const Options& options, const Corpus& corpus, const Setting& setting) {
  using Router = moe::Router<moe::Softmax, moe::ExpertChoice>;
  using Layer = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, ChosenLosses>;
  const Router router{moe::ExpertChoice{.capacity_factor = 2, .scope = moe::Scope::sequence()}};
  return train<Layer>(options, corpus, AsItIs{}, router, ChosenLosses{setting.losses});
}
