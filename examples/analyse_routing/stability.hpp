#pragma once
/// @file
/// How much of the routing of a text stays from one checkpoint to the next.

#include <iterator>

#include "coactivation.hpp"

namespace analysis {

/// |x and y| / |x or y| of ascending sets; 1 where both are empty.
inline double jaccard(const std::vector<std::int32_t>& x, const std::vector<std::int32_t>& y) {
  std::vector<std::int32_t> both;
  std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(both));
  const std::size_t either = x.size() + y.size() - both.size();
  return either == 0 ? 1 : double(both.size()) / double(either);
}

/// The expert of a token's largest weight, the first of equals; -1 without a choice.
inline std::int32_t top_expert(const RoutingRecord::Layer& layer, std::size_t t) {
  const auto begin = layer.weight.begin() + layer.offsets[t], end = layer.weight.begin() + layer.offsets[t + 1];
  return begin == end ? -1 : layer.expert[std::size_t(std::max_element(begin, end) - layer.weight.begin())];
}

/// How alike two layers route the same tokens; means over tokens.
struct Stability {
  double same_set = 0;  // S(t) is the same in both
  double overlap = 0;   // Jaccard: |S(t) in both| / |S(t) in either|
  double same_top = 0;  // the expert of largest weight is the same
  double by_luck = 0;   // same_top if the two had nothing to do with each other: sum over e of P1(e) P2(e)
};

inline Stability stability(const RoutingRecord::Layer& first, const RoutingRecord::Layer& second) {
  const std::size_t tokens = first.offsets.size() - 1;
  std::unordered_map<std::int32_t, double> tops[2];
  Stability s;
  if (tokens == 0) return s;
  for (std::size_t t = 0; t < tokens; ++t) {
    const auto x = experts_of(first, t), y = experts_of(second, t);
    const std::int32_t p = top_expert(first, t), q = top_expert(second, t);
    s.same_set += x == y ? 1 : 0;
    s.overlap += jaccard(x, y);
    s.same_top += p == q ? 1 : 0;
    ++tops[0][p];
    ++tops[1][q];
  }
  for (const auto& [e, count] : tops[0]) s.by_luck += count * tops[1][e] / double(tokens);
  for (double* sum : {&s.same_set, &s.overlap, &s.same_top, &s.by_luck}) *sum /= double(tokens);
  return s;
}

/// Throws unless the two records route the same text through layers that can be compared.
inline void require_comparable(const std::string& path, const RoutingRecord& record, const std::string& other_path,
                               const RoutingRecord& other) {
  auto require = [&](bool condition, const auto&... parts) {
    moe::detail::require<moe::DataError>(condition, "analyse_routing: '", other_path, "' and '", path,
                                         "' cannot be compared: ", parts...);
  };
  const char* same_text = " Give files that one run exported.";
  require(record.byte.size() == other.byte.size(), "their texts have ", other.byte.size(), " and ", record.byte.size(),
          " bytes.", same_text);
  const auto differs = std::mismatch(record.byte.begin(), record.byte.end(), other.byte.begin()).first;
  require(differs == record.byte.end(), "their texts differ from byte ", differs - record.byte.begin(), " on.",
          same_text);
  require(record.domains == other.domains && record.domain == other.domain,
          "their texts are divided into other domains.", same_text);
  require(record.model == other.model, "they are of the models ", other.model, " and ", record.model,
          ", whose experts have nothing in common.");
  require(record.layers.size() == other.layers.size(), "they have ", other.layers.size(), " and ", record.layers.size(),
          " layers.");
  for (std::size_t n = 0; n < record.layers.size(); ++n)
    require(record.layers[n].experts == other.layers[n].experts, "layer ", n, " has ", other.layers[n].experts, " and ",
            record.layers[n].experts, " experts.");
}

}  // namespace analysis
