#pragma once
/// @file
/// What low-rank passes on hosts share: the two small products, rows and matrices where they lie or copied, and units
/// of work.

#include <algorithm>
#include <atomic>

#include "moe/core/convert.hpp"
#include "moe/kernels/cpu/micro_kernels.hpp"
#include "moe/kernels/cpu/panels.hpp"
#include "moe/kernels/low_rank_rows.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Rows or lines of numbers, `stride` apart.
template <class Real>
struct Lines {
  const Real* data;
  Index stride;
};

/// The two small products, for float from the table, for double as loops.
template <class Real>
struct LowRankProducts {
  const MicroKernels* table = nullptr;
  Index together = 8;  ///< rows of `lines`

  static LowRankProducts make() {
    LowRankProducts products;
    if constexpr (std::is_same_v<Real, float>) {
      products.table = &micro_kernels();
      products.together = products.table->small_rows;
    }
    return products;
  }

  /// c(i, j) (+)= a(i, :) b(j, :).
  void dots(const Lines<Real>& a, Index rows, const Lines<Real>& b, Index columns, Index length, Real* c,
            Index c_stride, bool add) const {
    if constexpr (std::is_same_v<Real, float>) {
      const SmallDots of{a.data, b.data, c, a.stride, b.stride, c_stride, rows, columns, length, add};
      table->small_dots(of);
    } else {
      for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < columns; ++j) {
          const Real *left = a.data + i * a.stride, *right = b.data + j * b.stride;
          Real part[8] = {}, sum = 0;
          Index k = 0;
          for (; k + 8 <= length; k += 8) {
            for (Index l = 0; l < 8; ++l) part[l] += left[k + l] * right[k + l];
          }
          for (; k < length; ++k) sum += left[k] * right[k];
          for (Index l = 0; l < 8; ++l) sum += part[l];
          c[i * c_stride + j] = add ? c[i * c_stride + j] + sum : sum;
        }
      }
    }
  }

  /// sums(i, l) = the sum over k of a[i row_stride + k sum_stride] b(k, l), for up to `together` rows i and 32 columns
  /// l, of which 16 are left out where `live` ends before them. Lines of b are whole panels, 16 numbers each.
  void lines(const Real* a, Index row_stride, Index sum_stride, Index rows, const Real* b, Index panel_stride,
             Index line_stride, Index length, Index live, Real* sums) const {
    const Index panels = live > panel_columns ? 2 : 1;
    if constexpr (std::is_same_v<Real, float>) {
      const SmallLines of{a, row_stride, sum_stride, b, panel_stride, line_stride, length, sums};
      table->small_lines(int(rows), int(panels), of);
    } else {
      for (Index i = 0; i < rows; ++i) {
        for (Index p = 0; p < panels; ++p) {
          Real part[panel_columns] = {};
          for (Index k = 0; k < length; ++k) {
            const Real factor = a[i * row_stride + k * sum_stride];
            const Real* line = b + p * panel_stride + k * line_stride;
            for (Index l = 0; l < panel_columns; ++l) part[l] += factor * line[l];
          }
          std::copy(part, part + panel_columns, sums + i * pair_columns + p * panel_columns);
        }
      }
    }
  }
};

/// to = or += `live` sums.
template <class Real, class T>
void store(const Real* __restrict from, Index live, T* __restrict to, bool add) {
  if (live == pair_columns) {
    Real values[pair_columns];
    MOE_INDEPENDENT
    for (Index l = 0; l < pair_columns; ++l) values[l] = from[l] + (add ? Real(to[l]) : Real(0));
    return moe::detail::convert<pair_columns>(values, to);
  }
  for (Index l = 0; l < live; ++l) to[l] = T(from[l] + (add ? Real(to[l]) : Real(0)));
}

/// What all passes share.
template <class T, class Space>
struct LowRankPass {
  using Real = RouterReal<T>;
  static constexpr Index most_rows = 32;     // of a unit
  static constexpr Index most_depth = 2048;  // of a sum over x, at once
  static constexpr Index block = 256;        // columns of x or out for so many rows, at once

  LowRankRows<T, Space> rows;
  LowRankProducts<Real> products;
  std::atomic<Index>* counter;
  const T *a, *b;  // (N, r, in), (N, out, r)
  Index adapters, in, out, rank;

  static Index whole_panels(Index width) { return (width + panel_columns - 1) / panel_columns * panel_columns; }
  /// The numbers between A and B that adapter n has; rows of them are `rank` long.
  Index rank_of(Index n) const { return rows.rank.data() == nullptr ? rank : std::min(rows.rank(n), rank); }
  const T* a_of(Index n) const { return a + n * rank * in; }
  const T* b_of(Index n) const { return b + n * out * rank; }
  Index count(Index n) const { return rows.offsets(n + 1) - rows.offsets(n); }

  /// A thread's memory: rows of x or of the output's gradient, a part of a matrix, and two arrays of rows of numbers
  /// between A and B, which also hold what gradients of 16 bits add up to.
  struct Memory {
    Real *rows, *matrix, *hidden, *scaled;
  };
  Memory memory() const {
    const Index wide = whole_panels(rank), between = std::max(most_rows, block) * wide, all = most_rows * most_depth;
    const Index matrix = std::max(panel_columns * most_depth, block * wide);
    static thread_local PageBuffer<Real> buffer;
    static thread_local Index size = 0;
    const Index needed = all + matrix + 2 * between;
    if (size < needed) {
      buffer = PageBuffer<Real>(needed);
      size = needed;
    }
    Real* at = buffer.data();
    return {at, at + all, at + all + matrix, at + all + matrix + between};
  }

  /// The columns [first, first + width) of some rows of a matrix `stride` wide: where they lie, or copied, with zeros
  /// up to whole panels. `place(i)` is the i-th row's number, or negative: zeros.
  template <class Place>
  static Lines<Real> gather(const T* from, Index stride, Index count, Index first, Index width, Real* to,
                            const Place& place) {
    const Index padded = whole_panels(width);
    for (Index i = 0; i < count; ++i)
      copy(place(i) < 0 ? nullptr : from + place(i) * stride + first, width, to + i * padded, padded);
    return {to, padded};
  }
  static void copy(const T* __restrict from, Index width, Real* __restrict to, Index padded) {
    Index l = 0;
    if (from != nullptr) {
      for (; l + panel_columns <= width; l += panel_columns) moe::detail::convert<int(panel_columns)>(from + l, to + l);
      for (; l < width; ++l) to[l] = Real(from[l]);
    }
    for (; l < padded; ++l) to[l] = Real(0);
  }

  /// Of a matrix, `count` lines from one that `from` begins.
  static Lines<Real> part(const T* from, Index stride, Index count, Index width, Real* to) {
    if constexpr (std::is_same_v<T, Real>) {
      if (width % panel_columns == 0) return {from, stride};
    }
    return gather(from, stride, count, 0, width, to, [](Index i) { return i; });
  }
  /// Of the rows from number `first` on.
  Lines<Real> rows_of(const T* from, Index stride, Index first, Index count, Index column, Index width,
                      Real* to) const {
    if (rows.number.data() == nullptr) return part(from + first * stride + column, stride, count, width, to);
    return gather(from, stride, count, column, width, to, [&](Index i) { return rows.number(first + i); });
  }

  /// Calls f(adapter, unit of it) for each unit that falls to this thread; units(n) says how many n has.
  template <class Units, class F>
  void take(const Units& units, const F& f) const {
    Index n = 0, before = 0;
    for (Index unit = counter->fetch_add(1);; unit = counter->fetch_add(1)) {
      for (; n < adapters && unit - before >= units(n); ++n) before += units(n);
      if (n == adapters) return;
      f(n, unit - before);
    }
  }
  /// The same for parts of an adapter's rows: f(adapter, first, count).
  template <class F>
  void take_rows(const F& f) const {
    const auto units = [&](Index n) { return (count(n) + most_rows - 1) / most_rows; };
    take(units, [&](Index n, Index unit) {
      const Index all = units(n), begin = unit * count(n) / all, end = (unit + 1) * count(n) / all;
      f(n, rows.offsets(n) + begin, end - begin);
    });
  }
};

}  // namespace kernels::cpu

MOE_NAMESPACE_END
