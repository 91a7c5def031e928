// Low-rank updates and sums of them truncated to a rank.
#include <moe/adapters/truncate.hpp>
#include <moe/core/bfloat16.hpp>

#include "moe_test/adapter_updates.hpp"

namespace adapter_truncation_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using Eigen::MatrixXd;
using moe::WeightedUpdate;

constexpr Index in = update_in, out = update_out, rank = update_rank;

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
    // No other factor is nearer.
    const MatrixXd perturbed = dense(random<moe::Matrix<double>>(unsigned(r), 23, r)) * 1e-3;
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

}  // namespace adapter_truncation_test
