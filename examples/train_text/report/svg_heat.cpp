/// @file
/// Heat maps. A colour's cells are one path of horizontal strokes, each as long as its run: a few bytes a cell.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "svg.hpp"

namespace svg {
namespace {

constexpr int levels = 24;  // style() has a class for each

int level_of(double place) {
  return std::isfinite(place) ? std::clamp(int(place * levels), 0, levels - 1) : -1;
}

std::string strokes(const std::vector<std::vector<double>>& cells) {
  struct Pen {
    std::string d;
    int x = 0, y = 0;
  };
  std::array<Pen, levels> pens;
  for (int row = 0; row < int(cells.size()); ++row) {
    const auto& line = cells[std::size_t(row)];
    for (int column = 0; column < int(line.size());) {
      const int level = level_of(line[std::size_t(column)]), start = column;
      while (column < int(line.size()) && level_of(line[std::size_t(column)]) == level) ++column;
      if (level < 0) continue;
      Pen& pen = pens[std::size_t(level)];
      pen.d += fmt::format("m{} {}h{}", start - pen.x, row - pen.y, column - start);
      pen.x = column;
      pen.y = row;
    }
  }
  std::string out;
  for (int level = 0; level < levels; ++level) {
    const std::string& d = pens[std::size_t(level)].d;
    if (!d.empty()) out += fmt::format(R"(<path class="h{}" d="M0 0{}"/>)", level, d);
  }
  return out;
}

std::size_t letters(const std::string& text) {  // not bytes
  return std::size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

Picture heat_map(const HeatMap& map) {
  std::size_t columns = 0, longest = 1;
  for (const auto& row : map.cells) columns = std::max(columns, row.size());
  if (columns == 0) return {};
  for (const auto& [place, label] : map.row_ticks) longest = std::max(longest, letters(label));
  const double left = 12 + 6.6 * double(longest), right = map.width - 8, top = 24, cell_height = map.cell_height,
               cell_width = (right - left) / double(columns), bottom = top + cell_height * double(map.cells.size());
  Picture picture{map.width, bottom + 36, "", map.title};
  std::string& body = picture.body;
  body += fmt::format(R"(<text class="t" x="0" y="14">{}</text>)", escape(map.title));
  body += fmt::format(R"(<rect class="p" x="{:.1f}" y="{:.0f}" width="{:.1f}" height="{:.1f}"/>)", left, top,
                      right - left, bottom - top);
  for (const auto& [place, label] : map.row_ticks) {
    body += fmt::format(R"(<text class="a e" x="{:.1f}" y="{:.1f}">{}</text>)", left - 6, top + place * cell_height + 4,
                        escape(label));
  }
  for (const auto& [place, label] : map.column_ticks) {
    body += fmt::format(R"(<text class="a m" x="{:.1f}" y="{:.1f}">{}</text>)", left + place * cell_width, bottom + 15,
                        escape(label));
  }
  body += fmt::format(R"(<text class="a m" x="{:.0f}" y="{:.1f}">{}</text>)", (left + right) / 2, bottom + 30,
                      escape(map.x_title));
  body += fmt::format(R"-(<g class="f" transform="translate({:.2f} {:.2f})scale({:.4f} {:.4f})">{}</g>)-", left,
                      top + cell_height / 2, cell_width, cell_height, strokes(map.cells));
  for (std::size_t r = 0; r < map.texts.size(); ++r) {
    for (std::size_t c = 0; c < map.texts[r].size(); ++c) {
      body += fmt::format(R"(<text class="m {}" x="{:.1f}" y="{:.1f}">{}</text>)",
                          level_of(map.cells[r][c]) > 13 ? "b" : "w", left + (double(c) + 0.5) * cell_width,
                          top + (double(r) + 0.5) * cell_height + 4, escape(map.texts[r][c]));
    }
  }
  for (std::size_t r = 0; r < map.hover.size(); ++r) {
    const double width = (right - left) / double(map.hover[r].size());
    for (std::size_t c = 0; c < map.hover[r].size(); ++c) {
      body += fmt::format(
          R"(<rect class="z" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>)",
          left + double(c) * width, top + double(r) * cell_height, width, cell_height, escape(map.hover[r][c]));
    }
  }
  return picture;
}

Picture ramp_key(const std::string& title, const Ticks& ticks) {
  Picture picture{380, 52, "", title};
  picture.body = fmt::format(R"(<text class="a" x="0" y="12">{}</text><g class="f">)", escape(title));
  const double width = picture.width / levels;
  for (int level = 0; level < levels; ++level) {
    picture.body += fmt::format(R"(<path class="h{}" stroke-width="12" d="M{:.1f} 25h{:.1f}"/>)", level, level * width,
                                width + 0.1);
  }
  picture.body += "</g>";
  for (const auto& [place, label] : ticks) {
    picture.body += fmt::format(R"(<text class="a{}" x="{:.1f}" y="45">{}</text>)",
                                place <= 0   ? ""
                                : place >= 1 ? " e"
                                             : " m",
                                place * picture.width, escape(label));
  }
  return picture;
}

}  // namespace svg
