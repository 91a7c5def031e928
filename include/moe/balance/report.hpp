#pragma once
/// @file
/// `BalanceReport`: what BalanceStatistics has seen, on the host.

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <ostream>
#include <vector>

#include "moe/balance/load.hpp"

MOE_NAMESPACE_BEGIN

/// Loads are assignments before drops; E experts.
struct BalanceReport {
  Index steps = 0;                          ///< that have ended
  Index tokens = 0;                         ///< in them, padding not counted
  std::vector<Index> last;                  ///< (E) loads of the last step
  std::vector<Index> total;                 ///< (E) of all steps
  std::vector<double> average;              ///< (E) their moving average
  Index bucket_steps = 1;                   ///< steps in each bucket of the history but the last
  std::vector<std::vector<Index>> history;  ///< (buckets, E) loads over time, oldest first
  std::vector<Index> pairs;                 ///< (E, E) tokens that chose both; (i, i): that chose i; or empty
  double mean_violation = 0;                ///< mean over steps of the batch's maximum violation
  double router_entropy = 0;                ///< mean over tokens of the entropy of softmax(logits), over log E

  Index experts() const { return Index(total.size()); }
  /// Of the last step: MaxVio_batch of Wang et al. 2024.
  double last_violation() const { return maximum_violation(last); }
  /// Of the moving average.
  double average_violation() const { return maximum_violation(average); }
  /// Of the loads of all steps: their MaxVio_global.
  double total_violation() const { return maximum_violation(total); }
  /// Maximum violations of the history's buckets, oldest first.
  std::vector<double> violations() const {
    std::vector<double> result;
    for (const auto& loads : history) result.push_back(maximum_violation(loads));
    return result;
  }
  /// Entropy of the moving average of loads over log E: 1 at balance.
  double load_entropy() const { return relative_entropy(average); }
  /// P(j chosen | i chosen), or 0 where i never was.
  double together(Index i, Index j) const {
    const Index of_i = pairs.empty() ? 0 : pairs[i * experts() + i];
    return of_i == 0 ? 0 : double(pairs[i * experts() + j]) / double(of_i);
  }
  /// For how many steps, the newest, an expert has had nothing, rounded down to whole buckets of the history.
  Index idle_steps(Index e) const {
    Index buckets = 0;
    while (buckets < Index(history.size()) && history[history.size() - 1 - buckets][e] == 0) ++buckets;
    if (buckets == 0) return steps > 0 && last[e] == 0 ? 1 : 0;
    return steps - (Index(history.size()) - buckets) * bucket_steps;
  }
  /// Experts without any assignment in the newest `of_steps` steps or longer.
  std::vector<Index> dead_experts(Index of_steps = 1) const {
    std::vector<Index> result;
    for (Index e = 0; e < experts(); ++e) {
      if (idle_steps(e) >= of_steps && steps > 0) result.push_back(e);
    }
    return result;
  }
};

/// A line for each of the history's buckets, with a mark an expert (. for none, 1 to 9 for its load in halves of the
/// mean), then the measures.
inline std::ostream& operator<<(std::ostream& out, const BalanceReport& report) {
  const auto flags = out.flags();
  const auto precision = out.precision();
  out << std::fixed << std::setprecision(3) << "   step  violation  loads in halves of the mean\n";
  for (std::size_t b = 0; b < report.history.size(); ++b) {
    const auto& loads = report.history[b];
    const double half = detail::sum_of(loads) / double(2 * loads.size());
    out << std::setw(7) << Index(b) * report.bucket_steps << std::setw(11) << maximum_violation(loads) << "  ";
    for (Index n : loads) out << (n == 0 ? '.' : char('0' + std::clamp(std::lround(double(n) / half), 1L, 9L)));
    out << '\n';
  }
  out << report.steps << " steps, " << report.tokens << " tokens; maximum violation " << report.last_violation()
      << " (last step), " << report.mean_violation << " (mean of steps), " << report.average_violation()
      << " (moving average); entropy of loads " << report.load_entropy() << ", of the router " << report.router_entropy
      << "; " << report.dead_experts(report.bucket_steps).size() << " dead experts\n";
  out.flags(flags);
  out.precision(precision);
  return out;
}

namespace detail {

/// Reads what BalanceSums laid out.
template <class Counts, class Sums>
BalanceReport read_report(const Counts& device_counts, const Sums& device_sums, Index experts, Index buckets,
                          Index steps, Index span) {
  const std::vector<Index> counts = to_host(device_counts);
  const std::vector<double> sums = to_host(device_sums);
  BalanceReport report;
  report.steps = steps;
  report.bucket_steps = span;
  const auto part = [&](Index first, Index size) {
    return std::vector<Index>(counts.begin() + first, counts.begin() + first + size);
  };
  report.last = part(0, experts);
  report.total = part(experts, experts);
  report.tokens = counts[2 * experts];
  report.average.assign(sums.begin(), sums.begin() + experts);
  for (Index b = 0; b * span < steps; ++b) report.history.push_back(part(2 * experts + 1 + b * experts, experts));
  const Index first_pair = 2 * experts + 1 + buckets * experts;
  if (Index(counts.size()) > first_pair) {
    report.pairs = part(first_pair, experts * experts);
    for (Index i = 0; i < experts; ++i) {
      for (Index j = 0; j < i; ++j) report.pairs[i * experts + j] = report.pairs[j * experts + i];
    }
  }
  const double* rest = sums.data() + experts;
  report.mean_violation = rest[1] > 0 ? rest[0] / rest[1] : 0;
  report.router_entropy = rest[3] > 0 && experts > 1 ? rest[2] / rest[3] / std::log(double(experts)) : 0;
  return report;
}

}  // namespace detail

MOE_NAMESPACE_END
