#pragma once
/// @file
/// What routing did to a text: choices collected from tapes, and their shares by domain and by byte.

#include <algorithm>
#include <cmath>
#include <moe/balance/load.hpp>
#include <nlohmann/json.hpp>
#include <numeric>

#include "routing_file.hpp"

namespace text {

using moe::Index;
using ExpertNumber = decltype(RoutingRecord::Layer::expert)::value_type;

template <class View>
auto on_host(const View& view) {
  return Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
}

/// Appends the choices of one forward pass.
template <class Tape>
void append(RoutingRecord::Layer& layer, const Tape& tape) {
  const auto& assignments = tape.routing.assignments;
  const auto expert = on_host(assignments.expert);
  const auto weight = on_host(assignments.weight);
  const auto row = on_host(tape.plan.assignment_row);
  auto offsets = on_host(assignments.token_offsets);
  if (layer.offsets.empty()) layer.offsets.push_back(0);
  layer.experts = tape.plan.experts;
  for (Index t = 0; t < assignments.tokens; ++t) {
    const Index k = assignments.uniform_k;
    for (Index a = k != 0 ? t * k : offsets(t), end = k != 0 ? a + k : offsets(t + 1); a < end; ++a) {
      if (expert(a) == moe::no_expert) continue;
      layer.expert.push_back(static_cast<ExpertNumber>(expert(a)));
      layer.weight.push_back(float(weight(a)));
      layer.kept.push_back(row(a) >= 0);
    }
    layer.offsets.push_back(std::int32_t(layer.expert.size()));
  }
}

/// The mean over tokens of the entropy of their scores, in units of log E.
template <class Tape>
double router_entropy(const Tape& tape) {
  const auto scores = on_host(tape.routing.scores);
  const Index tokens = Index(scores.extent(0)), experts = Index(scores.extent(1));
  if (experts < 2 || tokens == 0) return 0;
  double total = 0;
  for (Index t = 0; t < tokens; ++t) {
    double sum = 0, weighted = 0;
    for (Index e = 0; e < experts; ++e) {
      const double s = double(scores(t, e));
      sum += s;
      weighted += s > 0 ? s * std::log(s) : 0.0;
    }
    total += sum > 0 ? std::log(sum) - weighted / sum : 0.0;
  }
  return total / double(tokens) / std::log(double(experts));
}

/// Rows of counts, each divided by its sum.
inline nlohmann::json shares(const std::vector<std::vector<double>>& counts) {
  auto rows = nlohmann::json::array();
  for (const auto& row : counts) {
    const double sum = std::max(1.0, std::accumulate(row.begin(), row.end(), 0.0));
    auto& share = rows.emplace_back(nlohmann::json::array());
    for (double n : row) share.push_back(std::round(1e5 * n / sum) / 1e5);
  }
  return rows;
}

/// Letters, digits and the like.
inline const std::vector<std::string>& byte_classes() {
  static const std::vector<std::string> names{"letters", "digits", "space", "signs", "other"};
  return names;
}
inline std::size_t byte_class(std::uint8_t byte) {
  const bool letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
  const bool digit = byte >= '0' && byte <= '9', space = byte == ' ' || (byte >= '\t' && byte <= '\r');
  return letter ? 0 : digit ? 1 : space ? 2 : byte > 32 && byte < 127 ? 3 : 4;
}

/// The share of tokens that a layer's routing takes nowhere, of all, by domain and by class of byte. Null where no
/// layer leaves any out.
inline nlohmann::json skipped_tokens(const RoutingRecord& record) {
  const std::size_t domains = record.domains.size(), columns = 1 + domains + byte_classes().size();
  nlohmann::json layers = nlohmann::json::array();
  bool any = false;
  for (const auto& layer : record.layers) {
    std::vector<double> skipped(columns), all(columns);
    for (std::size_t t = 0; t < record.byte.size(); ++t) {
      const bool none = layer.offsets[t] == layer.offsets[t + 1];
      for (const std::size_t column :
           {std::size_t(0), 1 + std::size_t(record.domain[t]), 1 + domains + byte_class(record.byte[t])}) {
        all[column] += 1;
        skipped[column] += none ? 1 : 0;
      }
      any = any || none;
    }
    auto& row = layers.emplace_back(nlohmann::json::array());
    for (std::size_t i = 0; i < columns; ++i)
      row.push_back(all[i] > 0 ? nlohmann::json(std::round(1e4 * skipped[i] / all[i]) / 1e4) : nlohmann::json());
  }
  if (!any) return nullptr;
  std::vector<std::string> names{"all"};
  names.insert(names.end(), record.domains.begin(), record.domains.end());
  names.insert(names.end(), byte_classes().begin(), byte_classes().end());
  return {{"columns", names}, {"layers", layers}};
}

/// Shares of each expert by domain and by byte, and the measures of balance, of a record.
inline nlohmann::json summarise(const RoutingRecord& record) {
  std::vector<Index> frequency(256);
  for (std::uint8_t b : record.byte) ++frequency[b];
  std::vector<int> bytes(256);
  std::iota(bytes.begin(), bytes.end(), 0);
  std::stable_sort(bytes.begin(), bytes.end(), [&](int a, int b) { return frequency[a] > frequency[b]; });
  bytes.resize(48);
  std::erase_if(bytes, [&](int b) { return frequency[b] == 0; });

  nlohmann::json by_domain = nlohmann::json::array(), by_byte = nlohmann::json::array();
  double violation = 0, dropped = 0, choices = 0;
  for (const auto& layer : record.layers) {
    using Counts = std::vector<std::vector<double>>;
    const std::size_t experts = std::size_t(layer.experts);
    Counts domains(record.domains.size(), std::vector<double>(experts)), all(256, std::vector<double>(experts));
    std::vector<double> load(experts);
    for (std::size_t t = 0; t < record.byte.size(); ++t) {
      for (std::int32_t a = layer.offsets[t]; a < layer.offsets[t + 1]; ++a) {
        const auto e = std::size_t(layer.expert[a]);
        domains[record.domain[t]][e] += 1;
        all[record.byte[t]][e] += 1;
        load[e] += 1;
        dropped += layer.kept[a] ? 0 : 1;
      }
    }
    const double total = std::accumulate(load.begin(), load.end(), 0.0);
    choices += total;
    if (total > 0) violation += *std::max_element(load.begin(), load.end()) * double(experts) / total - 1;
    Counts chosen;
    for (int b : bytes) chosen.push_back(all[b]);
    by_domain.push_back(shares(domains));
    by_byte.push_back(shares(chosen));
  }
  return {{"domain_load", {{"domains", record.domains}, {"layers", by_domain}}},
          {"byte_load", {{"bytes", bytes}, {"layers", by_byte}}},
          {"maximum_violation", violation / double(std::max<std::size_t>(1, record.layers.size()))},
          {"drop_rate", choices > 0 ? dropped / choices : 0.0},
          {"skipped", skipped_tokens(record)}};
}

}  // namespace text
