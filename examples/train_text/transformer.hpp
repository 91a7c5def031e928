#pragma once
/// @file
/// A decoder-only byte-level transformer: a stack of blocks between an embedding and a head.

#include <string>
#include <vector>

#include "elementwise.hpp"
#include "stages.hpp"

namespace text {

inline constexpr Index vocabulary = 256;  // bytes

/// Where the sequences of a batch begin.
template <class Space>
struct SequenceOffsets {
  Index length;
  Vector<Index, Space> offsets;
  KOKKOS_FUNCTION void operator()(Index s) const { offsets(s) = s * length; }
};

/// `Block` is a layer with its residual: moe::Residual, moe::MixtureOfDepths, or several of them in a moe::Sequential.
template <class Block>
class Transformer {
 public:
  using T = typename Block::Scalar;
  using Space = typename Block::Space;
  using Real = moe::RouterReal<T>;

  struct Parameters {
    Matrix<T, Space> embedding, head;  // (256, H)
    Vector<T, Space> norm;             // (H)
    std::vector<typename Block::Parameters> blocks;

    template <class F, class First, class... Same>
    static void visit(F&& f, First& first, Same&... same) {
      f("embedding", first.embedding, same.embedding...);
      for (std::size_t i = 0; i < first.blocks.size(); ++i) {
        const std::string prefix = "blocks." + std::to_string(i) + ".";
        auto named = [&](std::string_view name, auto&... views) { f(prefix + std::string(name), views...); };
        Block::Parameters::visit(named, first.blocks[i], same.blocks[i]...);
      }
      f("norm", first.norm, same.norm...);
      f("head", first.head, same.head...);
    }
  };

  /// Gradients: the same arrays, and for each block its own aggregate, which shares them.
  struct Gradients : Parameters {
    std::vector<typename Block::Gradients> of_blocks;
  };

  /// The blocks' buffers, by reference.
  struct Buffers {
    std::vector<typename Block::Buffers> blocks;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      static_assert(sizeof...(Same) == 1);
      std::size_t i = 0;
      (..., [&] {
        for (auto& block : same.blocks) {
          const std::string prefix = "blocks." + std::to_string(i++) + ".";
          auto named = [&](std::string_view name, auto&... views) { f(prefix + std::string(name), views...); };
          Block::Buffers::visit(named, block);
        }
      }());
    }
  };

  /// What one forward pass leaves.
  struct Tape {
    Index tokens = 0;
    Vector<const std::int32_t, Space> bytes;
    Vector<Index, Space> sequences;  // (batch + 1) first tokens
    std::vector<typename Block::Tape> blocks;
    Matrix<T, Space> embedded, last, normed, logits;
    Vector<Real, Space> inverse;
    Vector<double, Space> losses;  // (T)
  };

  /// `make_block(number)` builds each block.
  template <class MakeBlock>
  Transformer(Index hidden, Index blocks, moe::Seed seed, const MakeBlock& make_block) {
    parameters.embedding = {"embedding", std::size_t(vocabulary), std::size_t(hidden)};
    parameters.head = {"head", std::size_t(vocabulary), std::size_t(hidden)};
    parameters.norm = {"norm", std::size_t(hidden)};
    const Space space{};
    moe::detail::initialise(space, "embedding", parameters.embedding, seed, 1.0);
    moe::detail::initialise(space, "head", parameters.head, seed, 1.0);
    Kokkos::deep_copy(parameters.norm, T(1));
    for (Index i = 0; i < blocks; ++i) {
      blocks_.push_back(make_block(i));
      parameters.blocks.push_back(blocks_.back().parameters);
      buffers.blocks.push_back(blocks_.back().buffers);
    }
  }

  Parameters parameters;
  Buffers buffers;

  std::vector<Block>& blocks() { return blocks_; }
  const std::vector<Block>& blocks() const { return blocks_; }

  Gradients gradients() const {
    Gradients result;
    static_cast<Parameters&>(result) = moe::detail::zeros_like(parameters);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      result.of_blocks.push_back(blocks_[i].gradients());
      result.blocks[i] = result.of_blocks.back();  // views: both names, one memory
    }
    return result;
  }

  /// tokens, targets (batch * length): fills tape.losses with each byte's loss in nats, and tape.logits with the
  /// gradient of their mean times `scale` (or, without targets, with the logits). tasks (batch): a number for each
  /// sequence, for routers and losses that read one.
  void forward(moe::Context<Space>& ctx, const Vector<const std::int32_t, Space>& tokens,
               const Vector<const std::int32_t, Space>& targets, Index batch, Index length, Tape& tape,
               double scale = 1, const Vector<const std::int32_t, Space>& tasks = {}) const {
    const Index hidden = parameters.embedding.extent(1), count = batch * length;
    tape.tokens = count;
    tape.bytes = tokens;
    tape.blocks.resize(blocks_.size());
    for (auto* view : {&tape.embedded, &tape.normed}) moe::detail::shape(*view, "activation", count, hidden);
    moe::detail::shape(tape.logits, "logits", count, vocabulary);
    moe::detail::shape(tape.inverse, "inverse", count);
    moe::detail::shape(tape.losses, "losses", count);
    moe::detail::shape(tape.sequences, "sequences", batch + 1);
    run(ctx, "sequences", batch + 1, SequenceOffsets<Space>{length, tape.sequences});
    run(ctx, "embed", count, Embed<T, Space>{tokens, parameters.embedding, tape.embedded});
    moe::Batch<T, Space> rows;
    rows.x = tape.embedded;
    rows.sequence_offsets = tape.sequences;
    rows.task_ids = tasks;
    for (std::size_t i = 0; i < blocks_.size(); ++i) rows.x = tape.last = blocks_[i].forward(ctx, rows, tape.blocks[i]);
    moe::detail::each_row(
        ctx.space, "norm", count,
        moe::detail::RmsNormRow<T, Space>{tape.last, {}, parameters.norm, Real(1e-6), {}, tape.normed, tape.inverse});
    moe::kernels::dense_forward<T, Space>(ctx.space, tape.normed, parameters.head, tape.logits);
    if (targets.data() != nullptr)
      run(ctx, "loss", count, CrossEntropy<T, Space>{tape.logits, targets, tape.losses, Real(scale / double(count))});
  }

  /// After a forward with targets and the same scale; adds into gradients, the layers' losses included. Arrays whose
  /// gradient is empty are frozen: none is computed.
  void backward(moe::Context<Space>& ctx, Tape& tape, Gradients& gradients, double scale = 1) const {
    const Index hidden = parameters.embedding.extent(1);
    typename moe::Context<Space>::Scratch scratch(ctx);
    auto dlast = scratch.template matrix<T>(tape.tokens, hidden);
    auto dnormed = scratch.template matrix<T>(tape.tokens, hidden);
    moe::kernels::dense_backward_rows<T, Space>(ctx.space, tape.logits, parameters.head, dnormed, false);
    moe::kernels::dense_backward_weight<T, Space>(ctx.space, tape.logits, tape.normed, gradients.head);
    moe::detail::rms_norm_backward<T>(ctx.space, moe::Matrix<const T, Space>(tape.last),
                                      moe::Matrix<const T, Space>(dnormed), parameters.norm, tape.inverse, dlast, false,
                                      gradients.norm);
    Matrix<T, Space> dx = dlast;
    for (std::size_t i = blocks_.size(); i-- > 0;)
      dx = blocks_[i].backward(ctx, moe::Matrix<const T, Space>(dx), tape.blocks[i], gradients.of_blocks[i], scale);
    if (gradients.embedding.data() == nullptr) return;
    auto sums = scratch.template matrix<Real>(vocabulary, hidden);
    moe::detail::fill(ctx.space, sums, Real(0));
    run(ctx, "embed", hidden, EmbedGradient<T, Space>{tape.bytes, dx, gradients.embedding, sums});
  }

 private:
  std::vector<Block> blocks_;
};

}  // namespace text
