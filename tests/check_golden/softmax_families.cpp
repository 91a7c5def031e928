/// @file
/// Families whose scores are softmax over all experts.

#include "check.hpp"

namespace golden {

namespace {

using moe::NormalizeSum;
using moe::Scale;
using moe::Softmax;
using moe::TopK;

/// Experts as (E, 2I, H) and (E, H, I), no shared part: Mixtral and its like.
template <class Router>
void plain_layer(const Golden& golden, Comparison& comparison, const Router& router, int k,
                 const std::string& weight = "gate.weight") {
  Check<Layer<Router>> check(golden, comparison, sizes(golden, weight, golden.shape("param.experts.down_proj").at(2)),
                             router);
  check.router(weight);
  check.fused();
  check.run();
  check.transformers_balance(k, weight);
}

/// The same beside one shared FFN.
template <class Router, class Gate = moe::NoGate>
void shared_layer(const Golden& golden, Comparison& comparison, const Router& router, int k, const std::string& prefix,
                  const std::string& weight = "gate.weight", const std::string& gate = "",
                  const std::string& bias = "") {
  using Shared = moe::SharedExperts<1, moe::SwiGLU, Gate>;
  Shared shared;
  shared.intermediate = golden.shape("param." + prefix + "down_proj.weight").at(1);
  Check<Layer<Router, Shared>> check(
      golden, comparison, sizes(golden, weight, golden.shape("param.experts.down_proj").at(2)), router, shared);
  check.router(weight);
  check.fused();
  check.shared(prefix);
  if constexpr (Shared::has_gate)
    check.bind(gate, check.layer.parameters.branches.first.gate, check.gradients.branches.first.gate);
  if constexpr (Router::has_balancer) check.bias(bias);
  check.run();
  check.transformers_balance(k, weight);
}

void mixtral(const Golden& golden, Comparison& comparison) {
  const int k = golden.config<int>("num_experts_per_tok");
  plain_layer(golden, comparison, moe::Router<Softmax, TopK<>, NormalizeSum>{TopK<>{k}, NormalizeSum{0}}, k);
}
void optional_norm(const Golden& golden, Comparison& comparison) {  // Qwen3-MoE, OLMoE
  const int k = golden.config<int>("num_experts_per_tok");
  if (golden.config<bool>("norm_topk_prob")) return mixtral(golden, comparison);
  plain_layer(golden, comparison, moe::Router<Softmax, TopK<>>{TopK<>{k}}, k);
}
void jamba(const Golden& golden, Comparison& comparison) {
  const int k = golden.config<int>("num_experts_per_tok");
  plain_layer(golden, comparison, moe::Router<Softmax, TopK<>>{TopK<>{k}}, k, "router.weight");
}
void qwen2(const Golden& golden, Comparison& comparison) {
  const int k = golden.config<int>("num_experts_per_tok");
  const std::string prefix = "shared_expert.", gate = "shared_expert_gate.weight";
  if (golden.config<bool>("norm_topk_prob")) {
    using Router = moe::Router<Softmax, TopK<>, NormalizeSum>;
    shared_layer<Router, moe::SigmoidGate>(golden, comparison, Router{TopK<>{k}, NormalizeSum{0}}, k, prefix,
                                           "gate.weight", gate);
  } else {
    using Router = moe::Router<Softmax, TopK<>>;
    shared_layer<Router, moe::SigmoidGate>(golden, comparison, Router{TopK<>{k}}, k, prefix, "gate.weight", gate);
  }
}
void hunyuan(const Golden& golden, Comparison& comparison) {
  const int k = golden.config<int>("moe_topk");
  shared_layer(golden, comparison, moe::Router<Softmax, TopK<>, NormalizeSum>{TopK<>{k}, NormalizeSum{0}}, k,
               "shared_mlp.", "gate.wg.weight");
}
void ernie(const Golden& golden, Comparison& comparison) {
  const int k = golden.config<int>("moe_k");
  shared_layer(golden, comparison,
               moe::Router<Softmax, TopK<>, moe::BiasBalancer, moe::NormalizeMax>{
                   TopK<>{k}, moe::NormalizeMax{golden.config<double>("moe_norm_min")}},
               k, "shared_experts.", "gate.weight", "", "gate.moe_statics.e_score_correction_bias");
}
void deepseek_v2(const Golden& golden, Comparison& comparison) {
  using Groups = moe::GroupLimit<0, 0, moe::Max, moe::Zero>;
  const int k = golden.config<int>("num_experts_per_tok");
  Groups groups;  // "greedy" is one group
  const auto method = golden.config<std::string>("topk_method");
  if (method == "group_limited_greedy") {
    groups.groups = golden.config<int>("n_group");
    groups.kept = golden.config<int>("topk_group");
  } else if (method != "greedy") {
    throw moe::ConfigError("check_golden: topk_method '" + method +
                           "' is not known; greedy and group_limited_greedy are.");
  }
  shared_layer(golden, comparison,
               moe::Router<Softmax, TopK<>, Groups, Scale>{TopK<>{k}, groups,
                                                           Scale{golden.config<double>("routed_scaling_factor")}},
               k, "shared_experts.");
}
void mistral4(const Golden& golden, Comparison& comparison) {
  using Groups = moe::GroupLimit<0, 0, moe::BestTwo, moe::Zero>;
  const int k = golden.config<int>("num_experts_per_tok");
  Groups groups;
  groups.groups = golden.config<int>("n_group");
  groups.kept = golden.config<int>("topk_group");
  shared_layer(golden, comparison,
               moe::Router<Softmax, TopK<>, Groups, NormalizeSum, Scale>{
                   TopK<>{k}, groups, Scale{golden.config<double>("routed_scaling_factor")}},
               k, "shared_experts.");
}

/// w1, v1 and w2 are (E * I, H), one expert below the other; w2 is transposed.
void dbrx(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Softmax, TopK<>, moe::NormalizeLp>;
  const int k = golden.config<int>("ffn_config.moe_top_k");
  const Index inner = golden.config<Index>("ffn_config.ffn_hidden_size");
  const std::string weight = "router.layer.weight";
  Check<Layer<Router>> check(
      golden, comparison, sizes(golden, weight, inner),
      Router{TopK<>{k}, moe::NormalizeLp{golden.config<double>("ffn_config.moe_normalize_expert_weights")}});
  auto& p = check.layer.parameters.experts;
  auto& g = check.gradients.experts;
  const Index experts = p.up.extent(0), hidden = p.up.extent(2);
  check.router(weight);
  check.bind("experts.mlp.w1", p.up, g.up, stacked(experts, inner, hidden, 2 * inner, 0));
  check.bind("experts.mlp.v1", p.up, g.up, stacked(experts, inner, hidden, 2 * inner, inner));
  check.bind("experts.mlp.w2", p.down, g.down, transposed(experts, inner, hidden));
  check.run();
  check.transformers_balance(k, weight);
}

void longcat(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Softmax, TopK<>, moe::BiasBalancer, Scale>;
  constexpr int identities = 3;  // a part of the layer's type
  if (golden.config<int>("zero_expert_num") != identities)
    throw moe::ConfigError("check_golden: zero_expert_num must be 3.");
  const std::string weight = "router.classifier.weight";
  Check<Layer<Router, moe::WithExtraExperts<moe::ExpertFFN<>, identities>>> check(
      golden, comparison, sizes(golden, weight, golden.config<Index>("expert_ffn_hidden_size")),
      Router{TopK<>{golden.config<int>("moe_topk")}, Scale{golden.config<double>("routed_scaling_factor")}});
  check.router(weight);
  check.bias("router.e_score_correction_bias");
  check.fused();
  check.run();
}

/// The router alone; the experts are not in the golden.
void gemma4(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<moe::NormalizedInput<>, Softmax, TopK<>, NormalizeSum, moe::PerExpertScale>;
  Check<Layer<Router>> check(golden, comparison, sizes(golden, "proj.weight", 1),
                             Router{TopK<>{golden.config<int>("top_k_experts")}, NormalizeSum{0},
                                    moe::NormalizedInput<>{golden.config<double>("rms_norm_eps"), {}}});
  auto& p = check.layer.parameters.router;
  auto& g = check.gradients.router;
  check.router("proj.weight");
  check.bind("scale", p.input_scale, g.input_scale);
  check.bind("per_expert_scale", p.weightings.values[1], g.weightings.values[1]);
  check.run_router();
}

/// One of E ReLU experts, each a pair of tensors; capacity in each sequence.
void switch_transformers(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Softmax, TopK<1>>;
  const std::string weight = "router.classifier.weight";
  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.tokens_per_expert = golden.config<Index>("expert_capacity");
  capacity.scope = moe::Scope::sequence();
  Check<Layer<Router, moe::ExpertFFN<moe::ReLU>, moe::CapacityPolicy<moe::Drop>>> check(
      golden, comparison, sizes(golden, weight, golden.config<Index>("d_ff")), capacity);
  auto& p = check.layer.parameters.experts;
  auto& g = check.gradients.experts;
  const Index experts = p.up.extent(0), size = p.up.extent(1) * p.up.extent(2);
  check.router(weight);
  for (Index e = 0; e < experts; ++e) {
    const std::string name = "experts.expert_" + std::to_string(e);
    check.bind(name + ".wi.weight", p.up, g.up, plain(size, e * size));
    check.bind(name + ".wo.weight", p.down, g.down, plain(size, e * size));
  }
  check.run();
  const moe::SwitchBalanceLoss balance(1.0, moe::Count::first_choice, moe::Scope::sequence());
  check.loss(Router{}, balance, "load_balancing", weight);
  check.loss(Router{}, moe::RouterZLoss{1.0}, "z_loss", weight);
}

}  // namespace

Families softmax_families() {
  return {{"mixtral.MixtralSparseMoeBlock", mixtral},
          {"minimax.MiniMaxSparseMoeBlock", mixtral},
          {"qwen3_moe.Qwen3MoeSparseMoeBlock", optional_norm},
          {"olmoe.OlmoeSparseMoeBlock", optional_norm},
          {"jamba.JambaSparseMoeBlock", jamba},
          {"qwen2_moe.Qwen2MoeSparseMoeBlock", qwen2},
          {"hunyuan_v1_moe.HunYuanMoEV1Moe", hunyuan},
          {"ernie4_5_moe.Ernie4_5_MoeSparseMoeBlock", ernie},
          {"deepseek_v2.DeepseekV2Moe", deepseek_v2},
          {"mistral4.Mistral4MoE", mistral4},
          {"dbrx.DbrxFFN", dbrx},
          {"longcat_flash.LongcatFlashMoE", longcat},
          {"gemma4.Gemma4TextRouter", gemma4},
          {"switch_transformers.SwitchTransformersSparseMLP", switch_transformers}};
}

}  // namespace golden
