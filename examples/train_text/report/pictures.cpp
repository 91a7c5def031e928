/// @file
/// Which numbers go into which chart.
#include "pictures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace report {
namespace {

/// Where a share lies on the ramp: the fair share in the middle, a quarter of it at 0, four times it at 1. One scale
/// for all pictures, so that they can be compared.
double ramp_place(double share, std::size_t experts) {
  const double times = share * double(experts);
  if (!std::isfinite(times)) return svg::nothing;
  return times <= 0.25 ? 0 : std::min(1.0, std::log2(times) / 4 + 0.5);
}

std::vector<std::vector<double>> ramp_places(const Table& shares, std::size_t experts) {
  auto places = shares;
  for (auto& row : places) {
    for (double& cell : row) cell = ramp_place(cell, experts);
  }
  return places;
}

std::string percent(double share) {
  return fmt::format("{:.{}f}\u202F%", 100 * share, share < 0.0995 ? 1 : 0);
}

/// 0, 8, 16, ... so that labels are `room` units apart where a cell has `size`.
svg::Ticks number_ticks(std::size_t count, double size, double room) {
  std::size_t step = 1;
  while (double(step) * size < room) step *= 2;
  svg::Ticks ticks;
  for (std::size_t i = 0; i < count; i += step) ticks.push_back({double(i) + 0.5, std::to_string(i)});
  return ticks;
}

std::string layer_title(const json& layers, std::size_t layer) {
  return layers.size() > 1 ? fmt::format("Layer {}", layer) : "Load";
}

std::string shortened(const std::string& name) {
  return name.size() > 9 ? name.substr(0, 8) + "…" : name;
}

/// 'e', a sign for what has no shape, hexadecimal digits for the rest.
std::string byte_name(int byte) {
  if (byte == ' ') return "␣";
  if (byte == '\n') return "↵";
  if (byte == '\t') return "⇥";
  if (byte > 32 && byte < 127) return std::string(1, char(byte));
  return fmt::format("{:02X}", byte);
}

std::size_t favourite(const std::vector<double>& shares) {
  return std::size_t(std::max_element(shares.begin(), shares.end()) - shares.begin());
}

std::vector<svg::Point> training_line(const json& run, const std::string& key, double from,
                                      const std::string& list = "curve") {
  return thin_out(smooth(curve(run, list, key)), from);
}

double last_step(const std::vector<Model>& models) {
  double last = 0;
  for (const Model& model : models) {
    for (const json* run : model.runs) {
      const auto points = curve(*run, "curve", "bits_per_byte");
      if (!points.empty()) last = std::max(last, points.back().x);
    }
  }
  return last;
}

svg::Picture load_layer(const json& run, std::size_t layer, const std::string& title) {
  const Table history = table(at(run, "/load_history/layers").at(layer));
  if (history.empty() || history.front().size() < 2) return {};
  const Table shares = transpose(thin_out(history, 100));
  svg::HeatMap map{title, "step", ramp_places(shares, shares.size()), {}, {}, {}, {}};
  map.cell_height = std::clamp(160.0 / double(shares.size()), 3.0, 18.0);
  map.row_ticks = number_ticks(shares.size(), map.cell_height, 13);
  const Table steps = table(json::array({at(run, "/load_history/steps")}));
  if (!steps.empty() && steps[0].size() == history.size() && steps[0].size() > 1) {
    const double first = steps[0].front(), last = steps[0].back();
    for (const double tick : svg::round_ticks(first, last, 5)) {
      const double place = (tick - first) / (last - first);
      if (place < 0.02 || place > 0.97) continue;
      map.column_ticks.push_back({place * double(shares[0].size()), svg::tick_label(tick, last - first)});
    }
  }
  for (std::size_t expert = 0; expert < shares.size(); ++expert) {
    const auto [low, high] = std::minmax_element(shares[expert].begin(), shares[expert].end());
    map.hover.push_back({fmt::format("expert {}: {} to {} of the choices, {} at the end", expert, percent(*low),
                                     percent(*high), percent(shares[expert].back()))});
  }
  return svg::heat_map(map);
}

}  // namespace

void add_lines(svg::LineChart& chart, const Model& model, const std::string& key, double from,
               const std::string& list) {
  std::vector<std::vector<svg::Point>> lines;
  for (const json* run : model.runs) {
    auto line = training_line(*run, key, from, list);
    if (!line.empty()) lines.push_back(std::move(line));
  }
  if (lines.size() > 1) {
    for (const auto& line : lines) chart.series.push_back({model.title, model.color, line, svg::Series::thin});
  }
  if (!lines.empty()) chart.series.push_back({model.title, model.color, mean(lines), svg::Series::line});
}

svg::Picture loss_picture(const std::vector<Model>& models, double from) {
  svg::LineChart chart;
  chart.title = from > 0 ? "The end, enlarged (bits per byte)" : "Training loss (bits per byte, log scale)";
  chart.log_y = from == 0;
  const double first = from * last_step(models);
  for (const Model& model : models) {
    add_lines(chart, model, "bits_per_byte", first);
    std::vector<std::vector<svg::Point>> lines;
    for (const json* run : model.runs) {
      auto line = curve(*run, "validation_curve", "bits_per_byte");
      std::erase_if(line, [&](const svg::Point& point) { return point.x < first; });
      if (!line.empty()) lines.push_back(std::move(line));
    }
    if (!lines.empty())
      chart.series.push_back(
          {model.title + ", validation", model.color, thin_out(mean(lines), first, 25), svg::Series::dots});
  }
  return svg::line_chart(chart);
}

std::vector<svg::Picture> cost_pictures(const std::vector<Model>& models) {
  struct Cost {
    const char *title, *x_title;
    double (*of)(const Model&);
  };
  std::vector<svg::Picture> pictures;
  for (const Cost& cost : {Cost{"Bits per byte over the time of a step", "milliseconds a step",
                                [](const Model& model) {
                                  return 1e3 * estimate(model, "/tokens_per_step").mean /
                                         estimate(model, "/tokens_per_second").mean;
                                }},
                           Cost{"Bits per byte over FLOPs a token", "MFLOPs a token",
                                [](const Model& model) { return 1e-6 * estimate(model, "/flops_per_token").mean; }}}) {
    svg::LineChart chart;
    chart.title = cost.title;
    chart.x_title = cost.x_title;
    for (const Model& model : models) {
      const svg::Point point{cost.of(model), estimate(model, "/validation_bits_per_byte/mean").mean};
      if (model.comparable && std::isfinite(point.x) && std::isfinite(point.y))
        chart.series.push_back({model.title, model.color, {point}, svg::Series::dots});
    }
    if (chart.series.size() > 1) pictures.push_back(svg::line_chart(chart));
  }
  return pictures;
}

svg::Picture violation_picture(const std::vector<Model>& models) {
  svg::LineChart chart;
  chart.title = "Maximum violation over training";
  for (const Model& model : models) {
    if (model.routes()) add_lines(chart, model, "maximum_violation", 0);
  }
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const svg::Series& series : chart.series) {
    for (const svg::Point& point : series.points) {
      if (point.y > 0) low = std::min(low, point.y);
      if (point.y > 0) high = std::max(high, point.y);
    }
  }
  chart.log_y = high > 12 * low;  // else the balanced models would lie on the ground
  chart.y_from_zero = !chart.log_y;
  return svg::line_chart(chart);
}

std::vector<svg::Picture> load_over_training(const json& run) {
  std::vector<svg::Picture> pictures;
  const json& layers = at(run, "/load_history/layers");
  for (std::size_t i = 0; i < layers.size(); ++i) pictures.push_back(load_layer(run, i, layer_title(layers, i)));
  return pictures;
}

std::vector<svg::Picture> load_by_domain(const json& run) {
  std::vector<svg::Picture> pictures;
  const json& layers = at(run, "/domain_load/layers");
  const json& names = at(run, "/domain_load/domains");
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const Table shares = table(layers[layer]);
    if (shares.empty() || shares.size() != names.size() || shares[0].size() < 2) continue;
    const std::size_t experts = shares[0].size();
    svg::HeatMap map{layer_title(layers, layer), "expert", ramp_places(shares, experts), {}, {}, {}, {}};
    map.cell_height = 24;
    map.column_ticks = number_ticks(experts, 310 / double(experts), 22);
    for (std::size_t domain = 0; domain < shares.size(); ++domain) {
      const std::string name = names[domain].is_string() ? names[domain].get<std::string>() : "?";
      map.row_ticks.push_back({double(domain) + 0.5, shortened(name)});
      map.hover.emplace_back();
      if (experts <= 10) map.texts.emplace_back();
      for (std::size_t expert = 0; expert < experts; ++expert) {
        const double share = shares[domain][expert];
        map.hover.back().push_back(fmt::format("{} → expert {}: {}", name, expert, percent(share)));
        if (experts <= 10) map.texts.back().push_back(fmt::format("{:.0f}%", 100 * share));
      }
    }
    pictures.push_back(svg::heat_map(map));
  }
  return pictures;
}

std::vector<svg::Picture> load_by_byte(const json& run) {
  std::vector<svg::Picture> pictures;
  const json& layers = at(run, "/byte_load/layers");
  const json& bytes = at(run, "/byte_load/bytes");
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const Table shares = table(layers[layer]);
    if (shares.empty() || shares.size() != bytes.size() || shares[0].size() < 2) continue;
    const std::size_t experts = shares[0].size();
    // Bytes that go the same way stand together: by their favourite expert, the most faithful first.
    std::vector<std::size_t> order(shares.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const std::size_t left = favourite(shares[a]), right = favourite(shares[b]);
      return left != right ? left < right : shares[a][left] > shares[b][right];
    });
    svg::HeatMap map{layer_title(layers, layer), "expert", {}, {}, {}, {}, {}};
    map.cell_height = 13;
    map.column_ticks = number_ticks(experts, 350 / double(experts), 22);
    Table sorted;
    for (const std::size_t i : order) {
      const int byte = bytes[i].is_number_integer() ? bytes[i].get<int>() : -1;
      const std::size_t expert = favourite(shares[i]);
      map.row_ticks.push_back({double(sorted.size()) + 0.5, byte_name(byte)});
      map.hover.push_back(
          {fmt::format("{} → mostly expert {}: {}", byte_name(byte), expert, percent(shares[i][expert]))});
      sorted.push_back(shares[i]);
    }
    map.cells = ramp_places(sorted, experts);
    pictures.push_back(svg::heat_map(map));
  }
  return pictures;
}

svg::Picture load_key() {
  return svg::ramp_key("Share of an expert, in fair shares (1 = even load)",
                       {{0, "¼ or less"}, {0.25, "½"}, {0.5, "1"}, {0.75, "2"}, {1, "4 or more"}});
}

svg::Picture most_uneven_layer(const Model& model) {
  const json& layers = at(model.first(), "/load_history/layers");
  std::size_t worst = 0;
  double highest = -1;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const Table history = table(layers[layer]);
    if (history.empty() || history.back().empty()) continue;
    const double busiest = *std::max_element(history.back().begin(), history.back().end());
    if (busiest <= highest) continue;
    highest = busiest;
    worst = layer;
  }
  if (highest < 0) return {};
  return load_layer(model.first(), worst,
                    layers.size() > 1 ? fmt::format("{}, layer {}", model.title, worst) : model.title);
}

std::vector<svg::Picture> diagnostics(const Model& model) {
  struct Wanted {
    const char *key, *title;
    bool from_zero;
  };
  std::vector<svg::Picture> pictures;
  for (const Wanted& wanted :
       {Wanted{"drop_rate", "Dropped choices (share)", true}, Wanted{"router_entropy", "Router entropy", false},
        Wanted{"gradient_norm", "Gradient norm", true}, Wanted{"activation_norm", "Activation norm", true},
        Wanted{"depth_agreement", "Predictor agrees with the choice", false}}) {
    const bool of_experts =
        std::string_view(wanted.key) == "drop_rate" || std::string_view(wanted.key) == "router_entropy";
    if (of_experts && !model.routes()) continue;
    svg::LineChart chart;
    chart.title = wanted.title;
    chart.width = 280;
    chart.height = 170;
    chart.y_from_zero = wanted.from_zero;
    const auto line = training_line(model.first(), wanted.key, 0);
    if (line.empty()) continue;
    chart.series.push_back({"", model.color == 0 ? 1 : model.color, line, svg::Series::line});
    for (const json& spike : at(model.first(), "/spikes")) {
      chart.marks.push_back({number(spike, "/step"), "spike: " + text(spike, "/action")});
    }
    pictures.push_back(svg::line_chart(chart));
  }
  return pictures;
}

std::vector<svg::Segment> time_segments(const json& run) {
  std::vector<svg::Segment> segments;
  const json& shares = at(run, "/time_shares");
  const std::vector<std::string> known{"attention", "route", "dispatch", "experts", "combine", "optimiser"};
  const auto add = [&](const std::string& name, int color) {
    if (shares.contains(name) && shares[name].is_number())
      segments.push_back({name, color, shares[name].get<double>()});
  };
  const std::vector<int> colors{6, 4, 7, 1, 2, 5};
  for (std::size_t i = 0; i < known.size(); ++i) add(known[i], colors[i]);
  if (!shares.is_object()) return segments;
  for (const auto& [name, share] : shares.items()) {
    if (std::find(known.begin(), known.end(), name) == known.end() && name != "other") add(name, 3);
  }
  add("other", 8);
  return segments;
}

}  // namespace report
