#pragma once
/// @file
/// Products of doubles on the host: tiles of C, the right operand packed into strips, the left one read where it lies,
/// one micro-kernel in registers. (Other types: product.hpp.)
///
/// Edge panels are padded with zeros and run the same code, and a sum is cut into blocks of a fixed size from its first
/// element: so a row's result depends on nothing but the row and the weights.

#include <algorithm>

#include "moe/core/compiler.hpp"
#include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Tile sizes: `rows` x `columns` of C a work item, `block` of the sum at a time, `panel` x `width` in registers: 12
/// accumulators. The packs of a tile take 140 KB of stack.
struct DoubleTile {
#if defined(__AVX512F__)
  static constexpr Index lanes = 8;
#elif defined(__AVX__)
  static constexpr Index lanes = 4;
#else
  static constexpr Index lanes = 2;
#endif
  typedef double Vector __attribute__((vector_size(8 * lanes), aligned(8), may_alias));
  static constexpr Index panel = 6, width = 2 * lanes, rows = 144, columns = 32, block = 256;
};

/// Packs `count` rows of an operand, [first, first + count), and `depth` of its sum into panels of `height` rows,
/// zeros behind the end: packed[panel][k][row in panel].
template <Index height>
inline void pack(const Operand<double>& from, Index first, Index count, Index sum_begin, Index depth, double* packed) {
  constexpr Index strip = 16;  // of the sum: a strip of a panel stays in the nearest cache while it is transposed
  for (Index begin = 0; begin < count; begin += height, packed += height * depth) {
    const Index live = std::min(height, count - begin);
    const double* base = from.data + (first + begin) * from.row_stride + sum_begin * from.sum_stride;
    if (live < height) std::fill(packed, packed + height * depth, 0.0);
    if (from.row_stride == 1) {
      for (Index k = 0; k < depth; ++k) {
        for (Index i = 0; i < live; ++i) packed[k * height + i] = base[i + k * from.sum_stride];
      }
    } else {
      for (Index k0 = 0; k0 < depth; k0 += strip) {
        const Index steps = std::min(depth - k0, strip);
        double* __restrict to = packed + k0 * height;
        for (Index i = 0; i < live; ++i) {
          const double* __restrict row = base + i * from.row_stride + k0 * from.sum_stride;
          if (steps == strip && from.sum_stride == 1) {  // the usual case, unrolled
            MOE_UNROLL(16)
            for (Index k = 0; k < strip; ++k) to[k * height + i] = row[k];
          } else {
            for (Index k = 0; k < steps; ++k) to[k * height + i] = row[k * from.sum_stride];
          }
        }
      }
    }
  }
}

/// sums (panel, width) += a panel of A, whose element (i, k) is a[i * row_stride + k * sum_stride], times a strip of B.
inline void micro_kernel(const double* __restrict a, Index row_stride, Index sum_stride, const double* __restrict b,
                         Index depth, double* __restrict sums) {
  using S = DoubleTile;
  using Vector = S::Vector;
  auto* out = reinterpret_cast<Vector*>(sums);
  Vector local[S::panel][2];
  for (Index i = 0; i < S::panel; ++i) {
    local[i][0] = out[2 * i];
    local[i][1] = out[2 * i + 1];
  }
  for (Index k = 0; k < depth; ++k, a += sum_stride, b += S::width) {
    const Vector left = *reinterpret_cast<const Vector*>(b), right = *reinterpret_cast<const Vector*>(b + S::lanes);
    MOE_UNROLL(6)
    for (Index i = 0; i < S::panel; ++i) {
      const double factor = a[i * row_stride];
      local[i][0] += factor * left;
      local[i][1] += factor * right;
    }
  }
  for (Index i = 0; i < S::panel; ++i) {
    out[2 * i] = local[i][0];
    out[2 * i + 1] = local[i][1];
  }
}

struct MultiplyTile {
  using S = DoubleTile;
  using P = Product<double>;
  P product;
  Index column_tiles;  // of C

  void operator()(Index item) const {
    Index row_tile = item / column_tiles;
    const Index column = item % column_tiles * S::columns;
    Index e = 0;
    P p = product.of(0);
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
  static Index tiles_of(const P& p) { return (p.m + S::rows - 1) / S::rows; }

  static void tile(const P& p, Index row, Index column) {
    constexpr Index panels = S::rows / S::panel, strips = S::columns / S::width;
    alignas(64) double a[S::panel * S::block], b[S::columns * S::block];
    alignas(64) double sums[panels * strips][S::panel * S::width];
    const Index height = std::min(S::rows, p.m - row), breadth = std::min(S::columns, p.n - column);
    const Index live_panels = (height + S::panel - 1) / S::panel, live_strips = (breadth + S::width - 1) / S::width;
    const Index direct = height / S::panel;  // panels read where they lie; `a` holds a last one, padded
    for (Index i = 0; i < live_panels; ++i) std::fill_n(sums[i * strips], live_strips * S::panel * S::width, 0.0);
    for (Index k = 0; k < p.sum; k += S::block) {
      const Index depth = std::min(S::block, p.sum - k);
      if (direct < live_panels) pack<S::panel>(p.a, row + direct * S::panel, height - direct * S::panel, k, depth, a);
      pack<S::width>(p.b, column, breadth, k, depth, b);
      for (Index j = 0; j < live_strips; ++j) {
        const double* strip = b + j * S::width * depth;
        const double* panel = p.a.data + row * p.a.row_stride + k * p.a.sum_stride;
        for (Index i = 0; i < direct; ++i, panel += S::panel * p.a.row_stride)
          micro_kernel(panel, p.a.row_stride, p.a.sum_stride, strip, depth, sums[i * strips + j]);
        if (direct < live_panels) micro_kernel(a, 1, S::panel, strip, depth, sums[direct * strips + j]);
      }
    }
    for (Index i = 0; i < height; ++i) {
      for (Index j = 0; j < live_strips; ++j) {
        const double* from = sums[i / S::panel * strips + j] + i % S::panel * S::width;
        double* c = p.c + (row + i) * p.n + column + j * S::width;
        const Index width = std::min(S::width, breadth - j * S::width);
        if (p.accumulate) {
          for (Index l = 0; l < width; ++l) c[l] += from[l];
        } else {
          for (Index l = 0; l < width; ++l) c[l] = from[l];
        }
      }
    }
  }
};

/// Runs a product on a host space: threads take tiles of C, never parts of a sum.
template <class Space>
void multiply(const Space& space, const Product<double>& product) {
  using S = DoubleTile;
  const Index column_tiles = (product.n + S::columns - 1) / S::columns;
  Index row_tiles = (product.m + S::rows - 1) / S::rows;
  // A bound where rows are cut: each expert that has rows ends in at most one tile that is not full.
  if (product.offsets != nullptr)
    row_tiles = product.cut_sum ? row_tiles * product.experts : row_tiles + std::min(product.experts, product.m);
  Kokkos::parallel_for("moe::cpu::multiply",
                       Kokkos::RangePolicy<Space, Kokkos::Schedule<Kokkos::Dynamic>>(space, 0, row_tiles * column_tiles)
                           .set_chunk_size(1),
                       MultiplyTile{product, column_tiles});
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
