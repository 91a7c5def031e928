/// @file
/// The two best experts by noisy logits, whose load has a gradient.
#include <moe/models/classical.hpp>

#include "train.hpp"

namespace {

/// As the paper does: at first noise alone chooses.
struct StartAtZero {
  template <class Layer>
  void operator()(const Layer& layer) const {
    moe::start_router_at_zero(layer);
  }
};

}  // namespace

nlohmann::json zoo::train_noisy(const Options& options, const Corpus& corpus, const Setting& setting) {
  using Router = moe::Router<moe::NoisyLogits, moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
  using Layer = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, ChosenLosses>;
  return train<Layer>(options, corpus, StartAtZero{}, Router{}, ChosenLosses{setting.losses});
}
