// Whole layers against a reference that shares no code with them: the papers' formulas in plain loops, in double.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"
#include "reference/gradients.hpp"

namespace reference_test {

using namespace moe_test;
using reference::Activation;
using reference::Description;
using reference::LossKind;

// No vector width divides these; coefficients are large, so that a loss's gradient shows beside the output's.
constexpr Index tokens = 27, hidden = 13, intermediate = 5;
const std::vector<Index> offsets{0, 11, 12, tokens};
const moe::MoEConfig few{.hidden = hidden, .intermediate = intermediate, .experts = 6};
const moe::MoEConfig many{.hidden = hidden, .intermediate = 3, .experts = 24};

/// The default space alone where all of Cases would tell no more: layers take long to compile.
using DefaultCases =
    std::tuple<Case<Kokkos::DefaultExecutionSpace, float>, Case<Kokkos::DefaultExecutionSpace, double>>;

template <class View>
reference::Matrix to_matrix(const View& view) {
  const auto values = host(view);
  reference::Matrix result(values.extent(0), values.size() / std::max<std::size_t>(1, values.extent(0)));
  for (Index i = 0; i < Index(values.size()); ++i) result.data()[i] = double(values.data()[i]);
  return result;
}

template <class View>
reference::Vector to_vector(const View& view) {
  const auto flat = to_matrix(view);
  return Eigen::Map<const reference::Vector>(flat.data(), flat.size());
}

/// Expert e of the library's stack; its slice `part` where the stack holds `parts` experts side by side.
template <class Stack>
reference::FFN to_ffn(const Stack& stack, Index e, Index part = 0, Index parts = 1) {
  const auto up = host(stack.up), down = host(stack.down);
  const Index width = down.extent(1), whole = down.extent(2), inner = whole / parts, first = part * inner;
  const bool gated = Index(up.extent(1)) == 2 * whole;  // gate above up
  const auto rows = [&](Index from) {
    reference::Matrix result(inner, width);
    for (Index i = 0; i < inner; ++i) {
      for (Index h = 0; h < width; ++h) result(i, h) = double(up(e, from + i, h));
    }
    return result;
  };
  reference::FFN result{{}, rows(gated ? whole + first : first), reference::Matrix(width, inner), {}, {}, {}};
  if (gated) result.gate = rows(first);
  for (Index h = 0; h < width; ++h) {
    for (Index i = 0; i < inner; ++i) result.down(h, i) = double(down(e, h, first + i));
  }
  if (stack.up_bias.size() > 0) {
    const reference::Vector bias = to_matrix(stack.up_bias).row(e);
    if (gated) result.gate_bias = bias.head(whole);
    result.up_bias = bias.tail(whole);
    result.down_bias = to_matrix(stack.down_bias).row(e);
  }
  return result;
}

/// A layer's parameters, or its gradients.
template <class Parameters>
reference::Parameters to_reference(const Parameters& from, Index shared) {
  reference::Parameters result;
  result.router = to_matrix(from.router.weight);
  for (Index e = 0; e < Index(from.experts.up.extent(0)); ++e) result.experts.push_back(to_ffn(from.experts, e));
  if constexpr (requires { from.branches.first; }) {
    for (Index n = 0; n < shared; ++n) result.shared.push_back(to_ffn(from.branches.first.ffn, 0, n, shared));
    result.shared_gate = to_vector(from.branches.first.gate);
  }
  return result;
}

/// Is the largest difference small beside the largest value?
template <class A, class B>
void check_close(const std::string& name, const A& got, const B& expected, double tolerance) {
  INFO(name);
  REQUIRE(got.rows() == expected.rows());
  REQUIRE(got.cols() == expected.cols());
  if (got.size() == 0) return;
  CHECK(got.allFinite());
  CHECK((got - expected).cwiseAbs().maxCoeff() <= tolerance * (1 + expected.cwiseAbs().maxCoeff()));
}

/// Choices, weights and drops, token by token.
template <class Tape>
void check_assignments(const Tape& tape, const reference::Result& expected, double tolerance) {
  const auto& assignments = tape.routing.assignments;
  const auto expert = host(assignments.expert);
  const auto weight = host(assignments.weight), combined = host(tape.weight);
  const auto row = host(tape.plan.assignment_row);
  const auto ragged = assignments.uniform_k == 0 ? host(assignments.token_offsets) : decltype(row){};
  for (Index t = 0; t < tokens; ++t) {
    INFO("token " << t);
    const Index k = assignments.uniform_k, begin = k != 0 ? t * k : ragged(t), end = k != 0 ? begin + k : ragged(t + 1);
    std::vector<int> chosen, kept;
    std::vector<double> before, after;
    for (Index a = begin; a < end; ++a) {
      if (expert(a) == moe::no_expert) continue;
      chosen.push_back(expert(a));
      kept.push_back(row(a) >= 0);
      before.push_back(weight(a));
      after.push_back(row(a) >= 0 ? combined(a) : 0);
    }
    REQUIRE(chosen == expected.chosen[t]);
    REQUIRE(kept == expected.kept[t]);
    const auto vector = [](const std::vector<double>& v) {
      return Eigen::Map<const reference::Vector>(v.data(), Index(v.size()));
    };
    check_close("weights", vector(before), vector(expected.weights[t]), tolerance);
    check_close("weights after drops", vector(after), vector(expected.combined[t]), tolerance);
  }
}

/// Runs a layer and the reference on the same batch and compares all they give: in double with every gradient.
template <class Layer>
void compare(Layer& layer, const Description& description, Index shared, bool padded) {
  using T = typename Layer::Scalar;
  using Space = typename Layer::Space;
  INFO((padded ? "with padding" : "without padding"));
  auto fill_biases = [](std::string_view name, auto& view) {
    if (name.size() > 4 && name.substr(name.size() - 4) == "bias") randomise(view, 5);
  };
  Layer::Parameters::visit(fill_biases, layer.parameters);
  auto fill_balance = [](std::string_view, auto& view) {  // keys below zero, where a mask of zeros would not do
    randomise(view, 6);
    const auto values = host(view);
    for (std::size_t e = 0; e < values.size(); ++e) values(e) -= 2;
    Kokkos::deep_copy(view, values);
  };
  Layer::Buffers::visit(fill_balance, layer.buffers);

  moe::Batch<T, Space> batch;
  batch.x = random<moe::Matrix<T, Space>>(1, tokens, hidden);
  batch.sequence_offsets = indices<Space>(offsets);
  reference::Batch same{to_matrix(batch.x), {offsets.begin(), offsets.end()}, std::vector<bool>(tokens, true)};
  if (padded) {
    moe::Vector<std::uint8_t, Space> mask("mask", tokens);
    const auto values = host(mask);
    for (Index t = 0; t < tokens; ++t) {
      same.live[t] = !(t == 0 || t == 4 || t >= 22);
      values(t) = same.live[t];
    }
    Kokkos::deep_copy(mask, values);
    batch.mask = mask;
  }
  reference::Parameters parameters = to_reference(layer.parameters, shared);
  if constexpr (Layer::Router::has_balancer) parameters.balance_bias = to_vector(layer.buffers.router.balance_bias);

  moe::Context<Space> ctx;
  ctx.training = false;  // no jitter
  typename Layer::Tape tape;
  const auto y = layer.forward(ctx, batch, tape);
  const auto expected = reference::forward(description, parameters, same);
  const double tolerance = moe_test::tolerance<T>(hidden + intermediate + description.k);
  check_close("logits", to_matrix(tape.routing.logits), expected.logits, tolerance);
  check_close("scores", to_matrix(tape.routing.scores), expected.scores, tolerance);
  check_assignments(tape, expected, tolerance);
  check_close("y", to_matrix(y), expected.y, tolerance);
  const auto losses = tape.loss_values();
  REQUIRE(losses.size() == expected.losses.size());
  for (std::size_t l = 0; l < losses.size(); ++l) {
    INFO("loss " << l);
    CHECK(std::abs(losses[l] - expected.losses[l]) <= tolerance * (1 + expected.losses[l]));
  }
  if (description.drops) {  // else the test would say nothing about drops
    Index dropped = 0;
    for (const auto& list : expected.kept) dropped += std::count(list.begin(), list.end(), 0);
    CHECK(dropped > 2);
  }

  if constexpr (std::is_same_v<T, double>) {
    auto gradients = layer.gradients();
    const auto dy = random<moe::Matrix<T, Space>>(2, tokens, hidden);
    const auto dx = layer.backward(ctx, dy, tape, gradients);
    const auto wanted = reference::gradients(description, parameters, same, to_matrix(dy));
    const auto got = to_reference(static_cast<const typename Layer::Parameters&>(gradients), shared);
    check_close("dx", to_matrix(dx), wanted.x, 1e-8);
    auto each = [](const std::string& name, const auto& a, const auto& b) { check_close("d " + name, a, b, 1e-8); };
    reference::visit(each, got, wanted.parameters);
  }
}

template <class Layer>
void compare(Layer& layer, const Description& description, Index shared = 0) {
  for (bool padded : {false, true}) compare(layer, description, shared, padded);
}

template <class C, class... Policies>
using LayerOf = moe::MoELayer<moe::On<typename C::Space>, moe::Precision<typename C::T>, Policies...>;

TEMPLATE_LIST_TEST_CASE("Switch is its paper's: drops in token order", "", DefaultCases) {
  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.factor = 0.8;
  moe::SwitchLayer<moe::On<typename TestType::Space>, moe::Precision<typename TestType::T>> layer(
      few, capacity, moe::SwitchBalanceLoss(0.5), moe::Seed{1});
  Description d;
  d.k = 1;
  d.drops = true;
  d.capacity_factor = 0.8;
  d.activation = Activation::relu;
  d.losses = {{LossKind::switch_transformer, 0.5}};
  compare(layer, d);
}

TEMPLATE_LIST_TEST_CASE("GShard is its paper's: first choices first, in groups", "", Cases) {
  moe::GShardLayer<moe::On<typename TestType::Space>, moe::Precision<typename TestType::T>> layer(
      few, moe::gshard_capacity(moe::Scope::groups_of(9)), moe::GShardBalanceLoss(0.5, moe::Scope::groups_of(9)),
      moe::Seed{4});
  Description d;
  d.k = 2;
  d.normalize = true;
  d.drops = true;
  d.minimum = 4;
  d.capacity_span = {reference::Span::tokens, 9};
  d.priority = reference::Priority::choice;
  d.activation = Activation::relu;
  d.losses = {{LossKind::gshard, 0.5, false, d.capacity_span}};
  compare(layer, d);
}

TEMPLATE_LIST_TEST_CASE("Drops by weight, with the rest renormalised: biased GELU experts", "", DefaultCases) {
  moe::CapacityPolicy<moe::Pad> capacity;
  capacity.factor = 0.7;
  capacity.rounding = moe::Rounding::floor;
  capacity.scope = moe::Scope::sequence();
  capacity.priority = moe::Priority::score;
  capacity.renormalize = moe::Renormalize::after_drops;
  LayerOf<TestType, moe::Router<moe::Softmax, moe::TopK<3>>, moe::ExpertFFN<moe::GELU, moe::Bias>,
          moe::CapacityPolicy<moe::Pad>, moe::SwitchBalanceLoss>
      layer(few, capacity, moe::SwitchBalanceLoss(0.5, moe::Count::first_choice, moe::Scope::sequence()), moe::Seed{3});
  Description d;
  d.k = 3;
  d.drops = d.renormalize = true;
  d.capacity_factor = 0.7;
  d.rounding = reference::Rounding::floor;
  d.capacity_span = {reference::Span::sequence};
  d.priority = reference::Priority::score;
  d.activation = Activation::gelu;
  d.losses = {{LossKind::switch_transformer, 0.5, false, {reference::Span::sequence}}};
  compare(layer, d);
}

TEMPLATE_LIST_TEST_CASE("Mixtral is its paper's", "", DefaultCases) {
  moe::MixtralLayer<moe::SwitchBalanceLoss, moe::RouterZLoss, moe::On<typename TestType::Space>,
                    moe::Precision<typename TestType::T>>
      layer(few, moe::MixtralRouter{moe::NormalizeSum{0}}, moe::SwitchBalanceLoss(0.5, moe::Count::all),
            moe::RouterZLoss{0.1}, moe::Seed{4});
  Description d;
  d.k = 2;
  d.normalize = true;
  d.losses = {{LossKind::switch_transformer, 0.5, true}, {LossKind::z, 0.1}};
  compare(layer, d);
}

TEMPLATE_LIST_TEST_CASE("DeepSeekMoE is its paper's: two shared experts", "", DefaultCases) {
  moe::DeepSeekMoELayer<moe::On<typename TestType::Space>, moe::Precision<typename TestType::T>> layer(
      many, moe::ExpertBalanceLoss(0.5), moe::Seed{5});
  Description d;
  d.k = 6;
  d.losses = {{LossKind::expert, 0.5}};
  compare(layer, d, 2);
}

TEMPLATE_LIST_TEST_CASE("DeepSeek-V2 is its paper's: the best groups, scaled weights", "", DefaultCases) {
  moe::DeepSeekV2Layer<moe::On<typename TestType::Space>, moe::Precision<typename TestType::T>> layer(
      many, moe::DeepSeekV2Router{moe::Scale{16.0}}, moe::ExpertBalanceLoss(0.5), moe::Seed{6});
  Description d;
  d.k = 6;
  d.groups = 8;
  d.kept_groups = 3;
  d.scale = 16;
  d.losses = {{LossKind::expert, 0.5}};
  compare(layer, d, 2);
}

TEMPLATE_LIST_TEST_CASE("DeepSeek-V3 is its paper's: bias, groups by their best two, loss by sequence", "", Cases) {
  moe::DeepSeekV3Layer<moe::On<typename TestType::Space>, moe::Precision<typename TestType::T>> layer(
      many, moe::DeepSeekV3Router{moe::Scale{2.5}}, moe::SequenceBalanceLoss(0.5), moe::Seed{7});
  Description d;
  d.scoring = reference::Scoring::sigmoid;
  d.k = 8;
  d.groups = 8;
  d.kept_groups = 4;
  d.group_score = reference::GroupScore::best_two;
  d.normalize = true;
  d.epsilon = 1e-20;
  d.scale = 2.5;
  d.losses = {{LossKind::sequence, 0.5}};
  compare(layer, d, 1);
}

TEMPLATE_LIST_TEST_CASE("Expert choice over a batch: biased SiLU experts", "", DefaultCases) {
  LayerOf<TestType, moe::Router<moe::Softmax, moe::ExpertChoice>, moe::ExpertFFN<moe::SiLU, moe::Bias>,
          moe::RouterZLoss>
      layer(few, moe::RouterZLoss{0.1}, moe::Seed{8});
  Description d;
  d.selection = reference::Selection::expert_choice;
  d.activation = Activation::silu;
  d.losses = {{LossKind::z, 0.1}};
  compare(layer, d);
}

TEMPLATE_LIST_TEST_CASE("Expert choice in each sequence: biased ReLU experts", "", DefaultCases) {
  using Router = moe::Router<moe::Sigmoid, moe::ExpertChoice, moe::NormalizeSum>;
  moe::ExpertChoice choice;
  choice.capacity_factor = 1.5;
  choice.scope = moe::Scope::sequence();
  LayerOf<TestType, Router, moe::ExpertFFN<moe::ReLU, moe::Bias>> layer(few, Router{choice, moe::NormalizeSum{1e-3}},
                                                                        moe::Seed{9});
  Description d;
  d.scoring = reference::Scoring::sigmoid;
  d.selection = reference::Selection::expert_choice;
  d.choice_factor = 1.5;
  d.choice_span = {reference::Span::sequence};
  d.normalize = true;
  d.epsilon = 1e-3;
  d.activation = Activation::relu;
  compare(layer, d);
}

TEMPLATE_LIST_TEST_CASE("Gated shared experts beside biased GeGLU experts", "", DefaultCases) {
  LayerOf<TestType, moe::Router<moe::Softmax, moe::TopK<3>>, moe::ExpertFFN<moe::GeGLU, moe::Bias>,
          moe::SharedExperts<3, moe::SiLU, moe::SigmoidGate>, moe::ExpertBalanceLoss, moe::RouterZLoss>
      layer(few, moe::ExpertBalanceLoss(0.5), moe::RouterZLoss{0.1}, moe::Seed{10});
  Description d;
  d.k = 3;
  d.activation = Activation::geglu;
  d.shared_activation = Activation::silu;
  d.losses = {{LossKind::expert, 0.5}, {LossKind::z, 0.1}};
  compare(layer, d, 3);
}

}  // namespace reference_test
