#pragma once
/// @file
/// Dense products as dot products of rows, a warp's lanes along the sum: a router's logits, for one token or for
/// thousands. An output's sum runs in the same order whatever the number of rows, so a token's choices do not depend on
/// the batch that it sits in; and the rows of w are read at once even where there are few of x.

#include "moe/kernels/device/launch.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// A unit is `high` rows of x times `wide` rows of w, by one warp; a team's units lie `down` by `beside`, so that its
/// warps read the same rows.
template <class T, int lanes, int high, int wide, int down, int beside>
struct Dots {
  using Sum = RouterReal<T>;
  static constexpr int in_line = line_bytes / int(sizeof(T)), warps = down * beside;
  Product<T> product;
  bool lines;  // can both be read by whole lines?

  KOKKOS_FUNCTION Index across() const { return (product.n + wide * beside - 1) / (wide * beside); }
  Index teams() const { return (product.m + high * down - 1) / (high * down) * across(); }

  template <class Member>
  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Index first = Index(team.league_rank()) / across(), second = Index(team.league_rank()) % across();
    const int warp = team.team_rank() / lanes;
    const Index row = (first * down + warp / beside) * high, column = (second * beside + warp % beside) * wide;
    if (row < product.m && column < product.n) multiply(row, column, team.team_rank() % lanes);
  }

  KOKKOS_FUNCTION void multiply(Index row, Index column, int lane) const {
    const Team team{lane, lanes, lanes};
    const T *x[high], *w[wide];  // rows behind the last are the last's, and nobody's results
    for (int i = 0; i < high; ++i) x[i] = product.a.data + least(row + i, product.m - 1) * product.a.row_stride;
    for (int j = 0; j < wide; ++j) w[j] = product.b.data + least(column + j, product.n - 1) * product.b.row_stride;
    Sum sum[high][wide] = {};
    if (lines && product.sum % in_line == 0) {
      add<true>(x, w, lane, sum);
    } else {
      add<false>(x, w, lane, sum);
    }
    MOE_UNROLL_ON_DEVICE
    for (int i = 0; i < high; ++i) {
      MOE_UNROLL_ON_DEVICE
      for (int j = 0; j < wide; ++j) {
        const Sum total = team.total_of(sum[i][j]);
        if (lane != (i * wide + j) % lanes || row + i >= product.m || column + j >= product.n) continue;
        T& c = product.c[(row + i) * product.n + column + j];
        c = T(product.accumulate ? Sum(c) + total : total);
      }
    }
  }

 private:
  /// A lane's part of the sums. whole: all is read by whole lines.
  template <bool whole>
  KOKKOS_FUNCTION void add(const T* const (&x)[high], const T* const (&w)[wide], int lane,
                           Sum (&sum)[high][wide]) const {
    [[maybe_unused]] constexpr int unroll =
        high * wide > 2 ? 1 : 4;  // few sums: reads ahead, which alone keep memory busy
    MOE_UNROLL_BY_ON_DEVICE(unroll)
    for (Index k = Index(lane) * in_line; k < product.sum; k += lanes * in_line) {
      T left[high][in_line], right[wide][in_line];
      MOE_UNROLL_ON_DEVICE
      for (int i = 0; i < high; ++i) read<whole>(x[i] + k, product.sum - k, left[i]);
      MOE_UNROLL_ON_DEVICE
      for (int j = 0; j < wide; ++j) read<whole>(w[j] + k, product.sum - k, right[j]);
      // Fused, as said: a compiler's choice might differ with the number of rows.
      MOE_UNROLL_ON_DEVICE
      for (int l = 0; l < in_line; ++l) {
        MOE_UNROLL_ON_DEVICE
        for (int i = 0; i < high; ++i) {
          MOE_UNROLL_ON_DEVICE
          for (int j = 0; j < wide; ++j) sum[i][j] = Kokkos::fma(Sum(left[i][l]), Sum(right[j][l]), sum[i][j]);
        }
      }
    }
  }

  KOKKOS_FUNCTION static Index least(Index a, Index b) { return a < b ? a : b; }
  template <bool whole>
  KOKKOS_FUNCTION static void read(const T* from, Index live, T (&to)[in_line]) {
    if (whole) {
      *reinterpret_cast<Block*>(to) = *reinterpret_cast<const Block*>(from);
    } else {
      MOE_UNROLL_ON_DEVICE
      for (int l = 0; l < in_line; ++l) to[l] = l < live ? from[l] : T(0.0f);
    }
  }
};

template <int high, int wide, int down, int beside, class Space, class T>
void launch_dots(const Space& space, const Product<T>& product) {
  constexpr int lanes = on_host<Space> ? 1 : 32, threads = lanes * down * beside;
  using Kernel = Dots<T, lanes, high, wide, down, beside>;
  const Kernel kernel{product, in_lines(product.a) && in_lines(product.b)};
  if (kernel.teams() == 0) return;
  Kokkos::parallel_for("moe::device::dots", Teams<Space, threads>(space, int(kernel.teams()), threads), kernel);
}

/// Runs a dense product of operands that both lie along the sum.
template <class Space, class T>
void dots(const Space& space, const Product<T>& product) {
  if constexpr (on_host<Space>) {
    launch_dots<8, 4, 1, 1>(space, product);
  } else if (product.m <= 32) {  // more warps
    launch_dots<2, 1, 1, 4>(space, product);
  } else if constexpr (sizeof(RouterReal<T>) == 8) {  // a sum is two registers
    launch_dots<8, 4, 2, 2>(space, product);
  } else {
    launch_dots<16, 8, 2, 4>(space, product);
  }
}

}  // namespace kernels::device

MOE_NAMESPACE_END
