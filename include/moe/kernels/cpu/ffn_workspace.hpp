#pragma once
/// @file
/// What `run_expert_ffn` works with: chunks of rows, waiting, and memory that one call keeps for the next.

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "moe/kernels/cpu/panels.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Rows of one expert that go through the kernels together, in tiles of nearly equal size.
struct RowChunk {
  Index expert, first, rows, tiles;
  /// First row of a tile; tile `tiles` is the end.
  Index tile(Index t) const { return t * rows / tiles; }
};

/// Chunks of all experts, in order.
inline void cut_chunks(const Index* offsets, Index experts, Index tile_rows, Index most,
                       std::vector<RowChunk>& chunks) {
  chunks.clear();
  for (Index e = 0; e < experts; ++e) {
    const Index rows = offsets[e + 1] - offsets[e], parts = (rows + most - 1) / most;
    for (Index part = 0; part < parts; ++part) {
      const Index begin = part * rows / parts, end = (part + 1) * rows / parts;
      chunks.push_back({e, offsets[e] + begin, end - begin, (end - begin + tile_rows - 1) / tile_rows});
    }
  }
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
template <class Done>
void wait_until(const Done& done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < 4096) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

/// What one call of run_expert_ffn keeps; reused by the next.
struct FFNWorkspace {
  std::vector<RowChunk> chunks;
  std::vector<PageBuffer<std::byte>> gathered;  // a thread
  PageBuffer<std::byte> hidden;                 // a slot a chunk in flight
  Index gathered_bytes = 0, hidden_bytes = 0;
  std::unique_ptr<std::atomic<Index>[]> counters;
  Index counters_size = 0;

  void reserve(Index threads, Index gathered_each, Index hidden_all, Index counts) {
    if (Index(gathered.size()) < threads || gathered_bytes < gathered_each) {
      gathered.clear();
      for (Index t = 0; t < threads; ++t) gathered.emplace_back(gathered_each);
      gathered_bytes = gathered_each;
    }
    if (hidden_bytes < hidden_all) {
      hidden = PageBuffer<std::byte>(hidden_all);
      hidden_bytes = hidden_all;
    }
    if (counters_size < counts) {
      counters = std::make_unique<std::atomic<Index>[]>(counts);
      counters_size = counts;
    }
    for (Index i = 0; i < counts; ++i) counters[i].store(0, std::memory_order_relaxed);
  }
};

}  // namespace kernels::cpu

MOE_NAMESPACE_END
