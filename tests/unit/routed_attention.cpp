// Attention with queries, keys and values chosen apart: against its sums written out, its gradients, and its limits.
#include <numeric>

#include "moe_test/attention.hpp"
#include "moe_test/layer_gradients.hpp"

namespace routed_attention_test {

using namespace moe_test;
using Catch::Matchers::Contains;

template <class Case, class... Losses>
using LayerOf = moe::RoutedAttention<moe::On<typename Case::Space>, moe::Precision<typename Case::T>, Losses...>;

/// Logits of all tokens, and which of them a router takes.
struct Choice {
  std::vector<double> logit;
  std::vector<bool> taken;
  template <class View>
  Choice(const Rows& x, const View& weight, const SequenceSetting& setting, double capacity)
      : logit(x.data.size() / std::size_t(x.width)), taken(logit.size()) {
    const Rows w(weight);
    for (std::size_t t = 0; t < logit.size(); ++t) {
      for (Index h = 0; h < x.width; ++h) logit[t] += w(0, h) * x(Index(t), h);
    }
    for (std::size_t s = 0; s + 1 < setting.offsets.size(); ++s) {
      std::vector<std::size_t> live;
      for (Index t = setting.offsets[s]; t < setting.offsets[s + 1]; ++t) {
        if (setting.live(t)) live.push_back(std::size_t(t));
      }
      if (live.empty()) continue;
      std::stable_sort(live.begin(), live.end(), [&](std::size_t a, std::size_t b) { return logit[a] > logit[b]; });
      live.resize(std::max<std::size_t>(1, std::size_t(capacity * double(live.size()))));
      for (std::size_t t : live) taken[t] = true;
    }
  }
  bool of(Index t) const { return taken[std::size_t(t)]; }
  double r(Index t) const { return logit[std::size_t(t)]; }
};

/// The layer's equations, one token, head and key after another, in double.
template <class Layer>
std::vector<double> expected(const Layer& layer, const moe::Batch<typename Layer::Scalar, typename Layer::Space>& batch,
                             const SequenceSetting& setting) {
  const auto& config = layer.config();
  const auto& parameters = layer.parameters;
  const Index tokens = batch.tokens(), width = config.width(), columns = config.columns();
  const Rows x(batch.x), output(parameters.output);
  const Choice query(x, parameters.query_router.weight, setting, config.query_capacity),
      key(x, parameters.key_router.weight, setting, config.key_capacity),
      value(x, parameters.value_router.weight, setting, config.value_capacity);
  Rows q(tokens, columns), k(tokens, columns), v(tokens, columns), y(tokens, config.hidden);
  const Rows wq(parameters.query), wk(parameters.key), wv(parameters.value);
  for (std::size_t s = 0; s + 1 < setting.offsets.size(); ++s) {
    const Index begin = setting.offsets[s], end = setting.offsets[s + 1];
    for (Index t = begin; t < end; ++t) {
      project(x, t, wq.data.data(), columns, q, 0);
      project(x, t, wk.data.data(), columns, k, 0);
      project(x, t, wv.data.data(), columns, v, 0);
      const double position = setting.positions.empty() ? double(t - begin) : double(setting.positions[std::size_t(t)]);
      for (Rows* rows : {&q, &k}) {
        for (Index c = 0; c < columns && config.rotary_base > 0; ++c) {
          const Index i = c % width;
          if (i >= width / 2) continue;
          const double angle = position * std::pow(config.rotary_base, -2.0 * double(i) / double(width));
          const double a = (*rows)(t, c), b = (*rows)(t, c + width / 2);
          (*rows)(t, c) = a * std::cos(angle) - b * std::sin(angle);
          (*rows)(t, c + width / 2) = a * std::sin(angle) + b * std::cos(angle);
        }
      }
    }
    for (Index t = begin; t < end; ++t) {
      for (Index h = 0; h < config.heads && query.of(t); ++h) {
        double total = 0;
        std::vector<double> sum(static_cast<std::size_t>(width));
        for (Index j = begin; j <= t; ++j) {
          if (!key.of(j)) continue;
          double score = 0;
          for (Index d = 0; d < width; ++d) score += q(t, h * width + d) * key.r(j) * k(j, h * width + d);
          const double p = std::exp(score / std::sqrt(double(width)));
          total += p;
          if (!value.of(j)) continue;
          for (Index d = 0; d < width; ++d) sum[std::size_t(d)] += p * value.r(j) * v(j, h * width + d);
        }
        for (Index i = 0; i < config.hidden && total > 0; ++i) {
          for (Index d = 0; d < width; ++d)
            y(t, i) += query.r(t) * output(i, h * width + d) * sum[std::size_t(d)] / total;
        }
      }
    }
  }
  return y.data;
}

/// Halves; few keys and many values; all tokens; one of each sequence, without positions.
const moe::RoutedAttentionConfig configs[] = {
    {.hidden = 24, .heads = 4},
    {.hidden = 12, .heads = 1, .head_width = 40, .query_capacity = 0.8, .key_capacity = 0.2, .value_capacity = 0.9},
    {.hidden = 16, .heads = 2, .query_capacity = 1, .key_capacity = 1, .value_capacity = 1, .layer = 2},
    {.hidden = 21,
     .heads = 3,
     .rotary_base = 0,
     .query_capacity = 0.3,
     .key_capacity = 0.01,
     .value_capacity = 0.01,
     .layer = 3},
};
/// One long sequence; short and empty ones; padding; positions of their own, and rows of no sequence.
const SequenceSetting settings[] = {
    {{0, 150}},
    {{0, 3, 3, 40, 41, 110}},
    {{0, 30, 70}, std::vector<std::uint8_t>(70, 1)},
    {{0, 9, 60}, {}, std::vector<Index>(66, 0)},
};

TEMPLATE_LIST_TEST_CASE("Routed attention is what its equations say", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  for (const auto& config : configs) {
    for (SequenceSetting setting : settings) {
      for (std::size_t t = 0; t < setting.mask.size(); ++t) setting.mask[t] = t % 7 != 2 && t != 0 && t < 65;
      for (std::size_t t = 0; t < setting.positions.size(); ++t) setting.positions[t] = Index(3 * t + 5);
      const Index tokens =
          std::max({setting.offsets.back(), Index(setting.mask.size()), Index(setting.positions.size())});
      INFO("heads " << config.heads << ", tokens " << tokens);
      LayerOf<TestType> layer(config, moe::Seed{5});
      moe::Context<Space> ctx;
      typename LayerOf<TestType>::Tape tape;
      auto batch = batch_of<T, Space>(random<moe::Matrix<T, Space>>(1, tokens, config.hidden), setting);
      const auto y = layer.forward(ctx, batch, tape);
      CHECK(worst(y, expected(layer, batch, setting)) < 100 * tolerance<T>(config.hidden));
      CHECK(same_bits(clone(y), layer.forward(ctx, batch)));
      if (setting.offsets.size() > 2) continue;
      batch.sequence_offsets = {};  // one sequence then
      CHECK(same_bits(clone(y), layer.forward(ctx, batch, tape)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("Routed attention of all tokens with weights of one is self-attention", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  const Index hidden = 24, columns = 24, tokens = 70;
  LayerOf<TestType> layer({.hidden = hidden, .heads = 4, .query_capacity = 1, .key_capacity = 1, .value_capacity = 1},
                          moe::Seed{5});
  moe::SelfAttention<moe::On<Space>, moe::Precision<T>> dense({.hidden = hidden, .heads = 4});
  const auto part = [&](Index i) {
    return Kokkos::subview(dense.parameters.qkv, Kokkos::pair<Index, Index>(i * columns, (i + 1) * columns),
                           Kokkos::ALL);
  };
  Kokkos::deep_copy(part(0), layer.parameters.query);
  Kokkos::deep_copy(part(1), layer.parameters.key);
  Kokkos::deep_copy(part(2), layer.parameters.value);
  Kokkos::deep_copy(dense.parameters.output, layer.parameters.output);
  const auto x = random<moe::Matrix<T, Space>>(1, tokens, hidden);
  const auto last = Kokkos::subview(x, Kokkos::ALL, hidden - 1);  // the only thing that routers read
  Kokkos::deep_copy(last, T(1));
  for (auto* router : {&layer.parameters.query_router, &layer.parameters.key_router, &layer.parameters.value_router}) {
    Kokkos::deep_copy(router->weight, typename LayerOf<TestType>::Real(0));
    Kokkos::deep_copy(Kokkos::subview(router->weight, 0, hidden - 1), typename LayerOf<TestType>::Real(1));
  }
  SequenceSetting setting{{0, 30, 70}, std::vector<std::uint8_t>(70, 1)};
  for (std::size_t t = 0; t < setting.mask.size(); ++t) setting.mask[t] = t % 7 != 2;
  const auto batch = batch_of<T, Space>(x, setting);
  moe::Context<Space> ctx;
  const auto y = host(clone(layer.forward(ctx, batch)));
  const std::vector<double> got(y.data(), y.data() + y.size());
  CHECK(worst(dense.forward(ctx, batch), got) < 40 * tolerance<T>(hidden));
}

TEMPLATE_LIST_TEST_CASE("Routed attention passes the gradient check, with losses on all routers", "", Spaces) {
  using Layer =
      moe::RoutedAttention<moe::On<TestType>, moe::Precision<double>, moe::ChoiceCrossEntropy, moe::RouterZLoss>;
  const moe::RoutedAttentionConfig sizes[] = {
      {.hidden = 8, .heads = 2},
      {.hidden = 6,
       .heads = 3,
       .head_width = 4,
       .query_capacity = 0.7,
       .key_capacity = 0.8,
       .value_capacity = 0.6,
       .layer = 1},
      {.hidden = 5, .heads = 1, .rotary_base = 0, .query_capacity = 1, .key_capacity = 1, .value_capacity = 1},
  };
  for (const auto& config : sizes) {
    Layer layer(config, moe::ChoiceCrossEntropy{0.7}, moe::RouterZLoss{0.2}, moe::Seed{6});
    check_layer(layer);
  }
  moe::RoutedAttention<moe::On<TestType>, moe::Precision<double>> plain(sizes[1], moe::Seed{7});
  check_layer(plain, false);
  moe::Context<TestType> ctx;
  typename decltype(plain)::Tape tape;
  auto gradients = plain.gradients();
  const auto x = random<moe::Matrix<double, TestType>>(1, 24, 6);
  plain.forward(ctx, batch_of<double, TestType>(x, {{0, 9, 24}}), tape);
  plain.backward(ctx, x, tape, gradients);
  auto some = [](std::string_view name, const auto& gradient) {
    CAPTURE(std::string(name));
    const auto values = host(gradient);
    CHECK(std::any_of(values.data(), values.data() + values.size(), [](double g) { return std::abs(g) > 1e-4; }));
  };
  decltype(plain)::Parameters::visit(some, static_cast<typename decltype(plain)::Parameters&>(gradients));
}

TEST_CASE("Losses of routed attention come router by router: queries, keys, values") {
  using Layer = moe::RoutedAttention<moe::ChoiceCrossEntropy, moe::RouterZLoss>;
  Layer layer({.hidden = 4, .heads = 2, .query_capacity = 0.25}, moe::RouterZLoss{1}, moe::Seed{2});
  double size = 0;
  for (auto* router : {&layer.parameters.query_router, &layer.parameters.key_router, &layer.parameters.value_router})
    Kokkos::deep_copy(router->weight, float(size++));
  const auto x = filled<moe::Matrix<float>>(1, 8, 4);  // logits 0, 4, 8
  moe::Context<> ctx;
  Layer::Tape tape;
  layer.forward(ctx, batch_of<float>(x, {{0, 8}}), tape);
  const auto values = tape.loss_values();
  REQUIRE(values.size() == 6);
  const auto entropy = [](double r, double part) { return 0.01 * (std::log1p(std::exp(-r)) + (1 - part) * r); };
  CHECK(values[0] == Approx(entropy(0, 0.25)));
  CHECK(values[2] == Approx(entropy(4, 0.5)));
  CHECK(values[4] == Approx(entropy(8, 0.5)));
  CHECK(values[1] == 0);
  CHECK(values[3] == Approx(16));
  CHECK(values[5] == Approx(64));
  CHECK(tape.loss() == Approx(std::accumulate(values.begin(), values.end(), 0.0)));
}

TEST_CASE("Queries before the first key get nothing, and a key without a value only takes attention away") {
  using Layer = moe::RoutedAttention<moe::Precision<double>>;
  Layer layer({.hidden = 4,
               .heads = 1,
               .head_width = 2,
               .rotary_base = 0,
               .query_capacity = 1,
               .key_capacity = 0.5,
               .value_capacity = 0.25});
  const auto set = [](const auto& view, std::initializer_list<double> numbers) {
    const auto copy = Kokkos::create_mirror_view(view);
    std::copy(numbers.begin(), numbers.end(), copy.data());
    Kokkos::deep_copy(view, copy);
  };
  set(layer.parameters.query_router.weight, {1, 0, 0, 0});
  set(layer.parameters.key_router.weight, {0, 1, 0, 0});
  set(layer.parameters.value_router.weight, {0, 0, 1, 0});
  set(layer.parameters.query, {0, 0, 0, 0, 0, 0, 0, 0});  // attends to all keys alike
  set(layer.parameters.value, {0, 0, 0, 1, 0, 0, 0, 0});
  set(layer.parameters.output, {1, 0, 0, 0, 0, 0, 0, 0});
  const moe::Matrix<double> x("x", 4, 4);
  set(x, {2, 0, 0, 5,  //
          2, 3, 0, 5,  // a key
          2, 3, 7, 5,  // a key and a value of 7 * 5
          2, 0, 0, 5});
  moe::Context<> ctx;
  Layer::Tape tape;
  const auto y = host(layer.forward(ctx, batch_of<double>(x, {{0, 4}}), tape));
  CHECK(y(0, 0) == 0);
  CHECK(y(1, 0) == 0);
  CHECK(y(2, 0) == Approx(2 * 35 / 2.0));
  CHECK(y(3, 0) == Approx(2 * 35 / 2.0));
  if (!moe::detail::device_path<Layer::Space>) {
    CHECK(tape.key.plan.rows == 2);
    CHECK(tape.value.plan.rows == 1);
  }
}

TEST_CASE("Routed attention stands in a residual layer, in bf16, and in a mixture of depths") {
  using Attention = moe::RoutedAttention<moe::Precision<moe::bfloat16>, moe::ChoiceCrossEntropy>;
  moe::MixtureOfDepths<moe::Residual<Attention>> layer({.block = {.hidden = 16, .heads = 2}, .capacity = 0.5},
                                                       moe::Seed{3});
  moe::Context<> ctx;
  decltype(layer)::Tape tape;
  auto gradients = layer.gradients();
  const auto x = random<moe::Matrix<moe::bfloat16>>(1, 40, 16);
  const auto y = host(layer.forward(ctx, batch_of<moe::bfloat16>(x, {{0, 17, 40}}), tape));
  const auto dx = host(layer.backward(ctx, x, tape, gradients));
  for (Index t = 0; t < 40; ++t) {
    for (Index h = 0; h < 16; ++h) CHECK((std::abs(float(y(t, h))) < 50 && std::abs(float(dx(t, h))) < 50));
  }
  CHECK(tape.loss() > 0);
}

TEST_CASE("Routed attention works without tokens, and where all of them are padding") {
  using Layer = moe::RoutedAttention<moe::ChoiceCrossEntropy>;
  Layer layer({.hidden = 8, .heads = 2});
  moe::Context<> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  auto zero = [](std::string_view name, const auto& gradient) {
    CAPTURE(std::string(name));
    const auto values = host(gradient);
    CHECK(std::all_of(values.data(), values.data() + values.size(), [](float g) { return g == 0; }));
  };
  const auto empty = random<moe::Matrix<float>>(1, 0, 8), padding = random<moe::Matrix<float>>(1, 6, 8);
  moe::Batch<float> alone;
  alone.x = empty;
  for (const auto& batch : {batch_of<float>(empty, {{0, 0, 0}}), batch_of<float>(empty, {{0}}), alone,
                            batch_of<float>(padding, {{0, 4, 6}, std::vector<std::uint8_t>(6, 0)})}) {
    const auto y = layer.forward(ctx, batch, tape);
    REQUIRE(Index(y.extent(0)) == batch.tokens());
    zero("y", y);
    CHECK(tape.loss() == 0);
    zero("dx", layer.backward(ctx, batch.x, tape, gradients));
    Layer::Parameters::visit(zero, static_cast<Layer::Parameters&>(gradients));
  }
}

TEST_CASE("Routed attention names its parameters, and says what does not fit") {
  using Layer = moe::RoutedAttention<>;
  CHECK_THROWS_WITH(Layer({.hidden = 10, .heads = 3}), Contains("hidden 10 does not divide into 3 heads"));
  CHECK_THROWS_WITH(Layer({.hidden = 8, .query_capacity = 0}), Contains("query_capacity is 0"));
  CHECK_THROWS_WITH(Layer({.hidden = 8, .key_capacity = 1.5}), Contains("key_capacity is 1.5"));
  CHECK_THROWS_WITH(Layer({.hidden = 8, .value_capacity = -1}), Contains("value_capacity is -1"));
  Layer layer({.hidden = 8, .heads = 2}), other({.hidden = 8, .heads = 2});
  std::vector<std::string> names;
  layer.visit([&](const auto& info, const auto&) { names.emplace_back(info.name); });
  CHECK(names == std::vector<std::string>{"query_router.weight", "key_router.weight", "value_router.weight", "q_proj",
                                          "k_proj", "v_proj", "o_proj"});
  moe::Context<> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients(), foreign = other.gradients();
  const auto x = random<moe::Matrix<float>>(1, 5, 8), narrow = random<moe::Matrix<float>>(1, 5, 7);
  CHECK_THROWS_WITH(layer.backward(ctx, x, tape, gradients), Contains("this tape is empty"));
  CHECK_THROWS_WITH(layer.forward(ctx, batch_of<float>(narrow, {{0, 5}}), tape), Contains("hidden is 8"));
  layer.forward(ctx, batch_of<float>(x, {{0, 5}}), tape);
  CHECK_THROWS_WITH(layer.backward(ctx, narrow, tape, gradients), Contains("expected (5, 8)"));
  CHECK_THROWS_WITH(layer.backward(ctx, x, tape, foreign), Contains("another layer"));
  CHECK_THROWS_WITH(other.backward(ctx, x, tape, foreign), Contains("another layer"));
  Kokkos::deep_copy(layer.parameters.key_router.weight, std::nanf(""));
  const auto nan = [&] {
    layer.forward(ctx, batch_of<float>(x, {{0, 5}}), tape);
    ctx.check();
  };
  CHECK_THROWS_AS(nan(), moe::DataError);
}

}  // namespace routed_attention_test
