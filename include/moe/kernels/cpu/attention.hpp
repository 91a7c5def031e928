#pragma once
/// @file
/// Attention on hosts. A thread takes 32 queries (forward, dq) or 32 keys (dk, dv) of one key head as the columns of
/// its products, and goes through the others in blocks that stay in the nearest cache; scores exist for one block at a
/// time (Dao et al. 2022), and all products are those of small_kernel.hpp. Query heads that share a key head are
/// columns of one tile.
///
/// dq and dk, dv are two passes, which compute scores twice: so nothing is added across threads.

#include <algorithm>

#include "moe/core/convert.hpp"
#include "moe/core/exp.hpp"
#include "moe/kernels/attention_heads.hpp"
#include "moe/kernels/cpu/micro_kernels.hpp"
#include "moe/kernels/cpu/panels.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Products whose right factor has lines of 32 columns.
template <class Real>
struct Lines32 {
  static constexpr Index columns = 32;
  const MicroKernels* table = nullptr;

  /// c(i, :) (+)= the sum over k of a[i * row_stride + k * sum_stride] * b(k, :). Lines of b and c are 32 numbers.
  void multiply(const Real* a, Index row_stride, Index sum_stride, Index rows, const Real* b, Index sum, Index live,
                Real* c, bool add) const {
    if constexpr (std::is_same_v<Real, float>) {
      alignas(64) float sums[MicroKernels::most_rows * 32];
      for (Index i = 0; i < rows; i += table->small_rows) {
        const Index count = std::min<Index>(rows - i, table->small_rows);
        float* to = c + i * columns;
        float* into = add ? sums : to;  // lines of results are those of sums
        table->small_lines(int(count), live > 16 ? 2 : 1,
                           {a + i * row_stride, row_stride, sum_stride, b, 16, columns, sum, into});
        if (!add) continue;
        MOE_INDEPENDENT
        for (Index l = 0; l < count * columns; ++l) to[l] += sums[l];
      }
    } else {
      for (Index i = 0; i < rows; ++i) {
        Real sums[columns] = {};
        for (Index k = 0; k < sum; ++k) {
          const Real factor = a[i * row_stride + k * sum_stride];
          MOE_INDEPENDENT
          for (Index l = 0; l < columns; ++l) sums[l] += factor * b[k * columns + l];
        }
        for (Index l = 0; l < columns; ++l) c[i * columns + l] = sums[l] + (add ? c[i * columns + l] : Real(0));
      }
    }
  }
};

/// A thread's memory for tiles and blocks, too much for small stacks: `tiles` of 32 columns and `blocks` of 64 rows.
template <class Real>
struct TileMemory {
  static constexpr Index tile = most_head_width * 32, block = 64 * most_head_width;
  Real* data;
  TileMemory() {
    static thread_local PageBuffer<Real> memory(4 * tile + 2 * block);
    data = memory.data();
  }
  Real* tile_number(Index i) const { return data + i * tile; }
  Real* block_number(Index i) const { return data + 4 * tile + i * block; }
};

template <class T, class Space>
struct AttentionTiles {
  using Real = RouterReal<T>;
  static constexpr Index columns = Lines32<Real>::columns;
  static constexpr Index block = 64;  ///< keys, or queries, that a tile meets at once
  AttentionPlan<Space> plan;
  AttentionHeads<T> heads;
  Lines32<Real> lines;

  /// Rows of numbers for a left factor.
  struct Factor {
    const Real* data;
    Index stride;
  };

  /// `count` rows of a key head: where they lie, or converted.
  Factor rows(const HeadRows<const T>& of, Index first, Index count, Index head, Real* buffer) const {
    if constexpr (std::is_same_v<T, Real>) {
      return {of.at(first, head, heads.width), of.stride};
    } else {
      for (Index j = 0; j < count; ++j) widen(of.at(first + j, head, heads.width), buffer + j * heads.width);
      return {buffer, heads.width};
    }
  }
  void widen(const T* from, Real* to) const {
    Index d = 0;
    for (; d + 8 <= heads.width; d += 8) moe::detail::convert<8>(from + d, to + d);
    for (; d < heads.width; ++d) to[d] = Real(from[d]);
  }

  /// A row becomes column l of a tile (width, 32).
  void put_column(const T* from, Index l, Real factor, Real* tile) const {
    for (Index d = 0; d < heads.width; ++d) tile[d * columns + l] = factor * Real(from[d]);
  }
  void clear_columns(Index from, Real* tile) const {
    for (Index d = 0; d < heads.width && from < columns; ++d)
      std::fill(tile + d * columns + from, tile + (d + 1) * columns, Real(0));
  }
  void take_column(const Real* tile, Index l, Real factor, T* to) const {
    for (Index d = 0; d < heads.width; ++d) to[d] = T(tile[d * columns + l] * factor);
  }

  /// Query number i of a sequence's key head: heads that share it are neighbours.
  struct Query {
    Index token, head;
  };
  Query query(Index sequence, Index key_head, Index i) const {
    return {plan.query_offsets(sequence) + i / heads.sharing(), heads.query_head(key_head, i % heads.sharing())};
  }
  Index queries(Index sequence) const {
    return (plan.query_offsets(sequence + 1) - plan.query_offsets(sequence)) * heads.sharing();
  }
  Index keys(Index sequence) const { return plan.key_end(sequence) - plan.key_begin(sequence); }
  bool masked(Index key) const { return moe::detail::is_padding<Space>(plan.key_mask, key); }
};

/// Tiles of all sequences and key heads, those with most work first within a sequence.
template <class Space>
struct TileNumbers {
  Vector<Index, Space> first;  // (S+1) of each sequence's, for one head
  Index heads;

  Index count() const { return first(first.extent(0) - 1) * heads; }
  struct Tile {
    Index sequence, head, begin;
  };
  Tile of(Index item) const {
    const Index sequences = Index(first.extent(0)) - 1;
    Index low = 0, high = sequences;
    while (high - low > 1) {
      const Index middle = (low + high) / 2;
      (first(middle) * heads <= item ? low : high) = middle;
    }
    const Index tiles = first(low + 1) - first(low), at = item - first(low) * heads;
    return {low, at % heads, (tiles - 1 - at / heads) * 32};
  }
};

template <class T, class Space>
struct AttendTile : AttentionTiles<T, Space> {
  using Base = AttentionTiles<T, Space>;
  using Real = typename Base::Real;
  using Base::block, Base::columns;
  TileNumbers<Space> tiles;
  HeadRows<T> out;
  Matrix<Real, Space> log_sum;

  void operator()(Index item) const {
    constexpr Real none = -Kokkos::Experimental::infinity_v<Real>;
    const auto& heads = this->heads;
    const auto& lines = this->lines;
    const auto tile = tiles.of(item);
    const Index width = heads.width, first = this->plan.key_begin(tile.sequence);
    const Index live = std::min(this->queries(tile.sequence) - tile.begin, columns);
    const TileMemory<Real> memory;
    Real *q = memory.tile_number(0), *sum = memory.tile_number(1), *converted = memory.block_number(0);
    alignas(64) Real scores[block * columns], largest[columns], total[columns], shrink[columns];
    Index visible[columns] = {}, end = 0;
    for (Index l = 0; l < live; ++l) {
      const auto query = this->query(tile.sequence, tile.head, tile.begin + l);
      this->put_column(heads.q.at(query.token, query.head, width), l, Real(heads.scale), q);
      visible[l] = this->plan.visible(query.token);
      end = std::max(end, visible[l]);
    }
    this->clear_columns(live, q);
    std::fill(sum, sum + width * columns, Real(0));
    std::fill(largest, largest + columns, none);
    std::fill(total, total + columns, Real(0));
    for (Index begin = 0; begin < end; begin += block) {
      const Index count = std::min(end - begin, block);
      const auto k = this->rows(heads.k, first + begin, count, tile.head, converted);
      lines.multiply(k.data, k.stride, 1, count, q, width, live, scores, false);
      for (Index j = 0; j < count; ++j) {
        Real* row = scores + j * columns;
        if (this->masked(first + begin + j)) std::fill(row, row + columns, none);
        MOE_INDEPENDENT
        for (Index l = 0; l < columns; ++l) row[l] = begin + j < visible[l] ? row[l] : none;
      }
      Real top[columns];
      std::copy(largest, largest + columns, top);
      for (Index j = 0; j < count; ++j) {
        for (Index l = 0; l < columns; ++l)
          top[l] = scores[j * columns + l] > top[l] ? scores[j * columns + l] : top[l];
      }
      for (Index l = 0; l < columns; ++l) {
        const Real at = top[l] > none ? top[l] : Real(0);
        shrink[l] = moe::detail::exp(largest[l] - at);
        largest[l] = top[l];
        top[l] = at;
      }
      Real added[columns] = {};
      for (Index j = 0; j < count; ++j) {
        Real* row = scores + j * columns;
        MOE_INDEPENDENT
        for (Index l = 0; l < columns; ++l) {
          row[l] = moe::detail::exp(row[l] - top[l]);
          added[l] += row[l];
        }
      }
      for (Index l = 0; l < columns; ++l) total[l] = total[l] * shrink[l] + added[l];
      for (Index d = 0; begin > 0 && d < width; ++d) {
        for (Index l = 0; l < columns; ++l) sum[d * columns + l] *= shrink[l];
      }
      const auto v = this->rows(heads.v, first + begin, count, tile.head, converted);
      lines.multiply(v.data, 1, v.stride, width, scores, count, live, sum, true);
    }
    for (Index l = 0; l < live; ++l) {
      const auto query = this->query(tile.sequence, tile.head, tile.begin + l);
      const bool any = total[l] > 0;
      this->take_column(sum, l, any ? 1 / total[l] : Real(0), out.at(query.token, query.head, width));
      log_sum(query.token, query.head) = any ? largest[l] + Kokkos::log(total[l]) : Real(0);
    }
  }
};

/// scores and dprobabilities of a block of 32 columns become probabilities and the scores' gradients.
template <class Real>
inline void pull_softmax(Real* score, Real* dp, const Real* log_sum, const Real* delta, Index step) {
  MOE_INDEPENDENT
  for (Index l = 0; l < 32; ++l) {
    score[l] = moe::detail::exp(score[l] - log_sum[l * step]);
    dp[l] = score[l] * (dp[l] - delta[l * step]);
  }
}

template <class T, class Space>
struct PullQueries : AttentionTiles<T, Space> {
  using Base = AttentionTiles<T, Space>;
  using Real = typename Base::Real;
  using Base::block, Base::columns;
  TileNumbers<Space> tiles;
  detail::AttentionGradients<T, Real, Space> of;

  void operator()(Index item) const {
    constexpr Real none = -Kokkos::Experimental::infinity_v<Real>;
    const auto& heads = this->heads;
    const auto& lines = this->lines;
    const auto tile = tiles.of(item);
    const Index width = heads.width, first = this->plan.key_begin(tile.sequence);
    const Index live = std::min(this->queries(tile.sequence) - tile.begin, columns);
    const TileMemory<Real> memory;
    Real *q = memory.tile_number(0), *dout = memory.tile_number(1), *dq = memory.tile_number(2);
    Real *keys = memory.block_number(0), *values = memory.block_number(1);
    alignas(64) Real scores[block * columns], dp[block * columns], log_sum[columns] = {}, delta[columns] = {};
    Index visible[columns] = {}, end = 0;
    for (Index l = 0; l < live; ++l) {
      const auto query = this->query(tile.sequence, tile.head, tile.begin + l);
      this->put_column(heads.q.at(query.token, query.head, width), l, Real(heads.scale), q);
      this->put_column(of.dout.at(query.token, query.head, width), l, Real(1), dout);
      log_sum[l] = of.log_sum(query.token, query.head);
      delta[l] = of.delta(query.token, query.head);
      visible[l] = this->plan.visible(query.token);
      end = std::max(end, visible[l]);
    }
    this->clear_columns(live, q);
    this->clear_columns(live, dout);
    std::fill(dq, dq + width * columns, Real(0));
    for (Index begin = 0; begin < end; begin += block) {
      const Index count = std::min(end - begin, block);
      const auto k = this->rows(heads.k, first + begin, count, tile.head, keys);
      const auto v = this->rows(heads.v, first + begin, count, tile.head, values);
      lines.multiply(k.data, k.stride, 1, count, q, width, live, scores, false);
      lines.multiply(v.data, v.stride, 1, count, dout, width, live, dp, false);
      for (Index j = 0; j < count; ++j) {
        Real* row = scores + j * columns;
        if (this->masked(first + begin + j)) std::fill(row, row + columns, none);
        MOE_INDEPENDENT
        for (Index l = 0; l < columns; ++l) row[l] = begin + j < visible[l] ? row[l] : none;
        pull_softmax(row, dp + j * columns, log_sum, delta, 1);
      }
      lines.multiply(k.data, 1, k.stride, width, dp, count, live, dq, true);
    }
    for (Index l = 0; l < live; ++l) {
      const auto query = this->query(tile.sequence, tile.head, tile.begin + l);
      this->take_column(dq, l, Real(heads.scale), of.dq.at(query.token, query.head, width));
    }
  }
};

template <class T, class Space>
struct PullKeys : AttentionTiles<T, Space> {
  using Base = AttentionTiles<T, Space>;
  using Real = typename Base::Real;
  using Base::block, Base::columns;
  TileNumbers<Space> tiles;
  detail::AttentionGradients<T, Real, Space> of;

  void operator()(Index item) const {
    constexpr Real none = -Kokkos::Experimental::infinity_v<Real>;
    const auto& heads = this->heads;
    const auto& lines = this->lines;
    const auto tile = tiles.of(item);
    const Index width = heads.width, first = this->plan.key_begin(tile.sequence) + tile.begin;
    const Index live = std::min(this->keys(tile.sequence) - tile.begin, columns);
    const TileMemory<Real> memory;
    Real *k = memory.tile_number(0), *v = memory.tile_number(1);
    Real *dk = memory.tile_number(2), *dv = memory.tile_number(3);
    Real *q = memory.block_number(0), *dout = memory.block_number(1);
    alignas(64) Real scores[block * columns], dp[block * columns];
    bool seen[columns] = {};
    for (Index l = 0; l < live; ++l) {
      this->put_column(heads.k.at(first + l, tile.head, width), l, Real(heads.scale), k);
      this->put_column(heads.v.at(first + l, tile.head, width), l, Real(1), v);
      seen[l] = !this->masked(first + l);
    }
    this->clear_columns(live, k);
    this->clear_columns(live, v);
    std::fill(dk, dk + width * columns, Real(0));
    std::fill(dv, dv + width * columns, Real(0));
    const Index queries = this->queries(tile.sequence);
    for (Index begin = 0; begin < queries; begin += block) {
      const Index count = std::min(queries - begin, block);
      Index most = 0;
      for (Index i = 0; i < count; ++i)
        most = std::max(most, this->plan.visible(this->query(tile.sequence, tile.head, begin + i).token));
      if (most <= tile.begin) continue;  // these came before
      for (Index i = 0; i < count; ++i) {
        const auto query = this->query(tile.sequence, tile.head, begin + i);
        this->widen(heads.q.at(query.token, query.head, width), q + i * width);
        this->widen(of.dout.at(query.token, query.head, width), dout + i * width);
      }
      lines.multiply(q, width, 1, count, k, width, live, scores, false);
      lines.multiply(dout, width, 1, count, v, width, live, dp, false);
      for (Index i = 0; i < count; ++i) {
        const auto query = this->query(tile.sequence, tile.head, begin + i);
        const Index visible = this->plan.visible(query.token) - tile.begin;
        Real* row = scores + i * columns;
        MOE_INDEPENDENT
        for (Index l = 0; l < columns; ++l) row[l] = l < visible && seen[l] ? row[l] : none;
        pull_softmax(row, dp + i * columns, &of.log_sum(query.token, query.head), &of.delta(query.token, query.head),
                     0);
      }
      lines.multiply(dout, 1, width, width, scores, count, live, dv, true);
      lines.multiply(q, 1, width, width, dp, count, live, dk, true);
    }
    for (Index l = 0; l < live; ++l) {
      this->take_column(dk, l, Real(heads.scale), of.dk.at(first + l, tile.head, width));
      this->take_column(dv, l, Real(1), of.dv.at(first + l, tile.head, width));
    }
  }
};

/// Rows of no sequence, which tiles do not reach.
template <class T>
inline void clear_rows(const HeadRows<T>& rows, Index begin, Index end, Index width) {
  for (Index t = begin; t < end; ++t) std::fill(rows.at(t, 0, width), rows.at(t, 0, width) + rows.heads * width, T(0));
}

template <class T, class Offsets>
inline void clear_outside(const HeadRows<T>& rows, const Offsets& offsets, Index count, Index width) {
  clear_rows(rows, 0, offsets(0), width);
  clear_rows(rows, offsets(offsets.extent(0) - 1), count, width);
}

template <class Space, class F>
TileNumbers<Space> number_tiles(typename Context<Space>::Scratch& scratch, Index sequences, Index heads,
                                const F& rows) {
  TileNumbers<Space> tiles{scratch.template vector<Index>(sequences + 1), heads};
  tiles.first(0) = 0;
  for (Index s = 0; s < sequences; ++s) tiles.first(s + 1) = tiles.first(s) + (rows(s) + 31) / 32;
  return tiles;
}

template <class Space, class F>
void run_tiles(const Space& space, const TileNumbers<Space>& tiles, const F& f) {
  Kokkos::parallel_for(
      "moe::attention",
      Kokkos::RangePolicy<Space, Kokkos::Schedule<Kokkos::Dynamic>>(space, 0, tiles.count(), Kokkos::ChunkSize(1)), f);
}

template <class T, class Space>
AttentionTiles<T, Space> attention_tiles(const AttentionPlan<Space>& plan, const AttentionHeads<T>& heads) {
  AttentionTiles<T, Space> result{plan, heads, {}};
  if constexpr (std::is_same_v<RouterReal<T>, float>) result.lines.table = &micro_kernels();
  return result;
}

// Launches on host spaces are over when they return: offsets can be read here.

template <class T, class Space>
void attention_forward(Context<Space>& ctx, const AttentionPlan<Space>& plan, const AttentionHeads<T>& heads,
                       const HeadRows<T>& out, const Matrix<RouterReal<T>, Space>& log_sum) {
  const auto base = attention_tiles<T>(plan, heads);
  typename Context<Space>::Scratch scratch(ctx);
  const auto tiles =
      number_tiles<Space>(scratch, plan.sequences, heads.k.heads, [&](Index s) { return base.queries(s); });
  clear_outside(out, plan.query_offsets, plan.queries, heads.width);
  run_tiles(ctx.space, tiles, AttendTile<T, Space>{base, tiles, out, log_sum});
}

template <class T, class Space>
void attention_backward(Context<Space>& ctx, const AttentionPlan<Space>& plan, const AttentionHeads<T>& heads,
                        const detail::AttentionGradients<T, RouterReal<T>, Space>& of) {
  const auto base = attention_tiles<T>(plan, heads);
  typename Context<Space>::Scratch scratch(ctx);
  const auto queries =
      number_tiles<Space>(scratch, plan.sequences, heads.k.heads, [&](Index s) { return base.queries(s); });
  const auto keys = number_tiles<Space>(scratch, plan.sequences, heads.k.heads, [&](Index s) { return base.keys(s); });
  clear_outside(of.dq, plan.query_offsets, plan.queries, heads.width);
  const Index first = plan.sequences > 0 ? plan.key_begin(0) : 0;
  const Index end = plan.sequences > 0 ? plan.key_end(plan.sequences - 1) : 0;
  for (const auto* rows : {&of.dk, &of.dv}) {
    clear_rows(*rows, 0, first, heads.width);
    clear_rows(*rows, end, plan.keys, heads.width);
  }
  run_tiles(ctx.space, queries, PullQueries<T, Space>{base, queries, of});
  run_tiles(ctx.space, keys, PullKeys<T, Space>{base, keys, of});
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
