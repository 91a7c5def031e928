#pragma once
/// @file
/// Low-rank updates on hosts: an adapter's matrices are read once for up to 32 of its rows, and what stands between
/// them stays in the nearest caches. All products are those of small_kernel.hpp.
///
/// Forward is one pass over (adapter, rows). Backward is two: the gradients of A x over (adapter, rows), then those of
/// A, B and x over (adapter, columns), so that nothing is added across threads. Sums are cut into blocks of fixed
/// sizes from their first element.

#include "moe/kernels/cpu/low_rank_pass.hpp"
#include "moe/kernels/cpu/operand.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

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
    const Index rank = this->rank_of(n), out = this->out;
    const Index panel = std::max<Index>(1, Base::whole_panels(rank)) * panel_columns;
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
