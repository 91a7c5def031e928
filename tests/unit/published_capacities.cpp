// The size of capacities: published ones against their sources' formulas, and values that cannot work.
#include <moe/dispatch/published_capacities.hpp>
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace published_capacities_test {

using namespace moe_test;
using moe::Priority;
using Space = Kokkos::DefaultHostExecutionSpace;
using Drop = moe::CapacityPolicy<moe::Drop>;
using Pad = moe::CapacityPolicy<moe::Pad>;
namespace published = moe::published_capacities;

// Factors are hundredths here, so that the plain formulas are exact.
Index floor_of(Index a, Index b) {
  return a / b;
}
Index ceiling_of(Index a, Index b) {
  return (a + b - 1) / b;
}
Index nearest_of(Index a, Index b) {
  const Index below = a / b, twice = 2 * (a % b);
  return below + (twice > b || (twice == b && below % 2 == 1) ? 1 : 0);
}

TEST_CASE("Published capacities are their sources' formulas") {
  for (Index S : {0, 1, 7, 10, 16, 18, 100, 1000, 4096}) {
    for (Index E : {1, 3, 4, 8, 64}) {
      CHECK(published::gshard_paper().limit(S, 2, E) == std::max<Index>(1, ceiling_of(2 * S, E)));
      for (Index K : {1, 2, 3, 8}) {
        CHECK(published::fairscale().limit(S, double(K), E) == floor_of(K * S, E));
        CHECK(published::nllb().limit(S, double(K), E) == std::max<Index>(1, K * ceiling_of(S, E)));
        CHECK(published::deepseek_v2(E).limit(S, double(K), 2 * E) == std::max<Index>(1, ceiling_of(K * S, E)));
        for (Index cf : {25, 100, 105, 110, 125, 200}) {
          const double factor = double(cf) / 100, k = double(K);
          CAPTURE(S, E, K, cf);
          CHECK(published::mesh_tensorflow(factor).limit(S, k, E) ==
                std::max<Index>(4, std::min(S, floor_of(S * cf, 100 * E))));
          CHECK(published::deepspeed(factor).limit(S, k, E) == std::max<Index>(4, ceiling_of(K * S * cf, 100 * E)));
          const Index colossal = floor_of(K * S * cf, 100 * E);
          CHECK(published::colossal_ai(factor).limit(S, k, E) == std::max<Index>(4, colossal + colossal % 2));
          CHECK(published::flaxformer(factor).limit(S, k, E) == std::max<Index>(4, nearest_of(S * cf, 100 * E)));
          for (Index multiple : {1, 4}) {
            const Index up = ceiling_of(K * S * cf, 100 * E);
            CHECK(published::vmoe(factor, moe::Rounding::ceiling, multiple).limit(S, k, E) ==
                  std::max<Index>(1, ceiling_of(up, multiple) * multiple));
            const Index near = nearest_of(K * S * cf, 100 * E);
            CHECK(published::vmoe(factor, moe::Rounding::nearest, multiple).limit(S, k, E) ==
                  std::max<Index>(1, ceiling_of(near, multiple) * multiple));
          }
        }
      }
    }
  }
}

TEST_CASE("Halves round to even, and steps run in their order") {
  Drop capacity{.factor = 1, .rounding = moe::Rounding::nearest, .minimum = 0};
  const Index halves[] = {0, 0, 1, 2, 2, 2, 3, 4, 4};  // of 0, 0.5, 1, ..., 4
  for (Index n = 0; n < 9; ++n) CHECK(capacity.limit(n, 1, 2) == halves[n]);
  capacity.multiple = 4;
  CHECK(capacity.limit(9, 1, 2) == 4);
  CHECK(capacity.limit(10, 1, 2) == 8);  // 5
  capacity.at_most_tokens = true;
  CHECK(capacity.limit(3, 1, 2) == 3);  // 1.5, 2, 4, 3
  capacity.minimum = 7;
  CHECK(capacity.limit(3, 1, 2) == 7);
  capacity.tokens_per_expert = 5;
  CHECK(capacity.limit(3, 1, 2) == 5);
  capacity.devices = 2;
  CHECK(capacity.limit(3, 1, 8) == 20);  // of a device with four experts
  CHECK(Drop{}.limit(10, 2, 4) == 7);    // 6.25: the defaults
}

template <class Policy>
std::string refusal(const Policy& capacity, Index experts = 0) {
  try {
    capacity.check(experts);
  } catch (const moe::ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("Values that cannot work are refused in a sentence") {
  using Catch::Matchers::Contains;
  CHECK(refusal(published::deepseek_v2(4), 8).empty());
  CHECK(refusal(published::deepseek_v2(4)).empty());
  CHECK_THAT(refusal(published::deepseek_v2(3), 8), Contains("8 experts do not divide into devices = 3"));
  CHECK_THAT(refusal(published::deepseek_v2(16), 8), Contains("devices = 16"));
  CHECK_THAT(refusal(Drop{.devices = -1}), Contains("devices is -1"));
  CHECK_THAT(refusal(Drop{.multiple = 0}), Contains("multiple is 0"));
  CHECK_THAT(refusal(Drop{.exempt_fraction = 1.5}), Contains("exempt_fraction is 1.5"));
  CHECK_THAT(refusal(Pad{.devices = 2}), Contains("CapacityPolicy<Pad>: devices is 2"));
  CHECK_THAT(refusal(Pad{.exempt_fraction = 0.1}), Contains("CapacityPolicy<Pad>: exempt_fraction is 0.1"));
  CHECK(refusal(moe::CapacityPolicy<moe::Dropless>{.devices = 3}, 8).empty());  // it drops nothing
  using Layer = moe::MoELayer<moe::On<Space>, moe::Router<moe::Softmax, moe::TopK<2>>, Pad>;
  const moe::MoEConfig config{.hidden = 4, .intermediate = 4, .experts = 4};
  CHECK_THROWS_AS(Layer(config, Pad{.devices = 2}), moe::ConfigError);
}

}  // namespace published_capacities_test
