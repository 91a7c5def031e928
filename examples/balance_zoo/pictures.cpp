#include "pictures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "../train_text/report/pictures.hpp"
#include "methods.hpp"
#include "scatter.hpp"

namespace zoo {

using report::Model;
using svg::Picture;

namespace {

/// The place of a model's method in methods().
std::size_t place(const Model& model) {
  const std::string name = model.name.substr(0, model.name.find('@'));
  const auto& all = methods();
  return std::size_t(std::find_if(all.begin(), all.end(), [&](const Method& m) { return m.name == name; }) -
                     all.begin());
}

int family_of(const Model& model) {
  const double family = report::number(model.first(), "/family");
  return std::isfinite(family) ? int(family) : 0;
}

}  // namespace

std::vector<Model> in_order(std::vector<Model> models) {
  std::stable_sort(models.begin(), models.end(), [](const Model& a, const Model& b) {
    return std::pair(place(a), a.name) < std::pair(place(b), b.name);
  });
  return models;
}

int family_color(const Model& model) {
  return model.name == "none" ? 0 : 1 + family_of(model);
}

std::vector<Panel> panels_of(const std::vector<Model>& models) {
  std::vector<Panel> panels;
  for (const Family family : {Family::batch_loss, Family::other_loss, Family::bias, Family::assignment}) {
    Panel panel{title(family), 1 + int(family), {}};
    int color = 1;
    for (const Model& model : models) {
      const bool none = model.name == "none";
      if (!none && family_of(model) != int(family)) continue;
      panel.models.push_back(model);
      panel.models.back().color = none ? 0 : 1 + (color++ - 1) % 7;
    }
    const bool more =
        std::any_of(panel.models.begin(), panel.models.end(), [](const Model& m) { return m.name != "none"; });
    if (more) panels.push_back(std::move(panel));
  }
  return panels;
}

std::vector<Picture> trade_off(const std::vector<Model>& models) {
  struct Axis {
    const char *path, *title, *x_title;
  };
  std::vector<Picture> pictures;
  for (const Axis& axis : {Axis{"/balance/violation", "Validation loss (bits per byte) over balance in training",
                                "maximum violation of a step's batch, last fifth of training (log scale)"},
                           Axis{"/maximum_violation", "Validation loss (bits per byte) over balance on unseen text",
                                "maximum violation of the validation text (log scale)"}}) {
    svg::Scatter chart{axis.title, axis.x_title, {}};
    for (const Model& model : models) {
      const auto x = report::estimate(model, axis.path), y = report::estimate(model, "/validation_bits_per_byte/mean");
      chart.dots.push_back(
          {model.title, family_color(model), {x.mean, y.mean}, {x.deviation, y.deviation}, !model.comparable});
    }
    Picture picture = svg::scatter(chart);
    if (!picture.body.empty()) pictures.push_back(std::move(picture));
  }
  return pictures;
}

Picture violation_picture(const Panel& panel) {
  svg::LineChart chart;
  chart.title = panel.title + ": maximum violation (log scale)";
  chart.log_y = true;
  for (const Model& model : panel.models) report::add_lines(chart, model, "maximum_violation", 0);
  return svg::line_chart(chart);
}

Picture gap_picture(const Panel& panel) {
  svg::LineChart chart;
  chart.title = panel.title + ": bits per byte less those of None";
  const auto none =
      std::find_if(panel.models.begin(), panel.models.end(), [](const Model& m) { return m.name == "none"; });
  if (none == panel.models.end()) return {};
  double from = 0;
  for (const Model& model : panel.models) {
    std::vector<std::vector<svg::Point>> lines;
    for (const auto* run : model.runs) {
      auto line = report::curve(*run, "validation_curve", "bits_per_byte");
      const auto other = std::find_if(none->runs.begin(), none->runs.end(), [&](const auto* one) {
        return report::number(*one, "/seed") == report::number(*run, "/seed");
      });
      if (other == none->runs.end()) continue;
      const auto zero = report::curve(**other, "validation_curve", "bits_per_byte");
      if (zero.size() != line.size() || line.empty()) continue;
      from = line.back().x / 5;  // before that all fall alike
      for (std::size_t i = 0; i < line.size(); ++i) line[i].y -= zero[i].y;
      std::erase_if(line, [&](const svg::Point& point) { return point.x < from; });
      lines.push_back(std::move(line));
    }
    if (lines.size() > 1 && model.name != "none") {
      for (const auto& line : lines) chart.series.push_back({model.title, model.color, line, svg::Series::thin});
    }
    if (!lines.empty()) chart.series.push_back({model.title, model.color, report::mean(lines), svg::Series::line});
  }
  return svg::line_chart(chart);
}

Picture validation_picture(const std::vector<Model>& models) {
  svg::LineChart chart;
  chart.title = "Validation loss of all methods (bits per byte, log scale)";
  chart.log_y = true;
  chart.width = 860;
  chart.height = 380;
  for (Model model : models) {
    model.color = family_color(model);
    std::vector<std::vector<svg::Point>> lines;
    for (const auto* run : model.runs) lines.push_back(report::curve(*run, "validation_curve", "bits_per_byte"));
    if (!lines.front().empty())
      chart.series.push_back({model.title, model.color, report::mean(lines), svg::Series::line});
  }
  return svg::line_chart(chart);
}

std::string panels_svg(const std::string& title, const std::vector<Panel>& panels, Picture (*picture)(const Panel&)) {
  std::vector<Picture> pictures;  // two beside each other
  double right = 0;
  for (const Panel& panel : panels) {
    Picture one = picture(panel);
    if (one.body.empty()) continue;
    double x = 0, y = one.height + 14;
    for (const Model& model : panel.models) {
      const double room = 36 + 6.6 * double(model.title.size());
      if (x + room > one.width) {
        x = 0;
        y += 18;
      }
      one.body +=
          fmt::format(R"-(<g transform="translate({:.0f} {:.0f})"><rect class="k{}" y="-9" width="14" height="9" )-"
                      R"-(fill="currentColor"/><text x="20">{}</text></g>)-",
                      x, y, model.color, svg::escape(model.title));
      x += room;
    }
    one.height = y + 22;
    if (right > 0) {
      Picture& row = pictures.back();
      row.body += fmt::format("<g transform=\"translate({:.0f} 0)\">{}</g>", right, one.body);
      row.width = right + one.width;
      row.height = std::max(row.height, one.height);
      right = 0;
    } else {
      right = one.width + 28;
      pictures.push_back(std::move(one));
    }
  }
  return svg::file_svg(title, pictures);
}

}  // namespace zoo
