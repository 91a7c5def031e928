#pragma once
/// @file
/// The best balanced assignment by the Hungarian method (Kuhn and Munkres; Jonker and Volgenant's shortest paths), in
/// double. Cubic in the number of tokens.

#include <cmath>
#include <limits>
#include <vector>

namespace reference {

/// Cost of a place that a person must not have: far above all sums of keys, far below what double's digits lose.
inline constexpr double forbidden = 1e6;

/// The column of each row of a square matrix for which the sum of costs is least.
inline std::vector<int> cheapest_matching(const std::vector<std::vector<double>>& cost) {
  const int n = int(cost.size());
  std::vector<double> row_price(n + 1), column_price(n + 1);
  std::vector<int> row_of(n + 1), previous(n + 1);  // counted from 1; 0 is none
  for (int row = 1; row <= n; ++row) {
    std::vector<double> slack(n + 1, std::numeric_limits<double>::infinity());
    std::vector<bool> seen(n + 1);
    int column = 0;
    row_of[0] = row;
    while (row_of[column] != 0) {  // a shortest path to a free column
      seen[column] = true;
      const int i = row_of[column];
      int next = 0;
      double least = std::numeric_limits<double>::infinity();
      for (int j = 1; j <= n; ++j) {
        if (seen[j]) continue;
        const double reduced = cost[i - 1][j - 1] - row_price[i] - column_price[j];
        if (reduced < slack[j]) slack[j] = reduced, previous[j] = column;
        if (slack[j] < least) least = slack[j], next = j;
      }
      for (int j = 0; j <= n; ++j) {
        if (seen[j]) {
          row_price[row_of[j]] += least;
          column_price[j] -= least;
        } else {
          slack[j] -= least;
        }
      }
      column = next;
    }
    for (; column != 0; column = previous[column]) row_of[column] = row_of[previous[column]];
  }
  std::vector<int> result(n);
  for (int j = 1; j <= n; ++j) result[row_of[j] - 1] = j - 1;
  return result;
}

/// The expert of each token, or -1 where only a key of -infinity is left: every expert gets the floor or the ceiling of
/// n / E, as few tokens as possible get nothing, and the sum of keys is largest. `keys` has a row a token.
inline std::vector<int> best_assignment(const std::vector<std::vector<double>>& keys, int experts) {
  const int n = int(keys.size()), seats = (n + experts - 1) / experts, persons = seats * experts;
  std::vector<std::vector<double>> cost(persons, std::vector<double>(persons));
  for (int i = 0; i < persons; ++i) {
    for (int j = 0; j < persons; ++j) {
      const int expert = j / seats;
      if (i < n) {
        cost[i][j] = std::isfinite(keys[i][expert]) ? -keys[i][expert] : forbidden;
      } else {  // one of the places that stay empty: the first of its expert
        cost[i][j] = j % seats == 0 ? 0 : 1e3 * forbidden;
      }
    }
  }
  std::vector<int> result = cheapest_matching(cost);
  result.resize(n);
  for (int i = 0; i < n; ++i) {
    result[i] /= seats;
    if (!std::isfinite(keys[i][result[i]])) result[i] = -1;
  }
  return result;
}

}  // namespace reference
