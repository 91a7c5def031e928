// FP8: its numbers, its blocks, and experts in it against plain loops over the same numbers.
#include <moe_test/cases.hpp>
#include <moe_test/matrix_units.hpp>

#include "moe/layers/packed.hpp"
#include "moe/models/deepseek.hpp"
#include "moe/models/mixtral.hpp"

namespace fp8_test {

using namespace moe_test;
using moe::bfloat16;
using moe::float8_e4m3;
using Space = Kokkos::DefaultHostExecutionSpace;

float number(int bits) {
  float8_e4m3 x;
  x.bits = std::uint8_t(bits);
  return x;
}

TEST_CASE("float8_e4m3 has the numbers of OCP's E4M3, and rounds to the nearest of them") {
  CHECK(number(0x00) == 0);
  CHECK(number(0x01) == 0x1p-9f);
  CHECK(number(0x08) == 0x1p-6f);
  CHECK(number(0x38) == 1);
  CHECK(number(0x7e) == 448);
  CHECK(number(0xfe) == -448);
  CHECK(std::isnan(number(0x7f)));
  for (int bits = 0; bits < 256; ++bits) {
    if (bits % 128 == 127) continue;
    CHECK(float8_e4m3(number(bits)).bits == bits);
    if (bits % 128 == 126) continue;
    // Half way between neighbours: to the even one, and to either side of that, to the nearer.
    const float low = number(bits), high = number(bits + 1), middle = (low + high) / 2;
    CHECK(float8_e4m3(middle).bits == (bits % 2 == 0 ? bits : bits + 1));
    CHECK(float8_e4m3(std::nextafter(middle, low)).bits == bits);
    CHECK(float8_e4m3(std::nextafter(middle, high)).bits == bits + 1);
  }
  CHECK(float(float8_e4m3(1e30f)) == 448);
  CHECK(float(float8_e4m3(-std::numeric_limits<float>::infinity())) == -448);
  CHECK(std::isnan(float(float8_e4m3(std::nanf("")))));
}

TEST_CASE("Blocks have the scale of their largest number, and zeros and NaN keep to their block") {
  const Index rows = 5, size = 300;
  const auto x = random<moe::Matrix<float, Space>>(1, rows, size);
  for (Index i = 128; i < 256; ++i) x(1, i) = 0;
  x(2, 299) = std::nanf("");
  x(3, 0) = 1e-44f;
  for (Index i = 1; i < 128; ++i) x(3, i) = 0;
  const auto scale = nans<moe::Matrix<float, Space>>(rows, 3);
  moe::Matrix<float8_e4m3, Space> to("to", rows, size);
  const auto live = indices<Space>({4});
  moe::kernels::scale_blocks(Space{}, x.data(), 1, rows, size, 1, to.data(), scale.data(), live.data());
  for (Index r = 0; r < 4; ++r) {
    for (Index b = 0; b < 3; ++b) {
      const Index end = std::min(size, 128 * (b + 1));
      float largest = 0;
      for (Index i = 128 * b; i < end; ++i) largest = std::max(largest, std::abs(x(r, i)));
      if (r == 2 && b == 2) {
        CHECK(std::isnan(scale(r, b)));
        CHECK(std::isnan(float(to(r, 256))));
        continue;
      }
      CHECK(scale(r, b) == largest / 448);
      for (Index i = 128 * b; i < end; ++i) {
        if (largest < 1e-30f) {
          CHECK(float(to(r, i)) == 0);
        } else {
          CHECK(std::abs(float(to(r, i)) * scale(r, b) - x(r, i)) <=
                std::max(std::abs(x(r, i)) / 16, 0x1p-10f * scale(r, b)) * 1.0001f);
        }
      }
    }
  }
  CHECK(std::isnan(scale(4, 0)));
}

/// What FP8 stands for.
struct Dequantised {
  std::vector<double> value;
  Dequantised(const float* from, Index rows, Index size, Index high) : value(rows * size) {
    for (Index r = 0; r < rows; r += high) {
      for (Index c = 0; c < size; c += 128) {
        float largest = 0;
        for (Index i = r; i < std::min(rows, r + high); ++i)
          for (Index j = c; j < std::min(size, c + 128); ++j) largest = std::max(largest, std::abs(from[i * size + j]));
        const float step = largest / 448;
        for (Index i = r; i < std::min(rows, r + high); ++i) {
          for (Index j = c; j < std::min(size, c + 128); ++j)
            value[i * size + j] = step == 0 ? 0 : double(float(float8_e4m3(from[i * size + j] / step))) * step;
        }
      }
    }
  }
};

TEST_CASE("Experts in FP8 agree with plain loops over the same numbers") {
  const Index bound = 20, hidden = 200, inner = 128, experts = 4;
  const auto offsets = indices<Space>({0, 7, 7, 16, 17});
  const auto rows = random<moe::Matrix<float, Space>>(1, bound, hidden);
  const auto weight = random<moe::Tensor3<float, Space>>(2, experts, 2 * inner, hidden);
  moe::Matrix<float8_e4m3, Space> x("x", bound, hidden);
  moe::Tensor3<float8_e4m3, Space> w("w", experts, 2 * inner, hidden);
  moe::Matrix<float, Space> x_scale("x_scale", bound, 2), w_scale("w_scale", experts * 2, 2);
  moe::kernels::scale_blocks(Space{}, rows.data(), 1, bound, hidden, 1, x.data(), x_scale.data());
  moe::kernels::scale_blocks(Space{}, weight.data(), experts, 2 * inner, hidden, 128, w.data(), w_scale.data());
  const Dequantised dx(rows.data(), bound, hidden, 1);
  std::vector<double> expected(bound * inner, std::nan(""));
  for (Index e = 0; e < experts; ++e) {
    const Dequantised dw(weight.data() + e * 2 * inner * hidden, 2 * inner, hidden, 128);
    for (Index r = offsets(e); r < offsets(e + 1); ++r) {
      for (Index i = 0; i < inner; ++i) {
        double gate = 0, up = 0;
        for (Index k = 0; k < hidden; ++k) {
          gate += dx.value[r * hidden + k] * dw.value[i * hidden + k];
          up += dx.value[r * hidden + k] * dw.value[(inner + i) * hidden + k];
        }
        expected[r * inner + i] = gate / (1 + std::exp(-gate)) * up;
      }
    }
  }
  const auto check = [&](const auto& run) {
    const auto out = nans<moe::Matrix<float, Space>>(bound, inner);
    run(out);
    for (Index i = 0; i < bound * inner; ++i) {
      if (std::isnan(expected[i])) {
        REQUIRE(std::isnan(out.data()[i]));
      } else {
        REQUIRE(std::abs(out.data()[i] - expected[i]) <= 2e-4 * (1 + std::abs(expected[i])));
      }
    }
  };
  check([&](const auto& out) {
    moe::kernels::multiply_scaled(Space{}, offsets, bound, {x.data(), x_scale.data()}, {w.data(), w_scale.data()},
                                  inner, hidden, moe::SwiGLU{}, out.data());
  });
  // By the tiles of NVIDIA's matrix units, large ones and those of few rows.
  namespace device = moe::kernels::device;
  using Finish = device::StoreScaled<float, moe::SwiGLU>;
  const auto product = moe::kernels::Product<float8_e4m3>::over_rows(
      offsets.data(), experts, bound, inner, hidden, {x.data(), hidden, 1, 0},
      {w.data(), hidden, 1, 2 * inner * hidden}, nullptr, false);
  const auto run = [&]<class Engine>(const auto& out, Engine) {
    const Finish finish{{x_scale.data(), w_scale.data(), 2 * inner}, out.data(), {}};
    run_teams(device::TileProduct<float8_e4m3, Engine, true, true, Finish>(product, finish), 2);
  };
  check([&](const auto& out) { run(out, EmulatedWarpTile<float8_e4m3, 128, 32, 64, 4, 2, 2, 4>{}); });
  check([&](const auto& out) { run(out, EmulatedWarpTile<float8_e4m3, 16, 32, 128, 1, 4, 2, 4>{}); });
}

template <class Layer>
double distance_of_fp8(const Layer& layer) {
  const Index tokens = 40, hidden = layer.config().hidden;
  moe::Context<Space> ctx;
  const auto x = random<moe::Matrix<float, Space>>(5, tokens, hidden);
  const auto y = clone(layer.forward(ctx, x));
  const auto small = moe::pack<float8_e4m3>(layer);
  moe::Matrix<bfloat16, Space> narrow("narrow", tokens, hidden);
  for (std::size_t i = 0; i < x.size(); ++i) narrow.data()[i] = bfloat16(x.data()[i]);
  const auto z = small.forward(ctx, narrow);
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    error += std::pow(double(float(z.data()[i])) - double(y.data()[i]), 2);
    norm += std::pow(double(y.data()[i]), 2);
  }
  return std::sqrt(error / norm);
}

// Each number is off by 2.6% in the mean, in tokens, hidden values and both weights.
TEST_CASE("A layer packed as FP8 gives nearly what the layer gives") {
  const moe::MoELayer<moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>, moe::On<Space>> mixtral(
      {.hidden = 192, .intermediate = 128, .experts = 6}, moe::Seed{1});
  const double plain = distance_of_fp8(mixtral);
  CHECK(plain > 1e-3);
  CHECK(plain < 0.1);
  const moe::MoELayer<moe::Router<moe::Sigmoid, moe::TopK<2>, moe::NormalizeSum>, moe::ExpertFFN<moe::SwiGLU>,
                      moe::SharedExperts<1>, moe::On<Space>>
      shared({.hidden = 192, .intermediate = 128, .experts = 6}, moe::Seed{2});
  CHECK(distance_of_fp8(shared) < 0.1);
  const moe::MoELayer<moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>,
                      moe::SharedExperts<2, moe::SwiGLU, moe::SigmoidGate>, moe::On<Space>>
      gated({.hidden = 192, .intermediate = 128, .experts = 6}, moe::Seed{3});
  moe::fill_normal(Space{}, gated.parameters.branches.first.gate, moe::Seed{4});
  CHECK(distance_of_fp8(gated) < 0.1);
}

TEST_CASE("Shared experts in FP8 hold 8 bits a weight, and take the same tokens") {
  const moe::DeepSeekV3Layer<moe::On<Space>> layer({.hidden = 128, .intermediate = 128, .experts = 16}, moe::Seed{1});
  const auto small = moe::pack<float8_e4m3>(layer);
  const auto& shared = small.parameters.branches.first.ffn;
  static_assert(std::is_same_v<std::decay_t<decltype(shared.up.data())>, float8_e4m3*>);
  const auto& from = layer.parameters.branches.first.ffn;
  const auto numbers = host(shared.up);
  const auto scales = host(shared.up_scale_inv);
  const auto weights = host(from.up);
  REQUIRE(numbers.extent(1) == 256);
  double worst = 0, largest = 0;
  for (Index i = 0; i < 256; ++i) {
    for (Index k = 0; k < 128; ++k) {
      const double value = double(float(numbers(0, i, k))) * double(scales(0, i / 128, 0));
      worst = std::max(worst, std::abs(value - double(weights(0, i, k))));
      largest = std::max(largest, std::abs(double(weights(0, i, k))));
    }
  }
  CHECK(worst > 0);
  CHECK(worst <= largest / 16);  // three bits of fraction: at most 1/16 of a number
}

TEST_CASE("A scale that would span gate and up is refused") {
  using Layer = moe::MoELayer<moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>, moe::On<Space>>;
  const Layer layer({.hidden = 64, .intermediate = 96, .experts = 3}, moe::Seed{1});
  CHECK_THROWS_WITH(moe::pack<float8_e4m3>(layer), Catch::Matchers::Contains("no multiple of 128"));
}

}  // namespace fp8_test
