#pragma once
/// @file
/// What experts specialise in: what the choice of an expert tells of a token's domain and byte.
///
/// T tokens, E experts, A choices of a layer. A choice counts whether or not capacity dropped it: the router made it.
/// n(d,e) choices of expert e by tokens of domain d; likewise n(b,e) for byte b. P is a share of choices, as in
/// P(e) = n(e) / A.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../train_text/routing_file.hpp"

namespace analysis {

using Count = std::int64_t;
using Table = std::vector<std::vector<Count>>;

inline Count sum(const std::vector<Count>& counts) {
  Count total = 0;
  for (Count n : counts) total += n;
  return total;
}

/// The sums of a table's columns.
inline std::vector<Count> column_sums(const Table& table) {
  std::vector<Count> sums(table.empty() ? 0 : table.front().size());
  for (const auto& row : table)
    for (std::size_t j = 0; j < row.size(); ++j) sums[j] += row[j];
  return sums;
}

/// n(group of t, e), where group[t] < groups is a token's domain or byte.
inline Table choices_by(const std::vector<std::uint8_t>& group, std::size_t groups, const RoutingRecord::Layer& layer) {
  Table table(groups, std::vector<Count>(std::size_t(layer.experts)));
  for (std::size_t t = 0; t < group.size(); ++t)
    for (std::int32_t a = layer.offsets[t]; a < layer.offsets[t + 1]; ++a) ++table[group[t]][layer.expert[a]];
  return table;
}

/// H = -sum of p log2 p, in bits, of the shares of these counts.
inline double entropy(const std::vector<Count>& counts) {
  const double total = double(sum(counts));
  double bits = 0;
  for (Count n : counts) bits -= n > 0 ? double(n) / total * std::log2(double(n) / total) : 0;
  return std::max(0.0, bits);  // not -0
}

/// What knowing one of two things says of the other.
struct Information {
  double bits = 0;     // I(X;Y) = sum of P(x,y) log2(P(x,y) / (P(x) P(y)))
  double share = 0;    // I(X;Y) / H(X), rows being X: 1 where the column tells the row; 0 where H(X) is 0
  double by_luck = 0;  // what independent X and Y show on average in so few counts: (|X|-1)(|Y|-1) / (2 A ln 2)
};

/// Of a table n(x,y). |X| and |Y| are the rows and columns that hold anything.
inline Information information(const Table& table) {
  std::vector<Count> rows;
  for (const auto& row : table) rows.push_back(sum(row));
  const std::vector<Count> columns = column_sums(table);
  const double total = double(sum(rows));
  Information result;
  if (total == 0) return result;
  for (std::size_t x = 0; x < rows.size(); ++x) {
    for (std::size_t y = 0; y < columns.size(); ++y) {
      const double n = double(table[x][y]);
      if (n > 0) result.bits += n / total * std::log2(n * total / (double(rows[x]) * double(columns[y])));
    }
  }
  result.bits = std::max(0.0, result.bits);
  const double uncertain = entropy(rows);
  result.share = uncertain > 0 ? result.bits / uncertain : 0;
  auto used = [](const std::vector<Count>& counts) {
    return double(counts.size()) - double(std::count(counts.begin(), counts.end(), 0));
  };
  result.by_luck = (used(rows) - 1) * (used(columns) - 1) / (2 * total * std::log(2.0));
  return result;
}

/// A byte that an expert is chosen for more often than others are.
struct TypicalByte {
  int byte = 0;
  Count count = 0;  // n(b,e)
  double lift = 0;  // P(b|e) / P(b) = n(b,e) A / (n(b) n(e)): 1 where the byte does not matter
};

/// The bytes of largest lift above 1 for each expert, of those with n(b,e) >= minimum; `top` at most.
inline std::vector<std::vector<TypicalByte>> typical_bytes(const Table& by_byte, Count minimum, std::size_t top) {
  const std::vector<Count> load = column_sums(by_byte);
  const double total = double(sum(load));
  std::vector<std::vector<TypicalByte>> result(load.size());
  for (std::size_t b = 0; b < by_byte.size(); ++b) {
    const double frequency = double(sum(by_byte[b]));
    for (std::size_t e = 0; e < load.size(); ++e) {
      const Count n = by_byte[b][e];
      const double lift = n > 0 ? double(n) * total / (frequency * double(load[e])) : 0;
      if (n >= minimum && lift > 1) result[e].push_back({int(b), n, lift});
    }
  }
  for (auto& bytes : result) {
    std::stable_sort(bytes.begin(), bytes.end(), [](const auto& x, const auto& y) { return x.lift > y.lift; });
    bytes.resize(std::min(bytes.size(), top));
  }
  return result;
}

}  // namespace analysis
