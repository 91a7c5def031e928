/// @file
/// Line charts: lines, thin lines, dots and upright marks over round ticks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "svg_axis.hpp"

namespace svg {
namespace {

bool usable(const Point& point, bool log) {
  return std::isfinite(point.x) && std::isfinite(point.y) && (!log || point.y > 0);
}

std::string path(const std::vector<Point>& points, const Axis& x, const Axis& y) {
  std::string d;
  bool pen_down = false;
  for (const Point& point : points) {
    if (!usable(point, y.log)) {
      pen_down = false;
      continue;
    }
    d += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", x(point.x), y(point.y));
    pen_down = true;
  }
  return d;
}

/// Invisible columns whose hover text reads every line's value there.
std::string hover_columns(const LineChart& chart, const Axis& x, const Axis& y) {
  std::string out;
  constexpr int columns = 28;
  const double width = (x.to - x.from) / columns;
  const int decimals = width < 0.1 ? 3 : width < 1 ? 1 : 0;
  for (int column = 0; column < columns; ++column) {
    const double left = x.from + column * width;
    std::string title;
    for (const Series& series : chart.series) {
      if (series.kind != Series::line) continue;
      double sum = 0;
      int count = 0;
      for (const Point& point : series.points) {
        if (!usable(point, false) || point.x < left || point.x > left + width) continue;
        sum += point.y;
        ++count;
      }
      if (count > 0)
        title += fmt::format("\n{}{:.4g}", series.name.empty() ? "" : escape(series.name) + " ", sum / count);
    }
    if (title.empty()) continue;
    out += fmt::format(
        R"(<rect class="z" x="{:.1f}" y="{:.0f}" width="{:.1f}" height="{:.0f}"><title>{} {:.{}f}{}</title></rect>)",
        x(left), y.end, x(left + width) - x(left), y.start - y.end, escape(chart.x_title), left + width / 2, decimals,
        title);
  }
  return out;
}

}  // namespace

Picture line_chart(const LineChart& chart) {
  Picture picture{chart.width, chart.height, "", chart.title};
  const bool wide = chart.width > 400;
  const double left = wide ? 58 : 44, right = chart.width - 14, top = wide ? 36 : 30,
               bottom = chart.height - (wide ? 52 : 38);
  Range xs, ys;
  for (const Series& series : chart.series) {
    for (const Point& point : series.points) {
      if (!usable(point, chart.log_y)) continue;
      xs.add(point.x);
      ys.add(point.y);
    }
  }
  if (!(xs.low <= xs.high)) return {};
  if (chart.y_from_zero && !chart.log_y) ys.add(0);
  const Axis x = make_x(xs, left, right, wide ? 7 : 4, chart.x_to_ticks), y = make_y(ys, bottom, top, 4, chart.log_y);

  std::string& body = picture.body;
  body += fmt::format(R"(<text class="t" x="0" y="15">{}</text>)", escape(chart.title));
  for (std::size_t i = 0; i < y.ticks.size(); ++i) {
    const double place = y(y.ticks[i]);
    body +=
        fmt::format(R"(<path class="g" d="M{:.0f} {:.1f}H{:.0f}"/><text class="a e" x="{:.0f}" y="{:.1f}">{}</text>)",
                    left, place, right, left - 7, place + 4, y.label(i));
  }
  for (std::size_t i = 0; i < x.ticks.size(); ++i) {
    const double place = x(x.ticks[i]);
    // Every other tick goes where letters are large; a label at the right edge ends there.
    const bool optional = x.ticks.size() > 4 && i % 2 == 1, last = place > right - 16;
    body += fmt::format(
        R"(<path class="g" d="M{0:.1f} {1:.0f}v5"/><text class="a {2}{3}" x="{4:.1f}" y="{5:.0f}">{6}</text>)", place,
        bottom, last ? "e" : "m", optional ? " o" : "", last ? right + 2 : place, bottom + (wide ? 22 : 17),
        x.label(i));
  }
  body += fmt::format(R"(<text class="a m" x="{:.0f}" y="{:.0f}">{}</text>)", (left + right) / 2, chart.height - 6,
                      escape(chart.x_title));
  for (const auto& [place, meaning] : chart.marks) {
    if (!(place >= x.from && place <= x.to)) continue;
    body += fmt::format(R"(<path class="x" d="M{:.1f} {:.0f}V{:.0f}"><title>{}</title></path>)", x(place), bottom, top,
                        escape(meaning));
  }
  for (const Series::Kind kind : {Series::thin, Series::line}) {  // means over seeds
    for (const Series& series : chart.series) {
      if (series.kind != kind) continue;
      body += fmt::format(R"(<path class="l{} k{}" d="{}"><title>{}</title></path>)", kind == Series::thin ? " n" : "",
                          series.color, path(series.points, x, y), escape(series.name));
    }
  }
  body += hover_columns(chart, x, y);
  for (const Series& series : chart.series) {
    if (series.kind != Series::dots) continue;
    for (const Point& point : series.points) {
      if (!usable(point, chart.log_y)) continue;
      body += fmt::format(
          R"(<circle class="d k{}" cx="{:.1f}" cy="{:.1f}" r="3.6"><title>{}, {} {:.4g}: {:.4g}</title></circle>)",
          series.color, x(point.x), y(point.y), escape(series.name), escape(chart.x_title), point.x, point.y);
    }
  }
  return picture;
}

}  // namespace svg
