// Layers in 16 bits with sums in f32, beside the same layers in f32 on the same, rounded, weights.
#include "moe_test/layers.hpp"

namespace mixed_precision_test {

using namespace moe_test;
using Space = Kokkos::DefaultExecutionSpace;

template <class T, class... Policies>
using MixedLayer = moe::MoELayer<moe::On<Space>, moe::Precision<T, float>, Policies...>;

/// The distance of two arrays over the larger one's size, both as vectors.
template <class A, class B>
double distance(const A& of_a, const B& of_b) {
  const auto a = host(of_a);
  const auto b = host(of_b);
  double squares = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = float(a.data()[i]), y = float(b.data()[i]);
    squares += (x - y) * (x - y);
    size += y * y;
  }
  return std::sqrt(squares / size);
}

/// Each number of a pass in 16 bits is a sum of products of rounded numbers, itself rounded: relative errors of at most
/// u = 2^-8 or 2^-11 a rounding, which in sums add up like the numbers themselves. From x to a weight's gradient there
/// are: up (1), the hidden row (1), down and y (2), and back the weighted dy (1), dhidden (1), dup (1), drows (1), dx
/// (1), the gradient (1), and dup's slopes take the errors of both gate and up: twelve in all. As vectors their
/// distance is at most 12 u, and errors of random signs stay below it by far.
template <class T>
constexpr double bound = 12 * (std::is_same_v<T, moe::bfloat16> ? 0x1p-8 : 0x1p-11);

/// Multiplies each number by `factor`, and rounds it again.
template <class View>
void scale_by(const View& view, double factor) {
  const auto values = host(view);
  for (std::size_t i = 0; i < values.size(); ++i)
    values.data()[i] = typename View::value_type(float(factor) * float(values.data()[i]));
  Kokkos::deep_copy(view, values);
}

/// The same numbers, wider.
template <class View>
moe::Matrix<float, Space> widened(const View& view) {
  const moe::Matrix<float, Space> wide("wide", view.extent(0), view.extent(1));
  const auto from = host(view);
  const auto to = host(wide);
  for (std::size_t i = 0; i < from.size(); ++i) to.data()[i] = float(from.data()[i]);
  Kokkos::deep_copy(wide, to);
  return wide;
}

/// Forward and backward in T and in f32; gradients of T are `scale` times as large.
template <class Wide, class Narrow>
void compare(Wide& wide, Narrow& narrow, double scale) {
  using T = typename Narrow::Scalar;
  const Index tokens = 60, hidden = wide.config().hidden;
  copy_parameters(wide, narrow);  // rounds
  copy_parameters(narrow, wide);  // so that both have the same
  const auto x = random<moe::Matrix<T, Space>>(1, tokens, hidden),
             dy = random<moe::Matrix<T, Space>>(2, tokens, hidden);
  const auto wide_x = widened(x), wide_dy = widened(dy);
  scale_by(dy, scale);
  moe::Context<Space> ctx;
  typename Wide::Tape wide_tape;
  typename Narrow::Tape tape;
  auto wide_gradients = wide.gradients();
  auto gradients = narrow.gradients();
  const auto wide_y = wide.forward(ctx, wide_x, wide_tape);
  const auto y = narrow.forward(ctx, x, tape);
  CHECK(same_bits(wide_tape.routing.assignments.expert, tape.routing.assignments.expert));  // routers are f32
  CHECK(tape.loss() == wide_tape.loss());
  CHECK(distance(y, wide_y) < bound<T>);
  const auto wide_dx = wide.backward(ctx, wide_dy, wide_tape, wide_gradients);
  const auto dx = narrow.backward(ctx, dy, tape, gradients, scale);
  scale_by(wide_dx, scale);
  CHECK(distance(dx, wide_dx) < bound<T>);
  auto check = [&](std::string_view name, auto& gradient, auto& expected) {
    CAPTURE(std::string(name));
    scale_by(expected, scale);
    CHECK(distance(gradient, expected) < bound<T>);
    CHECK(largest(expected) > 1e-4 * scale);
  };
  Narrow::Parameters::visit(check, static_cast<typename Narrow::Parameters&>(gradients),
                            static_cast<typename Wide::Parameters&>(wide_gradients));
}

TEMPLATE_TEST_CASE("Mixtral's layer in 16 bits has the gradients of f32", "", moe::bfloat16, moe::float16) {
  const moe::MoEConfig config{.hidden = 40, .intermediate = 70, .experts = 8};
  MixedLayer<float, moe::MixtralRouter, moe::SwitchBalanceLoss> wide(config, moe::Seed{3});
  MixedLayer<TestType, moe::MixtralRouter, moe::SwitchBalanceLoss> narrow(config, moe::Seed{3});
  compare(wide, narrow, std::is_same_v<TestType, moe::float16> ? 64 : 1);
}

TEMPLATE_TEST_CASE("DeepSeek-V3's layer in 16 bits has the gradients of f32", "", moe::bfloat16, moe::float16) {
  const moe::MoEConfig config{.hidden = 40, .intermediate = 30, .experts = 16};
  using Router = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::GroupLimit<4, 2, moe::BestTwo>, moe::BiasBalancer,
                             moe::NormalizeSum, moe::Scale>;
  const Router router{moe::Scale{2.5}};
  MixedLayer<float, Router, moe::SharedExperts<1>, moe::SequenceBalanceLoss> wide(config, router, moe::Seed{3});
  MixedLayer<TestType, Router, moe::SharedExperts<1>, moe::SequenceBalanceLoss> narrow(config, router, moe::Seed{3});
  compare(wide, narrow, std::is_same_v<TestType, moe::float16> ? 64 : 1);
}

}  // namespace mixed_precision_test
