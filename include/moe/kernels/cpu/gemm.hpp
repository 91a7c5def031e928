#pragma once
/// @file
/// Products on the host: tiles of C, both operands packed into panels, one micro-kernel that the compiler vectorises.
///
/// Edge tiles are padded with zeros and run the same code, and a sum is cut into blocks of a fixed size from its
/// first element: so a row's result depends on nothing but the row and the weights.

#include <algorithm>

#include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Tile sizes: `rows` x `columns` of C a work item, `block` of the sum at a time, `panel` x `width` in registers.
/// The packs of a tile fit in 128 KB of stack.
template <class Real>
struct Tile {
  static constexpr Index panel = 6, width = 128 / sizeof(Real), rows = 192 / sizeof(Real), columns = 2 * width,
                         block = 256;
};

/// Packs `count` rows of an operand, [first, first + count), and `depth` of its sum into panels of `height` rows,
/// zeros behind the end: packed[panel][k][row in panel].
template <Index height, class T, class Real>
inline void pack(const Operand<T>& from, Index first, Index count, Index sum_begin, Index depth, Real* packed) {
  constexpr Index strip = 16;  // of the sum: a strip of a panel stays in the nearest cache while it is transposed
  for (Index begin = 0; begin < count; begin += height, packed += height * depth) {
    const Index live = std::min(height, count - begin);
    const T* base = from.data + (first + begin) * from.row_stride + sum_begin * from.sum_stride;
    if (live < height) std::fill(packed, packed + height * depth, Real(0));
    if (from.row_stride == 1) {
      for (Index k = 0; k < depth; ++k) {
        for (Index i = 0; i < live; ++i) packed[k * height + i] = Real(base[i + k * from.sum_stride]);
      }
    } else {
      for (Index k0 = 0; k0 < depth; k0 += strip) {
        const Index steps = std::min(depth - k0, strip);
        Real* __restrict to = packed + k0 * height;
        for (Index i = 0; i < live; ++i) {
          const T* __restrict row = base + i * from.row_stride + k0 * from.sum_stride;
          if (steps == strip && from.sum_stride == 1) {  // the usual case, unrolled
#pragma GCC unroll 16
            for (Index k = 0; k < strip; ++k) to[k * height + i] = Real(row[k]);
          } else {
            for (Index k = 0; k < steps; ++k) to[k * height + i] = Real(row[k * from.sum_stride]);
          }
        }
      }
    }
  }
}

/// sums (panel, width) += a panel times a panel.
template <class Real>
inline void micro_kernel(const Real* __restrict a, const Real* __restrict b, Index depth, Real* __restrict sums) {
  constexpr Index panel = Tile<Real>::panel, width = Tile<Real>::width;
  Real local[panel][width];
  for (Index i = 0; i < panel; ++i) {
    for (Index j = 0; j < width; ++j) local[i][j] = sums[i * width + j];
  }
  for (Index k = 0; k < depth; ++k) {
#pragma GCC unroll 6
    for (Index i = 0; i < panel; ++i) {
      const Real factor = a[k * panel + i];
#pragma GCC unroll 64
      for (Index j = 0; j < width; ++j) local[i][j] += factor * b[k * width + j];
    }
  }
  for (Index i = 0; i < panel; ++i) {
    for (Index j = 0; j < width; ++j) sums[i * width + j] = local[i][j];
  }
}

template <class T>
struct MultiplyTile {
  using Real = RouterReal<T>;
  using S = Tile<Real>;
  Product<T> product;
  Index column_tiles;  // of C

  void operator()(Index item) const {
    Index row_tile = item / column_tiles;
    const Index column = item % column_tiles * S::columns;
    Index e = 0;
    Product<T> p = product.of(0);
    // The experts' row counts are known here only: find the expert that this tile falls to.
    for (Index tiles = tiles_of(p); row_tile >= tiles; tiles = tiles_of(p)) {
      row_tile -= tiles;
      if (++e == product.experts) return;
      p = product.of(e);
    }
    if (p.accumulate && p.sum == 0) return;  // an expert without rows: its gradient is not even read
    tile(p, row_tile * S::rows, column);
  }

 private:
  static Index tiles_of(const Product<T>& p) { return (p.m + S::rows - 1) / S::rows; }

  static void tile(const Product<T>& p, Index row, Index column) {
    constexpr Index panels = S::rows / S::panel, strips = S::columns / S::width;
    alignas(64) Real a[S::rows * S::block];
    alignas(64) Real b[S::columns * S::block];
    alignas(64) Real sums[panels * strips][S::panel * S::width] = {};
    const Index height = std::min(S::rows, p.m - row), breadth = std::min(S::columns, p.n - column);
    const Index live_panels = (height + S::panel - 1) / S::panel, live_strips = (breadth + S::width - 1) / S::width;
    for (Index k = 0; k < p.sum; k += S::block) {
      const Index depth = std::min(S::block, p.sum - k);
      pack<S::panel>(p.a, row, height, k, depth, a);
      pack<S::width>(p.b, column, breadth, k, depth, b);
      for (Index j = 0; j < live_strips; ++j) {
        for (Index i = 0; i < live_panels; ++i)
          micro_kernel(a + i * S::panel * depth, b + j * S::width * depth, depth, sums[i * strips + j]);
      }
    }
    for (Index i = 0; i < height; ++i) {
      T* c = p.c + (row + i) * p.n + column;
      for (Index j = 0; j < breadth; ++j) {
        const Real sum = sums[i / S::panel * strips + j / S::width][i % S::panel * S::width + j % S::width];
        c[j] = T(p.accumulate ? Real(c[j]) + sum : sum);
      }
    }
  }
};

/// Runs a product on a host space: threads take tiles of C, never parts of a sum.
template <class Space, class T>
void multiply(const Space& space, const Product<T>& product) {
  using S = Tile<RouterReal<T>>;
  const Index column_tiles = (product.n + S::columns - 1) / S::columns;
  Index row_tiles = (product.m + S::rows - 1) / S::rows;
  // A bound where rows are cut: each expert that has rows ends in at most one tile that is not full.
  if (product.offsets != nullptr)
    row_tiles = product.cut_sum ? row_tiles * product.experts : row_tiles + std::min(product.experts, product.m);
  Kokkos::parallel_for("moe::cpu::multiply",
                       Kokkos::RangePolicy<Space, Kokkos::Schedule<Kokkos::Dynamic>>(space, 0, row_tiles * column_tiles)
                           .set_chunk_size(1),
                       MultiplyTile<T>{product, column_tiles});
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
