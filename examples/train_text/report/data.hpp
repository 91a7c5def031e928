#pragma once
/// @file
/// What a comparison says, safely read: any key may be missing or null (that is what JSON makes of NaN).

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "svg.hpp"

namespace report {

using nlohmann::json;

/// A model and its runs, one a seed.
struct Model {
  std::string name, title, note;
  bool comparable = true;  // false: its loss cannot be held against the others'
  int color = 0;
  std::vector<const json*> runs;

  const json& first() const { return *runs.front(); }
  bool dense() const { return name == "dense"; }
  bool routes() const;  // among two experts or more, in some layer
  bool unbalanced() const { return name.find("unbalanced") != std::string::npos; }
};

/// The runs by model: comparable ones by validation loss, the best first, then the others.
/// A run says "comparable": false, or carries a note, where its loss is not to be held against the others'.
std::vector<Model> models(const json& comparison);

/// The number at a path such as "/validation_bits_per_byte/mean", or svg::nothing.
double number(const json& value, const std::string& path);
std::string text(const json& value, const std::string& path);
/// The object or array at a path, or null.
const json& at(const json& value, const std::string& path);

/// Mean and standard deviation over a model's seeds; nothing where no run says it, deviation 0 for one seed.
struct Estimate {
  double mean = svg::nothing, deviation = 0;
  int count = 0;
};
Estimate estimate(const Model& model, const std::string& path);

/// (step, value of `key`) along a run's curve.
std::vector<svg::Point> curve(const json& run, const std::string& list, const std::string& key);
/// Means over a sliding window of a twentieth of the curve.
std::vector<svg::Point> smooth(const std::vector<svg::Point>& points);
/// At most `count` points from step `from` on; each is the mean of its bucket.
std::vector<svg::Point> thin_out(const std::vector<svg::Point>& points, double from, std::size_t count = 200);
/// The mean of several curves at the steps of the first, as far as all of them go.
std::vector<svg::Point> mean(const std::vector<std::vector<svg::Point>>& curves);

/// A rectangular table of numbers; rows of other lengths than the first are left out.
using Table = std::vector<std::vector<double>>;
Table table(const json& rows);
/// Means of neighbouring rows, at most `count` rows.
Table thin_out(const Table& rows, std::size_t count);
Table transpose(const Table& rows);

}  // namespace report
