#include "page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <files.hpp>
#include <report/data.hpp>
#include <report/style.hpp>
#include <report/svg.hpp>

#include "methods.hpp"

namespace adapt {
namespace {

using report::Estimate;
using svg::escape;

/// The runs of each method that has some, in the order of methods().
std::vector<report::Model> models(const Json& report) {
  std::vector<report::Model> all;
  for (const Method& method : methods()) {
    report::Model model;
    model.name = method.name;
    model.title = method.title;
    model.color = method.color;
    for (const Json& run : report.at("runs")) {
      if (run.at("method") == method.name) model.runs.push_back(&run);
    }
    if (!model.runs.empty()) all.push_back(std::move(model));
  }
  return all;
}

std::vector<std::string> old_domains(const Json& report) {
  std::vector<std::string> names;
  if (report.at("runs").empty()) return names;
  for (const auto& [name, bits] : report.at("runs").front().at("before").items()) {
    if (name != report.at("new")) names.push_back(name);
  }
  return names;
}

std::string with_spread(const Estimate& estimate, const char* sign) {
  if (!std::isfinite(estimate.mean)) return "-";
  return estimate.count > 1 ? fmt::format("{:.3f} {} {:.3f}", estimate.mean, sign, estimate.deviation)
                            : fmt::format("{:.3f}", estimate.mean);
}

/// "2 and 6 experts of rank 4", where layers differ.
std::string sizes_of(const report::Model& model) {
  const Json& layers = report::at(model.first(), "/layers");
  if (!layers.is_array() || layers.empty()) return "";
  std::vector<std::string> experts;
  for (const Json& layer : layers) experts.push_back(std::to_string(layer.at("experts").get<Index>()));
  const bool same = std::all_of(experts.begin(), experts.end(), [&](const auto& e) { return e == experts.front(); });
  const std::string rank = std::to_string(layers.front().at("rank").get<Index>());
  return (same ? experts.front() : fmt::format("{}", fmt::join(experts, " and "))) +
         (experts.front() == "1" && same ? " of rank " : " experts of rank ") + rank;
}

svg::Picture trade_off(const std::vector<report::Model>& all) {
  svg::LineChart chart;
  chart.title = "Gain over forgetting (bits per byte)";
  chart.x_title = "forgetting: what the old domains lose, in the mean";
  chart.x_to_ticks = true;
  for (const report::Model& model : all) {
    std::vector<std::vector<svg::Point>> lines;
    for (const Json* run : model.runs) {
      std::vector<svg::Point> line;
      for (const Json& point : report::at(*run, "/curve"))
        line.push_back({report::number(point, "/forgetting"), report::number(point, "/gain")});
      lines.push_back(line);
    }
    std::vector<svg::Point> mean = lines.front();
    for (std::size_t i = 0; i < mean.size(); ++i) {
      mean[i] = {};
      for (const auto& line : lines) {
        mean[i].x += line[i].x / double(lines.size());
        mean[i].y += line[i].y / double(lines.size());
      }
    }
    if (mean.size() > 1) chart.series.push_back({model.title, model.color, mean, svg::Series::line});
    std::vector<svg::Point> ends;
    for (const auto& line : lines) ends.push_back(line.back());
    chart.series.push_back({model.title, model.color, ends, svg::Series::dots});
  }
  return svg::line_chart(chart);
}

svg::Picture over_steps(const std::vector<report::Model>& all, const std::string& title, const std::string& key) {
  svg::LineChart chart;
  chart.title = title;
  for (const report::Model& model : all) {
    std::vector<std::vector<svg::Point>> lines;
    for (const Json* run : model.runs) lines.push_back(report::curve(*run, "curve", key));
    if (lines.front().size() > 1)
      chart.series.push_back({model.title, model.color, report::mean(lines), svg::Series::line});
  }
  return svg::line_chart(chart);
}

std::string cell(const std::string& text) {
  return "<td>" + text + "</td>";
}

std::string table_of(const Json& report, const std::vector<report::Model>& all) {
  const std::string fresh = report.at("new");
  std::string html =
      "<div class=\"box\" tabindex=\"0\" role=\"region\" aria-label=\"Results\"><table><thead><tr><th>Method</th>"
      "<th>Trained<small>parameters</small></th><th>Of all</th><th>Memory<small>training</small></th>"
      "<th>Time<small>training</small></th><th>" +
      escape(fresh) + "<small>bits per byte</small></th><th>Gain</th><th>Forgetting<small>mean</small></th>";
  for (const std::string& name : old_domains(report)) html += "<th>" + escape(name) + "<small>lost</small></th>";
  html += "</tr></thead><tbody>\n";
  for (const report::Model& model : all) {
    const auto number = [&](const char* path) { return report::estimate(model, path).mean; };
    const double trained = number("/trained_parameters"), memory = number("/memory_bytes"),
                 seconds = number("/seconds");
    html += fmt::format("<tr><th scope=\"row\"><i class=\"s k{}\"></i>{}<small>{}</small></th>", model.color,
                        escape(model.title), sizes_of(model));
    html += cell(svg::thousands(trained)) + cell(fmt::format("{:.1f}\u202F%", 100 * trained / number("/parameters"))) +
            cell(std::isfinite(memory) ? svg::si(memory) + "B" : "–") +
            cell(std::isfinite(seconds) ? fmt::format("{:.0f}\u202Fs", seconds) : "–") +
            cell(fmt::format("{:.3f}", report::estimate(model, "/after/" + fresh).mean)) +
            cell(with_spread(report::estimate(model, "/gain"), "±")) +
            cell(with_spread(report::estimate(model, "/forgetting"), "±"));
    for (const std::string& name : old_domains(report))
      html += cell(fmt::format("{:.3f}", report::estimate(model, "/change/" + name).mean));
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

/// What the report is about, in a sentence.
std::string headline(const Json& report) {
  const double replay = report::number(report, "/replay");
  return fmt::format("A model learns {} in {} steps of {} bytes{}", report::text(report, "/new"),
                     report.at("steps").get<Index>(), report.at("tokens_per_step").get<Index>(),
                     replay > 0 ? fmt::format(", {:.0f}% of them of the old domains", 100 * replay) : "");
}

}  // namespace

std::string terminal_table(const nlohmann::json& report) {
  const std::vector<report::Model> all = models(report);
  if (all.empty()) return "";
  const std::string fresh = report.at("new");
  std::string text = fmt::format("{:<18}{:>9}{:>8}{:>9}{:>7}{:>10}{:>16}{:>16}", "method", "trained", "of all",
                                 "memory", "time", fresh, "gain", "forgetting");
  for (const std::string& name : old_domains(report)) text += fmt::format("{:>9}", name);
  text += "\n";
  for (const report::Model& model : all) {
    const auto number = [&](const char* path) { return report::estimate(model, path).mean; };
    const double trained = number("/trained_parameters"), memory = number("/memory_bytes"),
                 seconds = number("/seconds");
    text += fmt::format(
        "{:<18}{:>9}{:>7.1f}%{:>9}{:>7}{:>10.3f}{:>16}{:>16}", model.title, svg::thousands(trained),
        100 * trained / number("/parameters"), std::isfinite(memory) ? fmt::format("{:.1f} MB", memory / 1e6) : "-",
        std::isfinite(seconds) ? fmt::format("{:.0f} s", seconds) : "-",
        report::estimate(model, "/after/" + fresh).mean, with_spread(report::estimate(model, "/gain"), "+-"),
        with_spread(report::estimate(model, "/forgetting"), "+-"));
    for (const std::string& name : old_domains(report))
      text += fmt::format("{:>9.3f}", report::estimate(model, "/change/" + name).mean);
    text += "\n";
  }
  return text + fmt::format(
                    "Bits per byte of unseen text: {} after training, how much less that is than before (gain), "
                    "and how much more the old domains need\n(forgetting, their mean; then each). Memory is the "
                    "peak of all arrays.\n",
                    fresh);
}

void write_page(const std::string& folder, const nlohmann::json& report) {
  const std::vector<report::Model> all = models(report);
  std::vector<std::pair<int, std::string>> names;
  std::string legend = "<ul class=\"legend\">";
  for (const report::Model& model : all) {
    names.push_back({model.color, model.title});
    legend += fmt::format("<li><i class=\"s k{}\"></i>{}</li>", model.color, escape(model.title));
  }
  legend += "</ul>\n";
  std::vector<svg::Picture> pictures{trade_off(all), over_steps(all, "Gain on the new domain (bits per byte)", "gain"),
                                     over_steps(all, "Forgetting of the old domains (bits per byte)", "forgetting")};
  std::erase_if(pictures, [](const svg::Picture& picture) { return picture.body.empty(); });
  const std::string title = headline(report);
  std::string html = "<p class=\"kicker\">moe · adapters</p>\n<h1>" + escape(title) + "</h1>\n" +
                     "<p>Bits per byte of unseen text. Gain: how much less the new domain needs than before training. "
                     "Forgetting: how much more the old domains need. Memory is the peak of all arrays.</p>\n" +
                     table_of(report, all);
  if (!pictures.empty()) {
    html +=
        "<h2>What is gained, and what it costs</h2>\n<p class=\"hint\">A line is a training run from its start at 0, 0 "
        "to its end (dots, one a seed). Up is better, left is better.</p>\n<div class=\"two\">\n";
    for (const svg::Picture& picture : pictures) html += svg::inline_svg(picture);
    html += "</div>\n" + legend;
  }
  html += "<footer>";
  for (const auto& [key, name] : {std::pair{"/machine", "Machine"}, {"/command", "Command"}, {"/date", "Date"}}) {
    html += fmt::format("<p>{}: {}</p>\n", name, escape(report::text(report, key)));
  }
  html += "</footer>\n";
  write_whole(folder + "/adapters.html",
              fmt::format("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{}</title>\n"
                          "<style>\n{}{}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
                          escape(title), svg::style(), report::page_style, html));
  if (!pictures.empty()) write_whole(folder + "/adapters.svg", svg::file_svg(title, pictures, names));
}

}  // namespace adapt
