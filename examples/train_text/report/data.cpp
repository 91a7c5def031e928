/// @file
/// Reading a comparison, and the little statistics that a page needs.
#include "data.hpp"

#include <algorithm>
#include <cmath>

namespace report {
namespace {

/// The mean of points [begin, end); what is not a number (a loss that ran away) does not count.
svg::Point mean_of(const std::vector<svg::Point>& points, std::size_t begin, std::size_t end) {
  double x = 0, y = 0;
  int count = 0;
  for (std::size_t i = begin; i < end; ++i) {
    x += points[i].x;
    if (!std::isfinite(points[i].y)) continue;
    y += points[i].y;
    ++count;
  }
  return {x / double(end - begin), count > 0 ? y / count : svg::nothing};
}

}  // namespace

const json& at(const json& value, const std::string& path) {
  static const json none;
  const json::json_pointer pointer(path);
  return value.contains(pointer) ? value.at(pointer) : none;
}

double number(const json& value, const std::string& path) {
  const json& found = at(value, path);
  return found.is_number() ? found.get<double>() : svg::nothing;
}

std::string text(const json& value, const std::string& path) {
  const json& found = at(value, path);
  return found.is_string() ? found.get<std::string>() : "";
}

bool Model::routes() const {
  for (const json& layer : at(first(), "/domain_load/layers")) {
    if (layer.is_array() && !layer.empty() && layer[0].size() > 1) return true;
  }
  return false;
}

std::vector<Model> models(const json& comparison) {
  std::vector<Model> found;
  for (const json& run : at(comparison, "/runs")) {
    const std::string name = text(run, "/model");
    auto model = std::find_if(found.begin(), found.end(), [&](const Model& m) { return m.name == name; });
    if (model == found.end()) {
      Model added{name, text(run, "/title"), text(run, "/note"), true, 0, {}};
      if (added.title.empty()) added.title = name.empty() ? "Model" : name;
      const json& comparable = at(run, "/comparable");
      added.comparable = comparable.is_boolean() ? comparable.get<bool>() : added.note.empty();
      model = found.insert(found.end(), added);
    }
    model->runs.push_back(&run);
  }
  int color = 0;
  for (Model& model : found) model.color = model.dense() ? 0 : 1 + color++ % 7;
  std::stable_sort(found.begin(), found.end(), [](const Model& a, const Model& b) {
    if (a.comparable != b.comparable) return a.comparable;
    const double left = estimate(a, "/validation_bits_per_byte/mean").mean;
    const double right = estimate(b, "/validation_bits_per_byte/mean").mean;
    return std::isfinite(left) && !(left >= right);  // those without a number come last
  });
  return found;
}

Estimate estimate(const Model& model, const std::string& path) {
  double sum = 0, squares = 0;
  int count = 0;
  for (const json* run : model.runs) {
    const double value = number(*run, path);
    if (!std::isfinite(value)) continue;
    sum += value;
    ++count;
  }
  if (count == 0) return {};
  for (const json* run : model.runs) {
    const double value = number(*run, path);
    if (std::isfinite(value)) squares += (value - sum / count) * (value - sum / count);
  }
  return {sum / count, count > 1 ? std::sqrt(squares / (count - 1)) : 0, count};
}

std::vector<svg::Point> curve(const json& run, const std::string& list, const std::string& key) {
  std::vector<svg::Point> points;
  for (const json& entry : at(run, "/" + list)) {
    const double step = number(entry, "/step");
    if (std::isfinite(step) && entry.contains(key)) points.push_back({step, number(entry, "/" + key)});
  }
  return points;
}

std::vector<svg::Point> smooth(const std::vector<svg::Point>& points) {
  const std::size_t half = points.size() / 40;
  std::vector<svg::Point> out = points;
  for (std::size_t i = 0; i < points.size(); ++i) {
    // Narrow where the curve starts, since it is steep there; one-sided at the flat end, since a point alone is noise.
    const std::size_t begin = i - std::min(half, i), end = std::min({i + half, 2 * i, points.size() - 1}) + 1;
    out[i].y = mean_of(points, begin, end).y;
  }
  return out;
}

std::vector<svg::Point> thin_out(const std::vector<svg::Point>& points, double from, std::size_t count) {
  std::vector<svg::Point> kept, out;
  for (const svg::Point& point : points) {
    if (point.x >= from) kept.push_back(point);
  }
  if (kept.size() <= count) return kept;
  for (std::size_t bucket = 0; bucket < count; ++bucket) {
    const std::size_t begin = kept.size() * bucket / count, end = kept.size() * (bucket + 1) / count;
    out.push_back(mean_of(kept, begin, end));
  }
  out.front().x = kept.front().x;  // the ends stay where they are
  out.back().x = kept.back().x;
  return out;
}

std::vector<svg::Point> mean(const std::vector<std::vector<svg::Point>>& curves) {
  std::vector<svg::Point> out;
  if (curves.empty()) return out;
  for (const svg::Point& point : curves.front()) {
    double sum = 0;
    bool everywhere = true;
    for (const auto& other : curves) {
      const auto right = std::find_if(other.begin(), other.end(), [&](const svg::Point& p) { return p.x >= point.x; });
      if (right == other.end() || (right == other.begin() && right->x > point.x)) {
        everywhere = false;
        break;
      }
      const auto left = right == other.begin() ? right : right - 1;
      const double share = right->x > left->x ? (point.x - left->x) / (right->x - left->x) : 1;
      sum += left->y + share * (right->y - left->y);
    }
    if (everywhere) out.push_back({point.x, sum / double(curves.size())});
  }
  return out;
}

Table table(const json& rows) {
  Table out;
  if (!rows.is_array()) return out;
  for (const json& row : rows) {
    if (!row.is_array() || (!out.empty() && row.size() != out.front().size())) continue;
    out.emplace_back();
    for (const json& cell : row) out.back().push_back(cell.is_number() ? cell.get<double>() : svg::nothing);
  }
  return out;
}

Table thin_out(const Table& rows, std::size_t count) {
  if (rows.size() <= count) return rows;
  Table out;
  for (std::size_t bucket = 0; bucket < count; ++bucket) {
    const std::size_t begin = rows.size() * bucket / count, end = rows.size() * (bucket + 1) / count;
    std::vector<double>& mean = out.emplace_back(rows.front().size(), 0.0);
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t c = 0; c < rows[r].size(); ++c) mean[c] += rows[r][c] / double(end - begin);
    }
  }
  return out;
}

Table transpose(const Table& rows) {
  Table out(rows.empty() ? 0 : rows.front().size(), std::vector<double>(rows.size()));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t c = 0; c < rows[r].size(); ++c) out[c][r] = rows[r][c];
  }
  return out;
}

}  // namespace report
