/// @file
/// Families with more around the experts: latent spaces, norms, shared experts in the normaliser.

#include "check.hpp"

namespace golden {

namespace {

using moe::BiasBalancer;
using moe::NormalizeSum;
using moe::Scale;
using moe::Sigmoid;
using moe::TopK;

const std::string correction = "gate.e_score_correction_bias";

void nemotron(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Sigmoid, TopK<>, BiasBalancer, NormalizeSum, Scale>;
  using Shared = moe::SharedExperts<1, moe::SquaredReLU>;
  Shared shared;
  shared.intermediate = golden.shape("param.shared_experts.down_proj.weight").at(1);
  Check<Layer<Router, moe::ExpertFFN<moe::SquaredReLU>, moe::Latent<>, Shared>> check(
      golden, comparison, sizes(golden, "gate.weight", golden.config<Index>("moe_intermediate_size")),
      Router{TopK<>{golden.config<int>("num_experts_per_tok")}, Scale{golden.config<double>("routed_scaling_factor")}},
      moe::Latent<>{golden.config<Index>("moe_latent_size")}, shared);
  auto& p = check.layer.parameters;
  auto& g = check.gradients;
  check.router("gate.weight");
  check.bias(correction);
  check.fused("experts.up_proj");
  check.bind("fc1_latent_proj.weight", p.latent.in, g.latent.in);
  check.bind("fc2_latent_proj.weight", p.latent.out, g.latent.out);
  check.bind("shared_experts.up_proj.weight", p.branches.first.ffn.up, g.branches.first.ffn.up);
  check.bind("shared_experts.down_proj.weight", p.branches.first.ffn.down, g.branches.first.ffn.down);
  check.run();
}

void muse_spark(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<Sigmoid, TopK<>, moe::LogitScale, BiasBalancer, NormalizeSum, Scale>;
  using Experts = moe::NormalizedExperts<moe::ExpertFFN<>, moe::ScaledUnitRms>;
  using Latent = moe::Latent<moe::OffsetRmsNorm>;
  Experts experts;
  experts.epsilon = golden.config<double>("post_norm_eps");
  Check<Layer<Router, Experts, Latent>> check(
      golden, comparison, sizes(golden, "gate.weight", golden.config<Index>("moe_intermediate_size")),
      Router{TopK<>{golden.config<int>("num_experts_per_tok")},
             moe::LogitScale{golden.config<double>("output_multiplier")}, NormalizeSum{1e-15},
             Scale{golden.config<double>("routed_scaling_factor")}},
      experts, Latent{golden.config<Index>("moe_hidden_size"), golden.config<double>("rms_norm_eps")});
  auto& p = check.layer.parameters;
  auto& g = check.gradients;
  check.router("gate.weight");
  check.bias(correction);
  check.fused();
  check.bind("experts.post_expert_norm.weight", p.experts.norm, g.experts.norm);
  check.bind("pre_expert_proj.weight", p.latent.in, g.latent.in);
  check.bind("pre_expert_norm.weight", p.latent.norm, g.latent.norm);
  check.bind("post_expert_proj.weight", p.latent.out, g.latent.out);
  check.run();
}

/// Two shared experts stand behind the routed ones and are always chosen, so that the normaliser sees them.
void inkling(const Golden& golden, Comparison& comparison) {
  constexpr int shared = 2;  // a part of the router's type
  using Router =
      moe::Router<Sigmoid, moe::WithShared<TopK<>, shared>, BiasBalancer, NormalizeSum, moe::LearnedScale, Scale>;
  if (golden.config<int>("n_shared_experts") != shared)
    throw moe::ConfigError("check_golden: n_shared_experts of Inkling must be 2.");
  Check<Layer<Router>> check(golden, comparison,
                             sizes(golden, "gate.weight", golden.config<Index>("moe_intermediate_size")),
                             Router{moe::WithShared<TopK<>, shared>(TopK<>{golden.config<int>("num_experts_per_tok")}),
                                    NormalizeSum{0}, Scale{golden.config<double>("route_scale")}});
  auto& p = check.layer.parameters;
  auto& g = check.gradients;
  const Index routed = p.experts.up.extent(0) - shared, hidden = p.experts.up.extent(2), i = p.experts.down.extent(2);
  check.router("gate.weight");
  check.bias(correction);
  check.bind("gate.global_scale", p.router.weightings.values[1], g.router.weightings.values[1]);
  check.bind("experts.gate_up_proj", p.experts.up, g.experts.up);
  check.bind("experts.down_proj", p.experts.down, g.experts.down);
  auto behind = [&](Index first, Index rows, Index all, Index width) {
    Map map = stacked(shared, rows, width, all, first);
    for (Index& place : map) place += routed * all * width;
    return map;
  };
  check.bind("shared_experts.gate_proj", p.experts.up, g.experts.up, behind(0, i, 2 * i, hidden));
  check.bind("shared_experts.up_proj", p.experts.up, g.experts.up, behind(i, i, 2 * i, hidden));
  check.bind("shared_experts.down_proj", p.experts.down, g.experts.down, behind(0, hidden, hidden, i));
  check.run();
}

}  // namespace

Families other_families() {
  return {
      {"nemotron_h.NemotronHMoE", nemotron}, {"muse_spark.MuseSparkMoE", muse_spark}, {"inkling.InklingMoE", inkling}};
}

bool check(const Golden& golden, double tolerance) {
  Families all;
  for (auto families : {softmax_families(), sigmoid_families(), logit_families(), other_families()})
    all.merge(families);
  const auto found = all.find(golden.family());
  if (found == all.end()) {
    std::string known;
    for (const auto& [name, run] : all) known += (known.empty() ? "" : ", ") + name;
    throw moe::ConfigError("check_golden: family '" + golden.family() + "' is not known; these are: " + known + ".");
  }
  Comparison comparison(golden, tolerance);
  found->second(golden, comparison);
  return comparison.good();
}

}  // namespace golden
