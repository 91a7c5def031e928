#pragma once
/// @file
/// Kernels over rows: a thread a row on hosts, a warp a row on devices, from one functor f(row, team).

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Kokkos' vector lanes in a kernel of `Space`, and the rows that a team takes side by side.
template <class Space>
inline constexpr int vector_lanes = on_host<Space> ? 1 : device_lanes;
template <class Space>
inline constexpr int rows_a_team = on_host<Space> ? 1 : 4;

/// The threads that share a row in each_row, as a constant.
#if defined(MOE_SIMULATED_LANES)
template <class Space>
inline constexpr int row_lanes = device_lanes;
#else
template <class Space>
inline constexpr int row_lanes = vector_lanes<Space>;
#endif

/// The lanes of a member's thread as a team, which takes a row or one of `parts` parts of its columns.
template <class Member>
KOKKOS_FUNCTION Team team_of(const Member&, [[maybe_unused]] int part = 0, [[maybe_unused]] int parts = 1) {
#if defined(MOE_SIMULATED_LANES)
  return Team{simulated_lane() + device_lanes * part, device_lanes * parts, device_lanes};
#else
  KOKKOS_IF_ON_HOST((return Team{};))
  KOKKOS_IF_ON_DEVICE(
      (return Team{int(threadIdx.x) + device_lanes * part, device_lanes * parts, device_lanes};))  // CUDA's and HIP's
#endif
}

/// Orders what a member's threads and lanes wrote before what they read from here on.
template <class Member>
KOKKOS_FUNCTION void barrier(const Member& member, const Team& team) {
  team.sync();
  member.team_barrier();
}

/// Enough teams of `threads` warps for `items` of them.
template <class Space>
Teams<Space> teams_for(const Space& space, Index items, int threads = rows_a_team<Space>) {
  return Teams<Space>(space, int((items + threads - 1) / threads), threads, vector_lanes<Space>);
}

#if defined(MOE_SIMULATED_LANES)
template <class Member, class F>
struct InSimulatedLanes {
  F f;
  void operator()(const Member& member) const {
    auto lane = [&] {
      const Member own = member;  // a member counts what it gave of its scratch memory
      f(own);
    };
    simulate_lanes([](void* call) { (*static_cast<decltype(lane)*>(call))(); }, &lane);
  }
};
#endif

/// Calls f(member) by all teams of a policy.
template <class Policy, class F>
void launch_teams(const char* name, const Policy& policy, const F& f) {
  static_assert(fits_arguments<F>, "moe: a kernel's functor must fit into its arguments.");
#if defined(MOE_SIMULATED_LANES)
  Kokkos::parallel_for(name, policy, InSimulatedLanes<typename Policy::member_type, F>{f});
#else
  Kokkos::parallel_for(name, policy, f);
#endif
}

template <class F>
struct RowByThread {
  F f;
  KOKKOS_FUNCTION void operator()(Index row) const { f(row, Team{}); }
};

template <class Space, class F>
struct RowByTeam {
  F f;
  Index rows;
  int parts;
  KOKKOS_FUNCTION void operator()(const typename Kokkos::TeamPolicy<Space>::member_type& member) const {
    const Index item = Index(member.league_rank()) * member.team_size() + member.team_rank();
    if (item < rows * parts) f(item / parts, team_of(member, int(item % parts), parts));
  }
};

template <class Space, class F>
void each_row_in_parts(const Space& space, const char* name, Index rows, int parts, const F& f, Index alone) {
  if constexpr (device_path<Space>) {
    if (rows == 0) return;
#if !defined(MOE_SIMULATED_LANES)
    if (on_host<Space>) parts = 1;  // one lane takes all columns
#endif
    launch_teams(name, teams_for(space, rows * parts), RowByTeam<Space, F>{f, rows, parts});
  } else {
    each(space, name, rows, RowByThread<F>{f}, alone);
  }
}

/// Calls f(row, team) for the rows 0 to rows - 1; f steps through its row, and reduces, by the team. Hosts run no more
/// than `alone` rows on the calling thread.
template <class Space, class F>
void each_row(const Space& space, const char* name, Index rows, const F& f, Index alone = 0) {
  each_row_in_parts(space, name, rows, 1, f, alone);
}

/// The same for an f that only calls team.each on its row, of `width` columns: on devices several warps may share one,
/// so that few rows fill the machine, too.
template <class Space, class F>
void each_wide_row(const Space& space, const char* name, Index rows, Index width, const F& f, Index alone = 0) {
  constexpr Index columns = 1024;
  each_row_in_parts(space, name, rows, width <= columns ? 1 : int((width + columns - 1) / columns), f, alone);
}

}  // namespace detail

MOE_NAMESPACE_END
