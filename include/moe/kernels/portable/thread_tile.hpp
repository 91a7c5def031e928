#pragma once
/// @file
/// `ThreadTile`: a tile's sums in the registers of plain threads. Runs on every backend, and is the oracle of the
/// engines that use a device's matrix units.

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::portable {

/// Numbers of the sum in a stage: two stages of three operands of double are to fit a team's 48 KiB.
template <class T>
inline constexpr int thread_tile_depth = sizeof(T) == 8 ? 8 : 16;

/// A tile of 64 x 64: each thread holds 8 x 4 numbers, or several such pieces. Of 16 x 16 for a single thread, as on
/// hosts, whose small problems would be mostly padding.
template <class T, int team, int parts_ = 1, int depth_ = thread_tile_depth<T>>
struct ThreadTile {
  using Sum = RouterReal<T>;
  static constexpr int rows = team == 1 ? 16 : 64, columns = rows, depth = depth_, threads = team, stages = 2,
                       parts = parts_;
  static constexpr bool scratch_by_itself = false;
  static constexpr int high = 8, wide = 4, down = rows / high, across = columns / wide;
  static constexpr int pieces = down * across / threads;
  static_assert(pieces * threads == down * across);

  struct Sums {
    Sum value[pieces][high][wide][parts];
  };

  KOKKOS_FUNCTION static void clear(Sums& sums) { sums = {}; }

  /// sums += the product of a stage's tiles, which lie as A and B say.
  template <class A, class B>
  KOKKOS_FUNCTION static void add(int thread, const T* a, const T* b, Sums& sums) {
    for (int piece = 0; piece < pieces; ++piece) {
      const int row = row_of(thread, piece), column = column_of(thread, piece);
      for (int k = 0; k < depth; ++k) {
        Sum left[high], right[wide][parts];
        for (int i = 0; i < high; ++i) left[i] = Sum(a[A::at(row + i * down, k)]);
        for (int j = 0; j < wide; ++j) {
          for (int part = 0; part < parts; ++part)
            right[j][part] = Sum(b[part * B::size + B::at(column + j * across, k)]);
        }
        for (int i = 0; i < high; ++i) {
          for (int j = 0; j < wide; ++j) {
            for (int part = 0; part < parts; ++part) sums.value[piece][i][j][part] += left[i] * right[j][part];
          }
        }
      }
    }
  }

  /// to += scale(row, column, part) * from.
  template <class Scale>
  KOKKOS_FUNCTION static void fold(int thread, const Sums& from, Sums& to, const Scale& scale) {
    for (int piece = 0; piece < pieces; ++piece) {
      for (int i = 0; i < high; ++i) {
        for (int j = 0; j < wide; ++j) {
          for (int part = 0; part < parts; ++part) {
            to.value[piece][i][j][part] +=
                from.value[piece][i][j][part] *
                scale(row_of(thread, piece) + i * down, column_of(thread, piece) + j * across, part);
          }
        }
      }
    }
  }

  /// Calls f(row, column, values of all parts) for each of this thread's places in the tile.
  template <class F>
  KOKKOS_FUNCTION static void each(int thread, const Sums& sums, const F& f) {
    for (int piece = 0; piece < pieces; ++piece) {
      for (int i = 0; i < high; ++i) {
        for (int j = 0; j < wide; ++j)
          f(row_of(thread, piece) + i * down, column_of(thread, piece) + j * across, sums.value[piece][i][j]);
      }
    }
  }

 private:
  // Neighbouring threads have neighbouring columns: memory then serves them together.
  KOKKOS_FUNCTION static int row_of(int thread, int piece) { return (thread + piece * threads) / across; }
  KOKKOS_FUNCTION static int column_of(int thread, int piece) { return (thread + piece * threads) % across; }
};

}  // namespace kernels::portable

MOE_NAMESPACE_END
