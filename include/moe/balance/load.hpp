#pragma once
/// @file
/// How evenly experts are used: counts over microbatches, and a report to print or to read.

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <optional>
#include <ostream>
#include <vector>

#include "moe/core/context.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

/// Assignments of each expert, before drops, summed over the microbatches of an optimiser step. On the device.
template <class Space = Kokkos::DefaultExecutionSpace>
class LoadStatistics {
 public:
  /// Adds the counts of a forward pass, on its stream. Recomputed passes must not be added twice.
  template <class Tape>
  void add(const Tape& tape) {
    add(tape.plan, tape.batch.mask, tape.space.value_or(Space{}));
  }
  void add(const DispatchPlan<Space>& plan, const Vector<const std::uint8_t, Space>& mask = {},
           const Space& space = {});

  /// Back to zero, for the next step, on the stream that was last added on.
  void reset() {
    if (!counts_.is_allocated()) return;
    detail::fill(space(), counts_, Index(0));
    detail::fill(space(), tokens_, Index(0));
  }
  /// (E); unallocated before the first add.
  Vector<Index, Space> counts() const { return counts_; }
  /// (1) tokens, padding not counted; unallocated before the first add.
  Vector<Index, Space> tokens() const { return tokens_; }
  /// The stream that was last added on: counts are ready there.
  Space space() const { return space_.value_or(Space{}); }

 private:
  Vector<Index, Space> counts_, tokens_;
  std::optional<Space> space_;
};

/// The loads of one forward pass, on the host.
struct LoadReport {
  Index tokens = 0;
  std::vector<Index> routed;  ///< (E) assignments each expert was asked for
  std::vector<Index> kept;    ///< (E) those it took

  Index experts() const { return Index(routed.size()); }
  Index assignments() const {
    Index sum = 0;
    for (Index n : routed) sum += n;
    return sum;
  }
  /// Assignments that capacity dropped.
  Index dropped() const {
    Index sum = 0;
    for (Index n : kept) sum += n;
    return assignments() - sum;
  }
  /// Expert e's part of all assignments.
  double share(Index e) const { return assignments() == 0 ? 0.0 : double(routed[e]) / double(assignments()); }
  /// max load / mean load - 1 (Wang et al. 2024, "Auxiliary-loss-free load balancing", eq. 5): 0 at balance.
  double maximum_violation() const {
    if (assignments() == 0) return 0;
    return double(*std::max_element(routed.begin(), routed.end())) * double(experts()) / double(assignments()) - 1;
  }
  /// Standard deviation over mean of the loads (Shazeer et al. 2017): 0 at balance.
  double coefficient_of_variation() const {
    if (assignments() == 0) return 0;
    const double mean = double(assignments()) / double(experts());
    double squares = 0;
    for (Index n : routed) squares += (double(n) - mean) * (double(n) - mean);
    return std::sqrt(squares / double(experts())) / mean;
  }
  /// Entropy of the shares in units of its maximum, log E: 1 at balance, 0 where one expert has all.
  double entropy() const {
    if (experts() < 2) return 1;
    double sum = 0;
    for (Index e = 0; e < experts(); ++e) sum -= share(e) > 0 ? share(e) * std::log(share(e)) : 0;
    return sum / std::log(double(experts()));
  }
};

/// Copies the loads of a tape (or of anything with a `plan`) to the host. Waits for the device.
template <class Tape>
LoadReport load_report(const Tape& tape);

/// A table with a bar an expert, then the measures.
std::ostream& operator<<(std::ostream& out, const LoadReport& report);

namespace detail {

template <class Space>
struct AddCounts {
  Vector<Index, Space> counts;
  Vector<const Index, Space> more;
  Vector<Index, Space> tokens;
  Vector<const std::uint8_t, Space> mask;
  Index batch;
  KOKKOS_FUNCTION void operator()(Index e) const {
    counts(e) += more(e);
    if (e == 0) tokens(0) += live_tokens<Space>(mask, 0, batch);
  }
};

template <class View>
std::vector<Index> to_host(const View& view) {
  std::vector<Index> result(view.extent(0));
  Kokkos::View<Index*, Kokkos::HostSpace, Kokkos::MemoryUnmanaged> host(result.data(), result.size());
  Kokkos::deep_copy(host, view);
  return result;
}

}  // namespace detail

template <class Space>
void LoadStatistics<Space>::add(const DispatchPlan<Space>& plan, const Vector<const std::uint8_t, Space>& mask,
                                const Space& space) {
  if (!counts_.is_allocated()) {
    detail::refuse_capture(space, "The first moe::LoadStatistics::add, which allocates,", "Add once before capturing.");
    counts_ = Vector<Index, Space>("moe::load", plan.experts);
    tokens_ = Vector<Index, Space>("moe::load.tokens", 1);
  }
  detail::require<ShapeError>(Index(counts_.extent(0)) == plan.experts, "moe::LoadStatistics: counts of ",
                              counts_.extent(0), " experts, but this plan has ", plan.experts,
                              ". Keep one LoadStatistics for each layer.");
  space_ = space;
  Kokkos::parallel_for("moe::LoadStatistics", detail::Range<Space>(space, 0, plan.experts),
                       detail::AddCounts<Space>{counts_, plan.routed, tokens_, mask, plan.tokens});
}

template <class Tape>
LoadReport load_report(const Tape& tape) {
  detail::require<ShapeError>(tape.plan.routed.is_allocated(),
                              "moe::load_report: this tape is empty. Run forward(ctx, x, tape) first.");
  if constexpr (requires { tape.space.has_value(); }) {
    if (tape.space)
      detail::refuse_capture(*tape.space, "moe::load_report, which copies to the host,",
                             "Call it after the graph's launch.");
  }
  return {tape.plan.tokens, detail::to_host(tape.plan.routed), detail::to_host(tape.plan.kept)};
}

inline std::ostream& operator<<(std::ostream& out, const LoadReport& report) {
  const auto flags = out.flags();
  const auto precision = out.precision();
  double top = 0;
  for (Index e = 0; e < report.experts(); ++e) top = std::max(top, report.share(e));
  out << "expert   tokens    share   kept\n" << std::fixed;
  for (Index e = 0; e < report.experts(); ++e) {
    out << std::setw(6) << e << std::setw(9) << report.routed[e] << std::setw(8) << std::setprecision(2)
        << 100 * report.share(e) << "%" << std::setw(7) << report.kept[e] << "  "
        << std::string(top > 0 ? std::size_t(std::lround(30 * report.share(e) / top)) : 0, '#') << '\n';
  }
  out << std::setprecision(3) << report.tokens << " tokens, " << report.assignments() << " assignments, "
      << report.dropped() << " dropped; maximum violation " << report.maximum_violation()
      << ", coefficient of variation " << report.coefficient_of_variation() << ", entropy " << report.entropy() << '\n';
  out.flags(flags);
  out.precision(precision);
  return out;
}

MOE_NAMESPACE_END
