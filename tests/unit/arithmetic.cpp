// bfloat16 and float16 over all their patterns, and the exponential that loops vectorise with over all of its range.
#include <bit>
#include <moe_test/cases.hpp>

#include "moe/core/bfloat16.hpp"
#include "moe/core/convert.hpp"
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

// A float16's exact value, by its definition.
double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 0    ? std::ldexp(fraction, -24)
                      : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                       : std::ldexp(fraction + 1024, exponent - 25);
  return bits >> 15 ? -size : size;
}

TEST_CASE("Every float16 is its value as float, and comes back as it was") {
  int wrong = 0;
  for (std::uint32_t pattern = 0; pattern < 0x10000u; ++pattern) {
    moe::float16 number;
    number.bits = std::uint16_t(pattern);
    const float value = number;
    const bool nan = (pattern & 0x7fffu) > 0x7c00u;
    const bool same = nan ? std::isnan(value) && std::isnan(float(moe::float16(value)))
                          : double(value) == half_value(number.bits) && moe::float16(value).bits == pattern;
    wrong += !same || std::signbit(value) != (pattern >> 15 != 0);
  }
  CHECK(wrong == 0);
}

TEST_CASE("float16 rounds to nearest, ties to even") {
  int wrong = 0;
  for (std::uint16_t low = 0; low < 0x7c00u; ++low) {
    const double here = half_value(low), next = low == 0x7bffu ? 65536 : half_value(std::uint16_t(low + 1));
    const float middle = float((here + next) / 2);  // exact
    wrong += moe::float16(middle).bits != (low % 2 == 0 ? low : low + 1);
    wrong += moe::float16(std::nextafter(middle, 0.0f)).bits != low;
    wrong += moe::float16(std::nextafter(middle, 1e9f)).bits != low + 1;
    wrong += moe::float16(-middle).bits != (0x8000u | (low % 2 == 0 ? low : low + 1));
  }
  CHECK(wrong == 0);
  CHECK(moe::float16(0x1p-149f).bits == 0);
  CHECK(moe::float16(-0.0f).bits == 0x8000);
  CHECK(moe::float16(1e30f).bits == 0x7c00);
  CHECK(moe::float16(-INFINITY).bits == 0xfc00);
  for (const std::uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    CHECK(std::isnan(float(moe::float16(from_bits(bits)))));
    CHECK(moe::float16(from_bits(bits)).bits >> 15 == bits >> 31);
  }
}

// Runs convert by other instructions than single numbers do.
TEST_CASE("Runs of numbers convert as numbers do") {
  constexpr int count = 77;
  std::array<moe::float16, count> half, back;
  std::array<float, count> wide;
  int wrong = 0;
  for (std::uint32_t begin = 0; begin < 0x10000u; begin += count) {
    for (std::uint32_t i = 0; i < count; ++i) half[i].bits = std::uint16_t(begin + i);
    moe::detail::convert<count>(half.data(), wide.data());
    for (int i = 0; i < count; ++i) wrong += bits_of(wide[i]) != bits_of(half[i]) && !std::isnan(wide[i]);
    for (int i = 0; i < count; ++i) wide[i] = from_bits(bits_of(wide[i]) + 0x0fffu * std::uint32_t(i % 4));
    moe::detail::convert<count>(wide.data(), back.data());
    for (int i = 0; i < count; ++i) wrong += back[i].bits != moe::float16(wide[i]).bits;
  }
  CHECK(wrong == 0);
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
