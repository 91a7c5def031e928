#pragma once
/// @file
/// Grouped products on devices: teams that stay take tiles of the output from all experts, and read the rows' offsets
/// where they are. An engine (portable/thread_tile.hpp, cuda/warp_tile.hpp, hip/wave_tile.hpp) holds a tile's sums.
///
/// A sum runs over k in order, in blocks of a fixed size, whatever the tile's: a row's result depends on nothing but
/// the row and the weights. No sum is split over teams.

#include "moe/kernels/device/lines.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// A thread of a team, and the team's scratch memory. Barrier: callable, all of the team's threads meet there.
template <class Barrier>
struct Place {
  int thread;
  Index team, teams;
  std::byte* scratch;
  Barrier barrier;
};

/// What is done with finished sums: C_e(row, column) (+)= value.
template <class T>
struct Store {
  static constexpr bool adds = true;
  template <class Sum>
  KOKKOS_FUNCTION void operator()(const Product<T>& p, Index, Index row, Index column, const Sum* value) const {
    T& c = p.c[row * p.n + column];
    c = T(p.accumulate ? Sum(c) + value[0] : value[0]);
  }
  static bool in_lines(const Product<T>& p) { return moe::detail::in_blocks(p.c, p.n); }
  /// The same of a line; before: of C.
  template <int size>
  KOKKOS_FUNCTION void line(const Product<T>& p, Index, Index row, Index column, const float (&value)[1][size],
                            const Line<T>& before) const {
    Line<T> c;
    for (int i = 0; i < size; ++i) c.values[i] = T(p.accumulate ? float(before.values[i]) + value[0][i] : value[0][i]);
    write_line(p.c + row * p.n + column, c);
  }
};

/// How many blocks an engine's products may run behind: some where its matrix units read scratch memory by themselves.
template <class Engine>
inline constexpr int behind_of = 0;
template <class Engine>
requires(Engine::behind > 0) inline constexpr int behind_of<Engine> = Engine::behind;

/// Do blocks of the sum have scales of their own? `finish.scales` then gives them.
template <class Finish>
concept ScalesBlocks = requires(const Finish f) {
  f.scales;
};
inline constexpr Index scale_block = 128;

/// The kernel's body. B has `Engine::parts` operands of n rows, one behind the other (gate and up): their sums of one
/// row and column meet in `finish`.
template <class T, class Engine, bool a_along, bool b_along, class Finish>
struct TileProduct {
  static constexpr int rows = Engine::rows, columns = Engine::columns, depth = Engine::depth;
  static constexpr int threads = Engine::threads, stages = Engine::stages, parts = Engine::parts;
  static constexpr int behind = behind_of<Engine>;  // blocks whose stages are still read when the next is begun
  static constexpr bool swizzled = behind > 0;
  template <int rows_, bool along>
  using Layout =
      std::conditional_t<swizzled, SwizzledLayout<T, rows_, depth, along>, TileLayout<T, rows_, depth, along>>;
  using A = Layout<rows, a_along>;
  using B = Layout<columns, b_along>;
  static constexpr int stage_size = A::size + parts * B::size;
  static constexpr int alignment = swizzled ? 1024 : line_bytes;  // of stages
  /// Teams that are to fit a multiprocessor: of two, one multiplies while the other stores its sums.
  static constexpr int teams_each = swizzled ? 1 : 2;
  static constexpr int ahead = stages - 1 - behind;
  static constexpr bool scratch_by_itself = Engine::scratch_by_itself;  // more than Kokkos gives
  static_assert(ahead >= 1);

  Product<T> product;
  Finish finish;
  bool a_lines, b_lines, c_lines;  // can be read and written by whole lines

  TileProduct(const Product<T>& product_, const Finish& finish_)
      : product(product_),
        finish(finish_),
        a_lines(in_lines(product.a)),
        b_lines(in_lines(product.b)),
        c_lines(finishes_lines()) {}

  /// Scratch memory of a team: the number of row tiles before each expert, then the stages.
  static constexpr Index bytes_of(Index experts) {
    return table_bytes(experts) + Index(stages) * stage_size * Index(sizeof(T));
  }
  /// No more tiles than this, as the host knows.
  Index most_tiles() const {
    const Index whole = (product.m + rows - 1) / rows;
    return row_tiles_bound(whole) * column_tiles();
  }

  template <class Barrier>
  KOKKOS_FUNCTION void operator()(const Place<Barrier>& place) const {
    auto* const before = reinterpret_cast<std::int32_t*>(place.scratch);
    auto* const memory = reinterpret_cast<T*>(place.scratch + table_bytes(product.experts));
    count_tiles(place, before);
    const Index across = column_tiles(), tiles = before[product.experts] * across;
    for (Index tile = place.team; tile < tiles; tile += place.teams) {
      const Index e = expert_of(before, tile / across), own = tile - before[e] * across;
      const Index down = before[e + 1] - before[e];  // rows side by side: they share the weights' columns
      multiply(place, e, own % down * rows, own / down * columns, memory);
    }
  }

 private:
  bool finishes_lines() const {
    if constexpr (swizzled) return finish.in_lines(product);
    return false;
  }
  KOKKOS_FUNCTION static constexpr Index table_bytes(Index experts) {
    return ((experts + 1 + threads) * Index(sizeof(std::int32_t)) + alignment - 1) / alignment * alignment;
  }
  KOKKOS_FUNCTION Index column_tiles() const { return (product.n + columns - 1) / columns; }
  Index row_tiles_bound(Index whole) const {
    if (product.cut_sum) return whole * product.experts;
    return product.offsets == nullptr ? whole : whole + product.experts;
  }

  KOKKOS_FUNCTION std::int32_t row_tiles(Index e) const {
    Index m = product.m;
    if (product.offsets != nullptr) {
      const Index live = product.offsets[e + 1] - product.offsets[e];
      if (product.cut_sum && live == 0) return 0;  // an expert without rows: its gradient is not even read
      if (!product.cut_sum) m = live;
    }
    return std::int32_t((m + rows - 1) / rows);
  }

  /// before[e] = the number of row tiles of experts before e.
  template <class Barrier>
  KOKKOS_FUNCTION void count_tiles(const Place<Barrier>& place, std::int32_t* before) const {
    const Index experts = product.experts, each = (experts + threads - 1) / threads;
    const Index first = place.thread * each, last = first + each < experts ? first + each : experts;
    std::int32_t* const sums = before + experts + 1;
    std::int32_t own = 0;
    for (Index e = first; e < last; ++e) own += row_tiles(e);
    sums[place.thread] = own;
    place.barrier();
    for (int step = 1; step < threads; step *= 2) {  // each becomes the sum of all up to it
      const std::int32_t add = place.thread >= step ? sums[place.thread - step] : 0;
      place.barrier();
      sums[place.thread] += add;
      place.barrier();
    }
    std::int32_t count = sums[place.thread] - own;
    for (Index e = first; e < last; ++e) {
      before[e] = count;
      count += row_tiles(e);
    }
    if (place.thread == threads - 1) before[experts] = sums[threads - 1];
    place.barrier();
  }

  /// The expert of a row tile: the last e with before[e] <= number.
  KOKKOS_FUNCTION Index expert_of(const std::int32_t* before, Index number) const {
    Index low = 0, high = product.experts;
    while (high - low > 1) {
      const Index middle = (low + high) / 2;
      (before[middle] <= number ? low : high) = middle;
    }
    return low;
  }

  /// The lines of one thread of a tile: of A, and of each part of B.
  struct Lines {
    TileLines<A, threads, T> a;
    TileLines<B, threads, T> b;
    Index part;  // of B, in numbers
    KOKKOS_FUNCTION void load(Index k, Index sum, T* to) const {
      a.load(k, sum, to);
      MOE_UNROLL_ON_DEVICE
      for (int number = 0; number < parts; ++number) b.load(k, sum, to + A::size + number * B::size, number * part);
    }
  };

  /// One tile of expert e. While a stage is multiplied, the next ones are on their way.
  template <class Barrier>
  KOKKOS_FUNCTION void multiply(const Place<Barrier>& place, Index e, Index row, Index column, T* memory) const {
    const Product<T> p = product.of(e);
    const Index blocks = (p.sum + depth - 1) / depth;
    const Lines lines{
        {p.a, row, p.m, a_lines, place.thread}, {p.b, column, p.n, b_lines, place.thread}, p.n * p.b.row_stride};
    typename Engine::Sums sums;
    Engine::clear(sums);
    [[maybe_unused]] typename Engine::Sums total;
    if constexpr (ScalesBlocks<Finish>) Engine::clear(total);
    place.barrier();  // the former tile's stages are free
    for (int s = 0; s < ahead; ++s) {
      if (s < blocks) lines.load(Index(s) * depth, p.sum, memory + s * stage_size);
      end_copies();
    }
    if constexpr (swizzled) {
      if (Finish::adds && p.accumulate && c_lines) {
        for (int l = 0; l < Engine::lines; ++l)
          at_line(place.thread, l, p, row, column, [&](Index r, Index c) { prefetch_line(p.c + r * p.n + c); });
      }
    }
    int slot = 0, coming = ahead;
    for (Index block = 0; block < blocks; ++block) {
      await_copies<ahead - 1>();
      if constexpr (swizzled) publish_copies();
      place.barrier();
      const Index next = block + ahead;
      if (next < blocks) lines.load(next * depth, p.sum, memory + coming * stage_size);
      end_copies();
      const T* const stage = memory + slot * stage_size;
      Engine::template add<A, B>(place.thread, stage, stage + A::size, sums);
      if constexpr (ScalesBlocks<Finish>) {
        static_assert(scale_block % depth == 0);
        const Index end = (block + 1) * depth;
        if (end % scale_block == 0 || block + 1 == blocks) {
          Engine::fold(place.thread, sums, total, Scaled{finish, p, e, row, column, (end - 1) / scale_block});
          Engine::clear(sums);
        }
      }
      slot = slot + 1 == stages ? 0 : slot + 1;
      coming = coming + 1 == stages ? 0 : coming + 1;
    }
    await_copies<0>();
    if constexpr (swizzled) Engine::await_all(sums);
    if constexpr (ScalesBlocks<Finish>) sums = total;
    if constexpr (swizzled) {
      if (c_lines) return finish_lines(place.thread, p, e, row, column, sums);
    }
    Engine::each(place.thread, sums, Finished{*this, p, e, row, column});
  }

  /// Calls f(row, column) for line `number` of a thread, if it belongs to the product.
  template <class F>
  KOKKOS_FUNCTION static void at_line(int thread, int number, const Product<T>& p, Index row, Index column,
                                      const F& f) {
    const Index r = row + Engine::line_row(thread, number), c = column + Engine::line_column(thread, number);
    if (r < p.m && c < p.n) f(r, c);
  }

  /// Sums by lines, a few at a time: what they are added to is read before any is written.
  KOKKOS_FUNCTION void finish_lines(int thread, const Product<T>& p, Index e, Index row, Index column,
                                    const typename Engine::Sums& sums) const {
    constexpr int batch = 4;
    MOE_UNROLL_ON_DEVICE
    for (int first = 0; first < Engine::lines; first += batch) {
      Line<T> before[batch];
      if (Finish::adds && p.accumulate) {
        MOE_UNROLL_ON_DEVICE
        for (int l = 0; l < batch; ++l) {
          at_line(thread, first + l, p, row, column,
                  [&](Index r, Index c) { before[l] = read_line(p.c + r * p.n + c); });
        }
      }
      MOE_UNROLL_ON_DEVICE
      for (int l = 0; l < batch; ++l) {
        float values[parts][Line<T>::size];
        Engine::get_line(thread, first + l, sums, values);
        at_line(thread, first + l, p, row, column,
                [&](Index r, Index c) { finish.line(p, e, r, c, values, before[l]); });
      }
    }
  }

  /// The scale of a block at a place of the tile; for places behind the product's ends, of its last row or column.
  struct Scaled {
    const Finish& finish;
    const Product<T>& p;
    Index e, row, column, block;
    KOKKOS_FUNCTION float operator()(int i, int j, int part) const {
      const Index r = row + i < p.m ? row + i : p.m - 1, c = column + j < p.n ? column + j : p.n - 1;
      const Index begin = p.offsets == nullptr ? 0 : p.offsets[e];
      return finish.scales(e, begin + r, part * p.n + c, block, (p.sum + scale_block - 1) / scale_block);
    }
  };

  /// Sums at a place of the tile go where they belong in the product, if they do.
  struct Finished {
    const TileProduct& kernel;
    const Product<T>& p;
    Index e, row, column;
    template <class Sum>
    KOKKOS_FUNCTION void operator()(int i, int j, const Sum* values) const {
      if (row + i < p.m && column + j < p.n) kernel.finish(p, e, row + i, column + j, values);
    }
  };
};

}  // namespace kernels::device

MOE_NAMESPACE_END
