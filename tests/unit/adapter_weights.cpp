// Low-rank updates merged into weights and taken out again, and truncated to a rank.
#include <moe/adapters/merge.hpp>
#include <moe/adapters/truncate.hpp>
#include <moe/core/bfloat16.hpp>
#include <moe/core/float16.hpp>

#include "moe_test/cases.hpp"

namespace adapter_weights_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using moe::WeightedUpdate;
using Space = Kokkos::DefaultExecutionSpace;
using Eigen::MatrixXd;

constexpr Index adapters = 3, in = 37, out = 301, rank = 5;  // out: more than a block of rows

template <class T>
moe::LowRank<T, Space> some_updates(bool shared = false, unsigned seed = 1) {
  return {random<moe::Tensor3<T, Space>>(seed, shared ? 1 : adapters, rank, in),
          random<moe::Tensor3<T, Space>>(seed + 1, adapters, out, rank)};
}

template <class View>
MatrixXd dense(const View& view) {
  return moe::detail::host_matrix(view);
}

/// The sum of updates, formed.
template <class T>
MatrixXd dense_sum(const moe::LowRank<T, Space>& update, const std::vector<WeightedUpdate>& of) {
  const auto a = host(update.a);
  const auto b = host(update.b);
  MatrixXd sum = MatrixXd::Zero(update.out(), update.in());
  for (const auto& term : of) {
    const auto from = a.extent(0) == 1 ? 0 : term.number;
    const MatrixXd left = dense(Kokkos::subview(b, term.number, Kokkos::ALL(), Kokkos::ALL()));
    sum += term.scaling * left * dense(Kokkos::subview(a, from, Kokkos::ALL(), Kokkos::ALL()));
  }
  return sum;
}

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

double frobenius_share(const MatrixXd& full, const MatrixXd& approximation) {
  return (full - approximation).norm() / full.norm();
}

TEST_CASE("A truncated dense update is the best of its rank") {
  moe::Context ctx;
  const auto delta = random<moe::Matrix<double>>(4, 23, 31);
  const MatrixXd full = dense(delta);
  const Eigen::JacobiSVD<MatrixXd> svd(full, Eigen::ComputeThinU | Eigen::ComputeThinV);
  for (Index r : {1, 7, 23}) {
    const auto result = moe::truncate(ctx, delta, r);
    CHECK((result.update.adapters() == 1 && result.update.rank() == r));
    REQUIRE(result.singular_values.size() == 23);
    for (Index i = 0; i < 23; ++i)
      CHECK(result.singular_values[std::size_t(i)] == Approx(svd.singularValues()(i)).epsilon(1e-12));
    const MatrixXd best =
        svd.matrixU().leftCols(r) * svd.singularValues().head(r).asDiagonal() * svd.matrixV().leftCols(r).transpose();
    const MatrixXd got = dense_sum(result.update, {{0, 1.0}});
    CHECK((got - best).norm() < 1e-12 * full.norm());
    CHECK(frobenius_share(full, got) == Approx(result.relative_error).margin(1e-13));
    const auto perturbed = dense(random<moe::Matrix<double>>(unsigned(r), 23, r)) * 1e-3;  // no other factor is nearer
    const auto a = dense(Kokkos::subview(host(result.update.a), 0, Kokkos::ALL(), Kokkos::ALL()));
    CHECK(frobenius_share(full, got + perturbed * a) > result.relative_error);
  }
  CHECK(moe::truncate(ctx, delta, 23).relative_error == 0);
  CHECK_THROWS_WITH(moe::truncate(ctx, delta, 24), Contains("rank 24 of an update with 23 singular values"));
  CHECK_THROWS_AS(moe::truncate(ctx, delta, 0), moe::ConfigError);
  CHECK_THROWS_AS(moe::truncate(ctx, nans<moe::Matrix<float>>(3, 4), 1), moe::DataError);
}

TEST_CASE("A sum of low-rank updates truncates as its dense form does") {
  moe::Context ctx;
  const bool shared = GENERATE(false, true);
  const auto update = some_updates<double>(shared);
  const std::vector<WeightedUpdate> of{{0, 0.5}, {2, -2.0}, {1, 1.25}};
  const MatrixXd full = dense_sum(update, of);
  moe::Matrix<double> formed("formed", out, in);
  const auto copy = Kokkos::create_mirror_view(Kokkos::HostSpace{}, formed);
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i) copy(o, i) = full(o, i);
  Kokkos::deep_copy(formed, copy);
  const Index all = shared ? rank : 3 * rank;  // shared factors A: the sum's rank is that of one
  for (Index r : {Index(1), Index(4), all}) {
    const auto result = moe::truncate(ctx, update, of, r);
    const auto expected = moe::truncate(ctx, formed, r);
    CHECK(result.singular_values.size() == 15);
    for (Index i = 0; i < all; ++i)
      CHECK(result.singular_values[std::size_t(i)] == Approx(expected.singular_values[std::size_t(i)]).epsilon(1e-10));
    CHECK(result.relative_error == Approx(expected.relative_error).margin(1e-12));
    CHECK((dense_sum(result.update, {{0, 1.0}}) - dense_sum(expected.update, {{0, 1.0}})).norm() < 1e-10 * full.norm());
  }
  CHECK(frobenius_share(full, dense_sum(moe::truncate(ctx, update, of, all).update, {{0, 1.0}})) < 1e-13);
}

TEST_CASE("Ranks above the widths, one update of its own rank, and zeros truncate") {
  moe::Context ctx;
  const moe::LowRank<float> wide{random<moe::Tensor3<float>>(1, 2, 8, 6), random<moe::Tensor3<float>>(2, 2, 4, 8)};
  const auto result = moe::truncate(ctx, wide, {{0, 1.0}, {1, 2.0}}, 4);
  CHECK(result.singular_values.size() == 4);
  CHECK(frobenius_share(dense_sum(wide, {{0, 1.0}, {1, 2.0}}), dense_sum(result.update, {{0, 1.0}})) < 1e-6);
  CHECK_THROWS_WITH(moe::truncate(ctx, wide, {{0, 1.0}}, 5), Contains("rank 5 of an update with 4 singular values"));
  CHECK_THROWS_AS(moe::truncate(ctx, wide, {{2, 1.0}}, 1), moe::ConfigError);

  const auto own = some_updates<moe::bfloat16>();
  const auto same = moe::truncate(ctx, own, {{1, 0.5}}, rank);
  CHECK(same.relative_error == 0);
  CHECK(frobenius_share(dense_sum(own, {{1, 0.5}}), dense_sum(same.update, {{0, 1.0}})) < 0x1p-7);

  Kokkos::deep_copy(wide.b, 0.0f);
  const auto nothing = moe::truncate(ctx, wide, {{0, 1.0}}, 2);
  CHECK(nothing.relative_error == 0);
  CHECK(dense_sum(nothing.update, {{0, 1.0}}).norm() == 0);
}

TEST_CASE("The rank for an error is the smallest that keeps it") {
  const std::vector<double> values{4, 2, 1};  // squares 16, 4, 1 of 21
  const auto errors = moe::truncation_errors(values);
  CHECK(errors[0] == 1);
  CHECK(errors[1] == Approx(std::sqrt(5.0 / 21)));
  CHECK(errors[3] == 0);
  CHECK(moe::rank_within(values, 0.49) == 1);
  CHECK(moe::rank_within(values, 0.48) == 2);
  CHECK(moe::rank_within(values, 0.0) == 3);
  CHECK(moe::rank_within({0, 0}, 0.0) == 1);
}

}  // namespace adapter_weights_test
