#pragma once
/// @file
/// How many tokens a mixture of depths takes, and how often its causal rules agree with the choice it is trained by.

#include <optional>
#include <ostream>
#include <vector>

#include "moe/balance/load.hpp"
#include "moe/layers/depth_choice.hpp"

MOE_NAMESPACE_BEGIN

/// The counts of `DepthStatistics`, on the host.
struct DepthReport {
  /// What a causal rule says of the tokens whose choice was DepthChoice::top_k.
  struct Rule {
    Index compared = 0;   ///< tokens it was asked about; 0 for a layer without this rule
    Index predicted = 0;  ///< those it takes
    Index agreed = 0;     ///< those of which it says what the choice over the sequence says
    double agreement() const { return compared == 0 ? 0.0 : double(agreed) / double(compared); }
    /// The share of tokens it takes: the cost of inference where training has `capacity`.
    double share() const { return compared == 0 ? 0.0 : double(predicted) / double(compared); }
  };
  Index tokens = 0;  ///< padding not counted
  Index chosen = 0;  ///< those that went through the block
  Rule router, predictor;

  /// The share of tokens that took no part in the block.
  double skipped() const { return tokens == 0 ? 0.0 : 1.0 - double(chosen) / double(tokens); }
};

/// Counts over any number of forward passes of a mixture of depths, on the device. Rules are compared with the choice
/// over the sequence: passes whose choice was another (inference) add to `tokens` and `chosen` alone.
template <class Space = Kokkos::DefaultExecutionSpace>
class DepthStatistics {
 public:
  /// Adds a forward pass, on its stream.
  template <class Tape>
  void add(const Tape& tape);
  /// Back to zero, on the stream that was last added on.
  void reset() {
    if (counts_.is_allocated()) detail::fill(space_.value_or(Space{}), counts_, Index(0));
  }
  /// The counts so far. Waits for the device.
  DepthReport report() const {
    DepthReport result;
    if (!counts_.is_allocated()) return result;
    detail::refuse_capture(*space_, "moe::DepthStatistics::report, which copies to the host,",
                           "Call it after the graph's launch.");
    space_->fence("moe::DepthStatistics::report");
    const std::vector<Index> n = detail::to_host(counts_);
    return {n[0], n[1], {n[2], n[3], n[4]}, {n[5], n[6], n[7]}};
  }

 private:
  Vector<Index, Space> counts_;
  std::optional<Space> space_;
};

/// One line for the tokens, and one for each rule that there is.
inline std::ostream& operator<<(std::ostream& out, const DepthReport& report) {
  out << report.tokens << " tokens, " << report.chosen << " through the block, " << 100 * report.skipped()
      << "% skipped\n";
  const auto rule = [&](const char* name, const DepthReport::Rule& r) {
    if (r.compared == 0) return;
    out << name << " agrees on " << 100 * r.agreement() << "% of " << r.compared << " tokens, and takes "
        << 100 * r.share() << "%\n";
  };
  rule("router", report.router);
  rule("predictor", report.predictor);
  return out;
}

namespace detail {

/// Counts a chunk of tokens, and adds whole numbers, whose order does not matter.
template <class Real, class Space>
struct CountDepths {
  Vector<const std::uint8_t, Space> mask, chosen;
  Matrix<const Real, Space> router, predictor;  // (T, 1), or empty: not compared
  Vector<Index, Space> counts;                  // (8)
  KOKKOS_FUNCTION void rule(Index t, const Matrix<const Real, Space>& logits, Index* n) const {
    if (logits.data() == nullptr) return;
    const bool taken = logits(t, 0) > Real(0);
    n[0] += 1;
    n[1] += taken ? 1 : 0;
    n[2] += taken == (chosen(t) != 0) ? 1 : 0;
  }
  KOKKOS_FUNCTION void operator()(Index chunk) const {
    Index n[8] = {};
    const Index first = chunk * loss_chunk, next = first + loss_chunk, tokens = chosen.extent(0);
    for (Index t = first; t < (next < tokens ? next : tokens); ++t) {
      if (is_padding<Space>(mask, t)) continue;
      n[0] += 1;
      n[1] += chosen(t) != 0 ? 1 : 0;
      rule(t, router, n + 2);
      rule(t, predictor, n + 5);
    }
    for (int i = 0; i < 8; ++i) {
      if (n[i] != 0) Kokkos::atomic_add(&counts(i), n[i]);
    }
  }
};

}  // namespace detail

template <class Space>
template <class Tape>
void DepthStatistics<Space>::add(const Tape& tape) {
  detail::require<Error>(tape.space.has_value(),
                         "moe::DepthStatistics: this tape is empty. Run forward(ctx, x, tape) first.");
  if (!counts_.is_allocated()) {
    detail::refuse_capture(*tape.space, "The first moe::DepthStatistics::add, which allocates,",
                           "Add once before capturing.");
    counts_ = Vector<Index, Space>("moe::depths", 8);
  }
  space_ = tape.space;
  using Real = typename Tape::Real;
  using M = Matrix<const Real, Space>;
  const bool compared = tape.choice == DepthChoice::top_k;
  const Index chunks = detail::chunks_of(tape.chosen.extent(0));
  detail::each(*space_, "moe::DepthStatistics", chunks,
               detail::CountDepths<Real, Space>{tape.batch.mask, tape.chosen,
                                                compared && Tape::has_router_rule ? M(tape.routing.logits) : M{},
                                                compared ? M(tape.predictor_logits) : M{}, counts_});
}

MOE_NAMESPACE_END
