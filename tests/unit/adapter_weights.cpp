// Low-rank updates merged into weights and taken out again.
#include <moe/adapters/merge.hpp>
#include <moe/core/bfloat16.hpp>
#include <moe/core/float16.hpp>

#include "moe_test/adapter_updates.hpp"

namespace adapter_weights_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using Eigen::MatrixXd;
using moe::WeightedUpdate;

constexpr Index adapters = update_count, in = update_in, out = update_out;

template <class T>
double worst_rounding(const MatrixXd& expected, const MatrixXd& result) {
  const double step = std::is_same_v<T, moe::bfloat16> ? 0x1p-8 : std::is_same_v<T, moe::float16> ? 0x1p-11 : 1e-6;
  return ((result - expected).array().abs() / (step * expected.array().abs() + 1e-5)).maxCoeff();
}

/// Weights whose sums with updates lose bits: magnitudes from 1e-4 to 1e3.
template <class View, class... Extents>
View wide_weight(unsigned seed, Extents... extents) {
  View view = random<View>(seed, extents...);
  const auto copy = host(view);
  for (std::size_t i = 0; i < copy.size(); ++i)
    copy.data()[i] = typename View::value_type(double(copy.data()[i]) * std::pow(10.0, double(i % 8) - 4));
  Kokkos::deep_copy(view, copy);
  return view;
}

TEMPLATE_TEST_CASE("A merged weight is the weight and the updates' sum, and unmerges to the bit", "", float, double,
                   moe::bfloat16, moe::float16) {
  moe::Context ctx;
  const bool shared = GENERATE(false, true);
  const auto update = some_updates<TestType>(shared);
  const auto weight = wide_weight<moe::Matrix<TestType>>(9, out, in);
  const auto before = clone(weight);
  moe::MergedWeight merged(weight);
  for (const std::vector<WeightedUpdate>& of :
       {std::vector<WeightedUpdate>{{1, 0.7}}, std::vector<WeightedUpdate>{{0, 0.25}, {2, -1.5}, {0, 3.0}}}) {
    CHECK_FALSE(merged.merged());
    merged.merge(ctx, update, of);
    CHECK(merged.merged());
    CHECK(worst_rounding<TestType>(dense(before) + dense_sum(update, of), dense(weight)) < 1.01);
    CHECK_FALSE(same_bits(weight, before));
    merged.unmerge(ctx);
    CHECK(same_bits(weight, before));
  }
}

TEST_CASE("Subtracting a merged update would not give the weight's bits back") {
  moe::Context ctx;
  const auto update = some_updates<float>();
  const auto weight = wide_weight<moe::Matrix<float>>(9, out, in);
  const auto before = clone(weight);
  moe::MergedWeight first(weight), second(weight);
  first.merge(ctx, update, {{1, 0.7}});
  second.merge(ctx, update, {{1, -0.7}});
  CHECK_FALSE(same_bits(weight, before));
}

TEST_CASE("Updates in f32 merge into a weight of 16 bits") {
  moe::Context ctx;
  const auto update = some_updates<float>();
  const auto weight = wide_weight<moe::Matrix<moe::bfloat16>>(9, out, in);
  const auto before = clone(weight);
  moe::MergedWeight merged(weight);
  merged.merge(ctx, update, {{2, 0.5}});
  CHECK(worst_rounding<moe::bfloat16>(dense(before) + dense_sum(update, {{2, 0.5}}), dense(weight)) < 1.01);
  merged.unmerge(ctx);
  CHECK(same_bits(weight, before));
}

TEMPLATE_TEST_CASE("Experts' slices merge one by one, or each with its own update", "", float, moe::bfloat16,
                   moe::float16) {
  moe::Context ctx;
  const auto update = some_updates<TestType>();
  const auto weight = wide_weight<moe::Tensor3<TestType>>(9, adapters, out, in);
  const auto before = clone(weight);
  const auto slice = [&](const auto& view, Index e) {
    return dense(host(Kokkos::subview(view, e, Kokkos::ALL(), Kokkos::ALL())));
  };
  moe::MergedWeight<TestType> merged(weight);
  merged.merge(ctx, 1, update, {{2, 0.5}});
  CHECK((merged.merged(1) && !merged.merged(0) && !merged.merged(2)));
  CHECK(worst_rounding<TestType>(slice(before, 1) + dense_sum(update, {{2, 0.5}}), slice(weight, 1)) < 1.01);
  CHECK(slice(weight, 0) == slice(before, 0));
  CHECK(slice(weight, 2) == slice(before, 2));

  CHECK_THROWS_WITH(merged.merge_each(ctx, update, 2.0), Contains("slice 1 has an update merged already"));
  CHECK(slice(weight, 0) == slice(before, 0));  // refused before anything changed
  merged.unmerge(ctx, 1);
  merged.merge_each(ctx, update, 2.0);
  for (Index e = 0; e < adapters; ++e)
    CHECK(worst_rounding<TestType>(slice(before, e) + dense_sum(update, {{e, 2.0}}), slice(weight, e)) < 1.01);
  merged.unmerge(ctx, 0);
  CHECK(slice(weight, 0) == slice(before, 0));
  merged.unmerge(ctx);
  CHECK(same_bits(weight, before));
}

TEST_CASE("Merges that cannot be are refused, and change nothing") {
  moe::Context ctx;
  const auto update = some_updates<float>();
  const auto weight = random<moe::Matrix<float>>(9, out, in);
  const auto before = clone(weight);
  moe::MergedWeight<float> merged(weight);
  CHECK_THROWS_WITH(merged.unmerge(ctx), Contains("nothing is merged"));
  CHECK_THROWS_WITH(merged.unmerge(ctx, 1), Contains("slice 1 of 1"));
  CHECK_THROWS_AS(merged.merge(ctx, update, {{3, 1.0}}), moe::ConfigError);
  CHECK_THROWS_WITH(merged.merge(ctx, update, {}), Contains("a sum of no updates"));
  CHECK_THROWS_WITH(merged.merge_each(ctx, update, 1.0), Contains("3 updates for 1 slices"));
  CHECK(same_bits(weight, before));
  merged.merge(ctx, update, {{0, 1.0}});
  const auto after = clone(weight);
  CHECK_THROWS_WITH(merged.merge(ctx, update, {{0, 1.0}}), Contains("merged already. Unmerge it first"));
  CHECK(same_bits(weight, after));
  const auto transposed = random<moe::Matrix<float>>(9, in, out);
  CHECK_THROWS_WITH(moe::MergedWeight<float>(transposed).merge(ctx, update, {{0, 1.0}}),
                    Contains("from 37 to 301 for a weight (out, in) of shape (37, 301)"));
  CHECK_THROWS_AS(moe::MergedWeight<float>(moe::Matrix<float>()), moe::ShapeError);
  moe::MergedWeight<float> experts(random<moe::Tensor3<float>>(9, 2, out, in));
  CHECK_THROWS_WITH(experts.merge(ctx, update, {{0, 1.0}}), Contains("Say which"));
}

}  // namespace adapter_weights_test
