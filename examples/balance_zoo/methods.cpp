#include "methods.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace zoo {
namespace {

template <class L>
Setting one(double strength) {
  L loss;
  loss.coefficient = strength;
  return {{loss}};
}

}  // namespace

std::string title(Family family) {
  switch (family) {
    case Family::batch_loss:
      return "Losses on the load of a batch";
    case Family::other_loss:
      return "Losses on sequences and on scores";
    case Family::bias:
      return "A bias on the choice";
    default:
      return "Balanced by the choice itself";
  }
}

const std::vector<Method>& methods() {
  using F = Family;
  static const std::vector<Method> all{
      {"none", "None", "nothing balances", F::batch_loss, 0, [](double) { return Setting{}; }, train_top_k},
      {"switch", "Switch", "E Σ f P over the batch, all choices counted (as transformers does for Mixtral)",
       F::batch_loss, 1e-2, [](double c) { return Setting{{moe::SwitchBalanceLoss(c, moe::Count::all)}}; },
       train_top_k},
      {"gshard", "GShard", "Σ c/S m over the batch, first choices counted; the coefficient is of E² times the paper's",
       F::batch_loss, 1e-2, [](double c) { return Setting{{moe::GShardBalanceLoss(c * double(experts * experts))}}; },
       train_top_k},
      {"deepseek-expert", "DeepSeek by batch", "E/(KT) Σ f P over the batch (DeepSeekMoE, expert level)", F::batch_loss,
       1e-2, one<moe::ExpertBalanceLoss>, train_top_k},
      {"shazeer", "Importance and load", "CV² of the gates' sums and of the load under trained noise (Shazeer et al.)",
       F::batch_loss, 0.1,
       [](double c) {
         return Setting{{moe::ImportanceLoss{c}, moe::LoadLoss{c}}};
       },
       train_noisy},
      {"straight-through-entropy", "Straight-through entropy",
       "Σ F log(E F) of the load, with the gradient of the mean probabilities", F::batch_loss, 1e-2,
       one<moe::StraightThroughLoss<moe::LoadEntropy>>, train_top_k},
      {"switch-sequence", "Switch by sequence", "the loss of Switch in each sequence alone", F::other_loss, 1e-2,
       [](double c) { return Setting{{moe::SwitchBalanceLoss(c, moe::Count::all, moe::Scope::sequence())}}; },
       train_top_k},
      {"deepseek-sequence", "DeepSeek by sequence", "Σ f P in each sequence alone (DeepSeek-V2, -V3)", F::other_loss,
       1e-2, one<moe::SequenceBalanceLoss>, train_top_k},
      {"entropy", "Entropy", "the negative entropy of the mean probabilities (σ-MoE)", F::other_loss, 1e-2,
       one<moe::EntropyLoss>, train_top_k},
      {"mutual-information", "Mutual information", "minus what a token says of its expert", F::other_loss, 1e-2,
       one<moe::MutualInformationLoss>, train_top_k},
      {"z-loss", "z-loss alone", "the mean of logsumexp²: keeps logits small, says nothing of loads (ST-MoE)",
       F::other_loss, 1e-3, one<moe::RouterZLoss>, train_top_k},
      {"bias", "Bias", "each expert's bias moves by a fixed step towards even load (Wang et al.)", F::bias, 3e-3,
       [](double rate) {
         return Setting{{}, rate};
       },
       train_top_k},
      {"bias-proportional", "Bias in proportion", "it moves by the error over the mean load", F::bias, 1e-2,
       [](double rate) {
         return Setting{{}, rate, moe::BiasRule::proportional};
       },
       train_top_k},
      {"bias-normalized", "Bias normalised", "it moves by the error over the root mean square of all errors", F::bias,
       3e-3,
       [](double rate) {
         return Setting{{}, rate, moe::BiasRule::normalized};
       },
       train_top_k},
      {"bias-sequence", "Bias and sequence loss",
       "that of Bias, and DeepSeek's loss per sequence at 1e-4 (DeepSeek-V3)", F::bias, 3e-3,
       [](double rate) {
         return Setting{{moe::SequenceBalanceLoss(1e-4)}, rate};
       },
       train_top_k},
      {"threshold", "Threshold with quotas",
       "every expert above its threshold, which moves so that it gets 2/E of the tokens: two a token on average",
       F::bias, 5e-2,
       [](double rate) {
         return Setting{{}, rate, moe::BiasRule::proportional};
       },
       train_threshold},
      {"sinkhorn", "Sinkhorn",
       "while training the choice follows a plan of optimal transport; else the scores (S-BASE)", F::assignment, 0,
       [](double) { return Setting{}; }, train_sinkhorn},
      {"expert-choice", "Expert choice", "experts choose tokens of each sequence: even by construction", F::assignment,
       0, [](double) { return Setting{}; }, train_expert_choice,
       "An expert compares a token with later ones of its sequence, so it sees a little of what it predicts: its loss "
       "is no fair comparison."}};
  return all;
}

Method method(const std::string& name) {
  const std::size_t at = name.find('@');
  const auto& all = methods();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Method& m) { return m.name == name.substr(0, at); });
  moe::detail::require<moe::ConfigError>(found != all.end(), "balance_zoo: there is no method '", name.substr(0, at),
                                         "'. --list names them all.");
  Method result = *found;
  if (at == std::string::npos) return result;
  const std::string number = name.substr(at + 1);
  char* end = nullptr;
  const double strength = std::strtod(number.c_str(), &end);
  moe::detail::require<moe::ConfigError>(
      result.strength > 0 && !number.empty() && *end == 0 && std::isfinite(strength) && strength > 0, "balance_zoo: '",
      name, "' does not say a strength", result.strength > 0 ? "" : ", and this method has none",
      ". Give NAME@NUMBER, the number above 0, for methods to which --list gives one.");
  result.strength = strength;
  result.name += fmt::format("@{:g}", strength);
  result.title += fmt::format(" ({:g})", strength);
  return result;
}

}  // namespace zoo
