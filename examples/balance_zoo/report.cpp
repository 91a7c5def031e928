#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "../train_text/files.hpp"
#include "../train_text/report/findings.hpp"
#include "../train_text/report/html.hpp"
#include "findings.hpp"
#include "pictures.hpp"

namespace zoo {
namespace {

using report::estimate;
using report::Estimate;
using report::Model;
using svg::escape;
using svg::Picture;
using Json = nlohmann::json;

/// "0.21 ± 0.02" as a cell.
std::string cell(const Model& model, const std::string& path, int decimals) {
  return "<td>" + report::plus_minus(estimate(model, path), decimals) + "</td>";
}

/// A gap to the method that does nothing, with its sign.
std::string difference(const Estimate& gap) {
  if (gap.count == 0 || !std::isfinite(gap.mean)) return "–";
  return fmt::format("{}{:.3f}{}", gap.mean < 0 ? "\u2212" : "+", std::abs(gap.mean),
                     gap.count > 1 ? fmt::format(" ± {:.3f}", gap.deviation) : "");
}

std::string table_of(const std::vector<Model>& models) {
  std::string html =
      "<div class=\"box\" tabindex=\"0\" role=\"region\" aria-label=\"Results\"><table><thead><tr><th>Method</th>"
      "<th>Bits per byte<small>validation</small></th><th>Against none<small>on the same seeds</small></th>"
      "<th>Maximum violation<small>a step's batch</small></th><th>Maximum violation<small>mean load</small></th>"
      "<th>Maximum violation<small>validation</small></th><th>Dead experts<small>of all layers</small></th>"
      "<th>Entropy<small>of the mean load</small></th><th>Entropy<small>of the router</small></th>"
      "<th>A step<small>milliseconds</small></th></tr></thead><tbody>\n";
  for (const Model& model : models) {
    const std::string about = report::text(model.first(), "/about");
    html += fmt::format("<tr><th scope=\"row\">{}{}<small>{}</small></th>", report::swatch(family_color(model)),
                        escape(model.title), escape(about));
    html += cell(model, "/validation_bits_per_byte/mean", 3);
    html += "<td>" + (model.comparable ? difference(against_none(model, models)) : "–") + "</td>";
    html += cell(model, "/balance/violation", 2) + cell(model, "/balance/average_violation", 2) +
            cell(model, "/maximum_violation", 2);
    html += report::cell(model, "/balance/dead_experts", [](double n) { return fmt::format("{:.1f}", n); }) +
            report::cell(model, "/balance/load_entropy", [](double n) { return fmt::format("{:.3f}", n); }) +
            report::cell(model, "/router_entropy", [](double n) { return fmt::format("{:.2f}", n); }) +
            report::cell(model, "/balance/milliseconds", [](double n) { return fmt::format("{:.1f}", n); }) + "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string legend(const std::vector<Panel>& panels) {
  std::string html = "<ul class=\"legend\">";
  for (const Panel& panel : panels) html += "<li>" + report::swatch(panel.color) + escape(panel.title) + "</li>";
  return html + "</ul>\n";
}

std::string notes(const std::vector<Model>& models) {
  std::string html;
  for (const Model& model : models) {
    if (!model.note.empty()) html += "<p class=\"hint\">" + escape(model.title + ": " + model.note) + "</p>\n";
  }
  return html;
}

std::string page(const Json& comparison, const std::vector<Model>& models) {
  const std::string title = zoo::headline(models);
  std::string html = "<p class=\"kicker\">moe · balance_zoo</p>\n<h1>" + escape(title) + "</h1>\n";
  for (const std::string& remark : zoo::remarks(models)) html += "<p>" + escape(remark) + "</p>\n";
  html += table_of(models);
  html +=
      "<p class=\"hint\">Mean ± standard deviation over seeds. Maximum violation: the busiest expert's load over the "
      "mean "
      "load, less one. Training's columns are of its last fifth: of a step's batch, and of the mean load of those "
      "steps. "
      "Validation's is of unseen text as a whole. Dead: less than a tenth of the fair share. Entropies are in units of "
      "their maximum.</p>\n" +
      notes(models);
  const std::vector<Panel> panels = panels_of(models);
  html +=
      "<h2>The trade-off</h2>\n<p class=\"hint\">Left is more even, lower is better. Bars: standard deviation over "
      "seeds. The dashed line joins the methods (bold) that no other beats in both means. Hollow: no fair "
      "comparison.</p>\n";
  for (const Picture& picture : trade_off(models)) html += svg::inline_svg(picture);
  html += legend(panels);
  html += "<h2>Along training</h2>\n<p class=\"hint\">Means over seeds. Black: nothing balances.</p>\n" +
          svg::inline_svg(validation_picture(models)) + legend(panels) +
          "<p class=\"hint\">Below, left: the maximum violation of a step's batch. Right: the loss on unseen text less "
          "that of "
          "None on the same seed, from a fifth of training on; below 0 is better. Thick lines: means over seeds, thin "
          "ones the "
          "seeds. A violation of 0 has no line.</p>\n";
  for (const Panel& panel : panels) {
    const std::vector<Picture> pictures{violation_picture(panel), gap_picture(panel)};
    if (!report::any(pictures)) continue;
    html += report::gallery("two", pictures) + "<ul class=\"legend\">";
    for (const Model& model : panel.models)
      html += "<li>" + report::swatch(model.color) + escape(model.title) + "</li>";
    html += "</ul>\n";
  }
  return report::document(title, html + report::footer(comparison));
}

}  // namespace

void write_report(const std::string& folder, const Json& comparison) {
  const std::vector<Model> all = in_order(report::models(comparison));
  if (all.empty()) return;
  write_whole(folder + "/report.html", page(comparison, all));
  const std::vector<Panel> panels = panels_of(all);
  std::vector<std::pair<int, std::string>> families;
  for (const Panel& panel : panels) families.push_back({panel.color, panel.title});
  write_whole(folder + "/trade_off.svg", svg::file_svg("Validation loss against balance", trade_off(all), families));
  write_whole(folder + "/validation.svg",
              svg::file_svg("Validation loss over training", {validation_picture(all)}, families));
  write_whole(folder + "/violation.svg", panels_svg("Maximum violation over training", panels, violation_picture));
  write_whole(folder + "/validation_gap.svg", panels_svg("Validation loss over training", panels, gap_picture));
}

std::string terminal_table(const Json& comparison) {
  const std::vector<Model> all = in_order(report::models(comparison));
  std::string text = fmt::format("{:<28}{:>17}{:>18}{:>11}{:>11}{:>11}{:>6}{:>9}{:>9}\n", "method", "bits per byte",
                                 "against none", "violation", "of mean", "validation", "dead", "entropy", "ms/step");
  for (const Model& model : all) {
    const auto mean = [&](const char* path) { return estimate(model, path).mean; };
    std::string name = fmt::format("{:<28}", model.title);
    const Estimate bits = estimate(model, "/validation_bits_per_byte/mean");
    const Estimate gap = model.comparable ? against_none(model, all) : Estimate{};
    const auto spread = [](const Estimate& e, const char* sign) {
      return e.count == 0 ? std::string("-")
                          : fmt::format("{}{:.3f} +- {:.3f}", e.mean < 0 ? "-" : sign, std::abs(e.mean), e.deviation);
    };
    text += fmt::format("{}{:>17}{:>18}{:>11.2f}{:>11.2f}{:>11.2f}{:>6.1f}{:>9.3f}{:>9.1f}\n", name, spread(bits, ""),
                        spread(gap, "+"), mean("/balance/violation"), mean("/balance/average_violation"),
                        mean("/maximum_violation"), mean("/balance/dead_experts"), mean("/balance/load_entropy"),
                        mean("/balance/milliseconds"));
  }
  text += "\n" + zoo::headline(all) + "\n";
  for (const std::string& remark : zoo::remarks(all)) text += remark + "\n";
  return text;
}

}  // namespace zoo
