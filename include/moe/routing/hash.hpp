#pragma once
/// @file
/// Hash tables for hash layers (Roller et al. 2021, "Hash layers for large sparse models"): which experts a token id
/// goes to. Made once, on the host; TableLookup reads them.

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/random.hpp"

MOE_NAMESPACE_BEGIN

/// A table (vocabulary, k): k experts of each token id, drawn uniformly and distinct. A row depends on the seed, the id
/// and the number of experts alone, and its first choices do not change with k. With k > 1 this is their MultiHash:
/// each choice has a hash of its own, but passes over the experts that earlier choices took.
/// Throws ConfigError unless 1 <= k <= experts.
inline std::vector<ExpertId> random_hash(Index vocabulary, Index experts, Index k, Seed seed) {
  detail::require<ConfigError>(vocabulary >= 0 && k > 0 && k <= experts, "moe::random_hash: cannot choose ", k, " of ",
                               experts, " experts for each of ", vocabulary, " ids. Choose 1 to ", experts, ".");
  const RandomKey key{seed.value, 0, 0, Purpose::initialise};
  std::vector<ExpertId> table(std::size_t(vocabulary * k));
  std::vector<ExpertId> taken;  // by earlier choices of the id, ascending
  for (Index id = 0; id < vocabulary; ++id) {
    taken.clear();
    for (Index i = 0; i < k; ++i) {
      const std::uint64_t draw = random_bits(key, std::uint64_t(id), std::uint32_t(i));
      auto expert = ExpertId(draw * std::uint64_t(experts - i) >> 32);  // among those that are left
      auto place = taken.begin();
      for (; place != taken.end() && *place <= expert; ++place) ++expert;
      taken.insert(place, expert);
      table[std::size_t(id * k + i)] = expert;
    }
  }
  return table;
}

/// A table (vocabulary, 1) that spreads the tokens of a corpus evenly: ids in descending order of frequency, each to
/// the expert with the fewest tokens so far (their balanced hash); of equals the lowest first. Ids that never
/// occur add nothing to any expert's tokens, so they are dealt out in turn.
/// Throws ConfigError without an expert, DataError for a negative or infinite frequency or a NaN.
inline std::vector<ExpertId> balanced_hash(std::span<const double> frequencies, Index experts) {
  detail::require<ConfigError>(experts > 0, "moe::balanced_hash: ", experts, " experts; there must be one or more.");
  for (std::size_t id = 0; id < frequencies.size(); ++id) {
    detail::require<DataError>(frequencies[id] >= 0 && frequencies[id] <= std::numeric_limits<double>::max(),
                               "moe::balanced_hash: the frequency of token id ", id, " is ", frequencies[id],
                               "; give counts or shares, 0 where the id never occurs.");
  }
  std::vector<std::size_t> order(frequencies.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return frequencies[a] > frequencies[b]; });

  using Bucket = std::pair<double, ExpertId>;
  std::priority_queue<Bucket, std::vector<Bucket>, std::greater<Bucket>> buckets;  // the emptiest on top
  for (Index e = 0; e < experts; ++e) buckets.emplace(0.0, ExpertId(e));
  std::vector<ExpertId> table(frequencies.size());
  Index unseen = 0;
  for (const std::size_t id : order) {
    if (frequencies[id] == 0) {
      table[id] = ExpertId(unseen++ % experts);
      continue;
    }
    const auto [tokens, expert] = buckets.top();
    buckets.pop();
    buckets.emplace(tokens + frequencies[id], expert);
    table[id] = expert;
  }
  return table;
}

MOE_NAMESPACE_END
