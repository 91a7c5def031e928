#pragma once
/// @file
/// BASE layers (Lewis et al. 2021, "BASE layers: simplifying training of large, sparse models"): while training, tokens
/// are assigned to experts so that loads are equal and the total key is as large as that allows.

#include "moe/routing/top_k.hpp"

MOE_NAMESPACE_BEGIN

/// One expert a token. While training, of each group's n tokens every expert gets floor(n / E) or ceil(n / E), and the
/// sum of the chosen keys is as large as it can be; which experts get one more is part of that choice. Otherwise each
/// token takes its largest key, the lowest expert of equals. Padding gets nothing and is not counted in n.
///
/// The paper's keys are logits: put ChooseByLogits beside it. Its scores are Sigmoid's.
///
/// The assignment is found by an auction (Bertsekas 1992, "Auction algorithms for network flow problems"), with finer
/// bids in each pass. It always ends, and its sum lies at most epsilon * spread * E * ceil(n / E) below the largest
/// possible one, where spread is the largest less the smallest finite key of the group. Time grows as epsilon falls.
/// A key of -infinity is never taken: as few tokens as possible (for epsilon below 1 / E) get nothing because balance
/// leaves them no other expert.
///
/// One kernel, without waiting for it; results do not depend on threads. A team of threads holds a group's auction:
/// the device's choice of threads, but one thread on hosts unless `team_size` says more.
struct BalancedAssignment {
  using policy = kind::selection;
  double epsilon = 1e-4;         ///< the least rise of a bid in the last pass, as a share of the spread
  Scope scope = Scope::batch();  ///< the tokens that are assigned together
  int team_size = 0;             ///< threads a group, at most as many as there are; 0: Kokkos' choice

  void check(const RouterShape&) const {
    detail::require<ConfigError>(epsilon >= 1e-9 && epsilon <= 1, "moe::BalancedAssignment: epsilon is ", epsilon,
                                 "; 1e-9 to 1 work.");
    detail::require<ConfigError>(team_size >= 0, "moe::BalancedAssignment: a team of ", team_size,
                                 " threads; give a positive number, or 0 for Kokkos' choice.");
  }

  template <class T, class Space>
  Index bound(const Batch<T, Space>& batch, Index) const {
    return batch.tokens();
  }

  template <class T, class Real, class Space>
  void select(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch,
              Assignments<Real, Space>& assignments) const;

  /// Throws where a graph is captured: how long the auction takes is known only when it runs.
  template <class Space>
  static void check_capture(const Context<Space>& ctx) {
    if (ctx.training)
      detail::refuse_capture(ctx.space, "moe::BalancedAssignment's auction, which takes as long as its keys ask,",
                             "Train this layer without a graph; with ctx.training = false it can be captured.");
  }
};

namespace detail {

/// Lists of k for every token, padding too, in the ragged form.
template <class Space>
struct EvenOffsets {
  Vector<Index, Space> offsets;  // (T+1)
  Index k;
  KOKKOS_FUNCTION void operator()(Index t) const { offsets(t) = t * k; }
};

/// A token's k largest keys, which are used up.
template <class Real, class Space>
struct ChooseLargest {
  Matrix<Real, Space> keys;
  Vector<const std::uint8_t, Space> mask;
  Vector<ExpertId, Space> expert;  // (T k)
  Index k;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<ExpertId> chosen{expert.data() + t * k, k};
    if (!is_padding<Space>(mask, t)) return take_largest(Team{}, row_of(keys, t), chosen);
    for (Index i = 0; i < k; ++i) chosen[i] = no_expert;
  }
};

/// A place at an expert: what was bid for it, and by whom.
struct Seat {
  double price;
  Index owner;  // a token; T: the place stays vacant; T + 1: nobody has bid yet
};

/// A total order, so that the order in which bids arrive does not matter.
KOKKOS_INLINE_FUNCTION bool cheaper(const Seat& a, const Seat& b) {
  return a.price < b.price || (a.price == b.price && a.owner > b.owner);
}

/// The auction of group g. Each expert has ceil(n / E) seats, held by the highest bids for it. In a round every token
/// without a seat bids, all against the same prices, for the expert whose key less the price of its cheapest seat is
/// largest, and bids what makes the second best expert better by epsilon.
///
/// Where E does not divide n, E ceil(n / E) - n seats must stay vacant, at most one an expert. Vacancies bid as tokens
/// do, for an expert without one and with equal keys for all, and so end up at the cheapest.
///
/// Every bid leaves its owner within epsilon of its best choice at the prices of that moment, and prices only rise. So
/// once all are seated, the sum is within epsilon a seat of the dual problem's value.
template <class Real, class Space>
struct Auction {
  Groups<Space> groups;
  Matrix<Real, Space> keys;                // (T, E)
  Vector<const std::uint8_t, Space> mask;  // (T) or empty
  Vector<ExpertId, Space> chosen;          // (T) the result
  double epsilon;
  Vector<Seat, Space> seats;             // (T + G E) scratch, like all below; a heap an expert, the cheapest on top
  Vector<double, Space> bids;            // (T)
  Vector<ExpertId, Space> wanted;        // (T)
  Matrix<Index, Space> seekers, counts;  // (2, T), (2, G): tokens without a seat, now and next
  Matrix<double, Space> price;           // (G, E) of the cheapest seat
  Matrix<std::uint8_t, Space> vacant;    // (G, E) is one of the expert's seats a vacancy's? 2: about to be

  /// What a group's threads share but need not write.
  struct Group {
    Index number, begin, end;
    Index tokens, seats, vacancies;  // n, of each expert, of all
    double middle, scale;            // keys to [0, 1], in halves so that no difference overflows
    Real smallest, largest;
    Seat* seat;
    double step;
    int now;
    KOKKOS_FUNCTION Index next() const { return 1 - now; }
  };

  /// Key (t, e) in units of the spread. A forbidden expert costs more than any chain of exchanges could gain.
  KOKKOS_FUNCTION double worth(const Group& group, Index t, Index e) const {
    const Real key = keys(t, e);
    if (!(key >= group.smallest)) return -double(keys.extent(1)) - 2;
    return (0.5 * double(key < group.largest ? key : group.largest) - group.middle) * group.scale;
  }

  KOKKOS_FUNCTION void seek(const Group& group, Index t) const {
    const Index place = Kokkos::atomic_fetch_add(&counts(group.next(), group.number), Index(1));
    seekers(group.next(), group.begin + place) = t;
  }

  /// Gives expert e's cheapest seat to a higher bid; who has none after that seeks again.
  KOKKOS_FUNCTION void sell(const Group& group, Index e, const Seat& bid) const {
    Seat* heap = group.seat + e * group.seats;
    Index loser = bid.owner;
    if (cheaper(heap[0], bid)) {
      loser = heap[0].owner;
      Index i = 0;
      for (Index child = 1; child < group.seats; i = child, child = 2 * i + 1) {
        if (child + 1 < group.seats && cheaper(heap[child + 1], heap[child])) ++child;
        if (!cheaper(heap[child], bid)) break;
        heap[i] = heap[child];
      }
      heap[i] = bid;
      price(group.number, e) = heap[0].price;
    }
    const Index tokens = keys.extent(0);
    if (loser < tokens) seek(group, loser);
    if (loser == tokens) vacant(group.number, e) = 0;
  }

  KOKKOS_FUNCTION void bid(const Group& group, Index i) const {
    const Index t = seekers(group.now, group.begin + i), experts = keys.extent(1);
    double best = -Kokkos::Experimental::infinity_v<double>, second = best;
    Index expert = 0;
    for (Index e = 0; e < experts; ++e) {
      const double gain = worth(group, t, e) - price(group.number, e);
      if (gain > best) {
        second = best;
        best = gain;
        expert = e;
      } else if (gain > second) {
        second = gain;
      }
    }
    wanted(group.begin + i) = ExpertId(expert);
    bids(group.begin + i) = price(group.number, expert) + (experts > 1 ? best - second : 0) + group.step;
  }

  KOKKOS_FUNCTION void take_bids(const Group& group, Index e, Index count) const {
    for (Index i = group.begin; i < group.begin + count; ++i) {
      if (wanted(i) == e) sell(group, e, {bids(i), seekers(group.now, i)});
    }
  }

  /// The cheapest expert without a vacancy.
  KOKKOS_FUNCTION Index cheapest(const Group& group) const {
    Index best = -1;
    for (Index e = 0; e < Index(keys.extent(1)); ++e) {
      if (vacant(group.number, e) == 0 && (best < 0 || price(group.number, e) < price(group.number, best))) best = e;
    }
    return best;
  }

  /// Vacancies without a seat take the cheapest experts, all at the price of the first one that is left.
  KOKKOS_FUNCTION void seat_vacancies(const Group& group) const {
    Index missing = group.vacancies;
    for (Index e = 0; e < Index(keys.extent(1)); ++e) missing -= vacant(group.number, e);
    if (missing == 0) return;
    for (; missing > 0; --missing) vacant(group.number, cheapest(group)) = 2;
    const double high = price(group.number, cheapest(group)) + group.step;
    for (Index e = 0; e < Index(keys.extent(1)); ++e) {
      if (vacant(group.number, e) != 2) continue;
      vacant(group.number, e) = 1;
      sell(group, e, {high, Index(keys.extent(0))});
    }
  }

  template <class Member>
  KOKKOS_FUNCTION Group prepare(const Member& team) const {
    Group group{};
    group.number = team.league_rank();
    group.begin = groups.begin(group.number);
    group.end = groups.end(group.number);
    const Index experts = keys.extent(1);
    const Real infinity = Kokkos::Experimental::infinity_v<Real>;
    const auto range = Kokkos::TeamThreadRange(team, group.begin, group.end);
    Kokkos::parallel_reduce(
        range, [&](Index t, Index& sum) { sum += is_padding<Space>(mask, t) ? 0 : 1; }, group.tokens);
    Kokkos::parallel_reduce(
        range,
        [&](Index t, Real& least) {
          for (Index e = 0; e < experts && !is_padding<Space>(mask, t); ++e)
            if (keys(t, e) < least && keys(t, e) > -infinity) least = keys(t, e);
        },
        Kokkos::Min<Real>(group.smallest));
    Kokkos::parallel_reduce(
        range,
        [&](Index t, Real& most) {
          for (Index e = 0; e < experts && !is_padding<Space>(mask, t); ++e)
            if (keys(t, e) > most && keys(t, e) < infinity) most = keys(t, e);
        },
        Kokkos::Max<Real>(group.largest));
    if (group.largest < group.smallest) group.smallest = group.largest = 0;  // no key is finite
    const double half_spread = 0.5 * double(group.largest) - 0.5 * double(group.smallest);
    group.middle = 0.5 * double(group.smallest);
    group.scale = half_spread > 1e-300 ? 1 / half_spread : 0;
    group.seats = (group.tokens + experts - 1) / experts;
    group.vacancies = group.seats * experts - group.tokens;
    group.seat = seats.data() + group.begin + group.number * experts;
    return group;
  }

  /// Empties all seats; an expert's start at the price of its cheapest one.
  template <class Member>
  KOKKOS_FUNCTION void begin_pass(const Member& team, const Group& group) const {
    team.team_barrier();  // everyone has seen that the last pass is over
    Kokkos::single(Kokkos::PerTeam(team), [&] { counts(group.next(), group.number) = 0; });
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, Index(keys.extent(1))), [&](Index e) {
      vacant(group.number, e) = 0;
      for (Index i = e * group.seats; i < (e + 1) * group.seats; ++i)
        group.seat[i] = {price(group.number, e), Index(keys.extent(0)) + 1};
    });
    team.team_barrier();
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, group.begin, group.end), [&](Index t) {
      if (!is_padding<Space>(mask, t)) seek(group, t);
    });
    team.team_barrier();
  }

  template <class Member>
  KOKKOS_FUNCTION void run_pass(const Member& team, Group& group) const {
    const Index experts = keys.extent(1);
    begin_pass(team, group);
    for (group.now = 1 - group.now;; group.now = 1 - group.now) {
      const Index count = counts(group.now, group.number);
      if (count == 0) return;
      Kokkos::single(Kokkos::PerTeam(team), [&] { counts(group.next(), group.number) = 0; });
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, count), [&](Index i) { bid(group, i); });
      team.team_barrier();
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, experts), [&](Index e) { take_bids(group, e, count); });
      team.team_barrier();
      if (group.vacancies == 0) continue;
      Kokkos::single(Kokkos::PerTeam(team), [&] { seat_vacancies(group); });
      team.team_barrier();
    }
  }

  template <class Member>
  KOKKOS_FUNCTION void operator()(const Member& team) const {
    Group group = prepare(team);
    const Index experts = keys.extent(1);
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, group.begin, group.end),
                         [&](Index t) { chosen(t) = no_expert; });
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, experts), [&](Index e) { price(group.number, e) = 0; });
    if (group.tokens == 0) return;
    for (group.step = epsilon < 0.25 ? 0.25 : epsilon;;
         group.step = group.step > 5 * epsilon ? group.step / 5 : epsilon) {
      run_pass(team, group);
      if (group.step == epsilon) break;
    }
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, experts), [&](Index e) {
      for (Index i = e * group.seats; i < (e + 1) * group.seats; ++i) {
        const Index t = group.seat[i].owner;
        if (t < Index(keys.extent(0)) && keys(t, e) >= group.smallest) chosen(t) = ExpertId(e);
      }
    });
  }
};

/// Every token's k largest keys as ragged lists. The keys are used up.
template <class Real, class T, class Space>
void choose_largest(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch, Index k,
                    Assignments<Real, Space>& assignments) {
  using Range = detail::Range<Space>;
  const Index tokens = keys.extent(0);
  Kokkos::parallel_for("moe::even_offsets", Range(ctx.space, 0, tokens + 1),
                       EvenOffsets<Space>{assignments.token_offsets, k});
  Kokkos::parallel_for("moe::choose_largest", Range(ctx.space, 0, tokens),
                       ChooseLargest<Real, Space>{keys, batch.mask, assignments.expert, k});
}

}  // namespace detail

template <class T, class Real, class Space>
void BalancedAssignment::select(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch,
                                Assignments<Real, Space>& assignments) const {
  const Index tokens = keys.extent(0), experts = keys.extent(1);
  check_capture(ctx);
  if (!ctx.training || tokens == 0) return detail::choose_largest(ctx, keys, batch, 1, assignments);
  Kokkos::parallel_for("moe::even_offsets", detail::Range<Space>(ctx.space, 0, tokens + 1),
                       detail::EvenOffsets<Space>{assignments.token_offsets, 1});
  const auto groups = detail::groups(scope, batch);
  const Index count = groups.count;
  typename Context<Space>::Scratch scratch(ctx);
  const detail::Auction<Real, Space> auction{groups,
                                             keys,
                                             batch.mask,
                                             assignments.expert,
                                             epsilon,
                                             scratch.template vector<detail::Seat>(tokens + count * experts),
                                             scratch.template vector<double>(tokens),
                                             scratch.template vector<ExpertId>(tokens),
                                             scratch.template matrix<Index>(2, tokens),
                                             scratch.template matrix<Index>(2, count),
                                             scratch.template matrix<double>(count, experts),
                                             scratch.template matrix<std::uint8_t>(count, experts)};
  using Team = detail::Teams<Space>;
  Team teams(ctx.space, int(count), Kokkos::AUTO);
  if (team_size > 0) {
    const int most = teams.team_size_max(auction, Kokkos::ParallelForTag());
    teams = Team(ctx.space, int(count), team_size < most ? team_size : most);
  }
  Kokkos::parallel_for("moe::BalancedAssignment::auction", teams, auction);
}

MOE_NAMESPACE_END
