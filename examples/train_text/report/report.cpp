/// @file
/// The page from top to bottom, and its files.
#include "report.hpp"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <stdexcept>

#include "../files.hpp"
#include "data.hpp"
#include "findings.hpp"
#include "html.hpp"
#include "pictures.hpp"
#include "svg.hpp"

namespace report {
namespace {

using svg::escape;
using svg::Picture;

std::string legend(const std::vector<Model>& models, bool mixtures_only = false) {
  if (models.size() < 2) return "";
  std::string html = "<ul class=\"legend\">";
  for (const Model& model : models) {
    if (mixtures_only && !model.routes()) continue;
    html += "<li>" + swatch(model.color) + escape(model.title) + "</li>";
  }
  return html + "</ul>\n";
}

std::string table_of(const std::vector<Model>& models) {
  std::string html =
      "<div class=\"box\" tabindex=\"0\" role=\"region\" aria-label=\"Results\"><table><thead><tr><th>Model</th>"
      "<th>Bits per byte<small>validation</small></th><th>Tokens/s<small>training</small></th>"
      "<th>Parameters<small>all</small></th><th>Parameters<small>active</small></th><th>FLOPs<small>a "
      "token</small></th>"
      "<th>Maximum<small>violation</small></th><th>Dropped<small>choices</small></th><th>Memory</"
      "th>"
      "</tr></thead><tbody>\n";
  const auto percent = [](double value) { return fmt::format("{:.1f}\u202F%", 100 * value); };
  const auto two = [](double value) { return fmt::format("{:.2f}", value); };
  for (const Model& model : models) {
    const bool best = models.size() > 1 && &model == &models.front() && model.comparable &&
                      estimate(model, "/validation_bits_per_byte/mean").count > 0;
    const std::string seeds = model.runs.size() > 1 ? fmt::format("{} seeds", model.runs.size()) : "";
    const std::string below = seeds + (seeds.empty() || model.note.empty() ? "" : " · ") + escape(model.note);
    html += fmt::format("<tr{}><th scope=\"row\">{}{}<small>{}</small></th><td>{}</td>", best ? " class=\"best\"" : "",
                        swatch(model.color), escape(model.title), below,
                        plus_minus(estimate(model, "/validation_bits_per_byte/mean"), 3));
    html += cell(model, "/tokens_per_second", svg::thousands) + cell(model, "/parameters", svg::si) +
            cell(model, "/active_parameters", svg::si) + cell(model, "/flops_per_token", svg::si);
    const bool routed = model.routes();
    html +=
        routed ? cell(model, "/maximum_violation", two) + cell(model, "/drop_rate", percent) : "<td>–</td><td>–</td>";
    html += cell(model, "/memory_bytes", [](double bytes) { return svg::si(bytes) + "B"; }) + "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string validation_line(const Model& model) {
  std::string line;
  const json& domains = at(model.first(), "/validation_bits_per_byte");
  if (!domains.is_object()) return "";
  for (const auto& [name, bits] : domains.items()) {
    if (name == "mean" || !bits.is_number()) continue;
    line += fmt::format("{}{} {:.3f}", line.empty() ? "" : " · ", escape(name), bits.get<double>());
  }
  return line.empty() ? "" : "<p>Bits per byte of unseen text: " + line + "</p>\n";
}

std::string spikes(const json& run) {
  std::string items;
  for (const json& spike : at(run, "/spikes")) {
    const double step = number(spike, "/step"), loss = number(spike, "/loss");
    if (!std::isfinite(step)) continue;
    items +=
        fmt::format("<li>step {:.0f}{}{}</li>", step, std::isfinite(loss) ? fmt::format(", loss {:.2f}", loss) : "",
                    text(spike, "/action").empty() ? "" : ": " + escape(text(spike, "/action")));
  }
  return items.empty() ? "" : "<h3>Loss spikes</h3>\n<ul class=\"plain\">" + items + "</ul>\n";
}

/// In float16: the steps whose gradients overflowed.
std::string skipped_steps(const json& run) {
  std::string items;
  for (const json& step : at(run, "/skipped_steps"))
    items += fmt::format("<li>step {:.0f}, at a loss scale of {:g}</li>", number(step, "/step"),
                         number(step, "/loss_scale"));
  return items.empty() ? "" : "<h3>Steps skipped: gradients overflowed</h3>\n<ul class=\"plain\">" + items + "</ul>\n";
}

/// Which tokens pass a layer by, where some do.
std::string skipped_tokens(const json& run) {
  const json &columns = at(run, "/skipped/columns"), &layers = at(run, "/skipped/layers");
  if (!columns.is_array() || !layers.is_array()) return "";
  std::string html =
      "<h3>Tokens that a layer leaves out</h3>\n<div class=\"box\" tabindex=\"0\" role=\"region\" aria-label=\"Tokens "
      "left out\"><table><thead><tr><th>Layer</th>";
  for (const json& name : columns) html += "<th>" + escape(name.get<std::string>()) + "</th>";
  html += "</tr></thead><tbody>\n";
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    html += fmt::format("<tr><th scope=\"row\">{}</th>", layer);
    for (const json& share : layers[layer])
      html += "<td>" + (share.is_number() ? fmt::format("{:.1f}\u202F%", 100 * share.get<double>()) : "–") + "</td>";
    html += "</tr>\n";
  }
  return html +
         "</tbody></table></div>\n<p class=\"hint\">Of the validation text. A mixture of depths goes by its predictor "
         "there, whose number of tokens is free.</p>\n";
}

std::string time_bar(const json& run) {
  const auto segments = time_segments(run);
  double total = 0;
  for (const svg::Segment& segment : segments) total += segment.share;
  if (!(total > 0)) return "";
  std::string names;
  for (const svg::Segment& segment : segments) {
    names += fmt::format("<li>{}{} {:.0f}\u202F%</li>", swatch(segment.color), escape(segment.name),
                         100 * segment.share / total);
  }
  return "<h3>Where the time goes</h3>\n" +
         svg::inline_svg(svg::stacked_bar("Shares of the time of a step", segments)) + "<ul class=\"legend\">" + names +
         "</ul>\n";
}

std::string section(const Model& model, bool open) {
  const json& run = model.first();
  const double bits = number(run, "/validation_bits_per_byte/mean"), seconds = number(run, "/seconds");
  std::string facts;
  if (std::isfinite(bits)) facts += fmt::format("{:.3f} bits per byte", bits);
  if (std::isfinite(seconds)) facts += fmt::format("{}{:.0f} s", facts.empty() ? "" : " · ", seconds);
  if (model.runs.size() > 1 && std::isfinite(number(run, "/seed")))
    facts += fmt::format("{}seed {:.0f}", facts.empty() ? "" : " · ", number(run, "/seed"));
  std::string inside = model.note.empty() ? "" : "<p>" + escape(model.note) + "</p>\n";
  inside += validation_line(model);
  const std::vector<Picture> over_time = load_over_training(run), domains = load_by_domain(run),
                             bytes = load_by_byte(run);
  if (any(over_time) || any(domains) || any(bytes)) inside += svg::inline_svg(load_key());
  inside += gallery("three", over_time, "Expert load over training", "A row is an expert, time runs to the right.");
  inside += gallery("three", domains, "Who reads which text", "Share of a domain's choices that an expert gets.");
  inside += skipped_tokens(run);
  inside += gallery("four", diagnostics(model), "Health of the training");
  inside += time_bar(run) + spikes(run) + skipped_steps(run);
  inside += gallery(
      "three", bytes, "Who reads which byte",
      "Frequent bytes, sorted by the expert that gets most of each. ␣ is a space, ↵ a new line; two hexadecimal "
      "digits stand for bytes that have no shape of their own.");
  if (const std::string sample = text(run, "/sample"); !sample.empty()) {
    inside += "<h3>What it writes</h3>\n<pre>" + escape(sample) + "</pre>\n";
  }
  return fmt::format("<details{}><summary>{}{}<small>{}</small></summary><div class=\"inside\">\n{}</div></details>\n",
                     open ? " open" : "", swatch(model.color), escape(model.title), facts, inside);
}

std::string page(const json& comparison, const std::vector<Model>& models) {
  const std::string title = headline(models);
  std::string html = "<p class=\"kicker\">moe · train_text</p>\n<h1>" + escape(title) + "</h1>\n";
  for (const std::string& remark : remarks(models)) html += "<p>" + escape(remark) + "</p>\n";
  html += table_of(models);

  const std::string loss = gallery("two", {loss_picture(models, 0), loss_picture(models, 0.5)});
  if (!loss.empty()) {
    bool seeds = false;
    for (const Model& model : models) seeds = seeds || model.runs.size() > 1;
    html += fmt::format(
        "<h2>Learning</h2>\n<p class=\"hint\">Lines: training, smoothed. Dots: validation. {}Lower is better.</p>\n",
        seeds ? "Thin lines: single seeds, thick ones their mean. " : "");
    html += loss + legend(models);
  }
  const std::string costs = gallery("two", cost_pictures(models));
  if (!costs.empty())
    html += "<h2>Cost</h2>\n<p class=\"hint\">A dot is a model; left is cheaper, lower is better.</p>\n" + costs +
            legend(models);
  const Picture violation = violation_picture(models);
  const auto [balanced, unbalanced] = balanced_and_not(models);
  std::vector<Picture> pair;
  for (const Model* model : {balanced, unbalanced}) {
    if (model && models.size() > 1) pair.push_back(most_uneven_layer(*model));
  }
  if (any(pair)) pair.push_back(load_key());
  if (!violation.body.empty() || any(pair)) {
    html +=
        "<h2>Balance</h2>\n<p class=\"hint\">Maximum violation: the busiest expert's load over the mean load, minus "
        "one. 0 is even; 1 means that an expert gets twice its share.</p>\n<div class=\"two\">\n";
    if (!violation.body.empty()) html += "<div>" + svg::inline_svg(violation) + legend(models, true) + "</div>\n";
    html += gallery("pair", pair) + "</div>\n";
  }
  html += models.size() > 1 ? "<h2>Model by model</h2>\n" : "<h2>The model</h2>\n";
  const Model* best = best_mixture(models);
  for (const Model& model : models) html += section(model, models.size() == 1 || &model == best);

  html += footer(comparison);
  return document(title, html);
}

}  // namespace
}  // namespace report

std::vector<std::string> write_report(const std::string& folder, const nlohmann::json& comparison) {
  using namespace report;
  const std::vector<Model> all = models(comparison);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw std::runtime_error("report: cannot make the folder '" + folder + "': " + error.message() + ".");

  std::vector<std::string> paths;
  const auto write = [&](const std::string& name, const std::string& content) {
    paths.push_back(folder + "/" + name);
    write_whole(paths.back(), content);
  };
  const auto write_pictures = [&](const std::string& name, const std::string& title, std::vector<Picture> pictures,
                                  bool key, const std::vector<std::pair<int, std::string>>& legend = {}) {
    std::erase_if(pictures, [](const Picture& picture) { return picture.body.empty(); });
    if (pictures.empty()) {
      std::filesystem::remove(folder + "/" + name, error);
      return;
    }
    if (key) pictures.push_back(load_key());
    write(name, svg::file_svg(title, pictures, legend));
  };

  write("report.html", page(comparison, all));
  std::vector<std::pair<int, std::string>> names;
  for (const Model& model : all) names.push_back({model.color, model.title});
  write_pictures("loss_curves.svg", "Loss curves", {loss_picture(all, 0), loss_picture(all, 0.5)}, false, names);
  std::vector<Picture> pair;
  const auto [balanced, unbalanced] = balanced_and_not(all);
  for (const Model* model : {balanced, unbalanced}) {
    if (model) pair.push_back(most_uneven_layer(*model));
  }
  write_pictures("load.svg", "Expert load over training", pair, true);
  if (const Model* shown = balanced ? balanced : unbalanced) {
    write_pictures("domains.svg", "Experts by domain, " + shown->title, load_by_domain(shown->first()), true);
  }
  return paths;
}
