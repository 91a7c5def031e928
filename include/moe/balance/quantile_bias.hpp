#pragma once
/// @file
/// `QuantileBias`: the bias of a Threshold at which every expert gets its share of a batch.

#include "moe/core/each_row.hpp"
#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// Moves a balancing bias towards threshold - q_e, by `rate` of the way: q_e is the quantile of e's scores over a batch
/// that k / E of its tokens exceed. With rate 1 and Router<..., Threshold, QuotaBalancer> each expert then takes k / E
/// of that batch, rounded down, and of others like it, where the Threshold's own cap and floor on a token's experts do
/// not act. Not for routers with experts that every token has (WithShared). Where QuotaBalancer goes by counts alone,
/// which is what ranks exchange, this looks at scores: it needs no rate to be found, but the batch should be large, or
/// the rate small.
///
///     moe::QuantileBias{.k = 2, .threshold = 0.5}.move(ctx, tape.routing, tape.batch.mask,
///                                                      layer.buffers.router.balance_bias);
///
/// Once an optimiser step, instead of update_balance. Equal scores at the quantile stay out together. Without tokens
/// the bias stays as it is.
struct QuantileBias {
  double k = 2;          ///< experts a token, on average
  double threshold = 0;  ///< the Threshold's
  double rate = 1;

  /// `bias` (E). Throws ConfigError where k is not in (0, E], ShapeError where bias is not (E).
  template <class Real, class Space>
  void move(Context<Space>& ctx, const Routing<Real, Space>& routing, const Vector<const std::uint8_t, Space>& mask,
            const Vector<Real, Space>& bias) const;
};

namespace detail {

/// One work item an expert: the quantile by bisection, so that nothing is sorted and lanes can count together.
template <class Real, class Space>
struct QuantileRow {
  Matrix<Real, Space> scores;
  Vector<const std::uint8_t, Space> mask;
  double share, threshold, rate;
  Vector<Real, Space> bias;

  KOKKOS_FUNCTION void operator()(Index e, const Team& team) const {
    const Index tokens = scores.extent(0);
    const auto live = [&](Index t) { return !is_padding<Space>(mask, t); };
    const Index count = team.sum<Index>(tokens, [&](Index t) { return Index(live(t)); });
    if (count == 0) return;
    // Slack for a share such as 0.1 whose product with a count falls just below a whole number.
    const Index quota = Index(share * double(count) + 1e-9);
    const auto above = [&](Real value) {
      return team.sum<Index>(tokens, [&](Index t) { return Index(live(t) && scores(t, e) > value); });
    };
    constexpr Real far = Kokkos::Experimental::infinity_v<Real>;
    Real high = team.max<Real>(tokens, [&](Index t) { return live(t) ? scores(t, e) : -far; });
    if (high == -far) return;  // no token may have it
    constexpr Real least = -Kokkos::Experimental::finite_max_v<Real> / 4;
    Real low = -team.max<Real>(
        tokens, [&](Index t) { return live(t) ? -(scores(t, e) > least ? scores(t, e) : least) : -far; });
    low -= Real(1e-3) * (Real(1) + Kokkos::abs(low));  // below all of them
    // No more than the quota lie above `high`, more above `low` unless all may pass.
    if (above(low) <= quota) high = low;
    for (int i = 0; i < 64 && low < high; ++i) {
      const Real middle = low + (high - low) / 2;
      if (middle <= low || middle >= high) break;
      (above(middle) <= quota ? high : low) = middle;
    }
    // Half way to the next score above, or else a little above the last one below: sums with a bias are rounded.
    const Real below =
        team.max<Real>(tokens, [&](Index t) { return live(t) && scores(t, e) <= high ? scores(t, e) : -far; });
    const Real next =
        -team.max<Real>(tokens, [&](Index t) { return live(t) && scores(t, e) > high ? -scores(t, e) : -far; });
    if (below > -far)
      high = next < far ? below + (next - below) / 2 : below + Real(1e-5) * (Real(1) + Kokkos::abs(below));
    team.single([&] { bias(e) += Real(rate) * (Real(threshold) - high - bias(e)); });
  }
};

}  // namespace detail

template <class Real, class Space>
void QuantileBias::move(Context<Space>& ctx, const Routing<Real, Space>& routing,
                        const Vector<const std::uint8_t, Space>& mask, const Vector<Real, Space>& bias) const {
  const Index experts = routing.scores.extent(1);
  detail::require<ConfigError>(k > 0 && k <= double(experts), "moe::QuantileBias: k ", k, " of ", experts,
                               " experts; k lies in (0, E].");
  detail::require<ShapeError>(Index(bias.extent(0)) == experts, "moe::QuantileBias: a bias of ", bias.extent(0),
                              " for scores of ", experts, " experts.");
  detail::each_row(ctx.space, "moe::QuantileBias", experts,
                   detail::QuantileRow<Real, Space>{routing.scores, mask, k / double(experts), threshold, rate, bias});
}

MOE_NAMESPACE_END
