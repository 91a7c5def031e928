// Optimisers against plain loops, clipping, schedules.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace train_test {

using namespace moe_test;

template <class T, class Space>
struct Arrays {
  moe::Matrix<T, Space> weight;
  moe::Vector<T, Space> bias;
  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    f("weight", same.weight...);
    f("bias", same.bias...);
  }
};

template <class C>
Arrays<typename C::T, typename C::Space> arrays(unsigned seed) {
  using T = typename C::T;
  using Space = typename C::Space;
  return {random<moe::Matrix<T, Space>>(seed, 3, 5), random<moe::Vector<T, Space>>(seed + 1, 7)};
}

TEMPLATE_LIST_TEST_CASE("AdamW follows its algorithm; only matrices decay", "", Cases) {
  using T = typename TestType::T;
  auto p = arrays<TestType>(1), g = arrays<TestType>(3);
  const auto start = host(clone(p.weight)), gradient = host(g.weight);
  const auto bias = host(clone(p.bias)), bias_gradient = host(g.bias);
  moe::Context<typename TestType::Space> ctx;
  moe::AdamW optimizer(p, {.weight_decay = 0.1});
  for (int n = 0; n < 4; ++n) optimizer.step(ctx, p, g, 0.01);
  auto expected = [](double w, double grad, double decay) {
    double m = 0, v = 0;
    for (int n = 1; n <= 4; ++n) {
      m = 0.9 * m + 0.1 * grad;
      v = 0.999 * v + 0.001 * grad * grad;
      w -= 0.01 * decay * w;
      w -= 0.01 * (m / (1 - std::pow(0.9, n))) / (std::sqrt(v / (1 - std::pow(0.999, n))) + 1e-8);
    }
    return w;
  };
  const auto weight = host(p.weight);
  const auto after = host(p.bias);
  const double epsilon = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  for (std::size_t i = 0; i < weight.size(); ++i)
    CHECK(std::abs(weight.data()[i] - expected(start.data()[i], gradient.data()[i], 0.1)) < epsilon);
  for (std::size_t i = 0; i < after.size(); ++i)
    CHECK(std::abs(after(i) - expected(bias(i), bias_gradient(i), 0.0)) < epsilon);
}

TEMPLATE_LIST_TEST_CASE("SGD with momentum follows PyTorch's rule", "", Cases) {
  using T = typename TestType::T;
  for (bool nesterov : {false, true}) {
    auto p = arrays<TestType>(1), g = arrays<TestType>(3);
    const auto start = host(clone(p.bias)), gradient = host(g.bias);
    moe::Context<typename TestType::Space> ctx;
    moe::SGD optimizer(p, {.momentum = 0.9, .nesterov = nesterov, .weight_decay = 0.1});
    for (int n = 0; n < 3; ++n) optimizer.step(ctx, p, g, 0.01);
    const auto bias = host(p.bias);
    for (std::size_t i = 0; i < bias.size(); ++i) {
      double w = start(i), u = 0;
      for (int n = 0; n < 3; ++n) {
        u = 0.9 * u + gradient(i);
        w -= 0.01 * (nesterov ? gradient(i) + 0.9 * u : u);
      }
      CHECK(std::abs(bias(i) - w) < (std::is_same_v<T, float> ? 1e-6 : 1e-13));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("Clipping scales to the norm, and refuses what is not finite", "", Cases) {
  auto g = arrays<TestType>(1);
  moe::Context<typename TestType::Space> ctx;
  double squares = 0;
  auto add = [&](std::string_view, auto& view) {
    const auto values = host(view);
    for (std::size_t i = 0; i < values.size(); ++i) squares += double(values.data()[i]) * double(values.data()[i]);
  };
  Arrays<typename TestType::T, typename TestType::Space>::visit(add, g);
  const double norm = std::sqrt(squares);
  CHECK(moe::clip_gradient_norm(ctx, g, 0) == Approx(norm));
  CHECK(moe::clip_gradient_norm(ctx, g, 2 * norm) == Approx(norm));
  CHECK(moe::clip_gradient_norm(ctx, g, 0.5) == Approx(norm));
  CHECK(moe::clip_gradient_norm(ctx, g, 0) == Approx(0.5));
  const auto before = clone(g.bias);
  Kokkos::deep_copy(Kokkos::subview(g.weight, 1, Kokkos::ALL), NAN);
  CHECK_THROWS_AS(moe::clip_gradient_norm(ctx, g, 0.1), moe::DataError);
  CHECK(same_bits(g.bias, before));
  moe::zero(ctx, g);
  CHECK(moe::clip_gradient_norm(ctx, g, 1) == 0);
}

TEMPLATE_LIST_TEST_CASE("Clipping by the global norm leaves the norm on the device", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  moe::Context<Space> ctx;
  for (const double max_norm : {0.0, 0.5, 100.0}) {
    auto g = arrays<TestType>(3), expected = arrays<TestType>(3);
    moe::clip_by_global_norm(ctx, g, max_norm);
    moe::clip_gradient_norm(ctx, expected, max_norm);
    CHECK(same_bits(g.weight, expected.weight));
    CHECK(same_bits(g.bias, expected.bias));
  }
  CHECK_NOTHROW(ctx.check());
  for (const double bad : {double(NAN), double(INFINITY)}) {
    auto g = arrays<TestType>(3);
    Kokkos::deep_copy(Kokkos::subview(g.weight, 1, Kokkos::ALL), T(bad));
    moe::clip_by_global_norm(ctx, g, 0.5);
    CHECK(moe::gradient_norm(ctx, g) == 0);
    CHECK_THROWS_AS(ctx.check(), moe::DataError);
    CHECK_NOTHROW(ctx.check());
  }
}

TEST_CASE("Schedules warm up, hold and decay") {
  const moe::CosineSchedule cosine{.peak = 1, .warmup = 10, .steps = 110, .floor = 0.1};
  CHECK(cosine(0) == Approx(0.1));
  CHECK(cosine(9) == Approx(1));
  CHECK(cosine(60) == Approx(0.55));
  CHECK(cosine(110) == Approx(0.1));
  CHECK(cosine(1000) == Approx(0.1));
  const moe::LinearSchedule linear{.peak = 2, .warmup = 0, .steps = 4, .floor = 0};
  CHECK(linear(1) == Approx(1.5));
  const moe::WarmupStableDecay stable{.peak = 1, .warmup = 2, .steps = 10, .decay = 4, .floor = 0};
  CHECK(stable(5) == Approx(1));
  CHECK(stable(8) == Approx(0.5));
  const moe::InverseSquareRootSchedule root{.peak = 1, .warmup = 100};
  CHECK(root(399) == Approx(0.5));
  CHECK(moe::ConstantSchedule{.peak = 3, .warmup = 2}(0) == Approx(1.5));
}

TEST_CASE("Options that cannot work are refused") {
  auto p = arrays<Case<Kokkos::DefaultHostExecutionSpace, float>>(1);
  CHECK_THROWS_AS(moe::AdamW(p, {.beta1 = 1}), moe::ConfigError);
  CHECK_THROWS_AS(moe::SGD(p, {.momentum = -0.1}), moe::ConfigError);
}

}  // namespace train_test
