#include "findings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "../train_text/report/findings.hpp"
#include "pictures.hpp"

namespace zoo {
namespace {

using report::Estimate;
using report::Model;

const std::string loss_path = "/validation_bits_per_byte/mean";

/// a's numbers less b's, seed by seed.
Estimate paired(const Model& a, const Model& b, const std::string& path) {
  std::vector<double> gaps;
  for (const auto* one : a.runs) {
    for (const auto* other : b.runs) {
      const double gap = report::number(*one, path) - report::number(*other, path);
      if (report::number(*one, "/seed") == report::number(*other, "/seed") && std::isfinite(gap)) gaps.push_back(gap);
    }
  }
  if (gaps.empty()) return {};
  double mean = 0, squares = 0;
  for (const double gap : gaps) mean += gap / double(gaps.size());
  for (const double gap : gaps) squares += (gap - mean) * (gap - mean);
  return {mean, gaps.size() > 1 ? std::sqrt(squares / double(gaps.size() - 1)) : 0, int(gaps.size())};
}

/// Is zero outside the 95 % interval of a mean gap (Student's t)? Never of one seed.
bool told_apart(const Estimate& gap) {
  constexpr double quantiles[] = {12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26};  // 1 to 9 degrees of freedom
  if (gap.count < 2) return false;
  const double t = gap.count <= 10 ? quantiles[gap.count - 2] : 2.26;
  return std::abs(gap.mean) > t * gap.deviation / std::sqrt(double(gap.count));
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i)
    text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  return text;
}

/// The comparable model with the smallest number at `path`, or null.
const Model* smallest(const std::vector<Model>& models, const std::string& path) {
  const Model* found = nullptr;
  for (const Model& model : models) {
    const double value = report::estimate(model, path).mean;
    if (model.comparable && std::isfinite(value) && (!found || value < report::estimate(*found, path).mean))
      found = &model;
  }
  return found;
}

}  // namespace

Estimate against_none(const Model& model, const std::vector<Model>& models) {
  for (const Model& other : models) {
    if (other.name == "none" && model.name != "none") return paired(model, other, loss_path);
  }
  return {};
}

std::string headline(const std::vector<Model>& models) {
  const Model *best = smallest(models, loss_path), *even = smallest(models, "/balance/violation");
  if (!best || !even) return "Ways to balance experts";
  return fmt::format(
      "Of {} methods, {} has the lowest loss ({} bits per byte) and {} the most even loads "
      "(maximum violation {} of a batch)",
      models.size(), best->title, report::plus_minus(report::estimate(*best, loss_path), 3), even->title,
      report::plus_minus(report::estimate(*even, "/balance/violation"), 2));
}

std::vector<std::string> remarks(const std::vector<Model>& models) {
  std::vector<std::string> out;
  const Model* best = smallest(models, loss_path);
  if (!best) return out;
  std::vector<std::string> same, better, worse;
  for (const Model& model : models) {
    if (!model.comparable) continue;
    if (&model != best && !told_apart(paired(model, *best, loss_path))) same.push_back(model.title);
    const Estimate gap = against_none(model, models);
    if (told_apart(gap)) (gap.mean < 0 ? better : worse).push_back(model.title);
  }
  if (best->runs.size() < 2) {
    out.push_back("One seed: differences in loss say nothing yet.");
  } else {
    out.push_back(same.empty() ? "No other method's loss is within the spread of the lowest."
                               : fmt::format("Seeds do not tell it apart in loss from {}.", listed(same)));
    out.push_back(
        fmt::format("Against no balancing, on the same seeds: {} better beyond the 95 % interval of the difference{}.",
                    better.empty() ? "none is" : listed(better) + (better.size() == 1 ? " is" : " are"),
                    worse.empty() ? "" : ", " + listed(worse) + (worse.size() == 1 ? " is" : " are") + " worse"));
  }
  std::set<double> steps;
  std::size_t seeds = 0;
  for (const Model& model : models) {
    seeds = std::max(seeds, model.runs.size());
    for (const auto* run : model.runs) steps.insert(report::number(*run, "/steps"));
  }
  const double tokens = report::number(best->first(), "/tokens_per_step");
  out.push_back(
      fmt::format("{} steps of {:.0f} bytes, {} {}. Short runs of a small model: they show how methods act, not "
                  "which is best at scale.",
                  steps.empty() ? 0.0 : *steps.rbegin(), tokens, seeds, seeds == 1 ? "seed" : "seeds"));
  return out;
}

}  // namespace zoo
