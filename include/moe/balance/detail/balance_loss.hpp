#pragma once
/// @file
/// What the balance losses share: counts and mean probabilities of each group, their product, and its gradient.

#include "moe/core/context.hpp"
#include "moe/routing/routing.hpp"
#include "moe/routing/scoring.hpp"

MOE_NAMESPACE_BEGIN

/// Which choices a balance loss counts.
enum class Count { first_choice, all };
/// What a balance loss averages: the router's scores, those divided by their sum, or the softmax of the logits. Where
/// the scores are logits (Identity), it is always that softmax.
enum class Probability { scores, normalized_scores, softmax };

namespace detail {

/// What stands for the count of an expert: its own, its device's mean, or the tokens that its device gets.
enum class CountOf { expert, device, tokens_of_device };

struct BalanceRule {
  double factor;  // of sum_e (count_e / n) * mean_e
  Count count;
  Scope scope;
  Probability probability;
  bool by_choices = false;  // count_e / (n K): K the mean number of choices that tokens make
  CountOf count_of = CountOf::expert;
  Index devices = 1;  // as many groups of neighbouring experts
};

inline constexpr Index loss_chunk = 256;  // tokens; fixed, so that sums do not depend on threads
inline Index chunks_of(Index tokens) {
  return (tokens + loss_chunk - 1) / loss_chunk;
}

/// The probabilities of one token into `row`.
template <class Real>
KOKKOS_FUNCTION void probabilities(Probability kind, Row<const Real> logits, Row<const Real> scores, Row<Real> row) {
  const Team team;
  for (Index e = 0; e < row.size; ++e) row[e] = kind == Probability::softmax ? logits[e] : scores[e];
  if (kind == Probability::softmax) Softmax{}.apply(team, row);
  if (kind != Probability::normalized_scores) return;
  const Real total = team.sum<Real>(row.size, [&](Index e) { return row[e]; });
  for (Index e = 0; e < row.size; ++e) row[e] /= total;
}

template <class Real, class Space>
struct ProbabilityRow {
  Matrix<Real, Space> logits, scores, result;
  Vector<const std::uint8_t, Space> mask;
  Probability kind;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<Real> row = row_of(result, t), z = row_of(logits, t), s = row_of(scores, t);
    if (is_padding<Space>(mask, t)) {
      for (Index e = 0; e < row.size; ++e) row[e] = 0;
    } else {
      probabilities(kind, Row<const Real>{z.data, z.size}, Row<const Real>{s.data, s.size}, row);
    }
  }
};

/// counts(g, e) of choices, tokens(g), and what counts are divided by, without padding.
template <class Real, class Space>
struct CountGroup {
  Groups<Space> groups;
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> mask;
  BalanceRule rule;
  Matrix<double, Space> counts;            // (G, E)
  Vector<double, Space> tokens, divisors;  // (G)
  KOKKOS_FUNCTION void operator()(Index g) const {
    for (Index e = 0; e < Index(counts.extent(1)); ++e) counts(g, e) = 0;
    tokens(g) = 0;
    for (Index t = groups.begin(g); t < groups.end(g); ++t) {
      if (is_padding<Space>(mask, t)) continue;
      tokens(g) += 1;
      const Index begin = assignments.begin(t);
      Index end = assignments.end(t);
      if (rule.count == Count::first_choice && end > begin) end = begin + 1;
      for (Index a = begin; a < end; ++a) {
        if (assignments.expert(a) != no_expert && is_new(begin, a)) counts(g, assignments.expert(a)) += 1;
      }
    }
    divisors(g) = rule.by_choices ? 0 : tokens(g);
    if (rule.by_choices) {
      for (Index e = 0; e < Index(counts.extent(1)); ++e) divisors(g) += counts(g, e);
    }
    if (rule.count_of != CountOf::expert) share_devices(g);
  }

 private:
  KOKKOS_FUNCTION Index experts_of_device() const { return Index(counts.extent(1)) / rule.devices; }
  /// Where a device counts a token once: is choice a the token's first on its device?
  KOKKOS_FUNCTION bool is_new(Index begin, Index a) const {
    if (rule.count_of != CountOf::tokens_of_device) return true;
    const Index device = assignments.expert(a) / experts_of_device();
    for (Index b = begin; b < a; ++b) {
      if (assignments.expert(b) != no_expert && assignments.expert(b) / experts_of_device() == device) return false;
    }
    return true;
  }
  KOKKOS_FUNCTION void share_devices(Index g) const {
    const Index size = experts_of_device();
    for (Index first = 0; first < Index(counts.extent(1)); first += size) {
      double sum = 0;
      for (Index e = first; e < first + size; ++e) sum += counts(g, e);
      if (rule.count_of == CountOf::device) sum /= double(size);
      for (Index e = first; e < first + size; ++e) counts(g, e) = sum;
    }
  }
};

/// Puts slopes of a function of the loads in the place of counts, and its value into `values`; one work item a group.
template <class Function, class Space>
struct LoadSlopes {
  Function function;
  Matrix<double, Space> counts, loads;     // (G, E)
  Vector<double, Space> divisors, values;  // (G)
  KOKKOS_FUNCTION void operator()(Index g) const {
    const Index experts = counts.extent(1);
    const double divisor = divisors(g);
    for (Index e = 0; e < experts; ++e) loads(g, e) = divisor > 0 ? counts(g, e) / divisor : 0.0;
    const Row<const double> load{row_of(loads, g).data, experts};
    values(g) = divisor > 0 ? function.value(load) : 0.0;
    for (Index e = 0; e < experts; ++e) counts(g, e) = divisor > 0 ? function.slope(load, e) : 0.0;
    divisors(g) = divisor > 0 ? 1 : 0;
  }
};

/// Puts given counts (E), of more than this batch, in the place of the batch's own.
template <class Space>
struct GivenCounts {
  Vector<const Index, Space> given;
  Matrix<double, Space> counts;
  Vector<double, Space> tokens, divisors;
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0;
    for (Index e = 0; e < Index(given.extent(0)); ++e) {
      counts(0, e) = double(given(e));
      sum += double(given(e));
    }
    divisors(0) = tokens(0) > 0 ? sum : 0;
  }
};

template <class Space>
struct SumValues {
  Vector<double, Space> values;
  double factor;
  Vector<double, Space> slot;
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0;
    for (Index g = 0; g < Index(values.extent(0)); ++g) sum += values(g);
    if (values.extent(0) != 0) slot(0) += factor * sum / double(values.extent(0));
  }
};

/// product(g, e) = (count / n) * mean probability; item = g * E + e.
template <class Real, class Space>
struct GroupProduct {
  Groups<Space> groups;
  Matrix<Real, Space> probability;
  Matrix<double, Space> counts, product;
  Vector<double, Space> tokens, divisors;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index experts = counts.extent(1), g = item / experts, e = item % experts;
    double sum = 0;
    for (Index t = groups.begin(g); t < groups.end(g); ++t) sum += double(probability(t, e));
    product(g, e) = divisors(g) > 0 ? counts(g, e) / divisors(g) * (sum / tokens(g)) : 0.0;
  }
};

template <class Space>
struct SumProducts {
  Matrix<double, Space> product;
  double factor;
  Vector<double, Space> slot;
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0;
    for (Index g = 0; g < Index(product.extent(0)); ++g) {
      for (Index e = 0; e < Index(product.extent(1)); ++e) sum += product(g, e);
    }
    if (product.extent(0) != 0) slot(0) += factor * sum / double(product.extent(0));
  }
};

/// d loss / d probability(t, e) = factor * count / (divisor * n * G), pulled back to scores or logits.
template <class Real, class Space>
struct BalanceGradientRow {
  Groups<Space> groups;
  Matrix<double, Space> counts;
  Vector<double, Space> tokens, divisors;
  Matrix<Real, Space> probability, scores, work;
  Vector<const std::uint8_t, Space> mask;
  Probability kind;
  double factor;
  Matrix<Real, Space> dscores, dlogits;

  KOKKOS_FUNCTION void operator()(Index t) const {
    if (is_padding<Space>(mask, t)) return;
    const Index g = groups.of(t);
    const Row<Real> p = row_of(probability, t), u = row_of(work, t);
    const double divisor = divisors(g) * tokens(g) * double(groups.count);
    for (Index e = 0; e < p.size; ++e) u[e] = divisor > 0 ? Real(factor * counts(g, e) / divisor) : Real(0);
    if (kind == Probability::softmax) {
      Softmax{}.pullback(Team{}, Row<const Real>{p.data, p.size}, u);
      for (Index e = 0; e < p.size; ++e) dlogits(t, e) += u[e];
      return;
    }
    Real total = 1, mean = 0;
    if (kind == Probability::normalized_scores) {
      total = Team{}.sum<Real>(p.size, [&](Index e) { return scores(t, e); });
      mean = Team{}.sum<Real>(p.size, [&](Index e) { return p[e] * u[e]; });
    }
    for (Index e = 0; e < p.size; ++e) dscores(t, e) += (u[e] - mean) / total;
  }
};

template <class Loss>
inline constexpr bool has_load_function = requires(const Loss& loss) {
  loss.function;
};
template <class Loss>
inline constexpr bool has_given_counts = requires(const Loss& loss) {
  loss.counts;
};

/// value and backward for a loss that has a `rule(experts)`. It may have a `function` of the loads, or given `counts`.
template <class Loss>
struct BalanceLossPolicy {
  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const {
    typename Context<Space>::Scratch scratch(ctx);
    const Terms<Real, Space> terms(*this, ctx, scratch, batch, routing);
    if constexpr (has_load_function<Loss>) {
      Kokkos::parallel_for("moe::balance_loss::sum", detail::Range<Space>(ctx.space, 0, 1),
                           SumValues<Space>{terms.values, terms.rule.factor, slot});
      return;
    }
    auto product = scratch.template matrix<double>(terms.groups.count, routing.logits.extent(1));
    Kokkos::parallel_for("moe::balance_loss::product", detail::Range<Space>(ctx.space, 0, Index(product.size())),
                         GroupProduct<Real, Space>{terms.groups, terms.probability, terms.counts, product, terms.tokens,
                                                   terms.divisors});
    Kokkos::parallel_for("moe::balance_loss::sum", detail::Range<Space>(ctx.space, 0, 1),
                         SumProducts<Space>{product, terms.rule.factor, slot});
  }

  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const {
    typename Context<Space>::Scratch scratch(ctx);
    const Terms<Real, Space> terms(*this, ctx, scratch, batch, routing);
    auto work = scratch.template matrix<Real>(batch.tokens(), routing.logits.extent(1));
    Kokkos::parallel_for(
        "moe::balance_loss::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
        BalanceGradientRow<Real, Space>{terms.groups, terms.counts, terms.tokens, terms.divisors, terms.probability,
                                        routing.scores, work, batch.mask, terms.rule.probability,
                                        scale * terms.rule.factor, to.dscores, to.dlogits});
  }

 private:
  template <class Real, class Space>
  struct Terms {
    BalanceRule rule;
    Groups<Space> groups;
    Matrix<Real, Space> probability;
    Matrix<double, Space> counts;
    Vector<double, Space> tokens, divisors, values;

    static const Loss& loss_of(const BalanceLossPolicy& loss) { return static_cast<const Loss&>(loss); }
    static BalanceRule rule_of(const Loss& loss, const Routing<Real, Space>& routing) {
      BalanceRule rule = loss.rule(double(routing.logits.extent(1)));
      if (routing.logit_scores) rule.probability = Probability::softmax;
      require<ConfigError>(rule.devices > 0 && Index(routing.logits.extent(1)) % rule.devices == 0,
                           "moe: a balance loss over ", rule.devices, " devices for ", routing.logits.extent(1),
                           " experts. The devices must divide the experts.");
      return rule;
    }

    template <class T>
    Terms(const BalanceLossPolicy& loss, Context<Space>& ctx, typename Context<Space>::Scratch& scratch,
          const Batch<T, Space>& batch, const Routing<Real, Space>& routing)
        : rule(rule_of(loss_of(loss), routing)),
          groups(detail::groups(rule.scope, batch)),
          probability(scratch.template matrix<Real>(batch.tokens(), routing.logits.extent(1))),
          counts(scratch.template matrix<double>(groups.count, routing.logits.extent(1))),
          tokens(scratch.template vector<double>(groups.count)),
          divisors(scratch.template vector<double>(groups.count)) {
      if (batch.tokens() == 0) {
        fill(ctx.space, counts, 0.0);
        fill(ctx.space, tokens, 0.0);
        fill(ctx.space, divisors, 0.0);
        groups.stride = 0;
        groups.count = 0;
        counts = Matrix<double, Space>(counts.data(), 0, counts.extent(1));
        return;
      }
      Kokkos::parallel_for(
          "moe::balance_loss::probability", detail::Range<Space>(ctx.space, 0, batch.tokens()),
          ProbabilityRow<Real, Space>{routing.logits, routing.scores, probability, batch.mask, rule.probability});
      Kokkos::parallel_for(
          "moe::balance_loss::count", detail::Range<Space>(ctx.space, 0, groups.count),
          CountGroup<Real, Space>{groups, routing.assignments, batch.mask, rule, counts, tokens, divisors});
      if constexpr (has_given_counts<Loss>) {
        Kokkos::parallel_for("moe::balance_loss::given", detail::Range<Space>(ctx.space, 0, 1),
                             GivenCounts<Space>{loss_of(loss).counts, counts, tokens, divisors});
      }
      if constexpr (has_load_function<Loss>) {
        values = scratch.template vector<double>(groups.count);
        auto function = loss_of(loss).function;
        Kokkos::parallel_for(
            "moe::balance_loss::function", detail::Range<Space>(ctx.space, 0, groups.count),
            LoadSlopes<decltype(function), Space>{
                function, counts, scratch.template matrix<double>(groups.count, counts.extent(1)), divisors, values});
      }
    }
  };
};

template <class Real>
KOKKOS_FUNCTION Real log_sum_exp(Row<const Real> z) {
  const Team team;
  const Real top = team.max<Real>(z.size, [&](Index e) { return z[e]; });
  return top + Kokkos::log(team.sum<Real>(z.size, [&](Index e) { return Kokkos::exp(z[e] - top); }));
}

template <class Real, class Space>
struct ZLossChunk {
  Matrix<Real, Space> logits;
  Vector<const std::uint8_t, Space> mask;
  Vector<double, Space> parts;
  KOKKOS_FUNCTION void operator()(Index chunk) const {
    const Index first = chunk * loss_chunk, next = first + loss_chunk;
    const Index last = next < Index(logits.extent(0)) ? next : Index(logits.extent(0));
    double sum = 0;
    for (Index t = first; t < last; ++t) {
      if (is_padding<Space>(mask, t)) continue;
      const Row<Real> z = row_of(logits, t);
      const double l = double(log_sum_exp(Row<const Real>{z.data, z.size}));
      sum += l * l;
    }
    parts(chunk) = sum;
  }
};

template <class Space>
struct CountLive {
  Vector<const std::uint8_t, Space> mask;
  Index tokens;
  Vector<Index, Space> live;
  KOKKOS_FUNCTION void operator()(Index) const { live(0) = live_tokens<Space>(mask, 0, tokens); }
};

template <class Space>
struct ZLossSum {
  Vector<double, Space> parts;
  Index chunks;
  Vector<const std::uint8_t, Space> mask;
  Index tokens;
  double coefficient;
  Vector<double, Space> slot;
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0;
    for (Index c = 0; c < chunks; ++c) sum += parts(c);
    const Index live = live_tokens<Space>(mask, 0, tokens);
    if (live > 0) slot(0) += coefficient * sum / double(live);
  }
};

template <class Real, class Space>
struct ZLossGradient {
  Matrix<Real, Space> logits;
  Vector<const std::uint8_t, Space> mask;
  Vector<Index, Space> live;
  double scale;
  Matrix<Real, Space> dlogits;
  KOKKOS_FUNCTION void operator()(Index t) const {
    if (is_padding<Space>(mask, t)) return;
    const Row<Real> z = row_of(logits, t);
    const Real l = log_sum_exp(Row<const Real>{z.data, z.size});
    const Real factor = Real(scale * 2.0 / double(live(0))) * l;
    for (Index e = 0; e < z.size; ++e) dlogits(t, e) += factor * Kokkos::exp(z[e] - l);
  }
};

}  // namespace detail

MOE_NAMESPACE_END
