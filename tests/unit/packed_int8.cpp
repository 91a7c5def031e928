// Packed weights in int8: how far from the numbers that they stand for, rows of zeros, NaN and infinities, sizes that
// are refused. Exactness and bounds of the roundings stand in packed_kernels.cpp.
#include <moe_test/packed.hpp>

namespace packed_int8_test {

using namespace moe_test;
using moe::kernels::cpu::quantise_row;
using moe::kernels::cpu::RowScale;

std::vector<float> gaussian(unsigned seed, Index count, float deviation) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(engine);
  return numbers;
}

TEMPLATE_TEST_CASE("A quantised row is the nearest multiples of its step, ties to even, and zeros behind", "",
                   std::int8_t, std::int16_t) {
  constexpr Index in_line = 64 / sizeof(TestType), mark = 111;
  for (const Index size : {1, 2, 31, 32, 33, 64, 100, 1000}) {
    for (const float unit : {1.0f, 1e-30f, 1e30f}) {
      CAPTURE(size, unit);
      auto row = random_numbers<float>(unsigned(size), size);
      for (float& number : row) number *= unit;
      const Index depth = (size + 63) / 64 * 64, stride = 3 * in_line;  // three rows a tile
      const Index tile_depth = moe::kernels::cpu::tile_depth<TestType>(depth);
      std::vector<TestType> tile(3 * tile_depth, mark);
      const double step = quantise_row(row.data(), size, depth, tile.data(), stride);
      double largest = 0;
      for (float number : row) largest = std::max(largest, std::abs(double(number)));
      CHECK(std::abs(step * 127 - largest) <= 1e-7 * largest);
      Index wrong = 0, most = 0, sum = 0, foreign = 0;
      for (Index k = 0; k < depth; ++k) {
        const Index number = tile[k / in_line * stride + k % in_line];
        sum += number;
        most = std::max(most, std::abs(number));
        wrong += k < size ? std::abs(double(number) * step - double(row[k])) > 0.50001 * step : number != 0;
      }
      CHECK(wrong == 0);
      CHECK(most == 127);
      if constexpr (sizeof(TestType) == 1) {
        std::int32_t last;
        std::memcpy(&last, &tile[depth / in_line * stride], sizeof(last));
        CHECK(last == -128 * sum);
      }
      for (std::size_t i = 0; i < tile.size(); ++i) foreign += i % stride >= std::size_t(in_line) && tile[i] != mark;
      CHECK(foreign == 0);
    }
  }
  const std::vector<float> ties{127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, -127};
  const RowScale scale(ties.data(), Index(ties.size()));
  CHECK(scale.step == 1.0f);
  const int expected[] = {127, 0, 2, 2, 0, -2, -2, -127};
  for (std::size_t i = 0; i < ties.size(); ++i) CHECK(scale.quantise(ties[i]) == expected[i]);
}

TEMPLATE_TEST_CASE("Rows of zeros have step 0, rows with NaN or an infinity NaN, wherever it stands", "", std::int8_t,
                   std::int16_t) {
  constexpr Index stride = 64 / sizeof(TestType), tile_depth = moe::kernels::cpu::tile_depth<TestType>(128);
  for (const Index size : {1, 5, 32, 70, 128}) {
    std::vector<float> row(size, -0.0f);
    std::vector<TestType> tile(tile_depth, 111);
    const auto zeros = [&]() {  // what is added to the row's sums included
      const Index size = std::min<Index>(tile_depth, 128 + 4);
      return std::count(tile.begin(), tile.begin() + size, 0) == size;
    };
    CHECK(quantise_row(row.data(), size, 128, tile.data(), stride) == 0.0f);
    CHECK(zeros());
    row[size / 2] = 1e-40f;  // too small for 127 / it
    CHECK(quantise_row(row.data(), size, 128, tile.data(), stride) == 0.0f);
    CHECK(zeros());
    for (Index at = 0; at < size; ++at) {
      for (const float odd : {NAN, -NAN, INFINITY, -INFINITY}) {
        std::fill(row.begin(), row.end(), 3.0f);
        row[at] = odd;
        tile.assign(tile_depth, 111);
        if (!std::isnan(quantise_row(row.data(), size, 128, tile.data(), stride)) || !zeros()) FAIL_CHECK("at " << at);
      }
    }
  }
}

/// Output errors of Gaussian weights and tokens beside what follows from independent errors uniform in half a step:
/// their variance is step^2 / 12, products add theirs, and activations multiply them by their slopes.
TEST_CASE("Packed experts in int8 err as their steps say") {
  const Index hidden = 384, inner = 256, rows = 60;
  PackedExperts<std::int8_t, moe::SwiGLU> packed(1, hidden, inner, false);
  const auto up = gaussian(1, Index(packed.up.size()), 1 / std::sqrt(float(hidden)));
  const auto down = gaussian(2, Index(packed.down.size()), 1 / std::sqrt(float(inner)));
  std::copy(up.begin(), up.end(), packed.up.data());
  std::copy(down.begin(), down.end(), packed.down.data());
  packed.pack();
  const auto x = gaussian(3, rows * hidden, 1);
  const std::vector<Index> offsets{0, rows};
  std::vector<float> y(rows * hidden);
  moe::kernels::PackedWorkspace work;
  moe::kernels::packed_ffn(Host{}, packed.call(x.data(), offsets.data(), y.data()), work);

  using reference::Column;
  const auto expert = expert_of(packed, 0, true);
  const auto noise = [](const auto& row) { return std::pow(row.cwiseAbs().maxCoeff() / 127, 2) / 12; };
  // Variances of weight * in, where `in` has errors of its own.
  const auto errors = [&](const reference::Rows& weight, const Column& in, const Column& variance) {
    Column result(weight.rows());
    for (Index r = 0; r < weight.rows(); ++r)
      result(r) = weight.row(r).cwiseAbs2().dot(variance.transpose()) + in.squaredNorm() * noise(weight.row(r));
    return result;
  };
  double error = 0, size = 0, predicted = 0;
  for (Index r = 0; r < rows; ++r) {
    const Column in = rows_at(x.data() + r * hidden, hidden, 1);
    const Column in_error = Column::Constant(hidden, noise(in));
    const Column g = expert.gate * in, u = expert.up * in;
    const Column g_error = errors(expert.gate, in, in_error), u_error = errors(expert.up, in, in_error);
    Column h(inner), h_error(inner);
    for (Index i = 0; i < inner; ++i) {
      const double s = 1 / (1 + std::exp(-g(i))), slope = s * (1 + g(i) * (1 - s));
      h(i) = g(i) * s * u(i);
      h_error(i) = std::pow(slope * u(i), 2) * g_error(i) + std::pow(g(i) * s, 2) * u_error(i);
    }
    h_error.array() += noise(h);
    predicted += errors(expert.down, h, h_error).sum();
    const Column exact = expert.down * h;
    size += exact.squaredNorm();
    error += (rows_at(y.data() + r * hidden, hidden, 1).col(0) - exact).squaredNorm();
  }
  CAPTURE(std::sqrt(error / size), std::sqrt(predicted / size));
  CHECK(error < 1.2 * predicted);
  CHECK(error > 0.8 * predicted);
  CHECK(std::sqrt(error / size) < 0.03);
}

/// NaN and infinities in a token reach all of its output, whatever the activation makes of NaN; in a row of W_down,
/// that number of every token.
template <class Activation>
void check_spoilt() {
  const Index hidden = 70, inner = 45, rows = 9;
  moe::kernels::PackedWorkspace work;
  PackedExperts<std::int8_t, Activation> packed(1, hidden, inner, true);
  const std::vector<Index> offsets{0, rows};
  auto x = random_numbers<float>(1, rows * hidden);
  x[2 * hidden + 69] = NAN;
  x[7 * hidden] = -INFINITY;
  packed.down(0, 33, 44) = NAN;
  packed.pack();
  std::vector<float> y(rows * hidden);
  moe::kernels::packed_ffn(Host{}, packed.call(x.data(), offsets.data(), y.data()), work);
  Index wrong = 0;
  for (Index r = 0; r < rows; ++r) {
    for (Index h = 0; h < hidden; ++h) wrong += std::isnan(y[r * hidden + h]) != (r == 2 || r == 7 || h == 33);
  }
  CHECK(wrong == 0);
}

TEST_CASE("NaN and infinities spoil the whole token in int8, and no other") {
  check_spoilt<moe::SwiGLU>();
  check_spoilt<moe::ReLU>();
  check_spoilt<moe::ClampedSwiGLU>();
}

TEST_CASE("Tokens and weights of zeros give what biases give in int8") {
  const Index hidden = 40, inner = 33;
  moe::kernels::PackedWorkspace work;
  PackedExperts<std::int8_t, moe::SiLU> packed(1, hidden, inner, true);
  for (Index k = 0; k < inner; ++k) packed.down(0, 7, k) = 0;
  packed.pack();
  const std::vector<Index> offsets{0, 2};
  auto x = random_numbers<float>(1, 2 * hidden);
  std::fill_n(x.begin(), hidden, 0.0f);
  std::vector<float> y(2 * hidden);
  moe::kernels::packed_ffn(Host{}, packed.call(x.data(), offsets.data(), y.data()), work);
  CHECK(y[7] == packed.down_bias(0, 7));
  CHECK(y[hidden + 7] == packed.down_bias(0, 7));
  auto unbiased = packed.call(x.data(), offsets.data(), y.data());
  unbiased.up_bias = unbiased.down_bias = nullptr;
  std::fill(y.begin(), y.end(), 0.0f);
  moe::kernels::packed_ffn(Host{}, unbiased, work);
  CHECK(std::count(y.begin(), y.begin() + hidden, 0.0f) == hidden);
  CHECK(std::count(y.begin() + hidden, y.end(), 0.0f) == 1);
}

TEST_CASE("Sums of int8 that might leave int32 are refused") {
  using Panels = moe::kernels::PackedWeights<std::int8_t>;
  CHECK(Panels(1, 1, 133144).depth == 133184);
  CHECK_THROWS_MATCHES(Panels(1, 1, 133145), moe::ConfigError,
                       Catch::Matchers::Message("moe::pack: sums of 133145 products of int8 numbers may leave int32; "
                                                "133144 are the most. Pack this layer as moe::bfloat16 or float."));
}

}  // namespace packed_int8_test
