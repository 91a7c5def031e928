#pragma once
/// @file
/// Random low-rank updates, and their dense sums.

#include <Eigen/Core>
#include <vector>

#include "moe/adapters/weighted_update.hpp"
#include "moe_test/cases.hpp"

namespace moe_test {

constexpr Index update_count = 3, update_in = 37, update_out = 301, update_rank = 5;  // out: more than a block of rows

template <class T>
moe::LowRank<T> some_updates(bool shared = false, unsigned seed = 1) {
  return {random<moe::Tensor3<T>>(seed, shared ? 1 : update_count, update_rank, update_in),
          random<moe::Tensor3<T>>(seed + 1, update_count, update_out, update_rank)};
}

template <class View>
Eigen::MatrixXd dense(const View& view) {
  const auto values = host(view);
  Eigen::MatrixXd result(view.extent(0), view.extent(1));
  for (Index i = 0; i < result.rows(); ++i)
    for (Index j = 0; j < result.cols(); ++j) result(i, j) = double(values(i, j));
  return result;
}

/// The sum of updates, formed.
template <class T>
Eigen::MatrixXd dense_sum(const moe::LowRank<T>& update, const std::vector<moe::WeightedUpdate>& of) {
  const auto a = host(update.a);
  const auto b = host(update.b);
  Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(update.out(), update.in());
  for (const auto& term : of) {
    const Index from = a.extent(0) == 1 ? 0 : term.number;
    for (Index o = 0; o < update.out(); ++o)
      for (Index k = 0; k < update.rank(); ++k)
        for (Index i = 0; i < update.in(); ++i)
          sum(o, i) += term.scaling * double(b(term.number, o, k)) * double(a(from, k, i));
  }
  return sum;
}

}  // namespace moe_test
