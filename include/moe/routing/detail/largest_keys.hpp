#pragma once
/// @file
/// The largest keys of a row and their experts: the lowest expert of equals first, keys of -infinity and NaN never.

#include <bit>
#include <cstring>

#include "moe/core/lanes.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Picks keys in descending order from blocks of them, of which only the winner's is looked at again.
template <class Real>
class KeyBlocks {
  using L = Lanes<Real>;
  using Vector = typename L::Vector;
  using Mask = typename L::Mask;
  static constexpr int block = 16, most = 64, width = block / L::count;

 public:
  /// Few keys are sooner looked at one by one.
  static bool fits(Index keys) { return block < keys && keys <= block * most; }

  explicit KeyBlocks(Row<const Real> row)
      : blocks_(int((row.size + block - 1) / block)), vectors_((blocks_ + L::count - 1) / L::count) {
    std::memcpy(keys_, row.data, std::size_t(row.size) * sizeof(Real));
    for (int i = int(row.size); i < blocks_ * block; ++i) keys_[i] = nothing;
    for (int v = 0; v < vectors_; ++v) best_vectors()[v] = Vector{} + nothing;
    for (int b = 0; b < blocks_; ++b) {
      Vector top = Vector{} + nothing;  // not the first keys, where NaN would stay
      for (int j = 0; j < width; ++j) L::raise(top, block_of(b)[j]);
      L::spread_largest(top);
      best_[b] = top[0];
    }
  }

  /// The best expert that is left, or no_expert.
  ExpertId take() {
    const Vector none = Vector{} + nothing;
    Vector top = none, left = none;
    for (int v = 0; v < vectors_; ++v) L::raise(top, best_vectors()[v]);
    L::spread_largest(top);
    if (!(top[0] > nothing)) return no_expert;
    std::uint64_t found = 0;
    for (int v = 0; v < vectors_; ++v) found |= L::bits(best_vectors()[v] == top) << (v * L::count);
    const int b = std::countr_zero(found);
    found = 0;
    for (int j = 0; j < width; ++j) found |= L::bits(block_of(b)[j] == top) << (j * L::count);
    const int e = std::countr_zero(found);
    // Whole vectors are written: a wide load just behind a narrow store would have to wait for it.
    for (int j = 0; j < width; ++j) {
      Vector& keys = block_of(b)[j];
      keys = L::numbers + j * L::count == Mask{} + e ? none : keys;
      L::raise(left, keys);
    }
    L::spread_largest(left);
    Vector& best = best_vectors()[b / L::count];
    best = L::numbers == Mask{} + b % L::count ? left : best;
    return ExpertId(b * block + e);
  }

 private:
  static constexpr Real nothing = -Kokkos::Experimental::infinity_v<Real>;
  Vector* block_of(int b) { return reinterpret_cast<Vector*>(keys_ + b * block); }
  Vector* best_vectors() { return reinterpret_cast<Vector*>(best_); }

  alignas(64) Real keys_[block * most];
  alignas(64) Real best_[most];  // of each block
  int blocks_, vectors_;         // in use, of keys_ and of best_
};

/// A key and its expert; to begin with none.
template <class Real>
struct BestKey {
  Real key = -Kokkos::Experimental::infinity_v<Real>;
  ExpertId expert = no_expert;

  /// The better of two: of equals the lower expert. No key of an expert is as low as that of none.
  KOKKOS_FUNCTION void merge(const BestKey& other) {
    if (other.key > key || (other.key == key && other.expert < expert)) *this = other;
  }
};

/// The best of the keys that are this thread's.
template <class Real>
KOKKOS_FUNCTION BestKey<Real> own_best(const Team& team, Row<const Real> key) {
  BestKey<Real> best;
  for (Index e = team.begin(); e < key.size; e += team.stride()) {
    if (key[e] > best.key) best = {key[e], ExpertId(e)};
  }
  return best;
}

/// The best of what the lanes have, in all of them.
template <class Real>
KOKKOS_FUNCTION BestKey<Real> best_of_lanes(const Team& team, BestKey<Real> best) {
  if (!team.is_shared()) return best;
  for (int mask = team.lanes / 2; mask > 0; mask /= 2)
    best.merge({team.exchange(best.key, mask), team.exchange(best.expert, mask)});
  return best;
}

/// The largest key and its expert, the lowest of equals; no_expert where all are -infinity.
template <class Real>
KOKKOS_FUNCTION BestKey<Real> best_key(const Team& team, Row<const Real> key) {
  return best_of_lanes(team, own_best(team, key));
}

/// Makes `best`, or none, choice i, and puts it out of the reach of later ones.
template <class Real>
KOKKOS_FUNCTION void take(const Team& team, ExpertId best, Index i, Row<Real> key, Row<ExpertId> chosen) {
  team.single([&] {
    chosen[i] = best;
    if (best != no_expert) key[best] = -Kokkos::Experimental::infinity_v<Real>;
  });
}

/// The experts of the chosen.size largest keys in descending order. The keys are used up.
template <class Real>
KOKKOS_FUNCTION void take_largest(const Team& team, Row<Real> key, Row<ExpertId> chosen) {
  KOKKOS_IF_ON_HOST((if (!team.is_shared() && KeyBlocks<Real>::fits(key.size)) {
    KeyBlocks<Real> blocks({key.data, key.size});
    for (Index i = 0; i < chosen.size; ++i) chosen[i] = blocks.take();
    return;
  }))
  // Each lane keeps the best of its own keys, and looks at them again when it was the winner: no lane reads what
  // another one writes.
  const Row<const Real> keys{key.data, key.size};
  BestKey<Real> own = own_best(team, keys);
  for (Index i = 0; i < chosen.size; ++i) {
    const BestKey<Real> best = best_of_lanes(team, own);
    if (team.lane() == 0) chosen[i] = best.expert;
    if (best.expert == no_expert || best.expert != own.expert) continue;
    key[best.expert] = -Kokkos::Experimental::infinity_v<Real>;
    if (i + 1 < chosen.size) own = own_best(team, keys);
  }
  team.sync();
}

}  // namespace detail

MOE_NAMESPACE_END
