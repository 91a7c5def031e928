// Activations, the FFN experts and shared experts: values against plain loops,
// gradients against differences.
#include <moe_test/cases.hpp>
#include <vector>

#include "moe/combine/shared_experts.hpp"
#include "moe/experts/ffn.hpp"

namespace experts_test {

using namespace moe_test;

/// What a user writes for an activation of one's own.
struct Square {
  using policy = moe::kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return x * x;
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    return 2 * x;
  }
};

template <class Space>
moe::DispatchPlan<Space> plan_of(const std::vector<Index>& offsets, Index bound) {
  moe::DispatchPlan<Space> plan;
  plan.experts = Index(offsets.size()) - 1;
  plan.rows = bound;
  plan.expert_offsets = indices<Space>(offsets);
  return plan;
}

template <class Parameters>
void randomise_all(Parameters& parameters) {
  unsigned seed = 10;
  auto draw = [&](std::string_view, auto& view) { randomise(view, ++seed); };
  Parameters::visit(draw, parameters);
}

/// Numbers with NaN in the rows behind `last`.
template <class View>
View rows_with_garbage(unsigned seed, Index bound, Index width, Index last) {
  const auto rows = nans<View>(bound, width);
  const auto live = random<View>(seed, last, width);
  Kokkos::deep_copy(Kokkos::subview(rows, Kokkos::pair<Index, Index>(0, last), Kokkos::ALL), live);
  return rows;
}

/// sum of a(i, j) b(i, j) scale(i) over the first rows.
template <class A, class B, class Scale>
double dot(const A& a, const B& b, Index rows, const Scale& scale) {
  const auto x = host(a);
  const auto y = host(b);
  double sum = 0;
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < Index(x.extent(1)); ++j) sum += scale(i) * double(x(i, j)) * double(y(i, j));
  }
  return sum;
}

template <class Activation>
void check_derivative() {
  for (const double x : {-30.0, -3.0, -0.7, -0.01, 0.02, 0.5, 1.0, 4.0, 30.0}) {
    CAPTURE(x);
    const double h = 1e-6, slope = (Activation::value(x + h) - Activation::value(x - h)) / (2 * h);
    CHECK(Activation::derivative(x) == Approx(slope).margin(1e-8));
  }
  CHECK(Activation::value(0.0f) == 0.0f);
  for (const float x : {-1e4f, 1e4f}) {
    CHECK(std::isfinite(Activation::value(x)));
    CHECK(std::isfinite(Activation::derivative(x)));
  }
}

const std::vector<Index> offsets = {0, 0, 4, 4, 9, 10, 10};
constexpr Index bound = 13, last = 10, hidden = 13, inner = 7, experts = 6;

template <class Activation, class BiasChoice, class Space, class T>
void check_forward() {
  using M = moe::Matrix<T, Space>;
  using Experts = moe::ExpertFFN<Activation, BiasChoice>;
  const Experts ffn;
  moe::Context<Space> ctx;
  auto p = ffn.template parameters<T, Space>({experts, hidden, inner});
  randomise_all(p);
  const auto plan = plan_of<Space>(offsets, bound);
  const auto rows = rows_with_garbage<M>(1, bound, hidden, last), out = nans<M>(bound, hidden);
  typename Experts::template Saved<T, Space> saved;
  ffn.forward(ctx, rows, plan, p, out, saved);

  const auto x = host(rows), got = host(out);
  const auto up = host(p.up), down = host(p.down);
  const auto up_bias = host(p.up_bias), down_bias = host(p.down_bias);
  double worst = 0;
  for (Index e = 0; e < experts; ++e) {
    for (Index r = offsets[e]; r < offsets[e + 1]; ++r) {
      std::vector<double> z(up.extent(1));
      for (Index i = 0; i < Index(z.size()); ++i) {
        z[i] = Experts::biased ? double(up_bias(e, i)) : 0.0;
        for (Index h = 0; h < hidden; ++h) z[i] += double(x(r, h)) * double(up(e, i, h));
      }
      for (Index h = 0; h < hidden; ++h) {
        double y = Experts::biased ? double(down_bias(e, h)) : 0.0;
        for (Index i = 0; i < inner; ++i) {
          const double value = Activation::value(z[i]) * (Activation::gated ? z[i + inner] : 1.0);
          y += value * double(down(e, h, i));
        }
        const double error = std::abs(y - double(got(r, h))) / (1 + std::abs(y));
        if (!(error <= worst)) worst = error;
      }
    }
  }
  CHECK(worst < 20 * tolerance<T>(hidden));
}

template <class Activation, class BiasChoice, class Space>
void check_gradients() {
  using M = moe::Matrix<double, Space>;
  using Experts = moe::ExpertFFN<Activation, BiasChoice>;
  const Experts ffn;
  moe::Context<Space> ctx;
  auto p = ffn.template parameters<double, Space>({experts, hidden, inner});
  randomise_all(p);
  auto gradients = moe::detail::zeros_like(p);
  const auto plan = plan_of<Space>(offsets, bound);
  const auto rows = rows_with_garbage<M>(1, bound, hidden, last), out = nans<M>(bound, hidden);
  const auto dy = rows_with_garbage<M>(2, bound, hidden, last), drows = nans<M>(bound, hidden);
  const auto weight = random<moe::Vector<double, Space>>(3, bound), dweight = nans<moe::Vector<double, Space>>(bound);
  typename Experts::template Saved<double, Space> saved;
  const auto loss = [&] {
    ffn.forward(ctx, rows, plan, p, out, saved);
    const auto w = host(weight);
    return dot(out, dy, last, [&](Index r) { return w(r); });
  };
  loss();
  ffn.backward_weighted(ctx, clone(dy), weight, plan, p, rows, saved, drows, dweight, gradients);

  const auto live = Kokkos::pair<Index, Index>(0, last);
  check_gradient(Kokkos::subview(rows, live, Kokkos::ALL), Kokkos::subview(drows, live, Kokkos::ALL), loss);
  check_gradient(Kokkos::subview(weight, live), Kokkos::subview(dweight, live), loss);
  using P = decltype(p);
  auto check = [&](std::string_view name, auto& parameter, auto& gradient) {
    CAPTURE(std::string(name));
    check_gradient(parameter, gradient, loss);
    const auto g = host(gradient);
    const Index width = Index(g.size()) / experts;
    for (const Index e : {0, 2, 5})  // experts without rows
      CHECK(std::all_of(g.data() + e * width, g.data() + (e + 1) * width, [](double v) { return v == 0; }));
  };
  P::visit(check, p, gradients);

  // Unweighted and weighted by one are the same, and gradients add up.
  auto plain = moe::detail::zeros_like(p), twice = moe::detail::zeros_like(p);
  const auto one = filled<moe::Vector<double, Space>>(1, bound);
  const auto drows_one = nans<M>(bound, hidden);
  ffn.backward(ctx, dy, plan, p, rows, saved, drows, plain);
  ffn.backward_weighted(ctx, clone(dy), one, plan, p, rows, saved, drows_one, dweight, twice);
  CHECK(same_bits(M(Kokkos::subview(drows, live, Kokkos::ALL)), M(Kokkos::subview(drows_one, live, Kokkos::ALL))));
  CHECK(same_bits(plain.up, twice.up));
  ffn.backward(ctx, dy, plan, p, rows, saved, drows, twice);
  const auto once = host(plain.down), sum = host(twice.down);
  for (std::size_t i = 0; i < sum.size(); ++i) {
    if (sum.data()[i] != Approx(2 * once.data()[i])) FAIL_CHECK("gradients must add: element " << i);
  }
}

/// A batch of six tokens, the third and the last padding.
template <class T, class Space>
moe::Batch<T, Space> masked_batch(const moe::Matrix<T, Space>& x) {
  moe::Vector<std::uint8_t, Space> mask("mask", 6);
  const auto copy = Kokkos::create_mirror_view(Kokkos::HostSpace{}, mask);
  for (Index t = 0; t < 6; ++t) copy(t) = t != 2 && t != 5;
  Kokkos::deep_copy(mask, copy);
  moe::Batch<T, Space> batch;
  batch.x = x;
  batch.mask = mask;
  return batch;
}

template <class Gate, class Space>
void check_shared() {
  using M = moe::Matrix<double, Space>;
  using Branch = moe::SharedExperts<2, moe::SwiGLU, Gate>;
  const Branch branch;
  moe::Context<Space> ctx;
  auto p = branch.template parameters<double, Space>({8, 11, 3});
  randomise_all(p);
  auto gradients = moe::detail::zeros_like(p);
  const auto x = random<M>(1, 6, 11), dy = random<M>(2, 6, 11), before = random<M>(3, 6, 11);
  const auto batch = masked_batch<double, Space>(x);
  typename Branch::template Saved<double, Space> saved;
  const auto y = clone(before);
  const auto loss = [&] {
    Kokkos::deep_copy(y, before);
    branch.forward(ctx, batch, p, y, saved);
    return dot(y, dy, 6, [](Index) { return 1.0; });
  };
  loss();
  const auto dx = filled<M>(0.5, 6, 11);
  branch.backward(ctx, batch, moe::Matrix<const double, Space>(dy), p, saved, dx, gradients);

  const auto base = host(before), result = host(y), slope = host(dx);
  for (const Index t : {2, 5}) {
    for (Index h = 0; h < 11; ++h) {
      CHECK(result(t, h) == base(t, h));
      CHECK(slope(t, h) == 0.5);
    }
  }
  const auto added = clone(dx);
  const auto minus = host(added);
  for (std::size_t i = 0; i < minus.size(); ++i) minus.data()[i] -= 0.5;
  Kokkos::deep_copy(added, minus);
  check_gradient(x, added, loss);
  using P = decltype(p);
  auto check = [&](std::string_view name, auto& parameter, auto& gradient) {
    CAPTURE(std::string(name));
    check_gradient(parameter, gradient, loss);
  };
  P::visit(check, p, gradients);
}

}  // namespace experts_test

using namespace experts_test;

TEST_CASE("Derivatives of activations agree with differences") {
  check_derivative<moe::ReLU>();
  check_derivative<moe::GELU>();
  check_derivative<moe::GELUTanh>();
  check_derivative<moe::SiLU>();
  CHECK(moe::SiLU::value(1.0) == Approx(0.7310585786300049));
  CHECK(moe::GELU::value(1.0) == Approx(0.8413447460685429));
  CHECK(moe::GELUTanh::value(1.0) == Approx(0.8411919906082768));
  CHECK(moe::GeGLU::value(-0.5) == moe::GELU::value(-0.5));
  STATIC_REQUIRE(moe::SwiGLU::gated);
  STATIC_REQUIRE(moe::GeGLUTanh::gated);
  STATIC_REQUIRE_FALSE(moe::GELU::gated);
}

TEMPLATE_LIST_TEST_CASE("ExpertFFN agrees with plain loops", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  check_forward<moe::SwiGLU, moe::NoBias, Space, T>();
  check_forward<moe::GeGLU, moe::Bias, Space, T>();
  check_forward<moe::ReLU, moe::Bias, Space, T>();
  check_forward<Square, moe::NoBias, Space, T>();
}

TEMPLATE_LIST_TEST_CASE("ExpertFFN's gradients agree with differences", "", Cases) {
  if constexpr (std::is_same_v<typename TestType::T, double>) {
    using Space = typename TestType::Space;
    check_gradients<moe::SwiGLU, moe::NoBias, Space>();
    check_gradients<moe::GeGLUTanh, moe::Bias, Space>();
    check_gradients<moe::GELU, moe::Bias, Space>();
    check_gradients<Square, moe::NoBias, Space>();
  }
}

TEMPLATE_LIST_TEST_CASE("ExpertFFN takes no rows at all", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  using M = moe::Matrix<T, Space>;
  using Experts = moe::ExpertFFN<moe::SwiGLU, moe::Bias>;
  const Experts ffn;
  moe::Context<Space> ctx;
  const auto p = ffn.template parameters<T, Space>({3, 5, 4});
  auto gradients = moe::detail::zeros_like(p);
  for (const Index rows : {0, 2}) {
    const auto plan = plan_of<Space>({0, 0, 0, 0}, rows);
    const auto x = nans<M>(rows, 5), out = nans<M>(rows, 5), drows = nans<M>(rows, 5);
    typename Experts::template Saved<T, Space> saved;
    ffn.forward(ctx, x, plan, p, out, saved);
    ffn.backward(ctx, out, plan, p, x, saved, drows, gradients);
  }
  using P = std::remove_const_t<decltype(p)>;
  auto zero = [](std::string_view name, auto& gradient) {
    CAPTURE(std::string(name));
    const auto g = host(gradient);
    CHECK(std::all_of(g.data(), g.data() + g.size(), [](T v) { return v == 0; }));
  };
  P::visit(zero, gradients);
}

TEST_CASE("ExpertFFN refuses sizes that are not positive") {
  using Space = Kokkos::DefaultExecutionSpace;
  const moe::ExpertFFN<> ffn;
  CHECK_THROWS_AS((ffn.parameters<float, Space>({0, 4, 4})), moe::ConfigError);
  CHECK_THROWS_AS((ffn.parameters<float, Space>({4, -1, 4})), moe::ConfigError);
  CHECK_THROWS_AS((ffn.parameters<float, Space>({4, 4, 0})), moe::ConfigError);
}

TEMPLATE_LIST_TEST_CASE("Shared experts add to live tokens and their gradients are right", "", Cases) {
  if constexpr (std::is_same_v<typename TestType::T, double>) {
    using Space = typename TestType::Space;
    check_shared<moe::NoGate, Space>();
    check_shared<moe::SigmoidGate, Space>();
  }
}

#if defined(KOKKOS_ENABLE_SERIAL) && defined(KOKKOS_ENABLE_OPENMP)
namespace experts_test {

/// The gradients of one backward pass on 90 rows, in order.
template <class Space>
auto pass() {
  using M = moe::Matrix<float, Space>;
  using Experts = moe::ExpertFFN<moe::SwiGLU, moe::Bias>;
  const Experts ffn;
  moe::Context<Space> ctx;
  auto p = ffn.template parameters<float, Space>({4, 37, 29});
  randomise_all(p);
  auto gradients = moe::detail::zeros_like(p);
  const auto plan = plan_of<Space>({0, 50, 50, 53, 90}, 90);
  const auto rows = random<M>(1, 90, 37), out = nans<M>(90, 37), dout = random<M>(2, 90, 37), drows = nans<M>(90, 37);
  typename Experts::template Saved<float, Space> saved;
  ffn.forward(ctx, rows, plan, p, out, saved);
  ffn.backward(ctx, dout, plan, p, rows, saved, drows, gradients);
  return std::tuple(out, drows, gradients.up, gradients.down, gradients.up_bias, gradients.down_bias);
}

}  // namespace experts_test

TEST_CASE("ExpertFFN on many threads gives the bits of one") {
  const auto one = pass<Kokkos::Serial>();
  const auto many = pass<Kokkos::OpenMP>();
  CHECK(same_bits(std::get<0>(one), std::get<0>(many)));
  CHECK(same_bits(std::get<1>(one), std::get<1>(many)));
  CHECK(same_bits(std::get<2>(one), std::get<2>(many)));
  CHECK(same_bits(std::get<3>(one), std::get<3>(many)));
  CHECK(same_bits(std::get<4>(one), std::get<4>(many)));
  CHECK(same_bits(std::get<5>(one), std::get<5>(many)));
}
#endif
