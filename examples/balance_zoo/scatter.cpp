#include "scatter.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "../train_text/report/svg_axis.hpp"

namespace svg {
namespace {

struct Box {
  double left, top, right, bottom;
  double overlap(const Box& other) const {
    const double x = std::min(right, other.right) - std::max(left, other.left),
                 y = std::min(bottom, other.bottom) - std::max(top, other.top);
    return x > 0 && y > 0 ? x * y : 0;
  }
};

/// Where names go: each takes the place around its dot that covers least of what is there already.
class Labels {
 public:
  Labels(Box frame, std::vector<Box> taken) : frame_(frame), taken_(std::move(taken)) {}

  std::string place(const std::string& name, double x, double y, bool bold) {
    const double width = (bold ? 6.9 : 6.3) * double(name.size()), height = 13;
    double best = INFINITY;
    Box chosen{};
    for (const double away : {9.0, 20.0, 34.0, 50.0, 70.0}) {
      for (int turn = 0; turn < 16; ++turn) {
        const double angle = turn * 0.39269908, dx = std::cos(angle), dy = std::sin(angle);
        const double cx = x + dx * away + (dx > 0.3 ? width / 2 : dx < -0.3 ? -width / 2 : 0), cy = y + dy * away;
        const Box box{cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2};
        double cost = away * 1.5 + (turn == 0 ? 0 : 2);
        for (const Box& other : taken_) cost += 4 * box.overlap(other);
        const double inside = box.overlap(frame_);
        cost += 20 * (width * height - inside);
        if (cost < best) {
          best = cost;
          chosen = box;
        }
      }
    }
    taken_.push_back(chosen);
    const double cx = (chosen.left + chosen.right) / 2, cy = (chosen.top + chosen.bottom) / 2;
    // A thread from the dot to a name that is not beside it.
    const double nx = std::clamp(x, chosen.left, chosen.right), ny = std::clamp(y, chosen.top, chosen.bottom);
    std::string out;
    if (std::hypot(nx - x, ny - y) > 13)
      out += fmt::format(R"-(<path class="g" style="stroke:var(--muted)" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>)-", x, y,
                         nx, ny);
    return out + fmt::format(R"(<text class="m" x="{:.1f}" y="{:.1f}"{}>{}</text>)", cx, cy + 4,
                             bold ? " style=\"font-weight:600\"" : "", escape(name));
  }

 private:
  Box frame_;
  std::vector<Box> taken_;
};

bool usable(const Dot& dot) {
  return std::isfinite(dot.at.x) && std::isfinite(dot.at.y);
}

/// Where y ends: a dot far above the others is put at the edge, or it would press them together.
double highest(const std::vector<Dot>& dots) {
  std::vector<double> tops;
  double low = INFINITY;
  for (const Dot& dot : dots) {
    if (!usable(dot)) continue;
    tops.push_back(dot.at.y + dot.spread.y);
    low = std::min(low, dot.at.y - dot.spread.y);
  }
  if (tops.empty()) return low;
  std::sort(tops.begin(), tops.end());
  const double limit = low + 3.2 * (tops[tops.size() * 3 / 4] - low);
  double high = low;
  for (const double top : tops) high = top <= limit ? top : high;
  return high;
}

/// A logarithmic axis with a place for 0 before it.
struct ZeroAndLog {
  double zero;
  Axis axis;
  double operator()(double value) const { return value > 0 ? axis(value) : zero; }
};

ZeroAndLog make_x(const std::vector<Dot>& dots, double start, double end) {
  Range range;
  for (const Dot& dot : dots) {
    if (!usable(dot) || !(dot.at.x > 0)) continue;
    range.add(dot.at.x + dot.spread.x);
    range.low = std::min(range.low, std::max(dot.at.x - dot.spread.x, 0.7 * dot.at.x));
  }
  if (!(range.low <= range.high)) range = {0.1, 1};
  ZeroAndLog x{start + 6, {range.low / 1.15, range.high * 1.15, start + 60, end, true, {}}};
  for (const double tick : {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0}) {
    const bool room = x.axis.ticks.empty() || x.axis(tick) - x.axis(x.axis.ticks.back()) > 30;
    if (tick > x.axis.from && tick < x.axis.to && room) x.axis.ticks.push_back(tick);
  }
  return x;
}

/// As far as the dots go, no further.
Axis exact_y(Range range, double start, double end) {
  const double edge = 0.03 * (range.high - range.low) + 1e-9;
  Axis axis{range.low - edge, range.high + edge, start, end, false, round_ticks(range.low, range.high, 6)};
  std::erase_if(axis.ticks, [&](double tick) { return tick < axis.from || tick > axis.to; });
  return axis;
}

}  // namespace

std::vector<Dot> front(const std::vector<Dot>& dots) {
  std::vector<Dot> out;
  for (const Dot& dot : dots) {
    const bool beaten = std::any_of(dots.begin(), dots.end(), [&](const Dot& other) {
      return !other.hollow && usable(other) && other.at.x <= dot.at.x && other.at.y <= dot.at.y &&
             (other.at.x < dot.at.x || other.at.y < dot.at.y);
    });
    if (usable(dot) && !dot.hollow && !beaten) out.push_back(dot);
  }
  std::sort(out.begin(), out.end(), [](const Dot& a, const Dot& b) { return a.at.x < b.at.x; });
  return out;
}

Picture scatter(const Scatter& chart) {
  Picture picture{chart.width, chart.height, "", chart.title};
  const double left = 58, right = chart.width - 14, top = 36, bottom = chart.height - 52;
  Range ys;
  for (const Dot& dot : chart.dots) {
    if (usable(dot)) ys.low = std::min(ys.low, dot.at.y - dot.spread.y);
  }
  ys.high = highest(chart.dots);
  if (!(ys.low <= ys.high)) return {};
  const ZeroAndLog x = make_x(chart.dots, left, right);
  const Axis y = exact_y(ys, bottom, top);

  std::string& body = picture.body;
  body += fmt::format(R"(<text class="t" x="0" y="15">{}</text>)", escape(chart.title));
  for (std::size_t i = 0; i < y.ticks.size(); ++i) {
    const double place = y(y.ticks[i]);
    body +=
        fmt::format(R"(<path class="g" d="M{:.0f} {:.1f}H{:.0f}"/><text class="a e" x="{:.0f}" y="{:.1f}">{}</text>)",
                    left, place, right, left - 7, place + 4, y.label(i));
  }
  for (std::size_t i = 0; i <= x.axis.ticks.size(); ++i) {
    const bool zero = i == x.axis.ticks.size();
    const double place = zero ? x.zero : x(x.axis.ticks[i]);
    body += fmt::format(
        R"(<path class="g" d="M{0:.1f} {1:.0f}V{2:.0f}"/><text class="a m" x="{0:.1f}" y="{3:.0f}">{4}</text>)", place,
        bottom + 5, top, bottom + 22, zero ? "0" : x.axis.label(i));
  }
  body += fmt::format(R"(<text class="a m" x="{:.0f}" y="{:.0f}">{}</text>)", (left + right) / 2, chart.height - 6,
                      escape(chart.x_title));

  const std::vector<Dot> best = front(chart.dots);
  std::string stairs;
  for (std::size_t i = 0; i < best.size(); ++i) {
    const double px = x(best[i].at.x), py = y(best[i].at.y);
    if (i == 0) stairs += fmt::format("M{:.1f} {:.1f}V{:.1f}", px, top, py);
    if (i > 0) stairs += fmt::format("H{:.1f}V{:.1f}", px, py);
    if (i + 1 == best.size()) stairs += fmt::format("H{:.1f}", right);
  }
  body += fmt::format(R"(<path class="x" d="{}"/>)", stairs);
  std::vector<Box> taken;
  for (std::size_t i = 0; i < best.size(); ++i) {
    const double px = x(best[i].at.x), py = y(best[i].at.y);
    const double above = i == 0 ? top : y(best[i - 1].at.y), next = i + 1 < best.size() ? x(best[i + 1].at.x) : right;
    taken.push_back({px - 1, above, px + 1, py});
    taken.push_back({px, py - 1, next, py + 1});
  }

  for (const Dot& dot : chart.dots) {
    if (!usable(dot)) continue;
    const double px = x(dot.at.x), py = y(dot.at.y);
    taken.push_back({px - 6, py - 6, px + 6, py + 6});
    const double l = x(dot.at.x > 0 ? std::max(1e-3, dot.at.x - dot.spread.x) : 0),
                 r = x(dot.at.x > 0 ? dot.at.x + dot.spread.x : 0), t = y(dot.at.y + dot.spread.y),
                 b = y(dot.at.y - dot.spread.y);
    taken.push_back({px - 1, t, px + 1, b});
    taken.push_back({l, py - 1, r, py + 1});
    body += fmt::format(
        R"(<path class="l k{}" style="stroke-width:1.2;opacity:.55" d="M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}V{:.1f}"/>)",
        dot.color, l, py, r, px, t, b);
  }
  for (const Dot& dot : chart.dots) {
    if (!usable(dot)) continue;
    body += fmt::format(
        R"-(<circle class="{} k{}" {}cx="{:.1f}" cy="{:.1f}" r="4.6"><title>{}: {:.3f} ± {:.3f}, {:.4f} ± {:.4f} bits per byte</title></circle>)-",
        dot.hollow ? "l" : "d", dot.color, dot.hollow ? "style=\"fill:var(--bg)\" " : "", x(dot.at.x), y(dot.at.y),
        escape(dot.name), dot.at.x, dot.spread.x, dot.at.y, dot.spread.y);
  }
  Labels labels({left + 2, top, right + 10, bottom - 2}, taken);
  for (const Dot& dot : chart.dots) {
    if (!usable(dot)) continue;
    const bool on_front = std::any_of(best.begin(), best.end(), [&](const Dot& b) { return b.name == dot.name; });
    const std::string beyond = dot.at.y > y.to ? fmt::format(" ↑ {:.2f}", dot.at.y) : "";
    body += labels.place(dot.name + beyond, x(dot.at.x), y(dot.at.y), on_front);
  }
  return picture;
}

}  // namespace svg
