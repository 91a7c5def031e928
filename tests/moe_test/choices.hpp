#pragma once
/// What a selection chooses from keys written down as rows of numbers.
#include <cmath>
#include <limits>
#include <random>

#include "moe_test/cases.hpp"

namespace moe_test {

using moe::ExpertId;
using Rows = std::vector<std::vector<double>>;
using Choices = std::vector<ExpertId>;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// A selection's input beside the keys.
struct Setting {
  bool training = true;
  std::vector<std::uint8_t> mask = {};
  std::vector<Index> sequences = {};
};

template <class View, class T>
View device(const std::vector<T>& values) {
  View view("values", values.size());
  const auto copy = Kokkos::create_mirror_view(view);
  std::copy(values.begin(), values.end(), copy.data());
  Kokkos::deep_copy(view, copy);
  return view;
}

template <class T, class Space>
moe::Matrix<T, Space> matrix(const Rows& rows, int columns) {
  moe::Matrix<T, Space> view("rows", rows.size(), columns);
  const auto copy = Kokkos::create_mirror_view(view);
  for (std::size_t t = 0; t < rows.size(); ++t)
    for (int e = 0; e < columns; ++e) copy(t, e) = T(rows[t][e]);
  Kokkos::deep_copy(view, copy);
  return view;
}

template <class T, class Space>
moe::Batch<T, Space> batch_of(std::size_t tokens, const Setting& setting) {
  moe::Batch<T, Space> batch;
  batch.x = moe::Matrix<T, Space>("x", tokens, 1);
  if (!setting.mask.empty()) batch.mask = device<moe::Vector<std::uint8_t, Space>>(setting.mask);
  if (!setting.sequences.empty()) batch.sequence_offsets = indices<Space>(setting.sequences);
  return batch;
}

/// What `policy` chooses: k entries a token.
template <class T, class Space, class Policy>
Choices choose(const Policy& policy, const Rows& rows, int experts, const Setting& setting = {}, int k = 1,
               const Space& space = {}) {
  policy.check({experts, 1});
  moe::Context<Space> ctx;
  ctx.space = space;
  ctx.training = setting.training;
  const auto batch = batch_of<T, Space>(rows.size(), setting);
  moe::Assignments<T, Space> assignments;
  assignments.tokens = batch.tokens();
  assignments.bound = policy.bound(batch, experts);
  REQUIRE(assignments.bound == Index(rows.size()) * k);
  assignments.token_offsets = filled<moe::Vector<Index, Space>>(-5, rows.size() + 1);
  assignments.expert = filled<moe::Vector<ExpertId, Space>>(-5, assignments.bound);
  policy.select(ctx, matrix<T, Space>(rows, experts), batch, assignments);
  ctx.space.fence();
  const auto offsets = host(assignments.token_offsets);
  for (std::size_t t = 0; t <= rows.size(); ++t) REQUIRE(offsets(t) == Index(t) * k);
  const auto chosen = host(assignments.expert);
  return {chosen.data(), chosen.data() + chosen.size()};
}

/// Normal keys, rounded to float so that both precisions see the same problem.
inline Rows normal_keys(int tokens, int experts, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  Rows rows(tokens, std::vector<double>(experts));
  for (auto& row : rows)
    for (double& key : row) key = float(normal(engine));
  return rows;
}

}  // namespace moe_test
