#include "table.hpp"

#include <fmt/format.h>

#include "data.hpp"
#include "findings.hpp"

namespace report {
namespace {

std::string scaled(double value) {
  const char* unit = " kMGT";
  while (value >= 1000 && unit[1] != 0) value /= 1000, ++unit;
  const std::string digits = fmt::format("{:.{}f}", value, value < 10 ? 2 : value < 100 ? 1 : 0);
  return *unit == ' ' ? digits : digits + *unit;
}

}  // namespace

std::string terminal_table(const nlohmann::json& comparison) {
  const std::vector<Model> all = models(comparison);
  std::string text = fmt::format("{:<28}{:>16}{:>10}{:>8}{:>8}{:>12}{:>11}{:>9}{:>8}\n", "model", "bits per byte",
                                 "tokens/s", "total", "active", "FLOP/token", "violation", "dropped", "memory");
  for (const Model& model : all) {
    auto mean = [&](const char* path) { return estimate(model, path).mean; };
    const Estimate bits = estimate(model, "/validation_bits_per_byte/mean");
    const std::string spread = bits.count > 1 ? fmt::format(" +- {:.3f}", bits.deviation) : "";
    text += fmt::format(
        "{:<28}{:>16}{:>10}{:>8}{:>8}{:>12}{:>11}{:>9}{:>7}B\n", model.title,
        fmt::format("{:.3f}{}", bits.mean, spread), scaled(mean("/tokens_per_second")), scaled(mean("/parameters")),
        scaled(mean("/active_parameters")), scaled(mean("/flops_per_token")),
        model.routes() ? fmt::format("{:.2f}", mean("/maximum_violation")) : "-",
        model.routes() ? fmt::format("{:.1f}%", 100 * mean("/drop_rate")) : "-", scaled(mean("/memory_bytes")));
  }
  text += "\n" + headline(all) + "\n";
  for (const std::string& remark : remarks(all)) text += remark + "\n";
  return text;
}

}  // namespace report
