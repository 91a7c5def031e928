#pragma once
/// @file
/// Which experts are chosen together, more often than their loads alone would have it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "../train_text/routing_file.hpp"

namespace analysis {

using Count = std::int64_t;

/// The set S(t) of a token's experts, ascending.
inline std::vector<std::int32_t> experts_of(const RoutingRecord::Layer& layer, std::size_t t) {
  std::vector<std::int32_t> set(layer.expert.begin() + layer.offsets[t], layer.expert.begin() + layer.offsets[t + 1]);
  std::sort(set.begin(), set.end());
  set.erase(std::unique(set.begin(), set.end()), set.end());
  return set;
}

/// Which experts are chosen together.
struct Coactivation {
  std::size_t experts = 0;
  std::vector<Count> tokens;                        // (E) n(i): tokens with i in S(t)
  std::unordered_map<std::size_t, Count> together;  // n(i,j) for i < j at i * E + j: tokens with both in S(t)
  std::vector<double> factor;                       // (E) a(i), below

  Count both(std::size_t i, std::size_t j) const {
    const auto found = together.find(std::min(i, j) * experts + std::max(i, j));
    return found == together.end() ? 0 : found->second;
  }
  /// P(j chosen | i chosen) = n(i,j) / n(i).
  double given(std::size_t i, std::size_t j) const {
    return tokens[i] == 0 ? 0 : i == j ? 1 : double(both(i, j)) / double(tokens[i]);
  }
  /// Tokens with both where partners are independent: m(i,j) = a(i) a(j) for i != j, where the factors a give every
  /// expert as many partners as it has: sum over j of m(i,j) = sum over j of n(i,j) ("quasi-independence", Goodman
  /// 1968). P(i) P(j) T would not do: a token's K choices differ, so that even routing at random stays below it.
  double expected(std::size_t i, std::size_t j) const { return factor[i] * factor[j]; }
  /// n(i,j) / m(i,j): 1 at independence. With three experts or fewer, loads alone make it 1.
  double lift(std::size_t i, std::size_t j) const { return both(i, j) == 0 ? 0 : double(both(i, j)) / expected(i, j); }
};

/// Solves a(i) (sum of a - a(i)) = partners(i) by damped fixed-point steps. They are slow only towards an expert that
/// every token has, where a(i) has no bound; 1000 leave an error of about a tenth of a percent there.
inline std::vector<double> independent_factors(const std::vector<double>& partners) {
  double total = 0;
  for (double p : partners) total += p;
  std::vector<double> a(partners.size());
  if (total == 0) return a;
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = partners[i] / std::sqrt(total);
  for (int step = 0; step < 1000; ++step) {
    double all = 0, worst = 0;
    for (double x : a) all += x;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double others = all - a[i], fits = a[i] * others;
      if (partners[i] == 0 || others <= 0) continue;
      worst = std::max(worst, std::abs(fits / partners[i] - 1));
      const double next = a[i] * std::sqrt(partners[i] / fits);
      all += next - a[i];
      a[i] = next;
    }
    if (worst < 1e-9) break;
  }
  return a;
}

inline Coactivation coactivation(const RoutingRecord::Layer& layer) {
  Coactivation result;
  result.experts = std::size_t(layer.experts);
  result.tokens.resize(result.experts);
  std::vector<double> partners(result.experts);
  for (std::size_t t = 0; t + 1 < layer.offsets.size(); ++t) {
    const auto set = experts_of(layer, t);
    for (std::size_t x = 0; x < set.size(); ++x) {
      ++result.tokens[set[x]];
      partners[set[x]] += double(set.size() - 1);
      for (std::size_t y = x + 1; y < set.size(); ++y) ++result.together[set[x] * result.experts + set[y]];
    }
  }
  result.factor = independent_factors(partners);
  return result;
}

struct Pair {
  std::size_t i = 0, j = 0;  // i < j
  double lift = 0;
};

/// The pairs of largest lift, of those with n(i,j) >= minimum; `top` at most.
inline std::vector<Pair> strongest_pairs(const Coactivation& c, Count minimum, std::size_t top) {
  std::vector<Pair> pairs;
  for (const auto& [key, n] : c.together) {
    const std::size_t i = key / c.experts, j = key % c.experts;
    if (n >= minimum) pairs.push_back({i, j, c.lift(i, j)});
  }
  std::sort(pairs.begin(), pairs.end(), [](const Pair& x, const Pair& y) {
    return x.lift != y.lift ? x.lift > y.lift : x.i != y.i ? x.i < y.i : x.j < y.j;
  });
  pairs.resize(std::min(pairs.size(), top));
  return pairs;
}

}  // namespace analysis
