#pragma once
/// @file
/// Products on the host: tiles of C, the right operand packed into strips, the left one read where it lies, one
/// micro-kernel in registers.
///
/// Edge panels are padded with zeros and run the same code, and a sum is cut into blocks of a fixed size from its first
/// element: so a row's result depends on nothing but the row and the weights.

#include <algorithm>

#include "moe/core/compiler.hpp"
#include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// GNU's vector types, which g++ and clang map to the widest registers they compile for.
#if defined(__AVX512F__)
#  define MOE_REGISTER_BYTES 64
#elif defined(__AVX__)
#  define MOE_REGISTER_BYTES 32
#else
#  define MOE_REGISTER_BYTES 16
#endif
template <class Real>
struct Register;
template <>
struct Register<float> {
  typedef float Vector __attribute__((vector_size(MOE_REGISTER_BYTES), aligned(4), may_alias));
};
template <>
struct Register<double> {
  typedef double Vector __attribute__((vector_size(MOE_REGISTER_BYTES), aligned(8), may_alias));
};
#undef MOE_REGISTER_BYTES

/// Tile sizes: `rows` x `columns` of C a work item, `block` of the sum at a time, `panel` x `width` in registers: 12
/// accumulators. The packs of a tile take 300 KB of stack.
template <class Real>
struct Tile {
  using Vector = typename Register<Real>::Vector;
  static constexpr Index lanes = sizeof(Vector) / sizeof(Real), panel = 6, width = 2 * lanes, rows = 144,
                         columns = 256 / sizeof(Real), block = 256;
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
            MOE_UNROLL(16)
            for (Index k = 0; k < strip; ++k) to[k * height + i] = Real(row[k]);
          } else {
            for (Index k = 0; k < steps; ++k) to[k * height + i] = Real(row[k * from.sum_stride]);
          }
        }
      }
    }
  }
}

/// sums (panel, width) += a panel of A, whose element (i, k) is a[i * row_stride + k * sum_stride], times a strip of B.
template <class Real>
inline void micro_kernel(const Real* __restrict a, Index row_stride, Index sum_stride, const Real* __restrict b,
                         Index depth, Real* __restrict sums) {
  using S = Tile<Real>;
  using Vector = typename S::Vector;
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
      const Real factor = a[i * row_stride];
      local[i][0] += factor * left;
      local[i][1] += factor * right;
    }
  }
  for (Index i = 0; i < S::panel; ++i) {
    out[2 * i] = local[i][0];
    out[2 * i + 1] = local[i][1];
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
    alignas(64) Real a[std::is_same_v<T, Real> ? S::panel * S::block : S::rows * S::block];
    alignas(64) Real b[S::columns * S::block];
    alignas(64) Real sums[panels * strips][S::panel * S::width];
    const Index height = std::min(S::rows, p.m - row), breadth = std::min(S::columns, p.n - column);
    const Index live_panels = (height + S::panel - 1) / S::panel, live_strips = (breadth + S::width - 1) / S::width;
    // Panels that need no padding and no conversion are read where they lie; `a` holds the others.
    const Index direct = std::is_same_v<T, Real> ? height / S::panel : 0;
    for (Index i = 0; i < live_panels; ++i) std::fill_n(sums[i * strips], live_strips * S::panel * S::width, Real(0));
    for (Index k = 0; k < p.sum; k += S::block) {
      const Index depth = std::min(S::block, p.sum - k);
      if (direct < live_panels) pack<S::panel>(p.a, row + direct * S::panel, height - direct * S::panel, k, depth, a);
      pack<S::width>(p.b, column, breadth, k, depth, b);
      for (Index j = 0; j < live_strips; ++j) {
        const Real* strip = b + j * S::width * depth;
        if constexpr (std::is_same_v<T, Real>) {
          const Real* panel = p.a.data + row * p.a.row_stride + k * p.a.sum_stride;
          for (Index i = 0; i < direct; ++i, panel += S::panel * p.a.row_stride)
            micro_kernel<Real>(panel, p.a.row_stride, p.a.sum_stride, strip, depth, sums[i * strips + j]);
        }
        for (Index i = direct; i < live_panels; ++i)
          micro_kernel<Real>(a + (i - direct) * S::panel * depth, 1, S::panel, strip, depth, sums[i * strips + j]);
      }
    }
    for (Index i = 0; i < height; ++i) {
      for (Index j = 0; j < live_strips; ++j) {
        const Real* from = sums[i / S::panel * strips + j] + i % S::panel * S::width;
        T* c = p.c + (row + i) * p.n + column + j * S::width;
        const Index width = std::min(S::width, breadth - j * S::width);
        if (p.accumulate) {
          for (Index l = 0; l < width; ++l) c[l] = T(Real(c[l]) + from[l]);
        } else {
          for (Index l = 0; l < width; ++l) c[l] = T(from[l]);
        }
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
