#pragma once
/// @file
/// A plan by two launches on devices, or by one where a single team has all tokens: the same, bit for bit, as the
/// host's steps make.
///
/// A warp takes a chunk of tokens, and a team the chunks of its warps. Launch 1 counts in the team's own memory; the
/// team that is done last turns the teams' totals into rows before each team, and into the experts' offsets. Launch 2
/// places: a warp walks its chunk in order, 32 assignments at a time. All of it is in integers, so it does not matter
/// which team is the last, or in which order a team's lanes count.

#include <limits>

#include "moe/core/context.hpp"
#include "moe/core/each_row.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The steps of one chunk, of one expert and of one row.
template <class Real, class Space>
struct PlanByTeams {
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> kept;  // (A), or empty: all
  DispatchPlan<Space> plan;
  Index fixed;                      // rows an expert, or -1
  Index chunk, chunks;              // tokens of one, and how many there are
  Matrix<int, Space> chunk_rows;    // (chunks, E) rows of each expert in earlier chunks of the team
  Vector<int, Space> chunk_live;    // (chunks) live assignments; then those of all earlier chunks
  Matrix<int, Space> rows, routed;  // (teams, E) totals; rows then those of all earlier teams

  KOKKOS_FUNCTION Index first_token(Index c) const {
    const Index t = c * chunk;
    return t < assignments.tokens ? t : assignments.tokens;
  }
  /// Where the assignments of token t begin, or end those of the last.
  KOKKOS_FUNCTION Index begin(Index t) const {
    if (assignments.tokens == 0) return 0;
    return t < assignments.tokens ? assignments.begin(t) : assignments.end(t - 1);
  }
  KOKKOS_FUNCTION bool is_live(Index a) const {
    return assignments.expert(a) != no_expert && (kept.data() == nullptr || kept(a) != 0);
  }
  /// The token of assignment a, one of [first, last).
  KOKKOS_FUNCTION Index token_of(Index a, Index first, Index last) const {
    if (assignments.uniform_k != 0) return a / assignments.uniform_k;
    while (last - first > 1) {  // the last token to begin at a or before it, behind any without assignments
      const Index middle = (first + last) / 2;
      (assignments.token_offsets(middle) <= a ? first : last) = middle;
    }
    return first;
  }

  /// Adds chunk c's live assignments to `live` (E), and all of them to `all` (E), which is the team's.
  KOKKOS_FUNCTION void count(Index c, const Team& team, int* live, int* all) const {
    const Index last = begin(first_token(c + 1));
    int own = 0;
    for (Index a = begin(first_token(c)) + team.lane(); a < last; a += team.lanes) {
      const ExpertId e = assignments.expert(a);
      if (e == no_expert) continue;
      if (kept.data() != nullptr) Kokkos::atomic_add(all + e, 1);
      if (!is_live(a)) continue;
      Kokkos::atomic_add(live + e, 1);
      ++own;
    }
    own = team.total_of(own);
    team.single([&] { chunk_live(c) = own; });
  }

  /// Totals of expert e in team g, whose chunks [first, last) counted to live (last - first, E).
  KOKKOS_FUNCTION void total(Index e, Index g, Index first, Index last, const int* live, const int* all) const {
    int sum = 0;
    for (Index c = first; c < last; ++c) {
      chunk_rows(c, e) = sum;
      sum += live[(c - first) * plan.experts + e];
    }
    rows(g, e) = sum;
    routed(g, e) = kept.data() != nullptr ? all[e] : sum;
  }

  /// Totals of expert e; rows(g, e) becomes those of the teams before g.
  KOKKOS_FUNCTION void total(Index e) const {
    Index sum = 0, asked = 0;
    for (Index g = 0; g < Index(rows.extent(0)); ++g) {
      const int here = rows(g, e);
      rows(g, e) = int(sum);
      sum += here;
      asked += routed(g, e);
    }
    plan.kept(e) = sum;
    plan.routed(e) = asked;
  }

  /// expert_offsets, by one warp.
  KOKKOS_FUNCTION void offsets(const Team& team) const {
    Index before = 0;
    for (Index from = 0; from < plan.experts; from += team.lanes) {
      const Index e = from + team.lane();
      const Index here = e < plan.experts ? (fixed < 0 ? plan.kept(e) : fixed) : 0, sum = team.sum_up_to_lane(here);
      if (e < plan.experts) plan.expert_offsets(e + 1) = before + sum;
      before += team.shuffle(sum, team.lanes - 1);
    }
    if (team.lane() == 0) plan.expert_offsets(0) = 0;
  }

  /// chunk_live(c) becomes the live assignments of all chunks before c, by one warp.
  KOKKOS_FUNCTION void live_before_chunks(const Team& team) const {
    int before = 0;
    for (Index from = 0; from < chunks; from += team.lanes) {
      const Index c = from + team.lane();
      const int here = c < chunks ? chunk_live(c) : 0, sum = team.sum_up_to_lane(here);
      if (c < chunks) chunk_live(c) = before + sum - here;
      before += team.shuffle(sum, team.lanes - 1);
    }
  }

  /// token_offsets of chunk c.
  KOKKOS_FUNCTION void offsets_of_tokens(Index c, const Team& team) const {
    const Index last = first_token(c + 1);
    int before = chunk_live(c);
    for (Index from = first_token(c); from < last; from += team.lanes) {
      const Index t = from + team.lane();
      int here = 0;
      for (Index a = begin(t); t < last && a < assignments.end(t); ++a) here += int(is_live(a));
      const int sum = team.sum_up_to_lane(here);
      if (t < last) plan.token_offsets(t + 1) = before + sum;
      before += team.shuffle(sum, team.lanes - 1);
    }
    if (c == 0 && team.lane() == 0) plan.token_offsets(0) = 0;
  }

  /// Gives the live assignments of team g's chunk c their rows, in order; `next` (E) is memory of the warp's own.
  KOKKOS_FUNCTION void place(Index c, Index g, const Team& team, int* next) const {
    const Index first = first_token(c), last = first_token(c + 1), end = begin(last);
    team.each(plan.experts, [&](Index e) { next[e] = int(plan.expert_offsets(e)) + rows(g, e) + chunk_rows(c, e); });
    offsets_of_tokens(c, team);
    int before = chunk_live(c);
    for (Index from = begin(first); from < end; from += team.lanes) {
      const Index a = from + team.lane();
      const ExpertId e = a < end && is_live(a) ? assignments.expert(a) : no_expert;
      const int sum = team.sum_up_to_lane(int(e != no_expert));
      int earlier = 0, later = 0;  // lanes with the same expert
      for (int lane = 0; lane < team.lanes; ++lane) {
        const bool same = team.shuffle(e, lane) == e;
        earlier += int(same && lane < team.lane());
        later += int(same && lane > team.lane());
      }
      const int row = e == no_expert ? -1 : next[e] + earlier;
      team.sync();
      if (e != no_expert && later == 0) next[e] = row + 1;
      team.sync();
      if (a < end) plan.assignment_row(a) = row;
      if (e != no_expert) {
        plan.row_token(row) = token_of(a, first, last);
        plan.row_assignment(row) = a;
        plan.token_rows(before + sum - 1) = row;
      }
      before += team.shuffle(sum, team.lanes - 1);
    }
  }

  /// Marks what no assignment reaches: rows of padding, and assignments behind the last. For thread i of n.
  KOKKOS_FUNCTION void mark_rest(Index i, Index n) const {
    for (Index a = begin(assignments.tokens) + i; a < assignments.bound; a += n) plan.assignment_row(a) = -1;
    for (Index r = (fixed < 0 ? plan.expert_offsets(plan.experts) : 0) + i; r < plan.rows; r += n) {
      if (fixed > 0 && r % fixed < plan.kept(r / fixed)) continue;
      plan.row_token(r) = -1;
      plan.row_assignment(r) = -1;
    }
  }
};

/// What both launches know of their teams.
template <class Space>
struct PlanTeam {
  using Member = typename Kokkos::TeamPolicy<Space>::member_type;
  static constexpr int warps = on_host<Space> ? 1 : 8;

  /// Of the team's own memory: a count for each warp and expert, one for each expert, and a mark.
  static std::size_t bytes(Index experts) { return (std::size_t((warps + 1) * experts) + 1) * sizeof(int); }

  const Member& member;
  Team team;
  Index g, teams, first, last, thread, threads;  // its number and its chunks; this thread's number in it
  int* memory;

  KOKKOS_FUNCTION PlanTeam(const Member& m, Index experts, Index chunks)
      : member(m), team(team_of(m)), g(m.league_rank()), teams(m.league_size()) {
    const Index size = member.team_size();
    first = g * size;
    last = first + size < chunks ? first + size : chunks;
    thread = member.team_rank() * team.lanes + team.lane();
    threads = size * team.lanes;
    const Index numbers = (size + 1) * experts + 1;
    memory = static_cast<int*>(member.team_scratch(0).get_shmem_aligned(numbers * sizeof(int), sizeof(int)));
  }
};

template <class Real, class Space>
struct PlaceByTeams {
  PlanByTeams<Real, Space> steps;
  using Member = typename PlanTeam<Space>::Member;

  KOKKOS_FUNCTION void operator()(const Member& member) const {
    run(PlanTeam<Space>(member, steps.plan.experts, steps.chunks));
  }
  KOKKOS_FUNCTION void run(const PlanTeam<Space>& at) const {
    const Index w = at.member.team_rank(), c = at.first + w;
    if (c < at.last) steps.place(c, at.g, at.team, at.memory + w * steps.plan.experts);
    steps.mark_rest(at.g * at.threads + at.thread, at.teams * at.threads);
  }
};

template <class Real, class Space>
struct CountByTeams {
  PlanByTeams<Real, Space> steps;
  Kokkos::View<int, typename Space::memory_space> arrivals;
  using Member = typename PlanTeam<Space>::Member;

  KOKKOS_FUNCTION void operator()(const Member& member) const {
    const Index experts = steps.plan.experts;
    const PlanTeam<Space> at(member, experts, steps.chunks);
    const Index w = member.team_rank(), warps = member.team_size();
    int *all = at.memory + warps * experts, *is_last = all + experts;
    for (Index i = at.thread; i < (warps + 1) * experts; i += at.threads) at.memory[i] = 0;
    barrier(member, at.team);
    if (at.first + w < at.last) steps.count(at.first + w, at.team, at.memory + w * experts, all);
    barrier(member, at.team);
    for (Index e = at.thread; e < experts; e += at.threads) steps.total(e, at.g, at.first, at.last, at.memory, all);

    // No team waits for another: whichever finds that all have arrived does the rest.
    Kokkos::memory_fence();
    barrier(member, at.team);
    if (at.thread == 0) *is_last = int(Kokkos::atomic_fetch_add(arrivals.data(), 1) == int(at.teams) - 1);
    barrier(member, at.team);
    if (*is_last == 0) return;
    Kokkos::memory_fence();
    if (at.thread == 0) *arrivals.data() = 0;
    for (Index e = at.thread; e < experts; e += at.threads) steps.total(e);
    barrier(member, at.team);
    if (w == 0) steps.offsets(at.team);
    if (w == warps - 1) steps.live_before_chunks(at.team);
    if (at.teams > 1) return;
    barrier(member, at.team);
    PlaceByTeams<Real, Space>{steps}.run(at);
  }
};

/// Can a plan be made by teams? Their counts are 32 bits, and those of a team lie in its own memory, 36 KiB at most.
template <class Real, class Space>
bool fits_teams(const Assignments<Real, Space>& assignments, const DispatchPlan<Space>& plan) {
  constexpr Index most = std::numeric_limits<int>::max();
  return plan.experts <= 1024 && assignments.bound <= most && plan.rows <= most;
}

/// Fills a plan of the right shape. kept (A), or empty: all; `fixed` rows an expert, or -1.
template <class Real, class Space>
void plan_by_teams(Context<Space>& ctx, const Assignments<Real, Space>& assignments,
                   const Vector<const std::uint8_t, Space>& kept, Index fixed, const DispatchPlan<Space>& plan) {
  constexpr Index most_chunks = 512, least_tokens = 32;
  constexpr int warps = PlanTeam<Space>::warps;
  const Index tokens = assignments.tokens, even = (tokens + most_chunks - 1) / most_chunks;
  const Index chunk = even > least_tokens ? even : least_tokens, needed = (tokens + chunk - 1) / chunk;
  const Index chunks = needed > 0 ? needed : 1, teams = (chunks + warps - 1) / warps;
  typename Context<Space>::Scratch scratch(ctx);
  const PlanByTeams<Real, Space> steps{assignments,
                                       kept,
                                       plan,
                                       fixed,
                                       chunk,
                                       chunks,
                                       scratch.template matrix<int>(chunks, plan.experts),
                                       scratch.template vector<int>(chunks),
                                       scratch.template matrix<int>(teams, plan.experts),
                                       scratch.template matrix<int>(teams, plan.experts)};
  auto policy = teams_for(ctx.space, chunks, warps);
  policy.set_scratch_size(0, Kokkos::PerTeam(PlanTeam<Space>::bytes(plan.experts)));
  launch_teams("moe::dispatch::count", policy, CountByTeams<Real, Space>{steps, ctx.arrivals()});
  if (teams > 1) launch_teams("moe::dispatch::place", policy, PlaceByTeams<Real, Space>{steps});
}

}  // namespace detail

MOE_NAMESPACE_END
