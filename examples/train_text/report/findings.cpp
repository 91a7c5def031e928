/// @file
/// The sentences at the top of the report.
#include "findings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace report {
namespace {

const std::string loss_path = "/validation_bits_per_byte/mean";

Estimate loss(const Model& model) {
  return estimate(model, loss_path);
}

/// The standard error of a difference of means. A model of one seed is taken to spread like the other; without any
/// spread there is nothing to say.
double error_of_difference(const Estimate& a, const Estimate& b) {
  if (a.count < 2 && b.count < 2) return svg::nothing;
  const double left = a.count > 1 ? a.deviation : b.deviation, right = b.count > 1 ? b.deviation : a.deviation;
  return std::sqrt(left * left / a.count + right * right / b.count);
}

std::string seeds(int count) {
  return count == 1 ? "one seed" : fmt::format("{} seeds", count);
}

/// " for 1.02 times its arithmetic a token", where both are known.
std::string cost(const Model& model, const Model& other) {
  const double ratio = estimate(model, "/flops_per_token").mean / estimate(other, "/flops_per_token").mean;
  if (!std::isfinite(ratio)) return "";
  if (std::abs(ratio - 1) < 0.01) return ", at the same FLOPs a token";
  return fmt::format(", at {:.2f} times its FLOPs a token", ratio);
}

std::string against_dense(const Model& best, const Model& dense) {
  const Estimate a = loss(best), b = loss(dense);
  const double gap = b.mean - a.mean, error = error_of_difference(a, b);
  if (gap <= 0) {
    return fmt::format(
        "No mixture is below the dense model: the best, {}, needs {} bits per byte of unseen text, {} {}.", best.title,
        plus_minus(a, 3), dense.title, plus_minus(b, 3));
  }
  if (gap <= 2 * error) {
    return fmt::format(
        "No clear winner: {} needs {} bits per byte of unseen text and {} {}, which the spread over seeds "
        "explains.",
        best.title, plus_minus(a, 3), dense.title, plus_minus(b, 3));
  }
  return fmt::format("{} needs {} bits per byte of unseen text, {:.3f} less than {} ({}){}.", best.title,
                     plus_minus(a, 3), gap, dense.title, plus_minus(b, 3), cost(best, dense));
}

/// Whether the runs are of equal length, and how long they are.
std::string lengths(const std::vector<Model>& models) {
  std::set<double> steps;
  std::size_t runs = 0;
  double tokens = svg::nothing;
  for (const Model& model : models) {
    for (const json* run : model.runs) {
      ++runs;
      const double taken = number(*run, "/steps");
      if (std::isfinite(taken)) steps.insert(taken);
      if (!std::isfinite(tokens)) tokens = taken * number(*run, "/tokens_per_step");
    }
  }
  if (steps.empty()) return "";
  if (steps.size() > 1) {
    return fmt::format("The runs differ in length, {:.0f} to {:.0f} steps, so compare with care.", *steps.begin(),
                       *steps.rbegin());
  }
  const char* each = runs > 1 ? " each" : "";
  if (!std::isfinite(tokens)) return fmt::format("{:.0f} steps{}.", *steps.begin(), each);
  return fmt::format("{:.0f} steps{}, {} bytes of training text.", *steps.begin(), each, svg::thousands(tokens));
}

std::string spread(const std::vector<Model>& models) {
  int fewest = 1000000, most = 0;
  for (const Model& model : models) {
    const int count = loss(model).count;
    if (count == 0) continue;
    fewest = std::min(fewest, count);
    most = std::max(most, count);
  }
  if (most == 0) return "";
  if (most == 1) return "One seed a model: how much of a difference is chance is not known.";
  if (fewest == most) return fmt::format("Mean ± standard deviation over {}.", seeds(most));
  return fmt::format("Mean ± standard deviation over up to {}; a number without ± is of one seed.", seeds(most));
}

}  // namespace

std::string plus_minus(const Estimate& estimate, int decimals) {
  if (estimate.count == 0) return "–";
  if (estimate.count == 1) return fmt::format("{:.{}f}", estimate.mean, decimals);
  return fmt::format("{:.{}f}\u00A0±\u00A0{:.{}f}", estimate.mean, decimals, estimate.deviation, decimals);
}

const Model* best_mixture(const std::vector<Model>& models) {
  for (const bool comparable : {true, false}) {
    for (const Model& model : models) {
      if (!model.dense() && model.comparable == comparable) return &model;
    }
  }
  return nullptr;
}

std::pair<const Model*, const Model*> balanced_and_not(const std::vector<Model>& models) {
  for (const Model& model : models) {
    if (!model.unbalanced()) continue;
    for (const Model& other : models) {
      if (other.name != model.name && model.name.rfind(other.name, 0) == 0) return {&other, &model};
    }
  }
  const Model* best = best_mixture(models);
  return {best && best->unbalanced() ? nullptr : best, best && best->unbalanced() ? best : nullptr};
}

std::string headline(const std::vector<Model>& models) {
  const Model* best = best_mixture(models);
  const auto dense = std::find_if(models.begin(), models.end(), [](const Model& model) { return model.dense(); });
  if (models.empty()) return "There are no runs to report.";
  const Model& shown = best ? *best : models.front();
  const Estimate bits = loss(shown);
  if (bits.count == 0) return fmt::format("{}: training ended before validation.", shown.title);
  if (best && best->comparable && dense != models.end() && loss(*dense).count > 0) return against_dense(*best, *dense);
  if (models.size() == 1)
    return fmt::format("{} needs {} bits per byte of unseen text.", shown.title, plus_minus(bits, 3));
  return fmt::format("Of {} models {} needs the fewest bits per byte of unseen text: {}.", models.size(), shown.title,
                     plus_minus(bits, 3));
}

std::vector<std::string> remarks(const std::vector<Model>& models) {
  std::vector<std::string> out;
  std::string first = lengths(models);
  if (const std::string more = spread(models); !more.empty()) first += (first.empty() ? "" : " ") + more;
  if (!first.empty()) out.push_back(first);
  for (const Model& model : models) {
    if (models.size() > 1 && !model.comparable && loss(model).count > 0) {
      out.push_back(fmt::format("Not compared: {}, {} bits per byte{}.", model.title, plus_minus(loss(model), 3),
                                model.note.empty() ? "" : " (" + model.note + ")"));
    }
  }
  const auto [balanced, unbalanced] = balanced_and_not(models);
  if (balanced && unbalanced) {
    const Estimate with = estimate(*balanced, "/maximum_violation"),
                   without = estimate(*unbalanced, "/maximum_violation");
    if (with.count > 0 && without.count > 0) {
      out.push_back(
          fmt::format("Balancing: the busiest expert of {} takes {:.1f} times its fair share, of {} {:.1f} times.",
                      balanced->title, 1 + with.mean, unbalanced->title, 1 + without.mean));
    }
  }
  return out;
}

}  // namespace report
