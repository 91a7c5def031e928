// Mixtures of attention heads against a published implementation and sums written out, their gradients and their cache.
#include <moe/models/attention.hpp>
#include <moe/moe.hpp>

#include "moe_test/attention.hpp"
#include "moe_test/golden.hpp"
#include "moe_test/layer_gradients.hpp"

namespace mixture_of_attention_heads_test {

using namespace moe_test;

/// y = sum over the chosen of softmax weight * W_o attention(W_q x), one token after another.
template <class Layer>
std::vector<double> expected(const Layer& layer, const moe::Batch<typename Layer::Scalar, typename Layer::Space>& batch,
                             const SequenceSetting& setting, Index k) {
  const auto& config = layer.config();
  const Index tokens = batch.tokens(), hidden = config.hidden, columns = config.columns();
  const auto& p = layer.parameters;
  const auto router = doubles(p.router.weight), query = doubles(p.query), key_value = doubles(p.key_value),
             output = doubles(p.output);
  const Rows x(batch.x);
  Rows q(tokens, k * columns), keys(tokens, columns), values(tokens, columns), logits(tokens, config.experts),
      y(tokens, hidden);
  std::vector<std::vector<Index>> chosen(static_cast<std::size_t>(tokens));
  for (Index t = 0; t < tokens; ++t) {
    project(x, t, router.data(), config.experts, logits, 0);
    project(x, t, key_value.data(), columns, keys, 0);
    project(x, t, key_value.data() + columns * hidden, columns, values, 0);
    auto& own = chosen[std::size_t(t)];
    own = largest({&logits(t, 0), &logits(t, 0) + config.experts}, k);
    for (Index i = 0; i < k; ++i)
      project(x, t, query.data() + own[std::size_t(i)] * columns * hidden, columns, q, i * columns);
  }
  const Rows mixed = attend_by_hand(setting, config.width(), config.rotary_base, q, keys, values,
                                    [&](Index h) { return h % config.key_heads; });
  for (Index t = 0; t < tokens; ++t) {
    if (!setting.live(t)) continue;
    double total = 0;
    for (Index e : chosen[std::size_t(t)]) total += std::exp(logits(t, e));
    for (Index i = 0; i < k; ++i) {
      const Index e = chosen[std::size_t(t)][std::size_t(i)];
      for (Index h = 0; h < hidden; ++h) {
        for (Index c = 0; c < columns; ++c)
          y(t, h) += std::exp(logits(t, e)) / total * output[std::size_t((e * hidden + h) * columns + c)] *
                     mixed(t, i * columns + c);
      }
    }
  }
  return y.data;
}

template <class Case, class... More>
using LayerOf = moe::MixtureOfAttentionHeads<moe::On<typename Case::Space>, moe::Precision<typename Case::T>, More...>;
template <int k>
using Chosen = moe::Router<moe::Identity, moe::TopK<k>, moe::SoftmaxOfChosen>;

const moe::AttentionMixtureConfig configs[] = {
    {.hidden = 24, .experts = 5, .key_heads = 2, .head_width = 8},
    {.hidden = 12, .experts = 4, .head_width = 20, .layer = 1},
    {.hidden = 21, .experts = 7, .key_heads = 3, .rotary_base = 0, .layer = 2},
};
const SequenceSetting settings[] = {
    {{0, 150}},
    {{0, 3, 3, 40, 41, 110}},
    {{0, 30, 70}, std::vector<std::uint8_t>(70, 1)},
    {{0, 9, 60}, {}, std::vector<Index>(66, 0)},
};

TEMPLATE_LIST_TEST_CASE("A mixture of attention heads is what its equations say", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  const auto check = [](auto layer, Index k, SequenceSetting setting) {
    for (std::size_t t = 0; t < setting.mask.size(); ++t) setting.mask[t] = t % 7 != 2 && t != 0 && t < 65;
    for (std::size_t t = 0; t < setting.positions.size(); ++t) setting.positions[t] = Index(3 * t + 5);
    const Index tokens =
        std::max({setting.offsets.back(), Index(setting.mask.size()), Index(setting.positions.size())});
    INFO("experts " << layer.config().experts << ", tokens " << tokens);
    moe::Context<Space> ctx;
    typename decltype(layer)::Tape tape;
    const auto batch = batch_of<T, Space>(random<moe::Matrix<T, Space>>(1, tokens, layer.config().hidden), setting);
    const auto y = layer.forward(ctx, batch, tape);
    CHECK(worst(y, expected(layer, batch, setting, k)) < 40 * tolerance<T>(layer.config().hidden));
    CHECK(same_bits(clone(y), layer.forward(ctx, batch)));
  };
  for (const auto& config : configs) {
    for (const SequenceSetting& setting : settings) {
      check(LayerOf<TestType>(config, moe::Seed{5}), 2, setting);
      check(LayerOf<TestType, Chosen<3>>(config, moe::Seed{6}), 3, setting);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("A mixture of attention heads passes the gradient check", "", Spaces) {
  using Case = moe_test::Case<TestType, double>;
  for (const auto& config : configs) {
    LayerOf<Case, moe::OutputBias> layer(config, moe::Seed{7});
    check_layer(layer);
  }
  LayerOf<Case, moe::Router<moe::Softmax, moe::TopK<3>, moe::NormalizeSum>, moe::SwitchBalanceLoss, moe::RouterZLoss,
          moe::LayerScale>
      layer(configs[0], moe::Seed{8}, moe::SwitchBalanceLoss(0.3, moe::Count::all), moe::RouterZLoss{0.2},
            moe::LayerScale{0.5});
  check_layer(layer);
}

TEMPLATE_LIST_TEST_CASE("Dropped and padded choices of heads give nothing, forwards and backwards", "", Spaces) {
  using Case = moe_test::Case<TestType, double>;
  const auto with = [](auto mode) {
    moe::CapacityPolicy<decltype(mode)> capacity;
    capacity.factor = 0.75;
    capacity.renormalize = moe::Renormalize::after_drops;
    return capacity;
  };
  LayerOf<Case, Chosen<2>, moe::CapacityPolicy<moe::Drop>> drops(configs[0], with(moe::Drop{}), moe::Seed{9});
  check_layer(drops);
  LayerOf<Case, Chosen<2>, moe::CapacityPolicy<moe::Pad>> pads(configs[0], with(moe::Pad{}), moe::Seed{9});
  check_layer(pads);
}

TEMPLATE_LIST_TEST_CASE("Mixtures of attention heads in bfloat16 are what they are in f32, roughly", "", Spaces) {
  check_half(LayerOf<Case<TestType, float>>(configs[0], moe::Seed{13}),
             LayerOf<Case<TestType, moe::bfloat16>>(configs[0]));
}

TEMPLATE_LIST_TEST_CASE("Token by token with a cache, mixtures of attention heads give what they give at once", "",
                        Cases) {
  check_cache(LayerOf<TestType>(configs[0], moe::Seed{10}));
  check_cache(LayerOf<TestType, Chosen<1>, moe::OutputBias>(configs[2], moe::Seed{11}));
}

/// The numbers of a file as rows of `columns`.
moe::Matrix<float> rows_of(const GoldenFile& golden, const char* name, Index columns) {
  const auto numbers = golden.file.read<float>(name);
  moe::Matrix<float> result(name, numbers.size() / std::size_t(columns), columns);
  const auto copy = Kokkos::create_mirror_view(result);
  std::copy(numbers.begin(), numbers.end(), copy.data());
  Kokkos::deep_copy(result, copy);
  return result;
}

/// y = tanh(x), and backwards x *= 1 - y^2.
void tanh_of(const moe::Matrix<float>& x, const moe::Matrix<float>& y, bool backwards) {
  const auto from = host(x), to = host(y);
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (backwards) {
      from.data()[i] *= 1 - to.data()[i] * to.data()[i];
    } else {
      to.data()[i] = std::tanh(from.data()[i]);
    }
  }
  Kokkos::deep_copy(x, from);
  Kokkos::deep_copy(y, to);
}

template <class View>
void agrees(const View& ours, const GoldenFile& golden, const char* name) {
  INFO(name);
  const auto theirs = golden.file.read<float>(name);
  CHECK(worst(ours, {theirs.begin(), theirs.end()}) < 1e-5);
}

/// The golden has a tanh where attention would be.
TEST_CASE("Queries and outputs of JetMoE's attention experts agree with the published ones") {
  using Layer = moe::JetMoEAttention;
  const GoldenFile golden("jetmoe_moa");
  Layer layer({.hidden = 16, .experts = 6, .head_width = 8});
  auto& p = layer.parameters;
  golden.file.read("param.router.layer.weight", p.router.weight);
  golden.file.read("param.input_linear.weight", p.query);
  golden.file.read("param.output_linear.weight", p.output);
  golden.file.read("param.bias", p.outputs.first.bias);
  moe::Context<> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::Batch<float> batch;
  batch.x = rows_of(golden, "in.x", 16);
  layer.project_queries(ctx, batch, tape);
  agrees(tape.routing.logits, golden, "out.logits");
  agrees(tape.query, golden, "out.q");
  tape.mixed = moe::Matrix<float>("mixed", 10, 16);
  tanh_of(tape.query, tape.mixed, false);
  layer.combine_outputs(ctx, tape);
  agrees(tape.y, golden, "out.y");

  moe::Matrix<float> dmixed("dmixed", 10, 16);
  layer.combine_outputs_backward(ctx, rows_of(golden, "in.g", 16), tape, dmixed, gradients);
  tanh_of(dmixed, tape.mixed, true);
  layer.project_queries_backward(ctx, dmixed, tape, gradients);
  agrees(tape.dx, golden, "grad.x");
  agrees(gradients.router.weight, golden, "grad.router.layer.weight");
  agrees(gradients.query, golden, "grad.input_linear.weight");
  agrees(gradients.output, golden, "grad.output_linear.weight");
  agrees(gradients.outputs.first.bias, golden, "grad.bias");
}

/// Two blocks of attention and feed-forward experts, at once and with caches.
TEST_CASE("A JetMoE model of our layers has the published logits") {
  using Block = moe::JetMoEBlock;
  const GoldenFile file("jetmoe_model"), results("jetmoe_model_expected");
  const auto embedding = file.file.read<float>("model.embed_tokens.weight"),
             norm = file.file.read<float>("model.norm.weight");
  const auto ids = results.file.read<std::int32_t>("input_ids");
  const auto expected = results.file.read<float>("logits");
  const Index hidden = 16, vocabulary = 40;
  REQUIRE(ids.size() == 14);
  std::vector<Block> blocks;
  std::vector<Block::Cache> caches;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string name = "model.layers." + std::to_string(layer) + ".";
    auto& block =
        blocks.emplace_back(Block::Config{.attention = {.hidden = hidden, .experts = 4, .key_heads = 2},
                                          .feed_forward = {.hidden = hidden, .intermediate = 12, .experts = 4}});
    auto& a = block.parameters.attention;
    auto& f = block.parameters.feed_forward;
    file.file.read(name + "input_layernorm.weight", block.parameters.attention_norm);
    file.file.read(name + "self_attention.experts.router.layer.weight", a.router.weight);
    file.file.read(name + "self_attention.experts.input_linear.weight", a.query);
    file.file.read(name + "self_attention.experts.output_linear.weight", a.output);
    file.file.read(name + "self_attention.experts.bias", a.outputs.first.bias);
    file.file.read(name + "self_attention.kv_proj.weight", a.key_value);
    file.file.read(name + "post_attention_layernorm.weight", block.parameters.feed_forward_norm);
    file.file.read(name + "mlp.router.layer.weight", f.router.weight);
    file.file.read(name + "mlp.input_linear.weight", f.experts.up);
    file.file.read(name + "mlp.output_linear.weight", f.experts.down);
    file.file.read(name + "mlp.bias", f.outputs.first.bias);
    caches.push_back(block.cache(2, 7));
  }
  moe::Context<> ctx;
  // The largest error of the logits of `rows`, which are parts of two sequences.
  const auto error = [&](const std::vector<Index>& rows, bool cached) {
    std::vector<double> x;
    for (Index row : rows) {
      const auto token = embedding.begin() + ids[std::size_t(row)] * hidden;
      x.insert(x.end(), token, token + hidden);
    }
    const SequenceSetting setting{{0, Index(rows.size()) / 2, Index(rows.size())}};
    for (std::size_t layer = 0; layer < 2; ++layer) {
      moe::Matrix<float> input("input", rows.size(), hidden);
      const auto copy = Kokkos::create_mirror_view(input);
      std::copy(x.begin(), x.end(), copy.data());
      Kokkos::deep_copy(input, copy);
      const auto batch = batch_of<float>(input, setting);
      const auto change =
          doubles(cached ? blocks[layer].forward(ctx, batch, caches[layer]) : blocks[layer].forward(ctx, batch));
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += change[i];
    }
    double most = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double* last = x.data() + i * hidden;
      double squares = 0;
      for (Index h = 0; h < hidden; ++h) squares += last[h] * last[h] / double(hidden);
      for (Index v = 0; v < vocabulary; ++v) {
        double logit = 0;
        for (Index h = 0; h < hidden; ++h)
          logit += last[h] * double(norm[std::size_t(h)]) * double(embedding[std::size_t(v * hidden + h)]);
        logit /= std::sqrt(squares + 1e-6);
        most = std::max(most, std::abs(logit - double(expected[std::size_t(rows[i] * vocabulary + v)])));
      }
    }
    return most;
  };
  CHECK(error({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, false) < 2e-6);
  CHECK(error({0, 1, 2, 7, 8, 9}, true) < 2e-6);
  for (Index t = 3; t < 7; ++t) CHECK(error({t, t + 7}, true) < 2e-6);
}

/// The same weights, but the gradient does not see their sum.
TEST_CASE("A detached sum is a constant to the gradient") {
  const std::vector<double> scores{0.5, 0.25, 0.125}, given{1.0, -2.0, 3.0};
  std::vector<double> weights = scores, gradient = given;
  const moe::NormalizeDetachedSum policy{0};
  policy.apply(moe::Team{}, moe::Row<double>{weights.data(), 3});
  policy.pullback(moe::Team{}, moe::Row<const double>{scores.data(), 3}, moe::Row<double>{gradient.data(), 3});
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(weights[i] == scores[i] / 0.875);
    CHECK(gradient[i] == given[i] / 0.875);
  }
}

TEST_CASE("Mixtures of attention heads keep their losses, reports and balancing bias") {
  using Layer = moe::MixtureOfAttentionHeads<moe::Router<moe::Sigmoid, moe::TopK<2>, moe::BiasBalancer>,
                                             moe::RouterZLoss, moe::ImportanceLoss>;
  Layer layer({.hidden = 16, .experts = 4, .key_heads = 2}, moe::Seed{12});
  moe::Context<> ctx;
  Layer::Tape tape;
  moe::Batch<float> batch;
  batch.x = random<moe::Matrix<float>>(1, 50, 16);
  layer.forward(ctx, batch, tape);
  REQUIRE(tape.loss_values().size() == 2);
  CHECK(tape.loss() == tape.loss_values()[0] + tape.loss_values()[1]);
  double squares = 0;
  const auto logits = host(tape.routing.logits);
  for (Index t = 0; t < 50; ++t) {
    double sum = 0;
    for (Index e = 0; e < 4; ++e) sum += std::exp(double(logits(t, e)));
    squares += std::log(sum) * std::log(sum) / 50;
  }
  CHECK(std::abs(tape.loss_values()[0] - 1e-3 * squares) < 1e-8);
  CHECK(moe::load_report(tape).assignments() == 100);
  moe::LoadStatistics<> statistics;
  CHECK_THROWS_WITH(layer.update_balance(ctx, statistics), Catch::Matchers::Contains("counts of 0 experts"));
  statistics.add(tape);
  layer.update_balance(ctx, statistics);
  const auto bias = host(layer.buffers.router.balance_bias);
  const auto counts = host(statistics.counts());
  for (Index e = 0; e < 4; ++e) CHECK((counts(e) > 25 ? -1 : counts(e) < 25 ? 1 : 0) * bias(e) >= 0);
  std::vector<std::string> names;
  layer.visit([&](const moe::ParameterInfo& info, const auto&) { names.push_back(info.name); });
  CHECK(names == std::vector<std::string>{"router.weight", "experts.q_proj", "kv_proj", "experts.o_proj"});
}

TEST_CASE("Mixtures of attention heads say what does not fit") {
  using Catch::Matchers::Contains;
  using Layer = moe::MixtureOfAttentionHeads<>;
  CHECK_THROWS_WITH(Layer({.hidden = 16, .experts = 0}), Contains("0 experts, 1 key_heads"));
  CHECK_THROWS_WITH(Layer({.hidden = 10, .experts = 4, .key_heads = 3}), Contains("does not divide into 3 heads"));
  CHECK_THROWS_WITH(Layer({.hidden = 16, .experts = 1}), Contains("cannot choose 2 of 1 experts"));
  CHECK_THROWS_WITH(Layer({.hidden = 16, .experts = 4, .head_width = 5}), Contains("heads of even width"));
  Layer layer({.hidden = 8, .experts = 4}), other({.hidden = 8, .experts = 4});
  moe::Context<> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients(), others = other.gradients();
  const auto x = random<moe::Matrix<float>>(1, 5, 8);
  CHECK_THROWS_WITH(layer.backward(ctx, x, tape, gradients), Contains("this tape is empty"));
  CHECK_THROWS_WITH(layer.forward(ctx, batch_of<float>(random<moe::Matrix<float>>(1, 5, 7), {{0, 5}}), tape),
                    Contains("hidden is 8"));
  layer.forward(ctx, batch_of<float>(x, {{0, 5}}), tape);
  CHECK_THROWS_WITH(other.backward(ctx, x, tape, others), Contains("belongs to another layer"));
  CHECK_THROWS_WITH(layer.backward(ctx, x, tape, others), Contains("gradients belong to another layer"));
  CHECK_THROWS_WITH(layer.backward(ctx, random<moe::Matrix<float>>(1, 4, 8), tape, gradients),
                    Contains("dy has shape (4, 8)"));
  auto cache = layer.cache(1, 3);
  const auto overflow = [&] {
    layer.forward(ctx, batch_of<float>(x, {{0, 5}}), cache);
    ctx.check();
  };
  CHECK_THROWS_WITH(overflow(), Contains("more tokens than its key/value cache holds"));
  layer.forward(ctx, batch_of<float>(moe::Matrix<float>("none", 0, 8), {{0, 0}}), tape);
  layer.backward(ctx, moe::Matrix<float>("none", 0, 8), tape, gradients);
  CHECK(tape.dx.extent(0) == 0);
}

}  // namespace mixture_of_attention_heads_test
