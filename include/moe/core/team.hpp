#pragma once
/// @file
/// `Row` and `Team`: what policies on rows see on any backend.
///
/// A team is the threads that share one row: one thread on hosts, and on devices either one or the 32 lanes of a warp
/// (CUDA) or of half a wavefront (HIP). Its lanes reduce by shuffles in a fixed tree, so results do not depend on which
/// warp ran where.

#include <Kokkos_Core.hpp>
#include <cstdint>

#include "moe/core/compiler.hpp"
#include "moe/core/error.hpp"

MOE_NAMESPACE_BEGIN

/// Counts and positions: 64 bits, because T*K*H passes 2^31.
using Index = std::int64_t;

/// One row of a matrix, as policies see it on any backend: a pointer and a size.
template <class T>
struct Row {
  T* data;
  Index size;
  KOKKOS_FUNCTION T& operator[](Index i) const { return data[i]; }
};

namespace detail {

/// The threads of a device that share one row.
inline constexpr int device_lanes = 32;

#if defined(MOE_SIMULATED_LANES)
// For tests, which run a team's lanes on the host, one after the other from meeting to meeting, and give these.
void simulate_lanes(void (*body)(void*), void* argument);
int simulated_lane();
void simulated_shuffle(void* value, std::size_t size, int from);
void simulated_sync();
#endif

}  // namespace detail

/// The threads that share one row. Policies step through a row with `each` and reduce with `sum` and `max`, which all
/// threads of a team have to reach together: not under a condition that is true for some of them alone.
///
/// Plain loops over a row are right with one thread only, and so are writes outside `each` and `single`. A policy
/// without them may say so, by
///
///     static constexpr bool takes_team = true;
///
/// Devices then give 32 lanes to a row where all of a router's policies say it, else one. What one `each` or `single`
/// wrote, the next may read.
struct Team {
  int first = 0;  ///< the first number that `each` gives this thread
  int step = 1;   ///< from one of its numbers to the next
  int lanes = 1;  ///< threads that reduce together; `step` is theirs, or more where several warps share a row

  template <class F>
  KOKKOS_FUNCTION void each(Index count, const F& f) const {
    for (Index i = begin(); i < count; i += stride()) f(i);
    sync();
  }
  /// The same for an f that reads nothing another call of it writes, where compilers would give up proving it.
  template <class F>
  KOKKOS_FUNCTION void each_apart(Index count, const F& f) const {
    const Index from = begin(), by = stride();
    MOE_INDEPENDENT
    for (Index i = from; i < count; i += by) f(i);
    sync();
  }
  /// The sum of f(i): in index order on one thread, else in an order that `count` alone decides.
  template <class Real, class F>
  KOKKOS_FUNCTION Real sum(Index count, const F& f) const {
    Real total = 0;
    for (Index i = begin(); i < count; i += stride()) total += f(i);
    return total_of(total);
  }
  /// The largest f(i); -infinity where count is 0.
  template <class Real, class F>
  KOKKOS_FUNCTION Real max(Index count, const F& f) const {
    Real best = -Kokkos::Experimental::infinity_v<Real>;
    for (Index i = begin(); i < count; i += stride()) best = f(i) > best ? f(i) : best;
    if (!is_shared()) return best;
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      // Of equals the lower lane's: zeros of both signs must not tell the lanes apart.
      const Real other = exchange(best, mask);
      best = other > best || (other == best && (lane() & mask) != 0) ? other : best;
    }
    return best;
  }
  /// Calls f() on one of the threads.
  template <class F>
  KOKKOS_FUNCTION void single(const F& f) const {
    if (lane() == 0) f();
    sync();
  }

  // What the above is made of, for algorithms that keep something in each lane.

  /// Is the row shared? False on hosts, and known there when compiling: their loops are the plain ones.
  KOKKOS_FUNCTION bool is_shared() const {
#if defined(MOE_SIMULATED_LANES)
    return lanes > 1;
#else
    KOKKOS_IF_ON_HOST((return false;))
    KOKKOS_IF_ON_DEVICE((return lanes > 1;))
#endif
  }
  KOKKOS_FUNCTION int lane() const {
    return is_shared() ? first % lanes : 0;
  }
  KOKKOS_FUNCTION Index begin() const {
    return is_shared() ? first : 0;
  }
  KOKKOS_FUNCTION Index stride() const {
    return is_shared() ? step : 1;
  }

  /// Is entry i this thread's, where each lane looks at all and takes its own?
  KOKKOS_FUNCTION bool owns(Index i) const {
    return !is_shared() || i % lanes == lane();
  }

  /// Orders what the lanes wrote before what they read from here on.
  KOKKOS_FUNCTION void sync() const {
#if defined(MOE_SIMULATED_LANES)
    if (is_shared()) detail::simulated_sync();
#elif defined(KOKKOS_ENABLE_CUDA)
    KOKKOS_IF_ON_DEVICE((if (is_shared()) __syncwarp();))
#elif defined(KOKKOS_ENABLE_HIP)
    // A wavefront runs in step; only the compiler and the memory must keep the order.
    KOKKOS_IF_ON_DEVICE((if (is_shared()) {
      __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
      __builtin_amdgcn_wave_barrier();
      __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
    }))
#endif
  }
  /// The value of lane `from`.
  template <class Value>
  KOKKOS_FUNCTION Value shuffle(Value value, [[maybe_unused]] int from) const {
#if defined(MOE_SIMULATED_LANES)
    if (is_shared()) detail::simulated_shuffle(&value, sizeof value, from);
#elif defined(KOKKOS_ENABLE_CUDA)
    KOKKOS_IF_ON_DEVICE((if (is_shared()) value = __shfl_sync(0xffffffffu, value, from, detail::device_lanes);))
#elif defined(KOKKOS_ENABLE_HIP)
    KOKKOS_IF_ON_DEVICE((if (is_shared()) value = __shfl(value, from, detail::device_lanes);))
#endif
    return value;
  }
  /// The value of the lane whose number differs by the bits of `mask`.
  template <class Value>
  KOKKOS_FUNCTION Value exchange(Value value, int mask) const {
    return shuffle(value, lane() ^ mask);
  }
  /// The sum of all lanes' values, the same bits in all of them.
  template <class Value>
  KOKKOS_FUNCTION Value total_of(Value value) const {
    if (!is_shared()) return value;
    for (int mask = lanes / 2; mask > 0; mask /= 2) value += exchange(value, mask);
    return value;
  }
  /// The sum of the values of the lanes up to this one.
  template <class Value>
  KOKKOS_FUNCTION Value sum_up_to_lane(Value value) const {
    if (!is_shared()) return value;
    for (int distance = 1; distance < lanes; distance *= 2) {
      const Value other = shuffle(value, lane() - distance < 0 ? 0 : lane() - distance);
      if (lane() >= distance) value += other;
    }
    return value;
  }
};

MOE_NAMESPACE_END
