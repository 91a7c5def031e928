#pragma once
/// @file
/// Low-rank updates on hosts: an adapter's matrices are read once for up to 32 of its rows, and what stands between
/// them stays in the nearest caches. All products are those of small_kernel.hpp.
///
/// Forward is one pass over (adapter, rows). Backward is two: the gradients of A x over (adapter, rows), then those of
/// A, B and x over (adapter, columns), so that nothing is added across threads. Sums are cut into blocks of fixed
/// sizes from their first element.

#include <algorithm>
#include <atomic>

#include "moe/core/context.hpp"
#include "moe/core/convert.hpp"
#include "moe/kernels/cpu/micro_kernels.hpp"
#include "moe/kernels/cpu/operand.hpp"
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
      table->small_dots({a.data, b.data, c, a.stride, b.stride, c_stride, rows, columns, length, add});
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
      table->small_lines(int(rows), int(panels),
                         {a, row_stride, sum_stride, b, panel_stride, line_stride, length, sums});
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

template <class T, class Space>
struct LowRankForward : LowRankPass<T, Space> {
  using Base = LowRankPass<T, Space>;
  using typename Base::Real;
  const T* x;
  T *y, *hidden;
  bool add;

  void operator()(int) const {
    const auto memory = this->memory();
    this->take_rows([&](Index n, Index first, Index count) {
      down(memory, n, first, count);
      up(memory, n, first, count);
    });
  }

 private:
  void down(const typename Base::Memory& memory, Index n, Index first, Index count) const {
    const Index rank = this->rank_of(n), in = this->in;
    for (Index k = 0; k < in; k += Base::most_depth) {
      const Index depth = std::min(Base::most_depth, in - k);
      const auto some = this->rows_of(x, in, first, count, k, depth, memory.rows);
      for (Index j = 0; j < rank; j += panel_columns) {
        const Index lines = std::min(panel_columns, rank - j);
        const auto a = this->part(this->a_of(n) + j * in + k, in, lines, depth, memory.matrix);
        this->products.dots(some, count, a, lines, depth, memory.hidden + j, rank, k > 0);
      }
    }
    for (Index i = 0; i < count; ++i) {
      T* kept = hidden + (first + i) * this->rank;
      const Real factor = this->rows.factor(first + i);
      for (Index j = 0; j < rank; ++j) {
        kept[j] = T(memory.hidden[i * rank + j]);
        memory.scaled[i * rank + j] = factor * Real(kept[j]);
      }
      std::fill(kept + rank, kept + this->rank, T(0));
    }
  }

  /// B in panels of 16 outputs, as many as stay in the nearest cache.
  void up(const typename Base::Memory& memory, Index n, Index first, Index count) const {
    const Index rank = this->rank_of(n), out = this->out, panel = Base::whole_panels(rank) * panel_columns;
    const Index together = std::clamp<Index>(8192 / (2 * panel), 1, Base::block / pair_columns) * pair_columns;
    alignas(64) Real sums[MicroKernels::most_rows * pair_columns];
    for (Index o = 0; o < out; o += together) {
      const Index width = std::min(together, out - o);
      for (Index p = 0; p < width; p += panel_columns)
        pack(this->b_of(n) + (o + p) * this->rank, rank, std::min(panel_columns, width - p),
             memory.matrix + p * panel / panel_columns);
      for (Index i = 0; i < count; i += this->products.together) {
        const Index some = std::min(this->products.together, count - i);
        for (Index p = 0; p < width; p += pair_columns) {
          const Index live = std::min(pair_columns, width - p);
          this->products.lines(memory.scaled + i * rank, rank, 1, some, memory.matrix + p * panel / panel_columns,
                               panel, panel_columns, rank, live, sums);
          for (Index j = 0; j < some; ++j) {
            const Index place = this->rows.place(first + i + j);
            if (place >= 0) store(sums + j * pair_columns, live, y + place * out + o + p, add);
          }
        }
      }
    }
  }

  /// `live` rows of B as lines of 16 outputs.
  void pack(const T* from, Index rank, Index live, Real* to) const {
    const Index stride = this->rank;
    if constexpr (std::is_same_v<Real, float>) {
      float* lines[panel_columns];
      for (Index k = 0; k < rank; k += panel_columns, to += panel_columns * panel_columns) {
        for (Index l = 0; l < panel_columns; ++l) lines[l] = to + l * panel_columns;
        OperandBlocks<T, float>::template pack<false>(Operand<T>{from, stride, 1, 0}, 0, live, k, rank, lines);
      }
    } else {
      for (Index k = 0; k < rank; ++k) {
        for (Index l = 0; l < panel_columns; ++l) to[k * panel_columns + l] = l < live ? from[l * stride + k] : Real(0);
      }
    }
  }
};

/// The gradients of A x, times the rows' factors, and of those.
template <class T, class Space>
struct LowRankPullHidden : LowRankPass<T, Space> {
  using Base = LowRankPass<T, Space>;
  using typename Base::Real;
  const T *dout, *hidden;
  T* dhidden;
  Real* dscale;  // or null

  void operator()(int) const {
    const auto memory = this->memory();
    const Index stride = this->rank, together = this->products.together;
    alignas(64) Real sums[MicroKernels::most_rows * pair_columns];
    this->take_rows([&](Index n, Index first, Index count) {
      const Index rank = this->rank_of(n), wide = Base::whole_panels(rank);
      Real* dh = memory.hidden;
      for (Index o = 0; o < this->out; o += Base::block) {
        const Index depth = std::min(Base::block, this->out - o);
        const auto dy = this->rows_of(dout, this->out, first, count, o, depth, memory.rows);
        const auto b = this->part(this->b_of(n) + o * stride, stride, depth, rank, memory.matrix);
        for (Index i = 0; i < count; i += together) {
          const Index some = std::min(together, count - i);
          for (Index p = 0; p < wide; p += pair_columns) {
            const Index live = std::min(pair_columns, wide - p);
            this->products.lines(dy.data + i * dy.stride, dy.stride, 1, some, b.data + p, panel_columns, b.stride,
                                 depth, live, sums);
            for (Index j = 0; j < some; ++j) store(sums + j * pair_columns, live, dh + (i + j) * wide + p, o > 0);
          }
        }
      }
      for (Index i = 0; i < count; ++i) {
        const Index r = first + i;
        const Real factor = this->rows.factor(r);
        Real sum = 0;
        for (Index j = 0; j < rank; ++j) {
          const Real value = dh[i * wide + j];
          sum += value * Real(hidden[r * stride + j]);
          dhidden[r * stride + j] = T(factor * value);
        }
        std::fill(dhidden + r * stride + rank, dhidden + (r + 1) * stride, T(0));
        if (dscale != nullptr) dscale[r] = sum;
      }
    });
  }
};

/// The gradients of A, B and x by blocks of columns.
template <class T, class Space>
struct LowRankPullColumns : LowRankPass<T, Space> {
  using Base = LowRankPass<T, Space>;
  using Base::block, Base::most_rows;
  using typename Base::Real;
  const T *x, *dout, *hidden, *dhidden;
  T *da, *db, *dx;  // or null
  bool add;

  void operator()(int) const {
    const auto memory = this->memory();
    const bool of_x = da != nullptr || dx != nullptr, of_out = db != nullptr;
    const auto blocks = [&](Index n, bool wanted, Index columns) {
      return wanted && this->count(n) > 0 ? (columns + width_of(n) - 1) / width_of(n) : 0;
    };
    this->take([&](Index n) { return blocks(n, of_x, this->in) + blocks(n, of_out, this->out); },
               [&](Index n, Index unit) {
                 const Index left = blocks(n, of_x, this->in), width = width_of(n);
                 unit < left ? pull_in(memory, n, unit * width) : pull_out(memory, n, (unit - left) * width);
               });
  }

 private:
  /// Must sums of adapter n wait, to be rounded to 16 bits once?
  bool waits(Index n) const { return !std::is_same_v<T, Real> && this->count(n) > most_rows; }
  /// Columns of a unit. For few rows they are many, where A lies as it is read: memory is then read on and on.
  Index width_of(Index n) const {
    constexpr Index few_rows = 8;
    const bool direct = std::is_same_v<T, Real> && this->in % panel_columns == 0;
    return direct && this->count(n) <= few_rows ? Base::most_depth : block;
  }
  /// to(i, :) += from(i, :) for rows of gradients.
  void add_up(const Real* from, Index from_stride, Index count, Index width, T* to, Index stride) const {
    for (Index i = 0; i < count; ++i) {
      for (Index l = 0; l < width; l += pair_columns)
        store(from + i * from_stride + l, std::min(pair_columns, width - l), to + i * stride + l, true);
    }
  }
  /// As numbers to compute with.
  const Real* widened(const T* from, Index count, Real* to) const {
    if constexpr (std::is_same_v<T, Real>) return from;
    for (Index i = 0; i < count; ++i) to[i] = Real(from[i]);
    return to;
  }

  void pull_in(const typename Base::Memory& memory, Index n, Index column) const {
    const Index rank = this->rank_of(n), stride = this->rank, in = this->in, width = std::min(block, in - column),
                begin = this->rows.offsets(n), end = this->rows.offsets(n + 1), together = this->products.together;
    alignas(64) Real sums[MicroKernels::most_rows * pair_columns];
    const bool wait = waits(n);
    Real* waiting = memory.scaled;
    T* to = da == nullptr ? nullptr : da + n * stride * in + column;
    const auto a = dx == nullptr ? Lines<Real>{} : this->part(this->a_of(n) + column, in, rank, width, memory.matrix);
    for (Index first = begin; first < end; first += most_rows) {
      const Index count = std::min(most_rows, end - first);
      const Real* dh = widened(dhidden + first * stride, count * stride, memory.hidden);
      if (to != nullptr) {
        const auto some = this->rows_of(x, in, first, count, column, width, memory.rows);
        for (Index k = 0; k < rank; k += together) {
          const Index live_rows = std::min(together, rank - k);
          for (Index p = 0; p < width; p += pair_columns) {
            const Index live = std::min(pair_columns, width - p);
            this->products.lines(dh + k, 1, stride, live_rows, some.data + p, panel_columns, some.stride, count, live,
                                 sums);
            for (Index j = 0; j < live_rows; ++j) {
              if (wait) {
                store(sums + j * pair_columns, live, waiting + (k + j) * block + p, first > begin);
              } else {
                store(sums + j * pair_columns, live, to + (k + j) * in + p, true);
              }
            }
          }
        }
      }
      for (Index i = 0; dx != nullptr && i < count; i += together) {
        const Index some = std::min(together, count - i);
        for (Index p = 0; p < width; p += pair_columns) {
          const Index live = std::min(pair_columns, width - p);
          this->products.lines(dh + i * stride, stride, 1, some, a.data + p, panel_columns, a.stride, rank, live, sums);
          for (Index j = 0; j < some; ++j) {
            const Index place = this->rows.place(first + i + j);
            if (place >= 0) store(sums + j * pair_columns, live, dx + place * in + column + p, add);
          }
        }
      }
    }
    if (wait && to != nullptr) add_up(waiting, block, rank, width, to, in);
  }

  void pull_out(const typename Base::Memory& memory, Index n, Index column) const {
    const Index rank = this->rank_of(n), stride = this->rank, wide = Base::whole_panels(rank),
                width = std::min(width_of(n), this->out - column), begin = this->rows.offsets(n),
                end = this->rows.offsets(n + 1), together = this->products.together;
    alignas(64) Real sums[MicroKernels::most_rows * pair_columns];
    const bool wait = waits(n);
    Real* waiting = memory.scaled;
    T* to = db + (n * this->out + column) * stride;
    for (Index first = begin; first < end; first += most_rows) {
      const Index count = std::min(most_rows, end - first);
      const auto dy = this->rows_of(dout, this->out, first, count, column, width, memory.rows);
      for (Index i = 0; i < count; ++i) {
        const Real factor = this->rows.factor(first + i);
        for (Index j = 0; j < wide; ++j)
          memory.hidden[i * wide + j] = j < rank ? factor * Real(hidden[(first + i) * stride + j]) : Real(0);
      }
      for (Index o = 0; o < width; o += together) {
        const Index some = std::min(together, width - o);
        for (Index p = 0; p < wide; p += pair_columns) {
          const Index live = std::min(pair_columns, rank - p);
          this->products.lines(dy.data + o, 1, dy.stride, some, memory.hidden + p, panel_columns, wide, count, live,
                               sums);
          for (Index j = 0; j < some; ++j) {
            if (wait) {
              store(sums + j * pair_columns, live, waiting + (o + j) * wide + p, first > begin);
            } else {
              store(sums + j * pair_columns, live, to + (o + j) * stride + p, true);
            }
          }
        }
      }
    }
    if (wait) add_up(waiting, wide, width, rank, to, stride);
  }
};

/// Runs a pass on all threads of a host space.
template <class Space, class Pass>
void run_low_rank(const Space& space, const char* name, Pass pass) {
  std::atomic<Index> counter{0};
  pass.counter = &counter;
  Kokkos::parallel_for(
      name,
      Kokkos::RangePolicy<Space, Kokkos::Schedule<Kokkos::Static>>(space, 0, space.concurrency()).set_chunk_size(1),
      pass);
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
