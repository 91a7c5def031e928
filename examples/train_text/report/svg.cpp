/// @file
/// What all pictures share: numbers, escaping, colours, and the way from a drawing to an element or a file.
#include "svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace svg {
namespace {

/// The length of the UTF-8 sequence at the start of `text`, 0 where there is none.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  const std::size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (length == 0 || first > 0xF4 || length > text.size()) return 0;
  std::uint32_t code = length == 1 ? first : first & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  const bool control = (code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7F && code < 0xA0) || code >= 0xFFFE;
  return overlong || surrogate || code > 0x10FFFF || (control && code < 0x10000) ? 0 : length;
}

/// Viridis at 9 places; lightness grows evenly, whatever the eye's colours.
constexpr int viridis[9][3] = {{0x44, 0x01, 0x54}, {0x47, 0x2d, 0x7b}, {0x3b, 0x52, 0x8b},
                               {0x2c, 0x72, 0x8e}, {0x21, 0x91, 0x8c}, {0x28, 0xae, 0x80},
                               {0x5e, 0xc9, 0x62}, {0xad, 0xdc, 0x30}, {0xfd, 0xe7, 0x25}};

/// The class that enlarges letters on narrow screens, where the picture is scaled down.
const char* letters(const Picture& picture) {
  return picture.width > 400 ? "wide" : picture.width > 300 ? "mid" : "";
}

std::string ramp_style() {
  std::string css;
  for (int level = 0; level < 24; ++level) {
    const double place = 8.0 * level / 23;
    const int left = std::min(7, int(place));
    int color[3];
    for (int i = 0; i < 3; ++i) {
      color[i] = int(std::lround(viridis[left][i] + (place - left) * (viridis[left + 1][i] - viridis[left][i])));
    }
    css += fmt::format(".h{}{{stroke:#{:02x}{:02x}{:02x}}}", level, color[0], color[1], color[2]);
  }
  return css + "\n";
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = sequence_length(text);
    if (length == 0) out += "\xEF\xBF\xBD";
    if (length == 1 && text[0] == '&') {
      out += "&amp;";
    } else if (length == 1 && text[0] == '<') {
      out += "&lt;";
    } else if (length == 1 && text[0] == '>') {
      out += "&gt;";
    } else if (length == 1 && text[0] == '"') {
      out += "&quot;";
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(1, length));
  }
  return out;
}

std::vector<double> round_ticks(double from, double to, int count) {
  if (!(to > from)) to = from + std::max(1e-9, std::abs(from));
  const double rough = (to - from) / count, power = std::pow(10, std::floor(std::log10(rough)));
  const double step = power * (rough / power <= 1 ? 1 : rough / power <= 2 ? 2 : rough / power <= 5 ? 5 : 10);
  std::vector<double> ticks;
  for (double k = std::floor(from / step + 1e-9); k * step < to + step * (1 - 1e-9); ++k) ticks.push_back(k * step);
  return ticks;
}

std::string tick_label(double value, double step) {
  if (std::abs(value) >= 10000) return tick_label(value / 1000, step / 1000) + "k";
  const int decimals = std::max(0, int(std::ceil(-std::log10(std::abs(step)) - 1e-9)));
  if (decimals > 4 && value != 0) return fmt::format("{:.2g}", value);
  const std::string digits = fmt::format("{:.{}f}", std::abs(value), std::min(4, decimals));
  return value < 0 && digits.find_first_not_of("0.") != std::string::npos ? "\u2212" + digits : digits;
}

std::string si(double value) {
  static constexpr const char* units[] = {"", "\u202Fk", "\u202FM", "\u202FG", "\u202FT"};
  int unit = 0;
  while (unit < 4 && std::abs(value) >= 999.5) {
    value /= 1000;
    ++unit;
  }
  const double size = std::abs(value);
  const int decimals = unit == 0 && value == std::floor(value) ? 0 : size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f}{}", value, decimals, units[unit]);
}

std::string thousands(double value) {
  std::string digits = fmt::format("{:.0f}", std::abs(value));
  for (int at = int(digits.size()) - 3; at > 0; at -= 3) digits.insert(std::size_t(at), ",");
  return (value < 0 ? "\u2212" : "") + digits;
}

Picture stacked_bar(const std::string& label, const std::vector<Segment>& segments) {
  Picture picture{560, 30, "", label};
  double total = 0, x = 0;
  for (const Segment& segment : segments) total += segment.share;
  for (const Segment& segment : segments) {
    if (!(segment.share > 0)) continue;
    const double width = picture.width * segment.share / total;
    // A gap of one unit keeps neighbours apart for whom colours do not.
    picture.body +=
        fmt::format(R"(<rect class="k{}" x="{:.1f}" y="2" width="{:.1f}" height="26" fill="currentColor">)"
                    "<title>{}: {:.1f} %</title></rect>",
                    segment.color, x, std::max(0.5, width - 1), escape(segment.name), 100 * segment.share / total);
    x += width;
  }
  return picture;
}

std::string inline_svg(const Picture& picture) {
  return fmt::format(R"(<svg class="pic {}" viewBox="0 0 {:.0f} {:.0f}" style="max-width:{:.0f}px" role="img" )"
                     R"(aria-label="{}">{}</svg>)"
                     "\n",
                     letters(picture), picture.width, picture.height,
                     (picture.width > 400 ? 1.1 : 1.15) * picture.width, escape(picture.label), picture.body);
}

std::string file_svg(const std::string& title, const std::vector<Picture>& pictures,
                     const std::vector<std::pair<int, std::string>>& legend) {
  double width = 0, y = 12;
  std::string body;
  for (const Picture& picture : pictures) width = std::max(width, picture.width);
  for (const Picture& picture : pictures) {
    body +=
        fmt::format("<g transform=\"translate(12 {:.0f})\" class=\"{}\">{}</g>\n", y, letters(picture), picture.body);
    y += picture.height + 10;
  }
  double x = width;  // a full line: the first name starts a new one
  for (const auto& [color, name] : legend) {
    const double room = 36 + 10.5 * double(name.size());  // enough for the large letters of narrow screens
    if (x + room > width) {
      x = 0;
      y += 24;
    }
    body += fmt::format(
        R"-(<g class="wide" transform="translate({:.0f} {:.0f})"><rect class="k{}" y="-10" width="14" height="10" )-"
        R"-(fill="currentColor"/><text x="20">{}</text></g>)-"
        "\n",
        12 + x, y, color, escape(name));
    x += room;
  }
  return fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" )"
      R"(role="img" aria-label="{2}">)"
      "\n<title>{2}</title>\n<style>\n{3}text{{font-family:system-ui,sans-serif}}\n</style>\n"
      R"-(<rect width="100%" height="100%" style="fill:var(--bg)"/>)-"
      "\n{4}</svg>\n",
      width + 24, y + 14, escape(title), style(), body);
}

std::string style() {
  // Okabe and Ito's colours, a little darker or lighter where the ground asks for it; 0 is the ink itself.
  return R"(:root{--bg:#fff;--fg:#1c2024;--muted:#5b6570;--grid:#e4e7eb;--panel:#f5f6f8;--hover:#0000000d;
--c0:#1c2024;--c1:#0072b2;--c2:#d55e00;--c3:#009e73;--c4:#cc79a7;--c5:#e69f00;--c6:#56b4e9;--c7:#8f8200;--c8:#9aa3ad}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e9ec;--muted:#9ba5af;--grid:#2b3138;--panel:#1c2126;
--hover:#ffffff14;--c0:#f2f4f6;--c1:#2f8fdc;--c2:#f0742a;--c3:#18b88a;--c4:#dc92bb;--c5:#f0b030;--c6:#83cbf5;
--c7:#e8dc4a;--c8:#6f7983}}
.k0{color:var(--c0)}.k1{color:var(--c1)}.k2{color:var(--c2)}.k3{color:var(--c3)}.k4{color:var(--c4)}
.k5{color:var(--c5)}.k6{color:var(--c6)}.k7{color:var(--c7)}.k8{color:var(--c8)}
text{fill:var(--fg);font-size:11.5px}.a{fill:var(--muted)}.m{text-anchor:middle}.e{text-anchor:end}
.t{font-weight:600;font-size:13px}
.g{stroke:var(--grid);fill:none}.l{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}
.n{stroke-width:.8;opacity:.45}.d{fill:currentColor;stroke:var(--bg);stroke-width:1}
.x{fill:none;stroke:var(--muted);stroke-dasharray:3 3}.z{fill:transparent}.z:hover{fill:var(--hover)}
.f{fill:none;shape-rendering:crispEdges}.b{fill:#000}.w{fill:#fff}.p{fill:var(--panel)}
@media (max-width:480px){.wide text{font-size:19px}.wide .t{font-size:20px}.wide .o{display:none}
.wide .l{stroke-width:3}.wide .n{stroke-width:1.4}.mid text{font-size:13.5px}.mid .t{font-size:14.5px}}
)" + ramp_style();
}

}  // namespace svg
