#include "tables.hpp"

#include <fmt/format.h>

#include <moe/balance/load.hpp>

#include "coactivation.hpp"
#include "labels.hpp"
#include "specialisation.hpp"
#include "stability.hpp"

namespace {

using analysis::Count;
using analysis::Table;
using Layer = RoutingRecord::Layer;

double percent(Count part, Count whole) {
  return whole == 0 ? 0 : 100 * double(part) / double(whole);
}

moe::LoadReport load_of(const Layer& layer) {
  moe::LoadReport load{moe::Index(layer.offsets.size()) - 1, std::vector<moe::Index>(std::size_t(layer.experts)), {}};
  load.kept = load.routed;
  for (std::size_t a = 0; a < layer.expert.size(); ++a) {
    ++load.routed[layer.expert[a]];
    load.kept[layer.expert[a]] += layer.kept[a];
  }
  return load;
}

void print_text(const RoutingRecord& record) {
  std::vector<Count> bytes(record.domains.size());
  for (std::uint8_t d : record.domain) ++bytes[d];
  fmt::print("{} bytes of text in {} domains:", record.byte.size(), record.domains.size());
  for (std::size_t d = 0; d < bytes.size(); ++d)
    fmt::print("{} {} ({})", d == 0 ? "" : ",", name_label(record.domains[d]), bytes[d]);
  fmt::print("\n");
}

/// A line an expert: its share of all choices, with a bar, and of the choices of each domain.
void print_load(const RoutingRecord& record, const moe::LoadReport& load, const Table& by_domain) {
  std::size_t width = 6;
  for (const std::string& name : record.domains) width = std::max(width, name_label(name).size());
  Count largest = 1;
  for (Count n : load.routed) largest = std::max<Count>(largest, n);
  fmt::print("\nShare of the choices that go to each expert: of all, and of each domain's\nexpert     all  {:24}", "");
  for (const std::string& name : record.domains) fmt::print("  {:>{}}", name_label(name), width);
  fmt::print("\n");
  for (moe::Index e = 0; e < load.experts(); ++e) {
    const std::string bar(std::size_t(24 * load.routed[e] / largest), '#');
    fmt::print("{:>6}{:>7.1f}%  {:24}", e, 100 * load.share(e), bar);
    for (const auto& row : by_domain) fmt::print("  {:>{}.1f}%", percent(row[e], analysis::sum(row)), width - 1);
    fmt::print("\n");
  }
}

void print_information(const char* what, const Table& table) {
  std::vector<Count> rows;
  for (const auto& row : table) rows.push_back(analysis::sum(row));
  const analysis::Information known = analysis::information(table);
  fmt::print("  {:<7} {:6.3f} of {:.3f} bits ({:.1f}%), about {:.3f} of them by luck\n", what, known.bits,
             analysis::entropy(rows), 100 * known.share, known.by_luck);
}

void print_bytes(const Settings& settings, const Table& by_byte) {
  fmt::print("\nMost typical bytes: lift = P(byte|expert) / P(byte), above 1 and chosen {} times or more\n",
             settings.minimum);
  const auto typical = analysis::typical_bytes(by_byte, settings.minimum, std::size_t(settings.top));
  for (std::size_t e = 0; e < typical.size(); ++e) {
    std::string line = fmt::format("{:>6}", e);
    for (const auto& t : typical[e]) line += fmt::format("{:>7} {:<4.1f}", byte_label(t.byte), t.lift);
    line.erase(line.find_last_not_of(' ') + 1);
    fmt::print("{}{}\n", line, typical[e].empty() ? "  none" : "");
  }
}

/// A square of numbers, but for the diagonal.
template <class Cell>
void print_matrix(const char* title, std::size_t experts, const Cell& cell) {
  fmt::print("\n{}\n{:6}", title, "");
  for (std::size_t j = 0; j < experts; ++j) fmt::print("{:>5}", j);
  for (std::size_t i = 0; i < experts; ++i) {
    fmt::print("\n{:>6}", i);
    for (std::size_t j = 0; j < experts; ++j) fmt::print("{:>5}", i == j ? "." : cell(i, j));
  }
  fmt::print("\n");
}

void print_coactivation(const Settings& settings, const Layer& layer) {
  const analysis::Coactivation c = analysis::coactivation(layer);
  if (c.together.empty()) return;
  if (c.experts <= 16) {
    print_matrix("P(column chosen | row chosen), in percent", c.experts,
                 [&](std::size_t i, std::size_t j) { return fmt::format("{:.0f}", 100 * c.given(i, j)); });
    print_matrix("Its lift: over that of independent partners with these loads", c.experts,
                 [&](std::size_t i, std::size_t j) { return fmt::format("{:.1f}", c.lift(i, j)); });
  }
  fmt::print("\nStrongest pairs: tokens with both, and how many independent partners would have\n");
  fmt::print("     pair    tokens  expected   lift\n");
  const auto pairs = analysis::strongest_pairs(c, settings.minimum, std::size_t(settings.top));
  for (const auto& p : pairs)
    fmt::print("{:>9}{:>10}{:>10.1f}{:>7.2f}\n", fmt::format("{} + {}", p.i, p.j), c.both(p.i, p.j),
               c.expected(p.i, p.j), p.lift);
  if (pairs.empty()) fmt::print("none is chosen {} times\n", settings.minimum);
}

}  // namespace

void print_analysis(const Settings& settings, const RoutingRecord& record) {
  fmt::print("{}, step {}\n", name_label(record.model), record.step);
  print_text(record);
  for (std::size_t n : settings.layers) {
    const Layer& layer = record.layers[n];
    const moe::LoadReport load = load_of(layer);
    const Table by_domain = analysis::choices_by(record.domain, record.domains.size(), layer);
    const Table by_byte = analysis::choices_by(record.byte, 256, layer);
    fmt::print("\n== Layer {}: {} expert{}, {:.2f} choices a token, {:.1f}% dropped ==\n", n, layer.experts,
               layer.experts == 1 ? "" : "s", double(load.assignments()) / double(load.tokens),
               percent(load.dropped(), load.assignments()));
    print_load(record, load, by_domain);
    fmt::print("maximum violation {:.3f} (largest load over mean load, less 1), entropy {:.3f} of its maximum\n",
               load.maximum_violation(), load.entropy());
    fmt::print("\nWhat a choice of expert tells of the token's\n");
    print_information("domain", by_domain);
    print_information("byte", by_byte);
    print_bytes(settings, by_byte);
    print_coactivation(settings, layer);
  }
}

void print_comparison(const Settings& settings, const std::vector<RoutingRecord>& records) {
  fmt::print("{}, {} files\n", name_label(records[0].model), records.size());
  print_text(records[0]);
  for (std::size_t n : settings.layers) {
    const std::int64_t experts = records[0].layers[n].experts;
    fmt::print("\n== Layer {}: {} expert{} ==\n", n, experts, experts == 1 ? "" : "s");
    fmt::print("                              expert tells of         same as in the line above\n");
    fmt::print("    step  violation  dropped   domain    byte      set  overlap  top expert (by luck)\n");
    for (std::size_t i = 0; i < records.size(); ++i) {
      const Layer& layer = records[i].layers[n];
      const moe::LoadReport load = load_of(layer);
      const auto domain =
          analysis::information(analysis::choices_by(records[i].domain, records[i].domains.size(), layer));
      const auto byte = analysis::information(analysis::choices_by(records[i].byte, 256, layer));
      fmt::print("{:>8}{:>11.3f}{:>8.1f}%{:>8.1f}%{:>7.1f}%", records[i].step, load.maximum_violation(),
                 percent(load.dropped(), load.assignments()), 100 * domain.share, 100 * byte.share);
      if (i > 0) {
        const analysis::Stability s = analysis::stability(records[i - 1].layers[n], layer);
        fmt::print("{:>8.1f}%{:>8.1f}%{:>11.1f}%  ({:.1f}%)", 100 * s.same_set, 100 * s.overlap, 100 * s.same_top,
                   100 * s.by_luck);
      }
      fmt::print("\n");
    }
  }
  fmt::print(
      "\nviolation: largest load over mean load, less 1. expert tells of: mutual information with the token's domain "
      "or\n"
      "byte over its entropy. set: tokens whose experts are all the same. overlap: mean of |in both| / |in either|.\n"
      "top expert: that of the largest weight; by luck: if the two files had nothing to do with each other.\n");
}
