// Optimisers beside PyTorch's formula in double: 16 bits with masters, the edges of chunks, threads, memory; scaling of
// losses.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace optimizer_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;

/// One array that decays and one that does not.
template <class T>
struct Arrays {
  moe::Matrix<T, Space> weight;
  moe::Vector<float, Space> norm;
  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    f("weight", same.weight...);
    f("norm", same.norm...);
  }
};

template <class T>
Arrays<T> arrays(unsigned seed, Index rows, Index columns) {
  return {random<moe::Matrix<T, Space>>(seed, rows, columns), random<moe::Vector<float, Space>>(seed + 1, 7)};
}

/// A parameter of PyTorch's AdamW, in double.
struct Reference {
  double w, m = 0, v = 0;
  void step(double g, double rate, double decay, int n) {
    w -= rate * decay * w;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    w -= rate * (m / (1 - std::pow(0.9, n))) / (std::sqrt(v / (1 - std::pow(0.999, n))) + 1e-8);
  }
};

template <class T>
constexpr double unit() {  // half a step of numbers in [1, 2)
  return std::is_same_v<T, moe::bfloat16> ? 0x1p-8 : std::is_same_v<T, moe::float16> ? 0x1p-11 : 0x1p-24;
}

// Gradients change from step to step and are scaled by 1/2. Sizes lie around a block of 64 and a chunk of 4096.
TEMPLATE_TEST_CASE("AdamW is PyTorch's at the edges of chunks, with masters for 16 bits", "", float, moe::bfloat16,
                   moe::float16) {
  using T = TestType;
  for (const Index size : {1, 63, 64, 65, 4095, 4096, 4097, 8192, 10007}) {
    CAPTURE(size);
    auto p = arrays<T>(1, 1, size);
    const auto start = clone(p.weight);
    std::vector<Reference> expected;
    for (Index i = 0; i < size; ++i) expected.push_back({double(float(start(0, i)))});
    moe::Context<Space> ctx;
    moe::AdamW optimizer(p, {.weight_decay = 0.1});
    for (int n = 1; n <= 5; ++n) {
      auto g = arrays<T>(unsigned(10 * n), 1, size);
      for (Index i = 0; i < size; ++i) expected[std::size_t(i)].step(0.5 * double(float(g.weight(0, i))), 1e-3, 0.1, n);
      optimizer.step(ctx, p, g, 1e-3, 0.5);
    }
    // Masters keep what a number of 16 bits would lose: five steps of 1e-3 are within two of its own steps.
    double worst = 0, worst_master = 0;
    Index rounded = 0;
    auto compare = [&](const std::string& name, const auto& array) {
      if (name != "master.weight") return;
      for (Index i = 0; i < size; ++i) {
        worst_master = std::max(worst_master, std::abs(double(array.data()[i]) - expected[std::size_t(i)].w));
        rounded += float(p.weight(0, i)) == float(T(array.data()[i]));
      }
    };
    optimizer.visit(compare);
    for (Index i = 0; i < size; ++i)
      worst = std::max(worst, std::abs(double(float(p.weight(0, i))) - expected[std::size_t(i)].w));
    CHECK(worst_master < 2e-6);  // f32: a few roundings each of five steps
    CHECK(rounded == (sizeof(T) == 2 ? size : 0));
    CHECK(worst < unit<T>() + 2e-6);
  }
}

TEMPLATE_TEST_CASE("SGD has masters for 16 bits too", "", moe::bfloat16, moe::float16) {
  using T = TestType;
  auto p = arrays<T>(1, 1, 100), g = arrays<T>(3, 1, 100);
  const auto start = clone(p.weight);
  moe::Context<Space> ctx;
  moe::SGD optimizer(p, {.momentum = 0.9});
  for (int n = 0; n < 20; ++n) optimizer.step(ctx, p, g, 1e-5);  // each step is lost on a number of 16 bits
  for (Index i = 0; i < 100; ++i) {
    double w = float(start(0, i)), u = 0;
    for (int n = 0; n < 20; ++n) w -= 1e-5 * (u = 0.9 * u + double(float(g.weight(0, i))));
    CHECK(std::abs(double(float(p.weight(0, i))) - w) < unit<T>() + 1e-6);
  }
}

#if defined(KOKKOS_ENABLE_OPENMP)
TEMPLATE_TEST_CASE("Steps and norms have the same bits for any number of threads", "", float, moe::bfloat16,
                   moe::float16) {
  auto run = [](int threads) {
    moe::Context<Kokkos::OpenMP> ctx;
    ctx.space = Kokkos::OpenMP(threads);
    auto p = arrays<TestType>(1, 3, 20011), g = arrays<TestType>(3, 3, 20011);
    moe::AdamW optimizer(p);
    const double norm = moe::gradient_norm(ctx, g);
    for (int n = 0; n < 3; ++n) optimizer.step(ctx, p, g, 1e-2, moe::clip_factor(norm, 1));
    return std::pair(p.weight, norm);
  };
  const auto one = run(1);
  for (int threads : {2, 3}) {
    const auto more = run(threads);
    CHECK(same_bits(one.first, more.first));
    CHECK(one.second == more.second);
  }
}
#endif

std::uint64_t bytes = 0;

TEMPLATE_TEST_CASE("AdamW takes 16 bytes a parameter, gradient and value included", "", float, moe::bfloat16,
                   moe::float16) {
  bytes = 0;
  Kokkos::Tools::Experimental::set_allocate_data_callback(
      [](Kokkos_Profiling_SpaceHandle, const char*, const void*, uint64_t size) { bytes += size; });
  const moe::Matrix<TestType, Space> weight("weight", 30, 40), gradient("gradient", 30, 40);
  const std::uint64_t without = bytes;
  const moe::AdamW optimizer(Arrays<TestType>{weight, {}});
  const std::uint64_t with = bytes;
  Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr);
  CHECK(without == 1200 * 2 * sizeof(TestType));
  CHECK(with == 1200 * 16);
}

TEMPLATE_TEST_CASE("The norm is that of doubles, and the factor of clipping goes into the step", "", float,
                   moe::bfloat16, moe::float16) {
  using T = TestType;
  auto g = arrays<T>(3, 3, 5001);
  double squares = 0;
  for (std::size_t i = 0; i < g.weight.size(); ++i) squares += std::pow(double(float(g.weight.data()[i])), 2);
  for (std::size_t i = 0; i < g.norm.size(); ++i) squares += std::pow(double(g.norm(i)), 2);
  moe::Context<Space> ctx;
  const double norm = moe::gradient_norm(ctx, g);
  CHECK(norm == Approx(std::sqrt(squares)).epsilon(1e-13));
  CHECK(moe::clip_factor(norm, 0) == 1);
  CHECK(moe::clip_factor(norm, norm) == 1);
  CHECK(moe::clip_factor(norm, norm / 4) == 0.25);
  g.weight(2, 5000) = T(INFINITY);
  CHECK(std::isinf(moe::gradient_norm(ctx, g)));
  g.weight(0, 0) = T(NAN);
  CHECK(std::isnan(moe::gradient_norm(ctx, g)));
}

TEST_CASE("The scale of losses grows after good steps, falls after bad ones, and has a floor") {
  moe::LossScale scale({.start = 8, .interval = 3, .floor = 2});
  CHECK(moe::LossScale().value() == 65536);
  CHECK(scale.update(true));
  CHECK(scale.update(true));
  CHECK(scale.value() == 8);
  CHECK(scale.update(true));
  CHECK(scale.value() == 16);
  CHECK(scale.update(true));
  CHECK(scale.update(true));
  CHECK_FALSE(scale.update(false));  // and good steps count anew
  CHECK(scale.value() == 8);
  CHECK(scale.update(true));
  CHECK(scale.update(true));
  CHECK(scale.value() == 8);

  moe::LossScale other;
  other.load(scale.save());
  CHECK(other.save() == std::array<double, 2>{8, 2});
  moe::LossScale same({.start = 2, .interval = 3, .floor = 2});
  same.load(scale.save());
  CHECK(same.update(true));
  CHECK(same.value() == 16);

  CHECK_FALSE(same.at_floor());
  for (int n = 0; n < 5; ++n) CHECK_FALSE(same.update(false));
  CHECK(same.value() == 2);
  CHECK(same.at_floor());

  moe::LossScale large({.start = 0x1p126, .interval = 1});
  for (int n = 0; n < 3; ++n) CHECK(large.update(true));
  CHECK(large.value() == 0x1p127);  // a float's largest power of two
  CHECK_THROWS_AS(moe::LossScale({.growth = 1}), moe::ConfigError);
  CHECK_THROWS_AS(moe::LossScale({.backoff = 1}), moe::ConfigError);
  CHECK_THROWS_AS(moe::LossScale({.start = 1, .floor = 2}), moe::ConfigError);
}

// A loss of w^2 / 2 with gradients in float16: at the first scale they overflow, and steps are skipped until they fit.
TEST_CASE("Steps whose gradients overflow are skipped, and scaling changes nothing else") {
  moe::Context<Space> ctx;
  Arrays<moe::float16> p{filled<moe::Matrix<moe::float16, Space>>(3, 1, 4), {}};
  Arrays<moe::float16> g{moe::Matrix<moe::float16, Space>("g", 1, 4), {}};
  moe::AdamW optimizer(p, {.weight_decay = 0});
  moe::LossScale scale;
  int skipped = 0;
  Reference expected{3};
  for (int n = 0; n < 10; ++n) {
    const double by = scale.value();
    for (Index i = 0; i < 4; ++i) g.weight(0, i) = moe::float16(by * double(float(p.weight(0, i))));
    const double norm = moe::gradient_norm(ctx, g) / by, gradient = float(p.weight(0, 0));
    if (!scale.update(std::isfinite(norm))) {
      ++skipped;
      continue;
    }
    optimizer.step(ctx, p, g, 1e-2, moe::clip_factor(norm, 1) / by);
    expected.step(gradient * moe::clip_factor(2 * gradient, 1), 1e-2, 0, n + 1 - skipped);
  }
  CHECK(skipped == 2);  // 3 * 2^16 and 3 * 2^15 pass 65504
  CHECK(scale.value() == 0x1p14);
  CHECK(optimizer.step_count == 8);
  CHECK(std::abs(double(float(p.weight(0, 0))) - expected.w) < 0x1p-10);
}

// As when forward passes throw, and when an early checkpoint is read into an optimiser that has been in use.
TEMPLATE_TEST_CASE("The first step takes masters, prepared twice or after others", "", moe::SGD<Arrays<moe::bfloat16>>,
                   moe::AdamW<Arrays<moe::bfloat16>>) {
  moe::Context<Space> ctx;
  auto p = arrays<moe::bfloat16>(1, 2, 3), g = arrays<moe::bfloat16>(5, 2, 3);
  Kokkos::deep_copy(p.weight, moe::bfloat16(3.0f));  // far from what a step reaches from 0
  const auto before = clone(p.weight);
  TestType optimizer(p);
  optimizer.prepare(ctx, 0.1);  // and again, as after a forward pass that threw
  optimizer.step(ctx, p, g, 0.1);
  for (Index i = 0; i < 6; ++i) {
    const double start = float(before.data()[i]);
    CHECK(std::abs(float(p.weight.data()[i]) - start) <= 0.2 + std::abs(start) / 128);
  }
  Kokkos::deep_copy(p.weight, moe::bfloat16(5.0f));
  optimizer.step_count = 0;
  optimizer.step(ctx, p, g, 0);
  for (Index i = 0; i < 6; ++i) CHECK(float(p.weight.data()[i]) == 5);
}

}  // namespace optimizer_test
