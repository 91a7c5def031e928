#pragma once
/// @file
/// The analysis as JSON, for other programs.

#include <nlohmann/json.hpp>

#include "coactivation.hpp"
#include "labels.hpp"
#include "settings.hpp"
#include "specialisation.hpp"
#include "stability.hpp"

inline nlohmann::json to_json(const analysis::Information& known) {
  return {{"bits", known.bits}, {"share_of_entropy", known.share}, {"bits_by_luck", known.by_luck}};
}

inline nlohmann::json layer_json(const Settings& settings, const RoutingRecord& record, std::size_t number) {
  using Json = nlohmann::json;
  const auto& layer = record.layers[number];
  const analysis::Table by_domain = analysis::choices_by(record.domain, record.domains.size(), layer);
  const analysis::Table by_byte = analysis::choices_by(record.byte, 256, layer);
  Json json{{"layer", number},
            {"experts", layer.experts},
            {"choices", layer.expert.size()},
            {"dropped", std::count(layer.kept.begin(), layer.kept.end(), 0)},
            {"load", analysis::column_sums(by_byte)},
            {"domain_choices", by_domain},  // a row a domain, a column an expert
            {"domain_information", to_json(analysis::information(by_domain))},
            {"byte_information", to_json(analysis::information(by_byte))}};
  for (const auto& bytes : analysis::typical_bytes(by_byte, settings.minimum, std::size_t(settings.top))) {
    Json& list = json["typical_bytes"].emplace_back(Json::array());
    for (const auto& t : bytes)
      list.push_back({{"byte", t.byte}, {"label", byte_label(t.byte)}, {"count", t.count}, {"lift", t.lift}});
  }
  const analysis::Coactivation c = analysis::coactivation(layer);
  json["tokens_with_expert"] = c.tokens;
  json["pairs"] = Json::array();
  for (const auto& p : analysis::strongest_pairs(c, settings.minimum, std::size_t(settings.top)))
    json["pairs"].push_back(
        {{"experts", {p.i, p.j}}, {"tokens", c.both(p.i, p.j)}, {"expected", c.expected(p.i, p.j)}, {"lift", p.lift}});
  return json;
}

inline nlohmann::json analysis_json(const Settings& settings, const std::vector<RoutingRecord>& records) {
  using Json = nlohmann::json;
  Json json{{"files", Json::array()}, {"stability", Json::array()}};
  for (std::size_t i = 0; i < records.size(); ++i) {
    Json& file = json["files"].emplace_back(Json{{"file", settings.files[i]},
                                                 {"model", records[i].model},
                                                 {"step", records[i].step},
                                                 {"tokens", records[i].byte.size()},
                                                 {"domains", records[i].domains}});
    for (std::size_t n : settings.layers) file["layers"].push_back(layer_json(settings, records[i], n));
    if (i == 0) continue;
    Json& change = json["stability"].emplace_back(
        Json{{"from", settings.files[i - 1]}, {"to", settings.files[i]}, {"layers", Json::array()}});
    for (std::size_t n : settings.layers) {
      const auto s = analysis::stability(records[i - 1].layers[n], records[i].layers[n]);
      change["layers"].push_back({{"layer", n},
                                  {"same_set", s.same_set},
                                  {"overlap", s.overlap},
                                  {"same_top", s.same_top},
                                  {"same_top_by_luck", s.by_luck}});
    }
  }
  return json;
}
