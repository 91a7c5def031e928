// bfloat16 over all its patterns, and the exponential that loops vectorise with over all of its range.
#include <bit>
#include <moe_test/cases.hpp>

#include "moe/core/bfloat16.hpp"
#include "moe/core/exp.hpp"

namespace arithmetic_test {

using moe::bfloat16;

float from_bits(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}
std::uint32_t bits_of(float x) {
  return std::bit_cast<std::uint32_t>(x);
}
float wide(std::uint32_t pattern) {
  return from_bits(pattern << 16);
}
bool is_nan(std::uint32_t pattern) {
  return (pattern & 0x7fffu) > 0x7f80u;
}

TEST_CASE("Every bfloat16 comes back from float as it was") {
  int wrong = 0;
  for (std::uint32_t pattern = 0; pattern < 0x10000u; ++pattern) {
    bfloat16 number;
    number.bits = std::uint16_t(pattern);
    const float value = number;
    if (is_nan(pattern)) {
      wrong += !std::isnan(value) || !std::isnan(float(bfloat16(value)));
    } else {
      wrong += bits_of(value) != pattern << 16 || bfloat16(value).bits != pattern;
    }
  }
  CHECK(wrong == 0);
}

// Between two neighbours the nearer one wins, and in the middle the even one; behind the largest lies infinity, whose
// distance counts as if it were the next number.
TEST_CASE("bfloat16 rounds to nearest, ties to even") {
  int wrong = 0;
  for (const std::uint32_t sign : {0u, 0x8000u}) {
    for (std::uint32_t low = 0; low < 0x7f80u; ++low) {
      const std::uint32_t at = (sign | low) << 16, even = low % 2 == 0 ? low : low + 1;
      wrong += bfloat16(from_bits(at + 1)).bits != (sign | low);
      wrong += bfloat16(from_bits(at + 0x7fff)).bits != (sign | low);
      wrong += bfloat16(from_bits(at + 0x8000)).bits != (sign | even);
      wrong += bfloat16(from_bits(at + 0x8001)).bits != (sign | (low + 1));
      wrong += bfloat16(from_bits(at + 0xffff)).bits != (sign | (low + 1));
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("bfloat16 keeps infinity, NaN, signs and denormals") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(bfloat16(infinity).bits == 0x7f80);
  CHECK(bfloat16(-infinity).bits == 0xff80);
  CHECK(bfloat16(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(bfloat16(0.0f).bits == 0);
  CHECK(bfloat16(-0.0f).bits == 0x8000);
  // NaN whose upper half alone, or rounded up, would be infinity or zero.
  for (const std::uint32_t bits : {0x7f800001u, 0x7f80ffffu, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u}) {
    CAPTURE(bits);
    CHECK(is_nan(bfloat16(from_bits(bits)).bits));
    CHECK(bfloat16(from_bits(bits)).bits >> 15 == bits >> 31);
  }
  CHECK(bfloat16(0x1p-133f).bits == 1);  // the smallest
  CHECK(bfloat16(0x1p-134f).bits == 0);  // half of it: a tie
  CHECK(bfloat16(0x1.8p-134f).bits == 1);
  CHECK(bfloat16(0x1p-149f).bits == 0);
  CHECK(float(bfloat16(0x1p-127f)) == 0x1p-127f);
}

TEST_CASE("bfloat16 takes other numbers by way of float, and adds in float") {
  CHECK(float(bfloat16(3)) == 3.0f);
  CHECK(float(bfloat16(0.1)) == float(bfloat16(0.1f)));
  CHECK(bfloat16().bits == 0);
  bfloat16 sum(256.0f);
  sum += bfloat16(1.0f);  // 257: a tie
  CHECK(float(sum) == 256.0f);
  sum += bfloat16(3.0f);  // 259: a tie, to even
  CHECK(float(sum) == 260.0f);
  STATIC_REQUIRE(sizeof(bfloat16) == 2);
  STATIC_REQUIRE(std::is_trivially_copyable_v<bfloat16>);
  STATIC_REQUIRE_FALSE(std::is_convertible_v<float, bfloat16>);
}

// An ulp is the distance of f32 numbers at the exact value, 2^-149 where these are denormal.
double ulps(float got, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::abs(double(got) - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

TEST_CASE("The exponential errs by at most two units in the last place") {
  double worst = 0, worst_denormal = 0;
  // Every 61st float of both signs, denormals included.
  for (const std::uint32_t sign : {0u, 0x80000000u}) {
    for (std::uint32_t bits = 0; bits <= bits_of(105.0f); bits += 61) {
      const float x = from_bits(sign | bits);
      const double exact = std::exp(double(x));
      if (exact > double(std::numeric_limits<float>::max())) break;
      const double error = ulps(moe::detail::exp(x), exact);
      double& largest = exact < 0x1p-126 ? worst_denormal : worst;
      if (!(error <= largest)) largest = error;  // NaN stays
    }
  }
  // Densely around -87.3 and -104, where results become denormal and then 0, and below the overflow at 88.7.
  for (const float centre : {-87.33655f, -103.2789f, -103.97208f, 88.72f}) {
    for (std::uint32_t bits = bits_of(centre) - 3000; bits < bits_of(centre) + 3000; ++bits) {
      const double exact = std::exp(double(from_bits(bits)));
      if (exact > double(std::numeric_limits<float>::max())) break;
      const double error = ulps(moe::detail::exp(from_bits(bits)), exact);
      double& largest = exact < 0x1p-126 ? worst_denormal : worst;
      if (!(error <= largest)) largest = error;
    }
  }
  CHECK(worst <= 2);
  CHECK(worst > 0.5);
  CHECK(worst_denormal <= 2);
  CHECK(worst_denormal > 0.1);
}

TEST_CASE("The exponential's ends are those of std::exp") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(moe::detail::exp(0.0f) == 1.0f);
  CHECK(moe::detail::exp(-0.0f) == 1.0f);
  CHECK(moe::detail::exp(infinity) == infinity);
  CHECK(moe::detail::exp(-infinity) == 0.0f);
  CHECK_FALSE(std::signbit(moe::detail::exp(-infinity)));
  CHECK(std::isnan(moe::detail::exp(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(moe::detail::exp(-std::numeric_limits<float>::quiet_NaN())));
  for (const float x : {88.7229f, 88.73f, 89.0f, 90.0f, 1e4f, std::numeric_limits<float>::max()}) {
    CAPTURE(x);
    CHECK(moe::detail::exp(x) == infinity);
  }
  for (const float x : {-104.0f, -105.0f, -1e4f, std::numeric_limits<float>::lowest()}) {
    CAPTURE(x);
    CHECK(moe::detail::exp(x) == 0.0f);
  }
  CHECK(moe::detail::exp(88.7228f) < infinity);
  CHECK(moe::detail::exp(1.0) == std::exp(1.0));
}

// Sigmoids compare scores: a larger logit must not get a smaller exponential.
TEST_CASE("The exponential is monotone") {
  int wrong = 0;
  for (const float start : {-104.0f, -87.34f, -20.0f, -1.04f, -0.35f, 0.34f, 1.03f, 10.0f, 88.0f}) {
    float x = start, last = moe::detail::exp(x);
    for (int i = 0; i < 100000; ++i) {
      x = std::nextafter(x, 200.0f);
      const float now = moe::detail::exp(x);
      wrong += now < last;
      last = now;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace arithmetic_test
