#pragma once
/// @file
/// Charts as plain SVG: no script, colours from CSS variables, so the same picture is right on light and dark ground.

#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace svg {

inline constexpr double nothing = std::numeric_limits<double>::quiet_NaN();  // a value that is not there

/// A drawing of width x height units and what a screen reader says of it.
struct Picture {
  double width = 0, height = 0;
  std::string body, label;
};

struct Point {
  double x = 0, y = 0;
};

struct Series {
  enum Kind { line, thin, dots };
  std::string name;
  int color = 0;
  std::vector<Point> points;  // a point with y == nothing interrupts the line
  Kind kind = line;
};

struct LineChart {
  std::string title, x_title = "step";
  std::vector<Series> series;
  std::vector<std::pair<double, std::string>> marks;  // upright lines: where, and what they mean
  double width = 560, height = 310;
  bool log_y = false;
  bool y_from_zero = false;
  bool x_to_ticks = false;  // else the axis ends where the points do
};
Picture line_chart(const LineChart& chart);

/// Ticks are (place, label), the place in cells: 0 is the left or upper edge of the first one.
using Ticks = std::vector<std::pair<double, std::string>>;

struct HeatMap {
  std::string title, x_title;
  std::vector<std::vector<double>> cells;  // [row][column], places on the ramp from 0 to 1, or nothing
  Ticks row_ticks, column_ticks;
  std::vector<std::vector<std::string>> hover;  // [row][column], or one text for a whole row
  std::vector<std::vector<std::string>> texts;  // [row][column], written into the cells; may be empty
  double width = 380, cell_height = 10;
};
Picture heat_map(const HeatMap& map);

/// What the ramp's colours mean: ticks are (place from 0 to 1, label).
Picture ramp_key(const std::string& title, const Ticks& ticks);

struct Segment {
  std::string name;
  int color = 0;
  double share = 0;
};
Picture stacked_bar(const std::string& label, const std::vector<Segment>& segments);

/// The picture as an element of a page that has style() in its head.
std::string inline_svg(const Picture& picture);

/// Pictures one below the other as a file of their own, with a legend of (color, name).
std::string file_svg(const std::string& title, const std::vector<Picture>& pictures,
                     const std::vector<std::pair<int, std::string>>& legend = {});

/// Variables and classes that the pictures use.
std::string style();

/// Text that is safe in HTML and SVG; what is not UTF-8 or not printable becomes a replacement character.
std::string escape(std::string_view text);

/// About `count` round numbers that span [from, to].
std::vector<double> round_ticks(double from, double to, int count);
/// 12, 0.5, 20k: as short as an axis needs where neighbours differ by `step`.
std::string tick_label(double value, double step);
/// 1.23 M, 45.6 k, 7.8
std::string si(double value);
/// 17,000
std::string thousands(double value);

}  // namespace svg
