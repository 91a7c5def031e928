/// @file
/// Families that choose by logits and weigh the chosen alone, and PhiMoE's sparse mixer.

#include "check.hpp"

namespace golden {

namespace {

using moe::Identity;
using moe::SigmoidOfChosen;
using moe::SoftmaxOfChosen;
using moe::TopK;

using SoftmaxRouter = moe::Router<Identity, TopK<>, SoftmaxOfChosen>;

Index last_extent(const Golden& golden, const std::string& name) {
  return golden.shape("param." + name).back();
}

void granite(const Golden& golden, Comparison& comparison) {
  const int k = golden.config<int>("num_experts_per_tok");
  Check<Layer<SoftmaxRouter>> check(golden, comparison,
                                    sizes(golden, "router.weight", last_extent(golden, "experts.down_proj")),
                                    SoftmaxRouter{TopK<>{k}});
  check.router("router.weight");
  check.fused();
  check.run();
  check.transformers_balance(k, "router.weight");
}

void aria(const Golden& golden, Comparison& comparison) {
  moe::SharedExperts<1> shared;
  shared.intermediate = last_extent(golden, "shared_experts.down_proj.weight");
  Check<Layer<SoftmaxRouter, moe::SharedExperts<1>>> check(
      golden, comparison, sizes(golden, "router.weight", golden.shape("param.experts.down_proj").at(1)),
      SoftmaxRouter{TopK<>{golden.config<int>("moe_topk")}}, shared);
  check.router("router.weight");
  check.transposed_experts(false, false);
  check.shared();
  check.run();
}

void jetmoe(const Golden& golden, Comparison& comparison) {
  const int k = golden.config<int>("num_experts_per_tok");
  const std::string weight = "router.layer.weight";
  Check<Layer<SoftmaxRouter, moe::OutputBias>> check(
      golden, comparison, sizes(golden, weight, last_extent(golden, "output_linear.weight")), SoftmaxRouter{TopK<>{k}});
  check.router(weight);
  check.fused("input_linear.weight", "output_linear.weight");
  check.bind("bias", check.layer.parameters.outputs.first.bias, check.gradients.outputs.first.bias);
  check.run();
  check.transformers_balance(k, weight);
}

/// gpt-oss interleaves gate and up; the privacy filter keeps them in halves, and divides weights by K only to multiply
/// the output by it.
template <bool interleaved>
void gpt_oss(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<moe::BiasedLogits, Identity, TopK<>, SoftmaxOfChosen, moe::Scale>;
  using Experts = moe::ExpertFFN<moe::ClampedSwiGLU, moe::Bias>;
  const int k = golden.config<int>("num_experts_per_tok");
  const double divisor = interleaved ? 1 : k;
  Experts experts;
  experts.activation = {golden.config<double>("swiglu_limit"), golden.config<double>("swiglu_alpha"), 1};
  Check<Layer<Router, Experts, moe::RoutedScale>> check(
      golden, comparison, sizes(golden, "router.weight", golden.shape("param.experts.down_proj").at(1)),
      Router{TopK<>{k}, moe::Scale{1 / divisor}}, experts, moe::RoutedScale{divisor});
  check.router("router.weight");
  check.bind("router.bias", check.layer.parameters.router.bias, check.gradients.router.bias);
  check.transposed_experts(interleaved, true);
  check.run();
  check.transformers_balance<moe::BiasedLogits>(k, "router.weight", "router.bias");
}

void llama4(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Identity, TopK<>, SigmoidOfChosen>;
  const int k = golden.config<int>("num_experts_per_tok");
  Check<Layer<Router, moe::WeightOnInput, moe::SharedExperts<1>>> check(
      golden, comparison, sizes(golden, "router.weight", golden.shape("param.experts.down_proj").at(1)),
      Router{TopK<>{k}});
  check.router("router.weight");
  check.transposed_experts(false, false);
  check.shared("shared_expert.");
  check.run();
  check.transformers_balance(k, "router.weight");
}

void cohere2(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Identity, TopK<>, SigmoidOfChosen, moe::NormalizeSum>;
  if (golden.config<std::string>("expert_selection_fn") != "sigmoid" || !golden.config<bool>("norm_topk_prob") ||
      golden.config<std::string>("shared_expert_combination_strategy") != "average")
    throw moe::ConfigError("check_golden: of Cohere 2, sigmoid with norm_topk_prob and the average are known.");
  moe::SharedExperts<1> shared;
  shared.intermediate = last_extent(golden, "shared_experts.down_proj.weight");
  Check<Layer<Router, moe::SharedExperts<1>, moe::LayerScale>> check(
      golden, comparison, sizes(golden, "gate.weight", last_extent(golden, "experts.down_proj")),
      Router{TopK<>{golden.config<int>("num_experts_per_tok")}, moe::NormalizeSum{0}}, shared, moe::LayerScale{0.5});
  check.router("gate.weight");
  check.fused();
  check.shared();
  check.run();
}

/// The golden brings its random draws: exponential ones for the choices, uniform ones for the third.
void phimoe(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Identity, moe::SparseMixer>;
  const double jitter = golden.config<double>("router_jitter_noise");
  Check<Layer<Router>> check(golden, comparison,
                             sizes(golden, "router.weight", last_extent(golden, "experts.down_proj")),
                             Router{moe::SparseMixer{jitter}});
  check.router("router.weight");
  check.fused();
  if (golden.training()) {
    const Index experts = check.layer.config().experts, tokens = check.in.tokens;
    Matrix<float, HostSpace> draws("draws", tokens, 2 * experts + 2);
    for (int step = 0; step < 2; ++step) {
      const Values exponential = golden.read("in.exponential_" + std::to_string(step));
      const Values uniform = golden.read(step == 0 ? "in.uniform_0" : "in.uniform_2");
      for (Index t = 0; t < tokens; ++t) {
        for (Index e = 0; e < experts; ++e)
          draws(t, step * experts + e) = std::exp(-exponential[t * experts + e]);  // ours draws -log(uniform)
        draws(t, 2 * experts + step) = uniform[t];
      }
    }
    check.in.batch.draws = on_device(draws);
  }
  check.run();
  check.transformers_balance(golden.config<int>("num_experts_per_tok"), "router.weight");
}

}  // namespace

Families logit_families() {
  return {{"granitemoe.GraniteMoeMoE", granite},
          {"aria.AriaTextMoELayer", aria},
          {"jetmoe.JetMoeMoE", jetmoe},
          {"gpt_oss.GptOssMLP", gpt_oss<true>},
          {"openai_privacy_filter.OpenAIPrivacyFilterMLP", gpt_oss<false>},
          {"llama4.Llama4TextMoe", llama4},
          {"cohere2_moe.Cohere2MoeSparseMoeBlock", cohere2},
          {"phimoe.PhimoeSparseMoeBlock", phimoe}};
}

}  // namespace golden
