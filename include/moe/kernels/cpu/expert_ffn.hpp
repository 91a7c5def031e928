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
#include "moe/core/convert.hpp"
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
/// or int8 for int8. There each row is quantised by its own largest number, known for hidden values when the last unit
/// of `up` is done, whose thread then does that.
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
        end_up(chunk, now.chunk, gathered);
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

  /// A row in a tile of `depth` numbers.
  static constexpr Index row_bytes(Index depth) { return tile_depth<Factor>(depth) * Index(sizeof(Factor)); }
  static Factor* tile_at(std::byte* tiles, Index row, Index depth) {
    return reinterpret_cast<Factor*>(tiles + row * row_bytes(depth));
  }

  /// The steps of int8's rows stand behind their tiles of `depth` numbers, and hidden values in f32 behind the steps.
  static constexpr Index steps_room = (most_rows + 15) / 16 * 16;
  static float* steps_of(std::byte* tiles, Index depth) {
    return reinterpret_cast<float*>(tiles + most_rows * row_bytes(depth));
  }
  float* hidden_row(std::byte* tiles, Index row) const {
    return steps_of(tiles, call->down.depth) + steps_room + row * call->up.columns / (gated ? 2 : 1);
  }
  /// Bytes of `rows` rows in tiles of `depth` numbers, and of what stands behind them.
  static Index bytes_of(Index rows, Index depth, Index hidden_width) {
    if constexpr (!quantised) return (rows * row_bytes(depth) + 63) / 64 * 64;
    return most_rows * row_bytes(depth) + (steps_room + rows * hidden_width) * Index(sizeof(float));
  }

  /// Says that a unit of `up` is done. The chunk's last one first quantises the hidden values.
  void end_up(const RowChunk& chunk, Index number, std::byte* gathered) const {
    if constexpr (quantised) {
      if (up_done(number).fetch_add(1, std::memory_order_acq_rel) < up_parts - 1) return;
      std::byte* hidden = hidden_of(number);
      const Index depth = call->down.depth;
      for (Index t = 0; t < chunk.tiles; ++t) {
        const Index begin = chunk.tile(t), rows = chunk.tile(t + 1) - begin;
        Factor* tile = tile_at(hidden, begin, depth);
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

  /// Copies a chunk's rows into tiles: line by line of the tile, since writing far apart is slower than reading so.
  void gather(const RowChunk& chunk, std::byte* to) const {
    const Index depth = call->up.depth, hidden = call->hidden;
    const Token<T>* from[most_rows];
    for (Index t = 0; t < chunk.tiles; ++t) {
      const Index begin = chunk.tile(t), rows = chunk.tile(t + 1) - begin;
      Factor* tile = tile_at(to, begin, depth);
      for (Index i = 0; i < rows; ++i) {
        const Index row = token(chunk.first + begin + i);
        from[i] = row < 0 ? nullptr : call->x + row * hidden;
        if constexpr (quantised)
          steps_of(to, depth)[begin + i] =
              quantise_row(from[i], row < 0 ? 0 : hidden, depth, tile + i * in_line, rows * in_line);
      }
      if constexpr (!quantised) {
        for (Index k = 0; k < depth; k += in_line) {
          const Index live = std::clamp<Index>(hidden - k, 0, in_line);
          for (Index i = 0; i < rows; ++i, tile += in_line)
            copy_line(from[i] == nullptr || live == 0 ? nullptr : from[i] + k, live, tile);
        }
      }
    }
  }

  /// The products of a chunk's tiles with pairs of panels: finish(pair, tile, sums (rows, 32)) takes them, and
  /// before(pair, tile) comes right before. `coming`: what is read behind the pairs.
  template <class Before, class Finish>
  void multiply(const RowChunk& chunk, const std::byte* tiles, const Panels<T>& weights, Index pair, Index end,
                const char* coming, const Before& before, const Finish& finish) const {
    if (chunk.rows < fewest_ahead) pair = multiply_apart(chunk, tiles, weights, pair, end, before, finish);
    for (; pair < end; ++pair)
      multiply_pair(chunk, tiles, weights, pair, pair + 1 < end ? pair_of(weights, chunk, pair + 1) : coming, before,
                    finish);
  }

  /// So many rows have enough arithmetic to hide behind it the requests for what comes next.
  static constexpr Index fewest_ahead = 4;

  template <class Before, class Finish>
  void multiply_pair(const RowChunk& chunk, const std::byte* tiles, const Panels<T>& weights, Index pair,
                     const char* coming, const Before& before, const Finish& finish) const {
    alignas(64) float sums[MicroKernels::most_rows * 32];
    const Index lines = weights.lines(), stride = weights.panel_size() * Index(sizeof(T));
    const char* panel = pair_of(weights, chunk, pair);
    // All that comes next is asked for, each tile's kernel taking a share.
    const Index ahead = chunk.rows < fewest_ahead || coming == nullptr ? 0 : 16;
    const char* next[2] = {coming, ahead == 0 ? nullptr : coming + stride};
    for (Index t = 0; t < chunk.tiles; ++t) {
      const Index begin = chunk.tile(t);
      const MicroKernel& run = kernel(chunk.tile(t + 1) - begin);
      const Index share = ((t + 1) * ahead / chunk.tiles - t * ahead / chunk.tiles) * run.panels;
      before(pair, t);
      for (Index half = 0; half < 2; half += run.panels) {
        run.run(tiles + begin * row_bytes(weights.depth), panel + half * stride, stride, lines, {next[half], 64, share},
                sums + half * 16);
        if (ahead != 0) next[half] += lines / 16 * share * 64;
      }
      finish(pair, t, sums);
    }
  }

  /// One tile of few rows with pairs far apart, as many as a kernel takes panels: each panel of a pair goes on where
  /// the former ended, so that the processor, which fetches ahead along a stream, need not find it anew. Returns the
  /// first pair that is left.
  template <class Before, class Finish>
  Index multiply_apart(const RowChunk& chunk, const std::byte* tiles, const Panels<T>& weights, Index pair, Index end,
                       const Before& before, const Finish& finish) const {
    const MicroKernel& single = quantised ? table->int8_row : sizeof(T) == 4 ? table->f32_row : table->bf16_row;
    const MicroKernel& run = chunk.rows == 1 ? single : kernel(chunk.rows);
    if (run.panels == 1) return pair;
    const Index width = chunk.rows == 1 ? 64 : 32;  // of a row of sums
    const Index apart = (end - pair) / run.panels, size = weights.panel_size() * Index(sizeof(T));
    alignas(64) float sums[2][fewest_ahead * 32], of_pair[fewest_ahead * 32];
    for (Index i = 0; i < apart; ++i, ++pair) {
      const char* panel = pair_of(weights, chunk, pair);
      for (Index p = 0; p < run.panels; ++p) before(pair + p * apart, 0);
      for (Index half = 0; half < 2; ++half)
        run.run(tiles, panel + half * size, 2 * apart * size, weights.lines(), {}, sums[half]);
      for (Index p = 0; p < run.panels; ++p) {
        for (Index row = 0; row < chunk.rows; ++row) {
          for (Index half = 0; half < 2; ++half)
            std::memcpy(of_pair + row * 32 + half * 16, sums[half] + row * width + p * 16, 64);
        }
        finish(pair + p * apart, 0, of_pair);
      }
    }
    return pair + (run.panels - 1) * apart;
  }

  /// Gate and up (or up alone) and the activation, from gathered rows to hidden values in tiles.
  void up(const RowChunk& chunk, std::byte* tiles, std::byte* hidden, Index part, const char* coming) const {
    const Panels<T>& weights = call->up;
    const auto finish = [&](Index pair, Index t, float* sums) { finish_up(chunk, tiles, hidden, pair, t, sums); };
    multiply(
        chunk, tiles, weights, first_pair(weights, part, up_parts), first_pair(weights, part + 1, up_parts), coming,
        [](Index, Index) {}, finish);
  }

  /// Compiled once, so that its roundings do not depend on the number of rows.
  [[gnu::noinline]] void finish_up(const RowChunk& chunk, std::byte* tiles, std::byte* hidden, Index pair, Index t,
                                   float* sums) const {
    const Index width = gated ? 16 : 32, begin = chunk.tile(t), rows = chunk.tile(t + 1) - begin;
    const PairFinish finish(call->up, chunk, pair, steps_of(tiles, call->up.depth), call->up_bias);
    Factor* tile = tile_at(hidden, begin, call->down.depth);
    for (Index i = 0; i < rows; ++i, sums += 32) {
      finish(begin + i, sums);
      for (Index part_of = 0; part_of < width; part_of += 16) {
        const Index k = pair * width + part_of;  // of the hidden values
        if constexpr (quantised) {
          activate16(sums + part_of, hidden_row(hidden, begin + i) + k);
        } else {
          activate16(sums + part_of, tile + (k / in_line * rows + i) * in_line + k % in_line);
        }
      }
    }
  }

  template <class To>
  void activate16(const float* __restrict from, To* __restrict to) const {
    const Activation activation = call->activation;
    float values[16];
    for (Index l = 0; l < 16; ++l) values[l] = moe::detail::activate(activation, from[l], gated ? from[l + 16] : 1.0f);
    moe::detail::convert<16>(values, to);
  }

  /// The product with W_down, weighted and added to the rows' tokens.
  void down(const RowChunk& chunk, std::byte* hidden, Index part, const char* coming) const {
    float* y[most_rows];  // of each row, or null
    float weight[most_rows];
    for (Index i = 0; i < chunk.rows; ++i) {
      const Index row = chunk.first + i, t = token(row);
      y[i] = t < 0 ? nullptr : call->y + t * call->hidden;
      weight[i] = 1.0f;
      if (t >= 0 && call->weight != nullptr)
        weight[i] = call->weight[call->row_assignment == nullptr ? row : call->row_assignment[row]];
    }
    const Panels<T>& weights = call->down;
    const auto before = [&](Index pair, Index t) {
      for (Index i = chunk.tile(t); i < chunk.tile(t + 1); ++i) {
        if (y[i] == nullptr) continue;
        __builtin_prefetch(y[i] + pair * 32, 1);
        __builtin_prefetch(y[i] + pair * 32 + 16, 1);
      }
    };
    const auto finish = [&](Index pair, Index t, float* sums) { finish_down(chunk, hidden, pair, t, sums, y, weight); };
    multiply(chunk, hidden, weights, first_pair(weights, part, down_parts), first_pair(weights, part + 1, down_parts),
             coming, before, finish);
  }

  [[gnu::noinline]] void finish_down(const RowChunk& chunk, std::byte* hidden, Index pair, Index t,
                                     float* __restrict sums, float* const* y, const float* weight) const {
    const Index column = pair * 32, live = std::min<Index>(32, call->hidden - column);
    const PairFinish finish(call->down, chunk, pair, steps_of(hidden, call->down.depth), call->down_bias);
    for (Index i = chunk.tile(t); i < chunk.tile(t + 1); ++i, sums += 32) {
      if (y[i] == nullptr) continue;
      float* __restrict to = y[i] + column;
      finish(i, sums);
      const float w = weight[i];
      if (live == 32) {
        for (Index l = 0; l < 32; ++l) to[l] += w * sums[l];
      } else {
        for (Index l = 0; l < live; ++l) to[l] += w * sums[l];
      }
    }
  }

  /// Turns a pair's sums into products: int8's are multiplied by the steps of row and column; the bias is added.
  struct PairFinish {
    const float *row_step, *column_step = nullptr, *bias = nullptr;

    PairFinish(const Panels<T>& weights, const RowChunk& chunk, Index pair, const float* steps, const float* biases)
        : row_step(steps) {
      const Index at = chunk.expert * weights.columns + pair * 32;
      if constexpr (quantised) column_step = weights.scale.data() + at;
      if (biases != nullptr) bias = biases + at;
    }
    void operator()(Index row, float* __restrict sums) const {
      if constexpr (quantised) {
        const float step = row_step[row];
        for (Index l = 0; l < 32; ++l) sums[l] = float(Kokkos::bit_cast<std::int32_t>(sums[l])) * step * column_step[l];
      }
      if (bias == nullptr) return;
      for (Index l = 0; l < 32; ++l) sums[l] += bias[l];
    }
  };
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
  const Index up_parts = std::clamp<Index>(8 * threads / chunks, 1, std::min<Index>(16, call.up.pairs()));
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
    table.bytes ? launch(std::int8_t{}) : launch(std::int16_t{});
  } else if (sizeof(T) == 2 && table.pairs) {
    launch(T{});
  } else {
    launch(0.0f);
  }
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
