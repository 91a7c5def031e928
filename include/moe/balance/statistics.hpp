#pragma once
/// @file
/// `BalanceStatistics`: what a router does over a whole training run, in memory that does not grow with it.
///
///     moe::BalanceStatistics<> statistics(experts);                         // one for each layer
///     for (...) layer.forward(ctx, x, tape), statistics.add(tape);          // microbatches
///     layer.update_balance(ctx, statistics.loads());
///     statistics.end_step();                                                // once an optimiser step
///     std::cout << statistics.report();                                     // now and then: this one waits

#include "moe/balance/detail/statistics_kernels.hpp"
#include "moe/balance/report.hpp"
#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

struct BalanceStatisticsOptions {
  Index buckets = 64;   ///< of the history of loads, an even number; when all are full, neighbours become one
  double decay = 0.99;  ///< of the moving average of loads: what of it stays in a step
  Index pairs_of = 1;   ///< experts chosen together are counted for every so-many-th token; 0: not at all

  bool operator==(const BalanceStatisticsOptions&) const = default;
};

/// Loads of the last step, in all and over time, their moving average, maximum violations, the entropy of the router's
/// probabilities, and which experts are chosen together. On the device, on the stream of the tapes that are added, with
/// no copy to the host and no fence before report().
///
/// Over ranks: either all loads are reduced before they are used, statistics.loads().all_reduce(reduce), so that
/// violations are those of the global batch (pairs and the router's entropy stay this rank's), or everything is reduced
/// when it is read, report(reduce). Not both: loads would count twice.
template <class Space = Kokkos::DefaultExecutionSpace>
class BalanceStatistics {
 public:
  /// Throws ConfigError for options that make no sense.
  explicit BalanceStatistics(Index experts, const BalanceStatisticsOptions& options = {});

  /// Adds a forward pass, on its stream. Recomputed passes must not be added twice.
  template <class Tape>
  void add(const Tape& tape) {
    add(tape.routing, tape.plan, tape.batch.mask, tape.space.value_or(Space{}));
  }
  template <class Real>
  void add(const Routing<Real, Space>& routing, const DispatchPlan<Space>& plan,
           const Vector<const std::uint8_t, Space>& mask = {}, const Space& space = {});

  /// The counts of this step so far: for update_balance, to be reduced over ranks, or for a PooledBalanceLoss.
  LoadStatistics<Space>& loads() { return loads_; }
  const LoadStatistics<Space>& loads() const { return loads_; }

  /// Takes the step's loads into history and averages, and starts the next step.
  void end_step();

  /// Adds what another has seen in the same steps, as of another rank or microbatches elsewhere, apart from a step that
  /// has not ended. Mean violations are then those of each one's own batches. Waits. Throws ShapeError where sizes or
  /// the number of steps differ.
  void merge(const BalanceStatistics& other);

  /// Copies all to the host. Waits. Steps that have not ended are in entropy and pairs alone.
  BalanceReport report() const {
    return report([](const Space&, const auto&) {});
  }
  /// The same, summed over ranks that took the same steps: `reduce(space, values)` as for LoadStatistics::all_reduce,
  /// for Vector<Index, Space> and Vector<double, Space>. Mean violations are those of each rank's own batches.
  template <class Reduce>
  BalanceReport report(const Reduce& reduce) const;

 private:
  Space space() const { return loads_.space(); }

  Index experts_;
  BalanceStatisticsOptions options_;
  LoadStatistics<Space> loads_;
  detail::BalanceSums<Space> sums_;
  Vector<Index, Space> clock_;       // steps, and how many of them a bucket spans
  Vector<double, Space> entropies_;  // (T) of the pass that is added
};

template <class Space>
BalanceStatistics<Space>::BalanceStatistics(Index experts, const BalanceStatisticsOptions& options)
    : experts_(experts), options_(options), loads_(experts), clock_("moe::balance.clock", 2) {
  using detail::require;
  require<ConfigError>(options.buckets > 0 && options.buckets % 2 == 0, "moe::BalanceStatistics: ", options.buckets,
                       " buckets; it must be an even number above 0, as full ones are joined in pairs.");
  require<ConfigError>(options.decay >= 0 && options.decay < 1 && options.pairs_of >= 0,
                       "moe::BalanceStatistics: decay ", options.decay, ", pairs_of ", options.pairs_of,
                       "; decay lies in [0, 1), and pairs_of must not be negative.");
  sums_ = {Vector<Index, Space>("moe::balance.counts",
                                detail::BalanceSums<Space>::count_size(experts, options.buckets, options.pairs_of > 0)),
           Vector<double, Space>("moe::balance.sums", experts + 4), experts, options.buckets};
  Kokkos::deep_copy(Kokkos::subview(clock_, 1), Index(1));
}

template <class Space>
template <class Real>
void BalanceStatistics<Space>::add(const Routing<Real, Space>& routing, const DispatchPlan<Space>& plan,
                                   const Vector<const std::uint8_t, Space>& mask, const Space& space) {
  loads_.add(plan, mask, space);
  const Index tokens = routing.assignments.tokens;
  if (tokens == 0) return;
  if (Index(entropies_.extent(0)) < tokens) {
    detail::refuse_capture(space, "moe::BalanceStatistics::add of more tokens than before, which allocates,",
                           "Add a pass of as many tokens before capturing.");
    entropies_ = detail::allocate<Vector<double, Space>>("moe::balance.entropies", std::size_t(tokens));
  }
  detail::each_row(space, "moe::BalanceStatistics::tokens", tokens,
                   detail::TokenStatistics<Real, Space>{routing.logits, routing.assignments, mask, options_.pairs_of,
                                                        sums_, entropies_});
  detail::each_row(space, "moe::BalanceStatistics::entropy", 1,
                   detail::AddEntropies<Space>{entropies_, mask, tokens, sums_});
}

template <class Space>
void BalanceStatistics<Space>::end_step() {
  const detail::EndStep<Space> step{loads_.counts(), loads_.tokens(), options_.decay, clock_, sums_};
  Kokkos::parallel_for("moe::BalanceStatistics::step", detail::Range<Space>(space(), 0, experts_), step);
  Kokkos::parallel_for("moe::BalanceStatistics::clock", detail::Range<Space>(space(), 0, 1),
                       detail::EndStepOfAll<Space>{step});
  loads_.reset();
}

template <class Space>
void BalanceStatistics<Space>::merge(const BalanceStatistics& other) {
  detail::refuse_capture(space(), "moe::BalanceStatistics::merge, which waits,", "Call it after the graph's launch.");
  const auto own = detail::to_host(clock_), its = detail::to_host(other.clock_);
  detail::require<ShapeError>(experts_ == other.experts_ && options_ == other.options_ && own == its,
                              "moe::BalanceStatistics::merge: ", experts_, " and ", other.experts_, " experts, ",
                              options_.buckets, " and ", other.options_.buckets, " buckets, ", own[0], " and ", its[0],
                              " steps, pairs of every ", options_.pairs_of, " and ", other.options_.pairs_of,
                              " tokens, decay ", options_.decay, " and ", other.options_.decay, "; all must be equal.");
  Kokkos::fence("moe::BalanceStatistics::merge");
  Kokkos::parallel_for("moe::BalanceStatistics::merge", detail::Range<Space>(space(), 0, Index(sums_.counts.extent(0))),
                       detail::AddAll<Space, Index>{sums_.counts, other.sums_.counts});
  Kokkos::parallel_for("moe::BalanceStatistics::merge", detail::Range<Space>(space(), 0, Index(sums_.sums.extent(0))),
                       detail::AddAll<Space, double>{sums_.sums, other.sums_.sums});
}

template <class Space>
template <class Reduce>
BalanceReport BalanceStatistics<Space>::report(const Reduce& reduce) const {
  detail::refuse_capture(space(), "moe::BalanceStatistics::report, which copies to the host,",
                         "Call it after the graph's launch.");
  auto all = sums_;
  all.counts = Vector<Index, Space>("moe::balance.counts", sums_.counts.extent(0));
  all.sums = Vector<double, Space>("moe::balance.sums", sums_.sums.extent(0));
  space().fence("moe::BalanceStatistics::report");
  Kokkos::deep_copy(space(), all.counts, sums_.counts);
  Kokkos::deep_copy(space(), all.sums, sums_.sums);
  reduce(space(), all.counts);
  reduce(space(), all.sums);
  space().fence("moe::BalanceStatistics::report");
  const auto clock = detail::to_host(clock_);
  return detail::read_report(all.counts, all.sums, experts_, options_.buckets, clock[0], clock[1]);
}

MOE_NAMESPACE_END
