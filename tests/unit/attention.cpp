// Attention against sums written out, its gradients, and its cache.
#include "moe_test/attention.hpp"

#include <moe/moe.hpp>

#include "moe_test/layer_gradients.hpp"

namespace attention_test {

using namespace moe_test;

/// The layer's equations, one token, head and key after another, in double.
template <class Layer>
std::vector<double> expected(const Layer& layer, const moe::Batch<typename Layer::Scalar, typename Layer::Space>& batch,
                             const SequenceSetting& setting) {
  const auto& config = layer.config();
  const Index tokens = batch.tokens(), hidden = config.hidden, width = config.width();
  const Index heads = config.heads, keys = config.keys(), columns = (heads + 2 * keys) * width;
  const auto x = host(batch.x);
  const auto qkv_weight = host(layer.parameters.qkv), output_weight = host(layer.parameters.output);
  const auto at = [](std::vector<double>& rows, Index i, Index wide, Index j) -> double& {
    return rows[std::size_t(i * wide + j)];
  };
  std::vector<double> qkv(std::size_t(tokens * columns)), mixed(std::size_t(tokens * heads * width)),
      y(std::size_t(tokens * hidden));
  for (Index t = 0; t < tokens; ++t) {
    for (Index c = 0; c < columns; ++c) {
      for (Index h = 0; h < hidden; ++h) at(qkv, t, columns, c) += double(x(t, h)) * double(qkv_weight(c, h));
    }
  }
  for (std::size_t s = 0; s + 1 < setting.offsets.size(); ++s) {
    const Index begin = setting.offsets[s], end = setting.offsets[s + 1];
    const auto live = [&](Index t) { return setting.mask.empty() || setting.mask[std::size_t(t)] != 0; };
    for (Index t = begin; t < end && config.rotary_base > 0; ++t) {
      const double position = setting.positions.empty() ? double(t - begin) : double(setting.positions[std::size_t(t)]);
      for (Index h = 0; h < heads + keys; ++h) {
        for (Index i = 0; i < width / 2; ++i) {
          const double angle = position * std::pow(config.rotary_base, -2.0 * double(i) / double(width));
          double &a = at(qkv, t, columns, h * width + i), &b = at(qkv, t, columns, h * width + i + width / 2);
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = turned;
        }
      }
    }
    for (Index t = begin; t < end; ++t) {
      for (Index h = 0; h < heads && live(t); ++h) {
        const Index key = heads + h / (heads / keys), value = key + keys;
        double total = 0;
        std::vector<double> sum(static_cast<std::size_t>(width));
        for (Index j = begin; j <= t; ++j) {
          if (!live(j)) continue;
          double score = 0;
          for (Index d = 0; d < width; ++d)
            score += at(qkv, t, columns, h * width + d) * at(qkv, j, columns, key * width + d);
          const double p = std::exp(score / std::sqrt(double(width)));
          total += p;
          for (Index d = 0; d < width; ++d) sum[std::size_t(d)] += p * at(qkv, j, columns, value * width + d);
        }
        for (Index d = 0; d < width; ++d) at(mixed, t, heads * width, h * width + d) = sum[std::size_t(d)] / total;
      }
    }
  }
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < hidden; ++h) {
      for (Index c = 0; c < heads * width; ++c)
        at(y, t, hidden, h) += at(mixed, t, heads * width, c) * double(output_weight(h, c));
    }
  }
  return y;
}

template <class Case>
using LayerOf = moe::SelfAttention<moe::On<typename Case::Space>, moe::Precision<typename Case::T>>;

/// Grouped queries, one head, wide heads, odd widths without positions.
const moe::AttentionConfig configs[] = {
    {.hidden = 24, .heads = 4, .key_heads = 2},
    {.hidden = 12, .heads = 1, .head_width = 80, .layer = 1},
    {.hidden = 21, .heads = 3, .rotary_base = 0, .layer = 2},
    {.hidden = 16, .heads = 8, .key_heads = 1, .head_width = 4, .layer = 3},
};
/// One long sequence; short and empty ones; padding; positions of their own, and rows of no sequence.
const SequenceSetting settings[] = {
    {{0, 150}},
    {{0, 3, 3, 40, 41, 110}},
    {{0, 30, 70}, std::vector<std::uint8_t>(70, 1)},
    {{0, 9, 60}, {}, std::vector<Index>(66, 0)},
};

TEMPLATE_LIST_TEST_CASE("Self-attention is what its equations say", "", Cases) {
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
      const auto batch = batch_of<T, Space>(random<moe::Matrix<T, Space>>(1, tokens, config.hidden), setting);
      const auto y = layer.forward(ctx, batch, tape);
      CHECK(worst(y, expected(layer, batch, setting)) < 40 * tolerance<T>(config.hidden));
      CHECK(same_bits(clone(y), layer.forward(ctx, batch)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("Self-attention passes the gradient check", "", Spaces) {
  for (const auto& config : configs) {
    if (config.head_width == 80) continue;
    moe::SelfAttention<moe::On<TestType>, moe::Precision<double>> layer(config, moe::Seed{6});
    check_layer(layer);
  }
}

TEMPLATE_LIST_TEST_CASE("Gradients of long sequences agree between f32 and f64", "", Spaces) {
  const moe::AttentionConfig config{.hidden = 32, .heads = 4, .key_heads = 2, .head_width = 16};
  const SequenceSetting setting{{0, 200, 333}};
  const auto gradients_in = [&](auto zero) {
    using T = decltype(zero);
    using Layer = moe::SelfAttention<moe::On<TestType>, moe::Precision<T>>;
    Layer layer(config, moe::Seed{7});
    moe::Context<TestType> ctx;
    typename Layer::Tape tape;
    auto gradients = layer.gradients();
    const auto batch = batch_of<T, TestType>(random<moe::Matrix<T, TestType>>(1, 333, 32), setting);
    layer.forward(ctx, batch, tape);
    const auto dx = layer.backward(ctx, random<moe::Matrix<T, TestType>>(2, 333, 32), tape, gradients);
    std::vector<double> all;
    const auto keep = [&](const auto& view) {
      const auto copy = host(view);
      for (std::size_t i = 0; i < copy.size(); ++i) all.push_back(double(copy.data()[i]));
    };
    keep(dx);
    keep(gradients.qkv);
    keep(gradients.output);
    return all;
  };
  const auto single = gradients_in(0.0f), exact = gradients_in(0.0);
  double most = 0, largest = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    most = std::max(most, std::abs(single[i] - exact[i]));
    largest = std::max(largest, std::abs(exact[i]));
  }
  CHECK(most < 1e-5 * largest);
}

TEMPLATE_LIST_TEST_CASE("Token by token with a cache, attention gives what it gives at once", "", Cases) {
  const moe::AttentionConfig config{.hidden = 24, .heads = 4, .key_heads = 2};
  LayerOf<TestType> layer(config, moe::Seed{8});
  check_cache(layer);
}

TEST_CASE("Attention says what does not fit") {
  using Catch::Matchers::Contains;
  using Layer = moe::SelfAttention<>;
  CHECK_THROWS_WITH(Layer({.hidden = 10, .heads = 3}), Contains("hidden 10 does not divide into 3 heads"));
  CHECK_THROWS_WITH(Layer({.hidden = 12, .heads = 3, .key_heads = 2}), Contains("3 heads cannot share 2"));
  CHECK_THROWS_WITH(Layer({.hidden = 9, .heads = 3}), Contains("heads of even width"));
  CHECK_THROWS_WITH(Layer({.hidden = 600, .heads = 2}), Contains("up to 256 columns"));
  using Space = Layer::Space;
  Layer layer({.hidden = 8, .heads = 2});
  moe::Context<> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  const auto x = random<moe::Matrix<float, Space>>(1, 5, 8);
  CHECK_THROWS_WITH(layer.backward(ctx, x, tape, gradients), Contains("this tape is empty"));
  CHECK_THROWS_WITH(layer.forward(ctx, batch_of<float, Space>(random<moe::Matrix<float, Space>>(1, 5, 7), {{0, 5}})),
                    Contains("hidden is 8"));
  auto cache = layer.cache(2, 4);
  CHECK_THROWS_WITH(layer.forward(ctx, batch_of<float, Space>(x, {{0, 5}}), cache),
                    Contains("1 sequences for a cache of 2"));
  const auto overflow = [&] {
    layer.forward(ctx, batch_of<float, Space>(x, {{0, 0, 5}}), cache);
    ctx.check();
  };
  CHECK_THROWS_WITH(overflow(), Contains("more tokens than its key/value cache holds"));
  CHECK(host(cache.length)(1) == 4);
  // What fits is in the cache, and sequences that fit go on.
  auto small = layer.cache(2, 3);
  const auto both = batch_of<float, Space>(x, {{0, 1, 5}});
  try {
    layer.forward(ctx, both, small);
    ctx.check();
  } catch (const moe::DataError&) {
  }
  const moe::Matrix<const float, Space> second(x.data() + 8, 1, 8), two(x.data(), 2, 8);
  moe::Batch<float, Space> next, whole;
  next.x = second;
  next.sequence_offsets = indices<Space>({0, 1, 1});
  whole.x = two;
  const auto at_once = host(clone(layer.forward(ctx, whole)));
  const auto y = host(clone(layer.forward(ctx, next, small)));
  for (Index h = 0; h < 8; ++h) CHECK(std::abs(y(0, h) - at_once(1, h)) < 1e-5f);
  auto narrow = Layer({.hidden = 8, .heads = 2, .head_width = 2}).cache(1, 4);
  CHECK_THROWS_WITH(layer.forward(ctx, whole, narrow), Contains("columns for a layer whose keys have 8"));
  CHECK_THROWS_WITH(layer.cache(2, -1), Contains("no negative capacity"));
  if constexpr (!moe::detail::device_path<Space>) {  // devices read offsets in kernels alone
    CHECK_THROWS_WITH(layer.forward(ctx, batch_of<float, Space>(x, {{0, 6}})), Contains("sequence_offsets(1) is 6"));
    CHECK_THROWS_WITH(layer.forward(ctx, batch_of<float, Space>(x, {{0, 3, 2}})), Contains("is 2 behind 3"));
  }
  layer.forward(ctx, batch_of<float, Space>(moe::Matrix<float, Space>("none", 0, 8), {{0, 0}}), tape);
  CHECK(tape.y.extent(0) == 0);
}

}  // namespace attention_test
