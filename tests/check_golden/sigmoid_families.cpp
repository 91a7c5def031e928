/// @file
/// Families whose scores are sigmoids, or the like, of each logit for itself.

#include "check.hpp"

namespace golden {

namespace {

using moe::BiasBalancer;
using moe::NormalizeSum;
using moe::Scale;
using moe::Sigmoid;
using moe::TopK;

const std::string correction = "gate.e_score_correction_bias";

/// Experts of `Activation` as (E, 2I, H) and (E, H, I) and one shared FFN of `SharedActivation`. More policies may
/// follow.
template <class Activation, class SharedActivation, class... More, class Router, class... Values>
void with_shared(const Golden& golden, Comparison& comparison, const Router& router, const Activation& activation,
                 const SharedActivation& shared_activation, const std::string& prefix, const Values&... values) {
  using Shared = moe::SharedExperts<1, SharedActivation>;
  Shared shared;
  shared.activation = shared_activation;
  shared.intermediate = golden.shape("param." + prefix + "down_proj.weight").at(1);
  moe::ExpertFFN<Activation> experts;
  experts.activation = activation;
  Check<Layer<Router, moe::ExpertFFN<Activation>, Shared, More...>> check(
      golden, comparison, sizes(golden, "gate.weight", golden.shape("param.experts.down_proj").at(2)), router, experts,
      shared, values...);
  check.router("gate.weight");
  check.fused();
  check.shared(prefix);
  if constexpr (Router::has_balancer) check.bias(correction);
  if constexpr (Router::has_table) {
    const auto table = golden.integers("buffer.gate.tid2eid");
    moe::assign_table(check.layer.buffers.router.table, std::vector<moe::ExpertId>(table.begin(), table.end()));
  }
  if constexpr (requires { check.layer.parameters.outputs.first.weight; }) {
    check.bind("post_mlp_layernorm.weight", check.layer.parameters.outputs.first.weight,
               check.gradients.outputs.first.weight);
  }
  check.run();
  if (golden.has("aux.load_balancing"))
    check.transformers_balance(golden.config<int>("num_experts_per_tok"), "gate.weight");
}

/// The same without a shared FFN.
template <class Router>
void alone(const Golden& golden, Comparison& comparison, const Router& router, const std::string& bias) {
  Check<Layer<Router>> check(golden, comparison,
                             sizes(golden, "gate.weight", golden.shape("param.experts.down_proj").at(2)), router);
  check.router("gate.weight");
  check.fused();
  check.bias(bias);
  check.run();
  if (golden.has("aux.load_balancing"))
    check.transformers_balance(golden.config<int>("num_experts_per_tok"), "gate.weight");
}

template <class Fill, class... More, class... Normalize>
void deepseek_like(const Golden& golden, Comparison& comparison, const Normalize&... normalize) {
  using Groups = moe::GroupLimit<0, 0, moe::BestTwo, Fill>;
  using Router = moe::Router<Sigmoid, TopK<>, Groups, BiasBalancer, Scale, Normalize...>;
  Groups groups;
  groups.groups = golden.config<int>("n_group");
  groups.kept = golden.config<int>("topk_group");
  const Router router{TopK<>{golden.config<int>("num_experts_per_tok")}, groups,
                      Scale{golden.config<double>("routed_scaling_factor")}, normalize...};
  with_shared<moe::SwiGLU, moe::SwiGLU, More...>(golden, comparison, router, {}, {}, "shared_experts.");
}
void deepseek_v3(const Golden& golden, Comparison& comparison) {
  if (golden.config<bool>("norm_topk_prob")) {
    deepseek_like<moe::NegativeInfinity>(golden, comparison, NormalizeSum{1e-20});
  } else {
    deepseek_like<moe::NegativeInfinity>(golden, comparison);
  }
}
void axk1(const Golden& golden, Comparison& comparison) {
  deepseek_like<moe::NegativeInfinity, moe::OutputNorm>(golden, comparison, NormalizeSum{1e-20});
}
void axk2(const Golden& golden, Comparison& comparison) {
  deepseek_like<moe::Zero>(golden, comparison, NormalizeSum{1e-20});
}

void minimax_m2(const Golden& golden, Comparison& comparison) {
  alone(golden, comparison,
        moe::Router<Sigmoid, TopK<>, BiasBalancer, NormalizeSum>{TopK<>{golden.config<int>("num_experts_per_tok")},
                                                                 NormalizeSum{0}},
        "e_score_correction_bias");
}
void lfm2(const Golden& golden, Comparison& comparison) {
  alone(golden, comparison,
        moe::Router<Sigmoid, TopK<>, BiasBalancer, NormalizeSum, Scale>{
            TopK<>{golden.config<int>("num_experts_per_tok")}, NormalizeSum{1e-6},
            Scale{golden.config<double>("routed_scaling_factor")}},
        "expert_bias");
}

void flint(const Golden& golden, Comparison& comparison) {
  with_shared<moe::SwiGLU, moe::SwiGLU>(
      golden, comparison,
      moe::Router<Sigmoid, TopK<>, NormalizeSum>{TopK<>{golden.config<int>("num_experts_per_tok")}, NormalizeSum{0}},
      {}, {}, "shared_expert.");
}
void kolibri(const Golden& golden, Comparison& comparison) {
  if (golden.config<bool>("norm_topk_prob"))
    throw moe::ConfigError("check_golden: norm_topk_prob of Kolibri is not known.");
  with_shared<moe::SwiGLU, moe::SwiGLU>(golden, comparison,
                                        moe::Router<Sigmoid, TopK<>, moe::ChooseByLogits, BiasBalancer>{
                                            TopK<>{golden.config<int>("num_experts_per_tok")}},
                                        {}, {}, "shared_experts.");
}
void laguna(const Golden& golden, Comparison& comparison) {
  const moe::RoutedScale scale{golden.config<double>("moe_routed_scaling_factor")};
  with_shared<moe::SwiGLU, moe::SwiGLU, moe::RoutedScale>(
      golden, comparison,
      moe::Router<Sigmoid, TopK<>, moe::SoftCap, BiasBalancer, NormalizeSum>{
          TopK<>{golden.config<int>("num_experts_per_tok")}, NormalizeSum{0},
          moe::SoftCap{golden.config<double>("moe_router_logit_softcapping")}},
      {}, {}, "shared_experts.", scale);
}
void minimax_m3(const Golden& golden, Comparison& comparison) {
  const moe::ClampedSwiGLU activation{golden.config<double>("swiglu_limit"), golden.config<double>("swiglu_alpha"), 1};
  const moe::RoutedScale scale{golden.config<double>("routed_scaling_factor")};
  with_shared<moe::ClampedSwiGLU, moe::ClampedSwiGLU, moe::RoutedScale>(
      golden, comparison,
      moe::Router<Sigmoid, TopK<>, BiasBalancer, NormalizeSum>{TopK<>{golden.config<int>("num_experts_per_tok")},
                                                               NormalizeSum{0}},
      activation, activation, "shared_experts.", scale);
}
void step3p7(const Golden& golden, Comparison& comparison) {
  const moe::SwiGLUClampedAfter activation{0.8};  // swiglu_limits, which the golden's configuration leaves out
  const moe::RoutedScale scale{golden.config<double>("moe_router_scaling_factor")};
  with_shared<moe::SwiGLUClampedAfter, moe::SwiGLU, moe::RoutedScale>(
      golden, comparison,
      moe::Router<Sigmoid, TopK<>, BiasBalancer, NormalizeSum>{TopK<>{golden.config<int>("num_experts_per_tok")},
                                                               NormalizeSum{0}},
      activation, {}, "shared_experts.", scale);
}

/// DeepSeek-V4: choices by the bias, or in the first layers by a table on token ids.
void deepseek_v4(const Golden& golden, Comparison& comparison) {
  const moe::ClampedSwiGLU activation{golden.config<double>("swiglu_limit"), 1, 0};
  const Scale scale{golden.config<double>("routed_scaling_factor")};
  const int k = golden.config<int>("num_experts_per_tok");
  if (golden.has("buffer.gate.tid2eid")) {
    moe::TableLookup<> table;
    table.table_rows = golden.shape("buffer.gate.tid2eid").at(0);
    table.k = k;
    with_shared<moe::ClampedSwiGLU, moe::ClampedSwiGLU>(
        golden, comparison,
        moe::Router<moe::SqrtSoftplus, moe::TableLookup<>, NormalizeSum, Scale>{table, NormalizeSum{1e-20}, scale},
        activation, activation, "shared_experts.");
  } else {
    with_shared<moe::ClampedSwiGLU, moe::ClampedSwiGLU>(
        golden, comparison,
        moe::Router<moe::SqrtSoftplus, TopK<>, BiasBalancer, NormalizeSum, Scale>{TopK<>{k}, NormalizeSum{1e-20},
                                                                                  scale},
        activation, activation, "shared_experts.");
  }
}

}  // namespace

Families sigmoid_families() {
  return {{"deepseek_v3.DeepseekV3MoE", deepseek_v3},
          {"glm4_moe.Glm4MoeMoE", deepseek_v3},
          {"axk1.AXK1MoE", axk1},
          {"axk2.AXK2MoE", axk2},
          {"minimax_m2.MiniMaxM2SparseMoeBlock", minimax_m2},
          {"lfm2_moe.Lfm2MoeSparseMoeBlock", lfm2},
          {"flint.FlintSparseMoeBlock", flint},
          {"kolibri1.Kolibri1SparseMoeBlock", kolibri},
          {"laguna.LagunaSparseMoeBlock", laguna},
          {"minimax_m3_vl.MiniMaxM3VLSparseMoeBlock", minimax_m3},
          {"step3p7.Step3p7SparseMoeBlock", step3p7},
          {"deepseek_v4.DeepseekV4SparseMoeBlock", deepseek_v4}};
}

}  // namespace golden
