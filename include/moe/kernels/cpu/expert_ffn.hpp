#pragma once
/// @file
/// All experts' feed-forward networks in one go: rows gathered, gate and up, activation, down, weighted sum.
///
/// An expert's rows are cut into chunks. Each chunk has two stages: `up` fills the chunk's hidden values, `down` adds
/// their product to the output. Both are cut into units of columns, and threads take units from one queue in order, a
/// chunk's `down` shortly behind its `up`, so that uneven loads balance, and hidden values never leave the caches. A
/// thread waits only for units taken earlier, so the queue cannot lock. For each column of the output, chunks are added
/// in order: the same bits for any number of threads, and any size of chunks.

#include <algorithm>
#include <cmath>

#include "moe/core/activation.hpp"
#include "moe/kernels/cpu/ffn_workspace.hpp"
#include "moe/kernels/cpu/micro_kernels.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Arguments of one call. T: float, bfloat16 or int8.
template <class T, class Activation>
struct ExpertFFN {
  const Token<T>* x;            // (., hidden) rows of
  Index hidden;                 // H, of x and y
  const Index* offsets;         // (E+1) rows of each expert
  const Index* row_token;       // (R) the row of x and y, -1: none; null: row r itself
  const Index* row_assignment;  // (R) index into weight; null: row r itself
  const float* weight;          // what a row's result is multiplied by, or null: 1
  Panels<T> up, down;
  const float* up_bias;    // (E, up.columns) in the panels' order, or null
  const float* down_bias;  // (E, down.columns), or null
  Activation activation;
  float* y;  // (., hidden); results are added
};

/// One thread's part: takes units until none is left. `Factor` is what tiles hold: float, bfloat16 in pairs, or int16
/// for int8. There each row is quantised by its own largest number, known for hidden values when the last unit of `up`
/// is done, whose thread then does that.
template <class T, class Factor, class Activation>
struct FFNWorker {
  using Call = ExpertFFN<T, Activation>;
  static constexpr bool gated = Activation::gated, quantised = is_quantised<T>;
  static constexpr Index in_line = 64 / sizeof(Factor);  // numbers of a row in a line of a tile
  static constexpr Index most_rows = 100;                // of a chunk

  const Call* call;
  const MicroKernels* table;
  FFNWorkspace* work;
  Index lag, slots, up_parts, down_parts, slot_bytes;

  const MicroKernel& kernel(Index rows) const {
    return quantised ? table->int8[rows] : sizeof(T) == 4 ? table->f32[rows] : table->bf16[rows];
  }
  Index chunks() const { return Index(work->chunks.size()); }
  std::atomic<Index>& columns_done(Index part) const { return work->counters[(1 + part) * 8]; }
  std::atomic<Index>& up_done(Index chunk) const { return work->counters[(1 + down_parts) * 8 + chunk]; }
  std::byte* hidden_of(Index chunk) const { return work->hidden.data() + chunk % slots * slot_bytes; }

  void operator()(int thread) const {
    std::byte* gathered = work->gathered[thread].data();
    Index holds = -1;  // the chunk whose rows are gathered here
    const Index units = (chunks() + lag) * (up_parts + down_parts);
    // The following unit is taken early, so that its first panel can be asked for in time.
    for (Index unit = take(), following = take(); unit < units; unit = following, following = take()) {
      const Unit now = look(unit);
      if (now.chunk < 0 || now.chunk >= chunks()) continue;
      const RowChunk& chunk = work->chunks[now.chunk];
      const char* coming = first_panel(following);
      if (now.up) {
        if (holds != now.chunk) gather(chunk, gathered);
        holds = now.chunk;
        for (Index p = 0; p < down_parts; ++p)  // the slot's former chunk must have left it
          wait_until([&] { return columns_done(p).load(std::memory_order_acquire) > now.chunk - slots; });
        up(chunk, gathered, hidden_of(now.chunk), now.part, coming);
        finish_up(chunk, now.chunk, gathered);
      } else {
        wait_until([&] { return columns_done(now.part).load(std::memory_order_acquire) == now.chunk; });
        wait_until([&] { return up_done(now.chunk).load(std::memory_order_acquire) == up_parts + quantised; });
        down(chunk, hidden_of(now.chunk), now.part, coming);
        columns_done(now.part).store(now.chunk + 1, std::memory_order_release);
      }
    }
  }

  /// One place in the queue: a chunk's parts of `up`, then the parts of `down` of the chunk `lag` before it. At both
  /// ends of the queue there are places without a chunk.
  struct Unit {
    Index chunk, part;
    bool up;
  };
  Index take() const { return work->counters[0].fetch_add(1); }
  Unit look(Index unit) const {
    const Index step = unit / (up_parts + down_parts), part = unit % (up_parts + down_parts);
    return part < up_parts ? Unit{step, part, true} : Unit{step - lag, part - up_parts, false};
  }
  const char* first_panel(Index place) const {
    const Unit unit = look(place);
    if (unit.chunk < 0 || unit.chunk >= chunks()) return nullptr;
    const Panels<T>& weights = unit.up ? call->up : call->down;
    return pair_of(weights, work->chunks[unit.chunk], first_pair(weights, unit.part, unit.up ? up_parts : down_parts));
  }
  static Index first_pair(const Panels<T>& weights, Index part, Index parts) { return part * weights.pairs() / parts; }
  static const char* pair_of(const Panels<T>& weights, const RowChunk& chunk, Index pair) {
    return reinterpret_cast<const char*>(weights.panel(chunk.expert, 2 * pair));
  }

  /// The steps of int8's rows stand behind their tiles of `depth` numbers, and hidden values in f32 behind the steps.
  static constexpr Index steps_room = (most_rows + 15) / 16 * 16;
  static float* steps_of(std::byte* tiles, Index depth) {
    return reinterpret_cast<float*>(tiles + most_rows * depth * Index(sizeof(Factor)));
  }
  float* hidden_row(std::byte* tiles, Index row) const {
    return steps_of(tiles, call->down.depth) + steps_room + row * call->up.columns / (gated ? 2 : 1);
  }
  /// Bytes of `rows` rows in tiles of `depth` numbers, and of what stands behind them.
  static Index bytes_of(Index rows, Index depth, Index hidden_width) {
    if constexpr (!quantised) return (rows * depth * Index(sizeof(Factor)) + 63) / 64 * 64;
    return most_rows * depth * Index(sizeof(Factor)) + (steps_room + rows * hidden_width) * Index(sizeof(float));
  }

  /// Says that a unit of `up` is done. The chunk's last one first quantises the hidden values.
  void finish_up(const RowChunk& chunk, Index number, std::byte* gathered) const {
    if constexpr (quantised) {
      if (up_done(number).fetch_add(1, std::memory_order_acq_rel) < up_parts - 1) return;
      std::byte* hidden = hidden_of(number);
      const Index depth = call->down.depth;
      for (Index t = 0; t < chunk.tiles; ++t) {
        const Index begin = chunk.tile(t), rows = chunk.tile(t + 1) - begin;
        auto* tile = reinterpret_cast<Factor*>(hidden) + begin * depth;
        for (Index i = 0; i < rows; ++i) {
          const float step =
              quantise_row(hidden_row(hidden, begin + i), call->down.live, depth, tile + i * in_line, rows * in_line);
          // An activation may lose NaN: the token's own step keeps it.
          const float own = steps_of(gathered, call->up.depth)[begin + i];
          steps_of(hidden, depth)[begin + i] = std::isnan(own) ? own : step;
        }
      }
    }
    up_done(number).fetch_add(1, std::memory_order_release);
  }

  Index token(Index row) const { return call->row_token == nullptr ? row : call->row_token[row]; }

  /// Copies a chunk's rows into tiles, a line at a time.
  void gather(const RowChunk& chunk, std::byte* to) const {
    const Index lines = call->up.depth / in_line, hidden = call->hidden;
    for (Index t = 0; t < chunk.tiles; ++t) {
      const Index begin = chunk.tile(t), rows = chunk.tile(t + 1) - begin;
      auto* tile = reinterpret_cast<Factor*>(to) + begin * lines * in_line;
      for (Index i = 0; i < rows; ++i) {
        const Index from_row = token(chunk.first + begin + i);
        const Token<T>* __restrict from = call->x + from_row * hidden;
        if constexpr (quantised) {
          steps_of(to, call->up.depth)[begin + i] =
              quantise_row(from, from_row < 0 ? 0 : hidden, call->up.depth, tile + i * in_line, rows * in_line);
          continue;
        }
        for (Index line = 0; line < lines; ++line) {
          Factor* __restrict out = tile + (line * rows + i) * in_line;
          const Index k = line * in_line, live = from_row < 0 ? 0 : std::clamp<Index>(hidden - k, 0, in_line);
          if (live == in_line) {
            for (Index l = 0; l < in_line; ++l) out[l] = Factor(from[k + l]);
          } else {
            for (Index l = 0; l < in_line; ++l) out[l] = l < live ? Factor(from[k + l]) : Factor(0.0f);
          }
        }
      }
    }
  }

  /// Pairs of panels that go through a kernel together: a single row reads two at once, since the processor fetches
  /// several streams ahead faster than one.
  static Index together(const RowChunk& chunk, Index pair, Index end) {
    return chunk.rows == 1 && pair + 1 < end ? 2 : 1;
  }

  /// The products of a chunk's tiles with one pair of panels, to sums (rows, 32); or of its row with two, to (2, 32).
  /// `coming`: what is read behind the pair.
  void multiply(const RowChunk& chunk, const std::byte* tiles, const Panels<T>& weights, Index pair, Index count,
                const char* coming, float* sums) const {
    const Index lines = weights.lines(), row_bytes = weights.depth * Index(sizeof(Factor));
    const Index stride = weights.panel_size() * Index(sizeof(T));
    const char* panel = pair_of(weights, chunk, pair);
    if (count == 2) {
      const MicroKernel& row = quantised ? table->int8_row : sizeof(T) == 4 ? table->f32_row : table->bf16_row;
      return row.run(tiles, panel, stride, lines, {}, sums);
    }
    // Meanwhile what comes next is asked for, all of it, each tile's kernel taking a share. Fewer rows have too little
    // arithmetic to hide the requests behind.
    const bool one_by_one = kernel((chunk.rows + chunk.tiles - 1) / chunk.tiles).panels == 1;
    const Index ahead = chunk.rows < 4 || coming == nullptr ? 0 : one_by_one ? 16 : 32;
    for (Index half = 0; half < 2; ++half, panel += stride) {
      const char* next = one_by_one && half == 0 ? panel + stride : coming;
      for (Index t = 0; t < chunk.tiles; ++t) {
        const Index begin = chunk.tile(t), rows = chunk.tile(t + 1) - begin;
        const MicroKernel& run = kernel(rows);
        if (half == 1 && run.panels == 2) continue;
        const Index share = (t + 1) * ahead / chunk.tiles - t * ahead / chunk.tiles;
        run.run(tiles + begin * row_bytes, panel, stride, lines, {next, 64, share}, sums + begin * 32 + half * 16);
        next += lines / 16 * share * 64;
      }
    }
  }

  /// Gate and up (or up alone) and the activation, from gathered rows to hidden values in tiles.
  void up(const RowChunk& chunk, std::byte* tiles, std::byte* hidden, Index part, const char* coming) const {
    alignas(64) float sums[most_rows * 32];
    const Panels<T>& weights = call->up;
    const Index end = first_pair(weights, part + 1, up_parts);
    for (Index pair = first_pair(weights, part, up_parts), count = 0; pair < end; pair += count) {
      count = together(chunk, pair, end);
      const char* next = pair + count < end ? pair_of(weights, chunk, pair + count) : coming;
      multiply(chunk, tiles, weights, pair, count, next, sums);
      for (Index p = 0; p < count; ++p) finish_up_pair(chunk, tiles, hidden, pair + p, sums + p * 32);
    }
  }

  void finish_up_pair(const RowChunk& chunk, std::byte* tiles, std::byte* hidden, Index pair, float* sums) const {
    const Panels<T>& weights = call->up;
    const Index hidden_lines = call->down.depth / in_line, width = gated ? 16 : 32;
    if constexpr (quantised)
      scale_sums(chunk.rows, steps_of(tiles, weights.depth), column_scale(weights, chunk, pair), sums);
    if (call->up_bias != nullptr)
      add_bias(chunk.rows, call->up_bias + chunk.expert * weights.columns + pair * 32, sums);
    for (Index t = 0; t < chunk.tiles; ++t) {
      const Index begin = chunk.tile(t), rows = chunk.tile(t + 1) - begin;
      auto* tile = reinterpret_cast<Factor*>(hidden) + begin * hidden_lines * in_line;
      for (Index i = 0; i < rows; ++i) {
        for (Index part_of = 0; part_of < width; part_of += 16) {
          const Index k = pair * width + part_of;  // of the hidden values
          const float* from = sums + (begin + i) * 32 + part_of;
          if constexpr (quantised) {
            activate16(from, hidden_row(hidden, begin + i) + k);
          } else {
            activate16(from, tile + (k / in_line * rows + i) * in_line + k % in_line);
          }
        }
      }
    }
  }

  template <class To>
  void activate16(const float* __restrict from, To* __restrict to) const {
    const Activation activation = call->activation;
    float values[16];
    for (Index l = 0; l < 16; ++l) values[l] = moe::detail::activate(activation, from[l], gated ? from[l + 16] : 1.0f);
    for (Index l = 0; l < 16; ++l) to[l] = To(values[l]);
  }

  /// The product with W_down, weighted and added to the rows' tokens.
  void down(const RowChunk& chunk, std::byte* hidden, Index part, const char* coming) const {
    alignas(64) float sums[most_rows * 32];
    const Panels<T>& weights = call->down;
    const Index end = first_pair(weights, part + 1, down_parts);
    for (Index pair = first_pair(weights, part, down_parts), count = 0; pair < end; pair += count) {
      count = together(chunk, pair, end);
      for (Index i = 0; i < chunk.rows; ++i) {
        const Index t = token(chunk.first + i);
        if (t < 0) continue;
        __builtin_prefetch(call->y + t * call->hidden + pair * 32, 1);
        __builtin_prefetch(call->y + t * call->hidden + pair * 32 + 16, 1);
      }
      const char* next = pair + count < end ? pair_of(weights, chunk, pair + count) : coming;
      multiply(chunk, hidden, weights, pair, count, next, sums);
      for (Index p = 0; p < count; ++p) finish_down_pair(chunk, hidden, pair + p, sums + p * 32);
    }
  }

  void finish_down_pair(const RowChunk& chunk, std::byte* hidden, Index pair, float* sums) const {
    const Panels<T>& weights = call->down;
    const Index column = pair * 32, live = std::min<Index>(32, call->hidden - column);
    if constexpr (quantised)
      scale_sums(chunk.rows, steps_of(hidden, weights.depth), column_scale(weights, chunk, pair), sums);
    if (call->down_bias != nullptr)
      add_bias(chunk.rows, call->down_bias + chunk.expert * weights.columns + column, sums);
    for (Index i = 0; i < chunk.rows; ++i) {
      const Index row = chunk.first + i, t = token(row);
      if (t < 0) continue;
      const Index a = call->row_assignment == nullptr ? row : call->row_assignment[row];
      const float w = call->weight == nullptr ? 1.0f : call->weight[a];
      float* __restrict to = call->y + t * call->hidden + column;
      const float* __restrict from = sums + i * 32;
      if (live == 32) {
        for (Index l = 0; l < 32; ++l) to[l] += w * from[l];
      } else {
        for (Index l = 0; l < live; ++l) to[l] += w * from[l];
      }
    }
  }

  static const float* column_scale(const Panels<T>& weights, const RowChunk& chunk, Index pair) {
    return weights.scale.data() + chunk.expert * weights.columns + pair * 32;
  }
  static void add_bias(Index rows, const float* __restrict bias, float* __restrict sums) {
    for (Index i = 0; i < rows; ++i) {
      for (Index l = 0; l < 32; ++l) sums[i * 32 + l] += bias[l];
    }
  }
};

/// Runs the call on the threads of a host space. The workspace is the caller's, for one call at a time.
template <class Space, class T, class Activation>
void run_expert_ffn(const Space& space, const ExpertFFN<T, Activation>& call, FFNWorkspace& work) {
  const MicroKernels& table = micro_kernels();
  const Index threads = space.concurrency();
  // So many rows hide the reading of a panel, and still fit the caches.
  const Index most = FFNWorker<T, float, Activation>::most_rows / table.rows * table.rows;
  cut_chunks(call.offsets, call.up.experts, table.rows, most, work.chunks);
  const Index chunks = Index(work.chunks.size());
  if (chunks == 0) return;
  const Index up_parts = std::clamp<Index>(64 * threads / chunks, 1, std::min<Index>(16, call.up.pairs()));
  const Index down_parts = std::min<Index>(std::max<Index>(4, 2 * threads), call.down.pairs());
  const Index lag = 1 + (threads - 1) / up_parts, slots = lag + 4;
  auto launch = [&]<class Factor>(Factor) {
    using Worker = FFNWorker<T, Factor, Activation>;
    const Index slot_bytes = Worker::bytes_of(most, call.down.depth, call.up.columns / (Activation::gated ? 2 : 1));
    work.reserve(threads, Worker::bytes_of(most, call.up.depth, 0), slots * slot_bytes, (1 + down_parts) * 8 + chunks);
    Kokkos::parallel_for(
        "moe::cpu::expert_ffn",
        Kokkos::RangePolicy<Space, Kokkos::Schedule<Kokkos::Static>>(space, 0, threads).set_chunk_size(1),
        Worker{&call, &table, &work, lag, slots, up_parts, down_parts, slot_bytes});
  };
  if constexpr (is_quantised<T>) {
    launch(std::int16_t{});
  } else if (sizeof(T) == 2 && table.pairs) {
    launch(T{});
  } else {
    launch(0.0f);
  }
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
