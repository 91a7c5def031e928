#pragma once
/// @file
/// What engines of matrix units have in common: a tile cut into a part for each group of lanes, that into pieces of 16
/// rows, and four sums of each piece in a lane's registers.

#include "moe/core/compiler.hpp"
#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// Place says where lane and r put a sum in a piece: row_of(lane, r) and column_of(lane, r).
template <int rows_, int columns_, int depth_, int groups_down, int groups_across, int parts_, int lanes_,
          int piece_columns, class Place>
struct MatrixTile {
  using Sum = float;
  static constexpr int rows = rows_, columns = columns_, depth = depth_, parts = parts_, lanes = lanes_;
  static constexpr int threads = lanes * groups_down * groups_across;
  static constexpr int down = rows / groups_down / 16, across = columns / groups_across / piece_columns;  // pieces
  static_assert(down * groups_down * 16 == rows && across * groups_across * piece_columns == columns);

  struct Sums {
    float value[parts][down][across][4];
  };

  KOKKOS_FUNCTION static void clear(Sums& sums) { sums = {}; }

  KOKKOS_FUNCTION static int first_row(int thread) { return thread / lanes / groups_across * down * 16; }
  KOKKOS_FUNCTION static int first_column(int thread) {
    return thread / lanes % groups_across * across * piece_columns;
  }

  /// to += scale(row, column, part) * from.
  template <class Scale>
  KOKKOS_FUNCTION static void fold(int thread, const Sums& from, Sums& to, const Scale& scale) {
    each_place(thread, [&](int i, int j, int r, int row, int column) {
      MOE_UNROLL_ON_DEVICE
      for (int part = 0; part < parts; ++part)
        to.value[part][i][j][r] += from.value[part][i][j][r] * scale(row, column, part);
    });
  }

  /// Calls f(row, column, values of all parts) for each of this thread's places in the tile.
  template <class F>
  KOKKOS_FUNCTION static void each(int thread, const Sums& sums, const F& f) {
    each_place(thread, [&](int i, int j, int r, int row, int column) {
      float values[parts];
      MOE_UNROLL_ON_DEVICE
      for (int part = 0; part < parts; ++part) values[part] = sums.value[part][i][j][r];
      f(row, column, values);
    });
  }

  /// Calls f(i, j, r, row, column) for sum r of piece (i, j), which belongs to a row and a column of the tile.
  template <class F>
  KOKKOS_FUNCTION static void each_place(int thread, const F& f) {
    const int lane = thread % lanes;
    MOE_UNROLL_ON_DEVICE
    for (int i = 0; i < down; ++i) {
      MOE_UNROLL_ON_DEVICE
      for (int j = 0; j < across; ++j) {
        MOE_UNROLL_ON_DEVICE
        for (int r = 0; r < 4; ++r) {
          f(i, j, r, first_row(thread) + i * 16 + Place::row_of(lane, r),
            first_column(thread) + j * piece_columns + Place::column_of(lane, r));
        }
      }
    }
  }
};

}  // namespace kernels::device

MOE_NAMESPACE_END
