#pragma once
/// @file
/// How evenly experts are used: counts over microbatches, and a report to print or to read.

#include <algorithm>
#include <cmath>
#include <functional>
#include <iomanip>
#include <numeric>
#include <optional>
#include <ostream>
#include <vector>

#include "moe/core/context.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class Number>
double sum_of(const std::vector<Number>& values) {
  double sum = 0;
  for (Number value : values) sum += double(value);
  return sum;
}

}  // namespace detail

/// Assignments of each expert, before drops, summed over the microbatches of an optimiser step, and over ranks and
/// layers where they are asked to. On the device.
template <class Space = Kokkos::DefaultExecutionSpace>
class LoadStatistics {
 public:
  /// Takes its size from what is added first.
  LoadStatistics() = default;
  /// Of a layer of so many experts: counts() can be given to a PooledBalanceLoss at once.
  explicit LoadStatistics(Index experts) { allocate(experts); }

  /// Adds the counts of a forward pass, on its stream. Recomputed passes must not be added twice.
  template <class Tape>
  void add(const Tape& tape) {
    add(tape.plan, tape.batch.mask, tape.space.value_or(Space{}));
  }
  void add(const DispatchPlan<Space>& plan, const Vector<const std::uint8_t, Space>& mask = {},
           const Space& space = {});

  /// Adds the counts of another, as of another layer or a part of the step, on its stream.
  void add(const LoadStatistics& other);

  /// Sums over ranks. `reduce(space, values)` replaces values, a Vector<Index, Space>, by its sum over all ranks, in
  /// order on the stream `space`: a wrapped MPI_Allreduce, ncclAllReduce or the like. One call, for counts and tokens
  /// alike. What is added later would be summed again by a second call: reduce once, before update_balance.
  template <class Reduce>
  void all_reduce(const Reduce& reduce) {
    if (all_.is_allocated()) reduce(space(), all_);
  }

  /// Back to zero, for the next step, on the stream that was last added on.
  void reset() {
    if (all_.is_allocated()) detail::fill(space(), all_, Index(0));
  }
  /// (E); unallocated before the first add.
  Vector<Index, Space> counts() const { return part(0, experts()); }
  /// (1) tokens, padding not counted; unallocated before the first add.
  Vector<Index, Space> tokens() const { return part(experts(), experts() + 1); }
  /// The stream that was last added on: counts are ready there.
  Space space() const { return space_.value_or(Space{}); }

 private:
  Index experts() const { return all_.is_allocated() ? Index(all_.extent(0)) - 1 : 0; }
  Vector<Index, Space> part(Index begin, Index end) const {
    if (!all_.is_allocated()) return {};
    return Kokkos::subview(all_, Kokkos::pair<Index, Index>(begin, end));
  }
  void allocate(Index experts) {
    detail::require<ConfigError>(experts > 0, "moe::LoadStatistics: ", experts, " experts; there must be one or more.");
    all_ = Vector<Index, Space>("moe::load", experts + 1);
  }
  /// Makes room at the first add, and refuses other sizes later.
  void expect(Index experts, const Space& space) {
    if (!all_.is_allocated()) {
      detail::refuse_capture(space, "The first moe::LoadStatistics::add, which allocates,",
                             "Add once before capturing, or make it for a number of experts.");
      allocate(experts);
    }
    detail::require<ShapeError>(this->experts() == experts, "moe::LoadStatistics: counts of ", this->experts(),
                                " experts, but what is added has ", experts,
                                ". Keep one LoadStatistics for layers of as many experts.");
    space_ = space;
  }

  Vector<Index, Space> all_;  // (E+1) counts, then tokens: one array for one message
  std::optional<Space> space_;
};

/// max load / mean load - 1 (Wang et al. 2024, "Auxiliary-loss-free load balancing", eq. 5): 0 at balance, E - 1 where
/// one expert has all, 0 without load.
template <class Number>
double maximum_violation(const std::vector<Number>& loads) {
  const double sum = detail::sum_of(loads);
  if (sum == 0) return 0;
  return double(*std::max_element(loads.begin(), loads.end())) * double(loads.size()) / sum - 1;
}

/// Standard deviation over mean of the loads (Shazeer et al. 2017): 0 at balance.
template <class Number>
double coefficient_of_variation(const std::vector<Number>& loads) {
  const double sum = detail::sum_of(loads), mean = sum / double(loads.size());
  if (sum == 0) return 0;
  double squares = 0;
  for (Number n : loads) squares += (double(n) - mean) * (double(n) - mean);
  return std::sqrt(squares / double(loads.size())) / mean;
}

/// Entropy of the shares in units of its maximum, log E: 1 at balance, 0 where one expert has all.
template <class Number>
double relative_entropy(const std::vector<Number>& loads) {
  if (loads.size() < 2) return 1;
  const double total = detail::sum_of(loads);
  double sum = 0;
  for (Number n : loads) sum -= n > 0 ? double(n) / total * std::log(double(n) / total) : 0;
  return sum / std::log(double(loads.size()));
}

/// The loads of one forward pass, on the host.
struct LoadReport {
  Index tokens = 0;
  std::vector<Index> routed;  ///< (E) assignments each expert was asked for
  std::vector<Index> kept;    ///< (E) those it took

  Index experts() const { return Index(routed.size()); }
  Index assignments() const { return std::accumulate(routed.begin(), routed.end(), Index(0)); }
  /// Assignments that capacity dropped.
  Index dropped() const { return std::accumulate(kept.begin(), kept.end(), assignments(), std::minus<>()); }
  /// Expert e's part of all assignments.
  double share(Index e) const { return assignments() == 0 ? 0.0 : double(routed[e]) / double(assignments()); }
  double maximum_violation() const { return moe::maximum_violation(routed); }
  double coefficient_of_variation() const { return moe::coefficient_of_variation(routed); }
  double entropy() const { return relative_entropy(routed); }
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

template <class Space>
struct AddAll {
  Vector<Index, Space> sums;
  Vector<const Index, Space> more;
  KOKKOS_FUNCTION void operator()(Index i) const { sums(i) += more(i); }
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
  expect(plan.experts, space);
  Kokkos::parallel_for("moe::LoadStatistics", detail::Range<Space>(space, 0, plan.experts),
                       detail::AddCounts<Space>{counts(), plan.routed, tokens(), mask, plan.tokens});
}

template <class Space>
void LoadStatistics<Space>::add(const LoadStatistics& other) {
  if (!other.all_.is_allocated()) return;
  expect(other.experts(), other.space());
  Kokkos::parallel_for("moe::LoadStatistics::add", detail::Range<Space>(other.space(), 0, Index(all_.extent(0))),
                       detail::AddAll<Space>{all_, other.all_});
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
