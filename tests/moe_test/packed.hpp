#pragma once
/// @file
/// What the tests of packed weights share: experts as given, as packed, and as the reference takes them; a call of the
/// kernels; numbers that bfloat16 holds; curves of activations.

#include <Kokkos_Core.hpp>
#include <vector>

#include "moe/kernels/packed_ffn.hpp"
#include "moe_test/cases.hpp"
#include "reference/expert_ffn.hpp"

namespace moe_test {

using Host = Kokkos::DefaultHostExecutionSpace;
/// What tokens are where weights are packed as T.
using moe::kernels::cpu::Token;

/// Rounds every number to T, which then is an exact input.
template <class T, class View>
void round_to(const View& view) {
  using Number = typename View::non_const_value_type;
  for (std::size_t i = 0; i < view.size(); ++i) view.data()[i] = Number(float(T(float(view.data()[i]))));
}

/// Custom activations; neither is 0 at 0, so columns that pad the panels hold something.
struct Shifted {
  using policy = moe::kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return Real(0.75) + Real(0.5) * x;
  }
};
struct ShiftedProduct {
  using policy = moe::kind::activation;
  static constexpr bool gated = true;
  double shift = 1.25;
  template <class Real>
  KOKKOS_FUNCTION Real value(Real gate, Real up) const {
    return Real(shift) + gate * (up + Real(2));
  }
};

/// What the reference needs to know of an activation. Slopes: those of x sigmoid(x) and x Phi(x) reach 1.0999 and
/// 1.1290.
template <class Activation>
reference::Curve curve_of() {
  const auto silu = [](double g, double alpha) { return g / (1 + std::exp(-alpha * g)); };
  if constexpr (std::is_same_v<Activation, moe::ReLU>) {
    return {false, 1, 0, 0, [](double g, double) { return std::max(g, 0.0); }};
  } else if constexpr (std::is_same_v<Activation, moe::SiLU>) {
    return {false, 1.1, 0, 0, [=](double g, double) { return silu(g, 1); }};
  } else if constexpr (std::is_same_v<Activation, moe::SwiGLU>) {
    return {true, 1.1, 0, 0, [=](double g, double u) { return silu(g, 1) * u; }};
  } else if constexpr (std::is_same_v<Activation, moe::GeGLU>) {
    return {true, 1.13, 0, 0, [](double g, double u) { return g * (1 + std::erf(g / std::sqrt(2.0))) / 2 * u; }};
  } else if constexpr (std::is_same_v<Activation, moe::ClampedSwiGLU>) {
    return {true, 1.1, 1, 0,
            [=](double g, double u) { return silu(std::min(g, 7.0), 1.702) * (std::clamp(u, -7.0, 7.0) + 1); }};
  } else if constexpr (std::is_same_v<Activation, Shifted>) {
    return {false, 1, 0, 0.75, [](double g, double) { return 0.75 + g / 2; }};
  } else {
    static_assert(std::is_same_v<Activation, ShiftedProduct>);
    return {true, 1, 2, 1.25, [](double g, double u) { return 1.25 + g * (u + 2); }};
  }
}

/// How the kernels round where weights are T: see reference/expert_ffn.hpp.
template <class T>
reference::Precision kernel_precision() {
  if (std::is_same_v<T, std::int8_t>) return {1, 0, true};
  if (sizeof(T) == 4 || !moe::kernels::cpu::micro_kernels().pairs) return {};
  return {2, reference::bf16_unit};
}

/// Row-major (rows, columns) at `from`.
template <class Number>
reference::Rows rows_at(const Number* from, Index rows, Index columns) {
  reference::Rows result(rows, columns);
  for (Index i = 0; i < rows * columns; ++i) result.data()[i] = double(from[i]);
  return result;
}

/// Expert e of stacks up (E, I or 2I, H) and down (E, H, I), biases (E, ...) or empty.
template <class Stack>
reference::Expert expert_of(const Stack& stack, Index e, bool gated) {
  const auto up = host(stack.up), down = host(stack.down);
  const Index hidden = down.extent(1), inner = down.extent(2), width = up.extent(1);
  reference::Expert expert;
  if (gated) expert.gate = rows_at(up.data() + e * width * hidden, inner, hidden);
  expert.up = rows_at(up.data() + ((e + 1) * width - inner) * hidden, inner, hidden);
  expert.down = rows_at(down.data() + e * hidden * inner, hidden, inner);
  if (stack.up_bias.size() == 0) return expert;
  if (gated) expert.gate_bias = rows_at(stack.up_bias.data() + e * width, inner, 1);
  expert.up_bias = rows_at(stack.up_bias.data() + (e + 1) * width - inner, inner, 1);
  expert.down_bias = rows_at(stack.down_bias.data() + e * hidden, hidden, 1);
  return expert;
}

/// Random experts, and their panels in T. Weights shrink as sums grow; NaN lay where the panels' padding is.
template <class T, class Activation>
struct PackedExperts {
  static constexpr bool gated = Activation::gated;
  moe::Tensor3<float, Host> up, down;
  moe::Matrix<float, Host> up_bias, down_bias;  ///< empty where not biased
  moe::kernels::PackedWeights<T> up_panels, down_panels;
  std::vector<float> up_panel_bias, down_panel_bias;

  PackedExperts(Index experts, Index hidden, Index inner, bool biased)
      : up(random<moe::Tensor3<float, Host>>(11, experts, (gated ? 2 : 1) * inner, hidden)),
        down(random<moe::Tensor3<float, Host>>(12, experts, hidden, inner)),
        up_panels(experts, (gated ? 2 : 1) * ((inner + 31) / 32 * 32), hidden),
        down_panels(experts, hidden, inner) {
    for (std::size_t i = 0; i < up.size(); ++i) up.data()[i] *= 2 / std::sqrt(float(hidden));
    for (std::size_t i = 0; i < down.size(); ++i) down.data()[i] *= 2 / std::sqrt(float(inner));
    round_to<Token<T>>(up);
    round_to<Token<T>>(down);
    pack();
    if (!biased) return;
    up_bias = random<moe::Matrix<float, Host>>(13, experts, up.extent(1));
    down_bias = random<moe::Matrix<float, Host>>(14, experts, hidden);
    up_panel_bias.assign(experts * up_panels.columns, 0);
    down_panel_bias.assign(experts * down_panels.columns, 0);
    for (Index e = 0; e < experts; ++e) {
      for (Index i = 0; i < Index(up.extent(1)); ++i)
        up_panel_bias[e * up_panels.columns + column_of(i, inner)] = up_bias(e, i);
      for (Index h = 0; h < hidden; ++h) down_panel_bias[e * down_panels.columns + h] = down_bias(e, h);
    }
  }

  void pack() {
    for (const auto* panels : {&up_panels, &down_panels})
      std::memset(static_cast<void*>(panels->memory.data()), 0xff, bytes(*panels));
    moe::kernels::pack<gated>(Host{}, up, up_panels);
    moe::kernels::pack<false>(Host{}, down, down_panels);
  }
  static Index bytes(const moe::kernels::PackedWeights<T>& panels) {
    return panels.experts * panels.columns * panels.depth * Index(sizeof(T));
  }
  /// 16 columns of the gate, the same 16 of up, and so on.
  static Index column_of(Index row, Index inner) {
    if (!gated) return row;
    const Index i = row % inner;
    return i - i % 16 + i + (row < inner ? 0 : 16);
  }

  moe::kernels::PackedFFNCall<T, Activation> call(const Token<T>* x, const Index* offsets, float* y) const {
    return {x,
            Index(down.extent(1)),
            offsets,
            nullptr,
            nullptr,
            nullptr,
            up_panels,
            down_panels,
            up_bias.size() > 0 ? up_panel_bias.data() : nullptr,
            down_bias.size() > 0 ? down_panel_bias.data() : nullptr,
            Activation{},
            y};
  }
};

/// Uniform in [-1, 1], rounded to T.
template <class T>
std::vector<T> random_numbers(unsigned seed, Index count) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<T> numbers(count);
  for (T& number : numbers) number = T(uniform(engine));
  return numbers;
}

/// The largest error as a share of its bound; beyond 1 it is wrong. NaN stays.
struct Worst {
  double share = 0;
  void see(double error, double bound) {
    const double now = error == 0 ? 0 : error / bound;
    if (!(now <= share)) share = now;
  }
  /// Right, and the bound says something: errors come within `least` of it.
  void check(double least = 1e-3) const {
    CHECK(share <= 1);
    CHECK(share > least);
  }
};

}  // namespace moe_test
