#pragma once
/// @file
/// Dense products as dot products of rows, a warp's lanes along the sum: a router's logits, for one token or for
/// thousands. An output's sum runs in the same order whatever the number of rows, so a token's choices do not depend on
/// the batch that it sits in; and the rows of w are read at once even where there are few of x.

#include "moe/kernels/device/launch.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// A unit is `high` rows of x times `wide` rows of w, by one warp.
template <class T, int lanes, int high, int wide>
struct Dots {
  using Sum = RouterReal<T>;
  static constexpr int in_line = line_bytes / int(sizeof(T)), warps = lanes == 1 ? 1 : 4;
  Product<T> product;
  bool lines;  // can both be read by whole lines?

  KOKKOS_FUNCTION Index across() const { return (product.n + wide - 1) / wide; }
  Index units() const { return (product.m + high - 1) / high * across(); }

  template <class Member>
  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Index unit = Index(team.league_rank()) * warps + team.team_rank() / lanes;
    if (unit < (product.m + high - 1) / high * across())
      multiply(unit / across() * high, unit % across() * wide, team.team_rank() % lanes);
  }

  KOKKOS_FUNCTION void multiply(Index row, Index column, int lane) const {
    const Team team{lane, lanes, lanes};
    const T *x[high], *w[wide];  // rows behind the last are the last's, and nobody's results
    for (int i = 0; i < high; ++i) x[i] = product.a.data + least(row + i, product.m - 1) * product.a.row_stride;
    for (int j = 0; j < wide; ++j) w[j] = product.b.data + least(column + j, product.n - 1) * product.b.row_stride;
    Sum sum[high][wide] = {};
    for (Index k = Index(lane) * in_line; k < product.sum; k += lanes * in_line) {
      T left[high][in_line], right[wide][in_line];
      for (int i = 0; i < high; ++i) read(x[i] + k, product.sum - k, left[i]);
      for (int j = 0; j < wide; ++j) read(w[j] + k, product.sum - k, right[j]);
      // Fused, as said: a compiler's choice might differ with the number of rows.
      for (int l = 0; l < in_line; ++l) {
        for (int i = 0; i < high; ++i) {
          for (int j = 0; j < wide; ++j) sum[i][j] = Kokkos::fma(Sum(left[i][l]), Sum(right[j][l]), sum[i][j]);
        }
      }
    }
    for (int i = 0; i < high; ++i) {
      for (int j = 0; j < wide; ++j) {
        const Sum total = team.total_of(sum[i][j]);
        if (lane != (i * wide + j) % lanes || row + i >= product.m || column + j >= product.n) continue;
        T& c = product.c[(row + i) * product.n + column + j];
        c = T(product.accumulate ? Sum(c) + total : total);
      }
    }
  }

 private:
  KOKKOS_FUNCTION static Index least(Index a, Index b) { return a < b ? a : b; }
  KOKKOS_FUNCTION void read(const T* from, Index live, T (&to)[in_line]) const {
    if (lines && live >= in_line) {
      *reinterpret_cast<Block*>(to) = *reinterpret_cast<const Block*>(from);
    } else {
      for (int l = 0; l < in_line; ++l) to[l] = l < live ? from[l] : T(0.0f);
    }
  }
};

template <int lanes, int high, int wide, class Space, class T>
void launch_dots(const Space& space, const Product<T>& product) {
  using Kernel = Dots<T, lanes, high, wide>;
  const Kernel kernel{product, in_lines(product.a) && in_lines(product.b)};
  const Index teams = (kernel.units() + Kernel::warps - 1) / Kernel::warps;
  if (teams == 0) return;
  Kokkos::parallel_for("moe::device::dots",
                       Teams<Space, lanes * Kernel::warps>(space, int(teams), lanes * Kernel::warps), kernel);
}

/// Runs a dense product of operands that both lie along the sum.
template <class Space, class T>
void dots(const Space& space, const Product<T>& product) {
  constexpr int lanes = on_host<Space> ? 1 : 32;
  if (product.m <= 32) {  // more warps
    launch_dots<lanes, 2, 1>(space, product);
  } else {
    launch_dots<lanes, 8, 4>(space, product);
  }
}

}  // namespace kernels::device

MOE_NAMESPACE_END
