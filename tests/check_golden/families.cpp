/// @file
/// The published families that goldens exist for, composed from their configuration.

#include <functional>
#include <map>
#include <moe/moe.hpp>

#include "golden.hpp"

namespace golden {

namespace {

using moe::Index;
using moe::Matrix;
using moe::Vector;

template <class Router, class... Rest>
using Layer = moe::MoELayer<Router, moe::On<Space>, Rest...>;

/// Everything a family's check needs beside its layer.
struct Inputs {
  Index sequences, length, hidden, tokens;
  Matrix<float, Space> x, g;
  moe::Batch<float, Space> batch;

  explicit Inputs(const Golden& golden) {
    const auto shape = golden.shape("in.x");  // (B, T, D)
    sequences = shape.at(0), length = shape.at(1), hidden = shape.at(2), tokens = sequences * length;
    x = Matrix<float, Space>("x", tokens, hidden);
    g = Matrix<float, Space>("g", tokens, hidden);
    golden.copy("in.x", x);
    golden.copy("in.g", g);
    Vector<Index, Space> offsets("sequence_offsets", sequences + 1);
    for (Index s = 0; s <= sequences; ++s) offsets(s) = s * length;
    batch.x = x;
    batch.sequence_offsets = offsets;
  }
};

/// The combine weights of live assignments at (token, expert).
template <class Tape>
Values dense_weights(const Tape& tape) {
  const auto& assignments = tape.routing.assignments;
  Values dense(assignments.tokens * tape.plan.experts, 0.0f);
  for (Index t = 0; t < assignments.tokens; ++t) {
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
      if (tape.plan.assignment_row(a) >= 0) dense[t * tape.plan.experts + assignments.expert(a)] += tape.weight(a);
    }
  }
  return dense;
}

/// Runs the layer and compares what all families have.
template <class L>
typename L::Gradients run(const L& layer, const Golden& golden, const Inputs& in, Comparison& comparison) {
  moe::Context<Space> ctx;
  ctx.training = golden.training();
  typename L::Tape tape;
  auto gradients = layer.gradients();
  const auto y = layer.forward(ctx, in.batch, tape);
  const auto dx = layer.backward(ctx, in.g, tape, gradients);
  const Values dense = dense_weights(tape);
  comparison.check("out.logits", tape.routing.logits);
  comparison.check("out.dense_w", dense.data(), dense.size());
  comparison.check("out.y", y);
  comparison.check("grad.x", dx);
  return gradients;
}

/// A loss alone on a router's weight: its value, and its gradient by that weight.
template <class Router, class Loss>
void check_loss(const Router& router, const Loss& loss, const std::string& name, const std::string& weight_name,
                const Matrix<float, Space>& weight, const Inputs& in, Comparison& comparison) {
  using Parameters = typename Router::template Parameters<float, Space>;
  const Index experts = weight.extent(0);
  moe::Context<Space> ctx;
  ctx.training = false;
  Parameters parameters{weight}, gradient{Matrix<float, Space>("dw", weight.extent(0), weight.extent(1))};
  moe::Routing<float, Space> routing;
  router.forward(ctx, in.batch, parameters, {}, experts, routing);
  Vector<double, Space> value("value", 1);
  loss.value(ctx, in.batch, routing, value);
  const float rounded = float(value(0));
  comparison.check("aux." + name, &rounded, 1);

  Matrix<float, Space> dscores("dscores", in.tokens, experts), dlogits("dlogits", in.tokens, experts);
  Matrix<float, Space> dx("dx", in.tokens, in.hidden);
  Vector<const float, Space> dweight = Vector<float, Space>("dweight", routing.assignments.bound);
  loss.backward(ctx, in.batch, routing, 1.0, dscores, dlogits);
  router.backward(ctx, in.batch, parameters, routing, dweight, dscores, dlogits, dx, gradient);
  comparison.check("aux_grad." + name + "." + weight_name, gradient.weight);
}

/// transformers' load_balancing_loss_func: softmax and top-k of the raw logits, whatever the router itself does.
void check_transformers_balance(int k, const Matrix<float, Space>& weight, const Inputs& in, Comparison& comparison) {
  const moe::Router<moe::Softmax, moe::TopK<>> router{moe::TopK<>{k}};
  check_loss(router, moe::SwitchBalanceLoss(1.0, moe::Count::all), "load_balancing", "gate.weight", weight, in,
             comparison);
}

/// Mixtral and DeepSeek keep experts as (E, 2I, H) and (E, H, I).
template <class L>
void load_fused(L& layer, const Golden& golden) {
  golden.copy("param.gate.weight", layer.parameters.router.weight);
  golden.copy("param.experts.gate_up_proj", layer.parameters.experts.up);
  golden.copy("param.experts.down_proj", layer.parameters.experts.down);
}
template <class Gradients>
void check_fused(const Gradients& gradients, Comparison& comparison) {
  comparison.check("grad.gate.weight", gradients.router.weight);
  comparison.check("grad.experts.gate_up_proj", gradients.experts.up);
  comparison.check("grad.experts.down_proj", gradients.experts.down);
}

/// DeepSeek's shared experts keep gate and up apart; their width is the product of n_shared_experts and I.
template <class L>
void load_shared(L& layer, const Golden& golden, Index width, Index hidden) {
  auto& ffn = layer.parameters.branches.first.ffn;
  ffn = moe::ExpertFFN<moe::SwiGLU>{}.parameters<float, Space>({1, hidden, width});
  golden.copy("param.shared_experts.gate_proj.weight", ffn.up);
  golden.copy("param.shared_experts.up_proj.weight", ffn.up, width * hidden);
  golden.copy("param.shared_experts.down_proj.weight", ffn.down);
}
template <class Gradients>
void check_shared(const Gradients& gradients, Comparison& comparison) {
  const auto& ffn = gradients.branches.first.ffn;
  const std::size_t half = ffn.up.size() / 2;
  comparison.check("grad.shared_experts.gate_proj.weight", ffn.up.data(), half);
  comparison.check("grad.shared_experts.up_proj.weight", ffn.up.data() + half, half);
  comparison.check("grad.shared_experts.down_proj.weight", ffn.down);
}

void mixtral(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<moe::Softmax, moe::TopK<>, moe::NormalizeSum>;
  const Inputs in(golden);
  const int k = golden.config<int>("num_experts_per_tok");
  moe::MoEConfig config;
  config.hidden = in.hidden;
  config.intermediate = golden.config<Index>("intermediate_size");
  config.experts = golden.config<Index>("num_local_experts");
  Layer<Router> layer(config, Router{moe::TopK<>{k}, moe::NormalizeSum{0}});
  load_fused(layer, golden);
  check_fused(run(layer, golden, in, comparison), comparison);
  check_transformers_balance(k, layer.parameters.router.weight, in, comparison);
}

/// DeepSeek-V2 and V3 differ in the router alone.
template <class Router>
void deepseek(const Golden& golden, const Router& router, int k, Comparison& comparison) {
  const Inputs in(golden);
  moe::MoEConfig config;
  config.hidden = in.hidden;
  config.intermediate = golden.config<Index>("moe_intermediate_size");
  config.experts = golden.config<Index>("n_routed_experts");
  Layer<Router, moe::SharedExperts<1>> layer(config, router);
  load_fused(layer, golden);
  load_shared(layer, golden, golden.config<Index>("n_shared_experts") * config.intermediate, in.hidden);
  if constexpr (Router::has_balancer)
    golden.copy("buffer.gate.e_score_correction_bias", layer.buffers.router.balance_bias);
  const auto gradients = run(layer, golden, in, comparison);
  check_fused(gradients, comparison);
  check_shared(gradients, comparison);
  check_transformers_balance(k, layer.parameters.router.weight, in, comparison);
}

void deepseek_v2(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<moe::Softmax, moe::TopK<>, moe::GroupLimit<>, moe::Scale>;
  const int k = golden.config<int>("num_experts_per_tok");
  moe::GroupLimit<> groups;  // "greedy" is one group
  const auto method = golden.config<std::string>("topk_method");
  if (method == "group_limited_greedy") {
    groups = {golden.config<int>("n_group"), golden.config<int>("topk_group")};
  } else if (method != "greedy") {
    throw moe::ConfigError("check_golden: topk_method '" + method +
                           "' is not known; greedy and group_limited_greedy are.");
  }
  deepseek(golden, Router{moe::TopK<>{k}, groups, moe::Scale{golden.config<double>("routed_scaling_factor")}}, k,
           comparison);
}

template <class... Normalize>
void deepseek_v3_router(const Golden& golden, Comparison& comparison) {
  using Groups = moe::GroupLimit<0, 0, moe::BestTwo>;
  using Router = moe::Router<moe::Sigmoid, moe::TopK<>, Groups, moe::BiasBalancer, moe::Scale, Normalize...>;
  const int k = golden.config<int>("num_experts_per_tok");
  const Groups groups{golden.config<int>("n_group"), golden.config<int>("topk_group")};
  deepseek(golden, Router{moe::TopK<>{k}, groups, moe::Scale{golden.config<double>("routed_scaling_factor")}}, k,
           comparison);
}
void deepseek_v3(const Golden& golden, Comparison& comparison) {
  if (golden.config<bool>("norm_topk_prob")) {
    deepseek_v3_router<moe::NormalizeSum>(golden, comparison);
  } else {
    deepseek_v3_router<>(golden, comparison);
  }
}

void switch_transformers(const Golden& golden, Comparison& comparison) {
  using Router = moe::Router<moe::Softmax, moe::TopK<1>>;
  const Inputs in(golden);
  moe::MoEConfig config;
  config.hidden = in.hidden;
  config.intermediate = golden.config<Index>("d_ff");
  config.experts = golden.config<Index>("num_experts");
  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.tokens_per_expert = golden.config<Index>("expert_capacity");
  capacity.scope = moe::Scope::sequence();
  Layer<Router, moe::ExpertFFN<moe::ReLU>, moe::CapacityPolicy<moe::Drop>> layer(config, capacity);

  auto expert_name = [](Index e, const char* leaf) {
    return "experts.expert_" + std::to_string(e) + "." + leaf + ".weight";
  };
  const Index size = config.intermediate * config.hidden;
  golden.copy("param.router.classifier.weight", layer.parameters.router.weight);
  for (Index e = 0; e < config.experts; ++e) {
    golden.copy("param." + expert_name(e, "wi"), layer.parameters.experts.up, e * size);
    golden.copy("param." + expert_name(e, "wo"), layer.parameters.experts.down, e * size);
  }
  const auto gradients = run(layer, golden, in, comparison);
  comparison.check("grad.router.classifier.weight", gradients.router.weight);
  for (Index e = 0; e < config.experts; ++e) {
    comparison.check("grad." + expert_name(e, "wi"), gradients.experts.up.data() + e * size, size);
    comparison.check("grad." + expert_name(e, "wo"), gradients.experts.down.data() + e * size, size);
  }
  const moe::SwitchBalanceLoss balance(1.0, moe::Count::first_choice, moe::Scope::sequence());
  check_loss(Router{}, balance, "load_balancing", "router.classifier.weight", layer.parameters.router.weight, in,
             comparison);
  check_loss(Router{}, moe::RouterZLoss{1.0}, "z_loss", "router.classifier.weight", layer.parameters.router.weight, in,
             comparison);
}

}  // namespace

bool check(const Golden& golden, double tolerance) {
  static const std::map<std::string, void (*)(const Golden&, Comparison&)> families{
      {"mixtral.MixtralSparseMoeBlock", mixtral},
      {"switch_transformers.SwitchTransformersSparseMLP", switch_transformers},
      {"deepseek_v2.DeepseekV2Moe", deepseek_v2},
      {"deepseek_v3.DeepseekV3MoE", deepseek_v3}};
  const auto found = families.find(golden.family());
  if (found == families.end()) {
    std::string known;
    for (const auto& [name, run] : families) known += (known.empty() ? "" : ", ") + name;
    throw moe::ConfigError("check_golden: family '" + golden.family() + "' is not known; these are: " + known + ".");
  }
  Comparison comparison(golden, tolerance);
  found->second(golden, comparison);
  return comparison.good();
}

}  // namespace golden
