#pragma once
/// @file
/// What a call runs in: an execution space instance (a stream), scratch memory, the step number and an error flag.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "moe/core/capture.hpp"
#include "moe/core/random.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Stack-like scratch memory. Grows while a shape is new; when everything is given back, its blocks become one.
template <class Space>
class Arena {
 public:
  using Block = Kokkos::View<std::byte*, typename Space::memory_space>;
  struct Mark {
    std::size_t block = 0, used = 0;
  };

  Mark mark() const { return at_; }

  void rewind(Mark mark) {
    at_ = mark;
    if (mark.block != 0 || mark.used != 0 || blocks_.size() < 2) return;
    std::size_t total = 0;
    for (const Block& block : blocks_) total += block.size();
    blocks_.clear();
    blocks_.push_back(allocate(total));
  }

  void* take(const Space& space, std::size_t bytes) {
    bytes = (bytes + 127) / 128 * 128;
    while (at_.block < blocks_.size() && at_.used + bytes > blocks_[at_.block].size()) at_ = {at_.block + 1, 0};
    if (at_.block == blocks_.size()) {
      refuse_capture(space, "A workspace that has to grow",
                     "Run the same call with the same shapes and context once before capturing: it allocates.");
      blocks_.push_back(allocate(std::max<std::size_t>(bytes, 1u << 20)));
    }
    void* result = blocks_[at_.block].data() + at_.used;
    at_.used += bytes;
    return result;
  }

 private:
  static Block allocate(std::size_t bytes) { return detail::allocate<Block>("moe::workspace", bytes); }
  std::vector<Block> blocks_;
  Mark at_;
};

}  // namespace detail

/// What kernels find wrong with the data; bits of Context::flag().
enum Fault : int { fault_nan = 1, fault_expert_id = 2, fault_cache = 4, fault_adapter_id = 8, fault_gradient = 16 };

/// One for each concurrent caller. `moe::Context ctx;` runs on Kokkos' default execution space.
///
/// Layers are const in forward and backward; all scratch memory is the context's, and the second call of a shape
/// allocates nothing. `step` feeds the random draws: advance it once an optimiser step.
template <class Space = Kokkos::DefaultExecutionSpace>
class Context {
 public:
  using execution_space = Space;

  Space space{};
  std::uint64_t seed = 0;  ///< of noise (jitter and the like), not of weights
  std::uint64_t step = 0;  ///< the optimiser step; part of every random draw's key
  Index first_token = 0;   ///< number of the batch's first token in this step: microbatches then draw apart
  bool training = true;    ///< noise policies act only while training

  Context() : flag_(require_kokkos()), arrivals_("moe::arrivals") {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  /// Scratch memory for the time of a scope. Unmanaged views; uninitialised.
  class Scratch {
   public:
    explicit Scratch(Context& ctx) : ctx_(ctx), mark_(ctx.arena_.mark()) {}
    ~Scratch() { ctx_.arena_.rewind(mark_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    template <class T>
    Vector<T, Space> vector(Index n) {
      return Vector<T, Space>(static_cast<T*>(ctx_.arena_.take(ctx_.space, sizeof(T) * n)), n);
    }
    template <class T>
    Matrix<T, Space> matrix(Index rows, Index columns) {
      return Matrix<T, Space>(static_cast<T*>(ctx_.arena_.take(ctx_.space, sizeof(T) * rows * columns)), rows, columns);
    }

   private:
    Context& ctx_;
    typename detail::Arena<Space>::Mark mark_;
  };

  /// Where kernels note bad data (bits of Fault); `check()` turns it into a DataError.
  Kokkos::View<int, typename Space::memory_space> flag() const { return flag_; }

  /// Counts the teams of one kernel that are done, so that the last one can go on with what all of them made. 0 between
  /// kernels: the last team sets it back, so that a captured graph can be replayed.
  Kokkos::View<int, typename Space::memory_space> arrivals() const { return arrivals_; }

  /// Throws DataError if a kernel since the last check met NaN logits, an expert that does not exist, a full key/value
  /// cache, an adapter that is not resident or gradients that are not finite. Waits for the device; automatic on hosts.
  void check() {
    detail::refuse_capture(space, "moe::Context::check, which waits for the device,",
                           "Call it after the graph's launch: the flag keeps what its kernels found.");
    int bad = 0;
    Kokkos::deep_copy(space, bad, flag_);
    space.fence("moe::Context::check");
    if (bad == 0) return;
    Kokkos::deep_copy(space, flag_, 0);
    if ((bad & fault_nan) != 0) {
      throw DataError(
          "moe: the router's logits hold NaN. Look for NaN in the layer's input or in the router's weight (a learning "
          "rate that is too large is the usual cause).");
    }
    if ((bad & fault_cache) != 0) {
      throw DataError(
          "moe: a sequence has more tokens than its key/value cache holds. Make the cache with a larger capacity, or "
          "set the sequence's length back to 0. (The tokens beyond it were left out.)");
    }
    if ((bad & fault_adapter_id) != 0) {
      throw DataError(
          "moe: a row names an adapter that is not resident. Ids must be slots that AdapterBank::add gave and evict "
          "has not freed, or -1 for none. (Those rows got the base alone.)");
    }
    if ((bad & fault_gradient) != 0) {
      throw DataError(
          "moe: moe::clip_by_global_norm met a norm that is not finite, and made those gradients 0. Lower the learning "
          "rate, or look for NaN and infinities in the input.");
    }
    throw DataError(
        "moe: a token chose an expert that does not exist. Ids must be 0 to E - 1, or -1 for none: look at the "
        "selection, at Batch::task_ids where tasks name experts, or at the routing given to forward. (Those choices "
        "counted as none.)");
  }

  /// A value of type `State` kept for `owner` between calls: what inference uses instead of a caller's tape. Owner 0 is
  /// the context itself, with the workspace of kernels.
  template <class State>
  State& kept(std::uint64_t owner) {
    std::shared_ptr<void>& slot = kept_[owner];
    if (!slot) slot = std::make_shared<State>();
    return *static_cast<State*>(slot.get());
  }

 private:
  static Kokkos::View<int, typename Space::memory_space> require_kokkos() {
    detail::require<ConfigError>(
        Kokkos::is_initialized(),
        "moe::Context: Kokkos is not initialised. Put `Kokkos::ScopeGuard kokkos(argc, argv);` "
        "at the top of main.");
    return Kokkos::View<int, typename Space::memory_space>("moe::flag");
  }

  friend class Scratch;
  detail::Arena<Space> arena_;
  Kokkos::View<int, typename Space::memory_space> flag_, arrivals_;
  std::unordered_map<std::uint64_t, std::shared_ptr<void>> kept_;
};

MOE_NAMESPACE_END
