#pragma once
/// @file
/// Products of float and 16-bit matrices on the host, from the micro-kernels of packed layers: operands are cut into
/// tiles and panels as they are used, in memory of the thread.
///
/// A unit is a group of rows of one expert times a range of columns. Its rows become tiles once, and every pair of
/// panels is cut once for all of them; so the weights keep the layout that everything else knows. A sum is cut into
/// blocks of a fixed size from its first element: a row's result depends on nothing but the row and the weights.

#include <atomic>
#include <vector>

#include "moe/core/convert.hpp"
#include "moe/kernels/cpu/micro_kernels.hpp"
#include "moe/kernels/cpu/operand.hpp"
#include "moe/kernels/cpu/panels.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

template <class T, class Factor>
struct ProductWorker {
  using Blocks = OperandBlocks<T, Factor>;
  static constexpr Index most_rows = 768;  // of a group: each number of a panel is cut for so many
  // Of a block of the sum: a pair of panels and the next one's numbers fit L2.
  static constexpr Index most_depth = 1024;
  static constexpr Index tile_bytes = most_rows * most_depth * Index(sizeof(Factor));
  static constexpr Index panel_bytes = pair_columns * most_depth * Index(sizeof(Factor));

  const Product<T>* product;
  const MicroKernels* table;
  std::atomic<Index>* counter;
  Index parts;  // ranges of columns

  static Index groups(const Product<T>& p) {
    if (p.accumulate && p.sum == 0) return 0;  // an expert without rows: its gradient is not even read
    return (p.m + most_rows - 1) / most_rows;
  }
  static Index pairs(const Product<T>& p) { return (p.n + pair_columns - 1) / pair_columns; }

  void operator()(int) const {
    // Here, not where a unit needs it: which call a thread's first unit is in would depend on chance.
    static thread_local PageBuffer<std::byte> memory(tile_bytes + panel_bytes);
    Index e = 0, before = 0;  // units of the experts before e
    Product<T> p = product->of(0);
    for (Index unit = counter->fetch_add(1);; unit = counter->fetch_add(1)) {
      while (unit - before >= groups(p) * parts) {
        before += groups(p) * parts;
        if (++e == product->experts) return;
        p = product->of(e);
      }
      const Index group = (unit - before) / parts, part = (unit - before) % parts, all = groups(p);
      const Rows rows{group * p.m / all, (group + 1) * p.m / all, table->rows};
      run(p, rows, memory.data(), part * pairs(p) / parts, (part + 1) * pairs(p) / parts);
    }
  }

 private:
  /// A group of rows, in tiles of nearly equal size.
  struct Rows {
    Index begin, end, most;
    Index count() const { return end - begin; }
    Index tiles() const { return (count() + most - 1) / most; }
    Index tile(Index t) const { return t * count() / tiles(); }
  };
  /// A block of the sum.
  struct Depth {
    Index begin, end;
    Index lines() const { return (end - begin + Blocks::in_word - 1) / Blocks::in_word; }
    Index blocks() const { return (lines() + 15) / 16; }
  };
  /// Where sums go: rows `width` numbers long.
  template <class Out>
  struct Target {
    Out* data;
    Index width;
    bool add;
  };

  const MicroKernel& kernel(Index rows) const { return Blocks::in_word == 1 ? table->f32[rows] : table->bf16[rows]; }

  void run(const Product<T>& p, const Rows& rows, std::byte* tiles, Index first_pair, Index end_pair) const {
    std::byte* panels = tiles + tile_bytes;
    if constexpr (std::is_same_v<T, float>) {
      // Of products over rows by the weights' shape alone, since dots add in another order. Lines add as below.
      if (p.a.sum_stride == 1 && p.b.sum_stride == 1 && p.n < small && p.sum >= 2 * small)
        return run_dots(p, rows, first_pair, end_pair);
      if (p.b.row_stride == 1 && (p.m <= few_rows || p.n <= small || p.sum <= small))
        return run_lines(p, rows, panels, first_pair, end_pair);
    }
    // 16-bit results are rounded once: sums of several blocks wait in f32.
    const bool waits = !std::is_same_v<T, float> && p.sum > most_depth;
    const Index first = first_pair * pair_columns, columns = std::min(p.n, end_pair * pair_columns) - first;
    std::vector<float>& sums = waiting();
    if (waits) sums.resize(std::max<std::size_t>(sums.size(), std::size_t(rows.count() * columns)));
    T* c = p.c + rows.begin * p.n + first;
    for (Index k = 0; k == 0 || k < p.sum; k += most_depth) {
      const Depth depth{k, std::min(p.sum, k + most_depth)};
      cut_tiles(p.a, rows, depth, tiles);
      for (Index pair = first_pair; pair < end_pair; ++pair) {
        cut_panels(p.b, pair * pair_columns, p.n, depth, panels);
        const Index at = pair * pair_columns - first, live = std::min(columns - at, pair_columns);
        const T* next = pair + 1 < end_pair ? p.b.data + (first + at + pair_columns) * p.b.row_stride : nullptr;
        if (waits) {
          multiply(p, rows, depth, tiles, panels, next, live, Target<float>{sums.data() + at, columns, k > 0});
        } else {
          multiply(p, rows, depth, tiles, panels, next, live, Target<T>{c + at, p.n, p.accumulate || k > 0});
        }
      }
    }
    for (Index i = 0; waits && i < rows.count(); ++i) {
      const float* from = sums.data() + i * columns;
      T* to = c + i * p.n;
      for (Index l = 0; l < columns; l += pair_columns) {
        const Index live = std::min(columns - l, pair_columns);
        p.accumulate ? store<true>(from + l, live, to + l) : store<false>(from + l, live, to + l);
      }
    }
  }

  static constexpr Index small = 64, few_rows = 32;

  void run_dots(const Product<T>& p, const Rows& rows, Index first_pair, Index end_pair) const {
    const Index first = first_pair * pair_columns, columns = std::min(p.n, end_pair * pair_columns) - first;
    table->small_dots({p.a.data + rows.begin * p.a.row_stride, p.b.data + first * p.b.row_stride,
                       p.c + rows.begin * p.n + first, p.a.row_stride, p.b.row_stride, p.n, rows.count(), columns,
                       p.sum, p.accumulate});
  }

  /// Factors are read where they lie, and lines too, but for those of less than a panel.
  void run_lines(const Product<T>& p, const Rows& rows, std::byte* panels, Index first_pair, Index end_pair) const {
    const Index tail = p.n % panel_columns != 0 ? std::min(end_pair, p.n / pair_columns) : end_pair;
    // Where the sum is short, few lines serve all rows: results are then written along their rows.
    const Index together = p.sum <= small ? 1024 / std::max<Index>(1, p.sum) : 1;
    for (Index k = 0; k == 0 || k < p.sum; k += most_depth) {
      const Depth depth{k, std::min(p.sum, k + most_depth)};
      for (Index pair = first_pair; pair < tail; pair += together) {
        for (Index row = rows.begin; row < rows.end; row += table->small_rows) {
          for (Index i = pair; i < std::min(tail, pair + together); ++i) {
            const float* lines = p.b.data + k * p.b.sum_stride + i * pair_columns;
            small_block(p, rows, depth, row, i, lines, panel_columns, p.b.sum_stride);
          }
        }
      }
      if (tail == end_pair) continue;
      cut_panels(p.b, tail * pair_columns, p.n, depth, panels);
      for (Index row = rows.begin; row < rows.end; row += table->small_rows)
        small_block(p, rows, depth, row, tail, reinterpret_cast<const float*>(panels),
                    depth.blocks() * 16 * panel_columns, panel_columns);
    }
  }

  /// Some rows from `row` times a pair of panels.
  void small_block(const Product<T>& p, const Rows& rows, const Depth& depth, Index row, Index pair, const float* lines,
                   Index panel_stride, Index line_stride) const {
    alignas(64) float sums[MicroKernels::most_rows * 32];
    const Index count = std::min<Index>(rows.end - row, table->small_rows), column = pair * pair_columns;
    const Index live = std::min(p.n - column, pair_columns);
    table->small_lines(int(count), live > panel_columns ? 2 : 1,
                       {p.a.data + row * p.a.row_stride + depth.begin * p.a.sum_stride, p.a.row_stride, p.a.sum_stride,
                        lines, panel_stride, line_stride, depth.end - depth.begin, sums});
    float* to = p.c + row * p.n + column;
    for (Index i = 0; i < count; ++i, to += p.n) {
      const float* from = sums + i * 32;
      p.accumulate || depth.begin > 0 ? store<true>(from, live, to) : store<false>(from, live, to);
    }
  }

  static std::vector<float>& waiting() {
    static thread_local std::vector<float> sums;
    return sums;
  }

  static void cut_tiles(const Operand<T>& from, const Rows& rows, const Depth& depth, std::byte* to) {
    std::byte* at[most_rows];  // a row's first line, and the way to its next
    Index step[most_rows];
    for (Index t = 0; t < rows.tiles(); ++t) {
      const Index first = rows.tile(t), next = rows.tile(t + 1);
      for (Index r = first; r < next; ++r) {
        at[r] = to + (first * depth.blocks() + (r - first)) * 64;
        step[r] = (next - first) * 64;
      }
    }
    if (from.sum_stride == 1) {  // row by row, as memory has them
      for (Index r = 0; r < rows.count(); ++r)
        Blocks::copy_row(from, rows.begin + r, depth.begin, depth.end, at[r], step[r]);
      return;
    }
    alignas(64) float nowhere[16];
    for (Index block = 0; block < depth.blocks(); ++block) {  // along the rows, as memory has them
      for (Index r = 0; r < rows.count(); r += 16) {
        const Index live = std::min<Index>(16, rows.count() - r);
        float* lines[16];
        for (Index i = 0; i < 16; ++i)
          lines[i] = i < live ? reinterpret_cast<float*>(at[r + i] + block * step[r + i]) : nowhere;
        const Index k = depth.begin + block * Blocks::depth;
        Blocks::template pack<true>(from, rows.begin + r, live, k, depth.end, lines);
      }
    }
  }

  static void cut_panels(const Operand<T>& from, Index column, Index n, const Depth& depth, std::byte* to) {
    const auto cut = [&](Index half, Index block) {
      const Index first = column + half * panel_columns, live = std::min(n - first, panel_columns);
      if (live <= 0) return;
      float* lines[16];
      for (Index i = 0; i < 16; ++i)
        lines[i] = reinterpret_cast<float*>(to + ((half * depth.blocks() + block) * 16 + i) * 64);
      Blocks::template pack<false>(from, first, live, depth.begin + block * Blocks::depth, depth.end, lines);
    };
    // What lies side by side is read together.
    const Index blocks = depth.blocks();
    const bool along = from.sum_stride == 1;
    for (Index i = 0; i < 2 * blocks; ++i) along ? cut(i / blocks, i % blocks) : cut(i % 2, i / 2);
  }

  /// The tiles times a pair of panels. Meanwhile the next pair's numbers are asked for where they lie.
  template <class Out>
  void multiply(const Product<T>& p, const Rows& rows, const Depth& depth, const std::byte* tile,
                const std::byte* panel, const T* next, Index live, const Target<Out>& to) const {
    alignas(64) float sums[MicroKernels::most_rows * 32];
    const Index tiles = rows.tiles(), ahead = next == nullptr ? 0 : 16, stride = depth.blocks() * 16 * 64;
    Prefetch coming[2] = {};
    for (Index half = 0; half < 2 && ahead != 0; ++half) {
      coming[half].next =
          reinterpret_cast<const char*>(next + half * panel_columns * p.b.row_stride + depth.begin * p.b.sum_stride);
      coming[half].step = p.b.sum_stride == 1 ? 64 : p.b.sum_stride * Index(sizeof(T));
    }
    Out* out = to.data;
    for (Index t = 0; t < tiles; ++t) {
      const Index count = rows.tile(t + 1) - rows.tile(t);
      const MicroKernel& run = kernel(count);
      for (Index i = 0; to.add && i < count; ++i) {
        __builtin_prefetch(out + i * to.width, 1);
        __builtin_prefetch(out + i * to.width + 64 / Index(sizeof(Out)), 1);
      }
      for (Index half = 0; half * panel_columns < live; half += run.panels) {  // both while the tile is near
        Prefetch& meanwhile = coming[half];
        meanwhile.lines = (t + 1) * ahead / tiles - t * ahead / tiles;
        run.run(tile, panel + half * stride, stride, depth.lines(), meanwhile, sums + half * panel_columns);
        meanwhile.next += meanwhile.step * meanwhile.lines * depth.blocks();
      }
      tile += count * depth.blocks() * 64;
      for (Index i = 0; i < count; ++i, out += to.width)
        to.add ? store<true>(sums + i * 32, live, out) : store<false>(sums + i * 32, live, out);
    }
  }

  template <bool add, class Out>
  static void store(const float* __restrict from, Index live, Out* __restrict to) {
    Index i = 0;
    if constexpr (std::is_same_v<Out, float>) {
      typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
      MOE_UNROLL(4)
      for (; i + 8 <= live; i += 8) {
        Vector value = *reinterpret_cast<const Vector*>(from + i);
        if (add) value += *reinterpret_cast<const Vector*>(to + i);
        *reinterpret_cast<Vector*>(to + i) = value;
      }
    } else if (live == pair_columns) {
      float values[pair_columns];
      for (Index l = 0; l < pair_columns; ++l) values[l] = add ? float(to[l]) + from[l] : from[l];
      return moe::detail::convert<pair_columns>(values, to);
    }
    for (; i < live; ++i) to[i] = Out(add ? float(to[i]) + from[i] : from[i]);
  }
};

/// Runs a product on the threads of a host space.
template <class Space, class T>
void multiply(const Space& space, const Product<T>& product) {
  const MicroKernels& table = micro_kernels();
  const Index threads = space.concurrency();
  Index groups = 0;
  for (Index e = 0; e < product.experts; ++e) groups += ProductWorker<T, float>::groups(product.of(e));
  if (groups == 0 || product.n == 0) return;
  std::atomic<Index> counter{0};
  auto launch = [&](auto worker) {
    // Enough units for the threads to end together, but none so narrow that cutting its tiles counts.
    const Index pairs = worker.pairs(product), narrowest = product.offsets == nullptr && product.m <= 16 ? 1 : 2;
    worker.parts = std::clamp<Index>(16 * threads / groups, 1, std::max<Index>(1, pairs / narrowest));
    Kokkos::parallel_for(
        "moe::cpu::multiply",
        Kokkos::RangePolicy<Space, Kokkos::Schedule<Kokkos::Static>>(space, 0, threads).set_chunk_size(1), worker);
  };
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (table.pairs) return launch(ProductWorker<T, T>{&product, &table, &counter, 1});
  }
  launch(ProductWorker<T, float>{&product, &table, &counter, 1});
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
