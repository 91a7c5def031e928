#pragma once
/// @file
/// A decoder-only byte-level transformer: attention and a mixture of experts in each block, RMSNorm before both.

#include <string>
#include <vector>

#include "attention.hpp"
#include "stages.hpp"

namespace text {

inline constexpr Index vocabulary = 256;  // bytes

/// `Layer` is any moe::MoELayer; a dense model is a mixture of one expert.
template <class Layer>
class Transformer {
 public:
  using T = typename Layer::Scalar;
  using Space = typename Layer::Space;
  using Real = moe::RouterReal<T>;
  using SelfAttention = Attention<T, Space>;

  struct Parameters {
    struct Block {
      Vector<T, Space> norm1, norm2;  // (H)
      typename SelfAttention::Parameters attention;
      typename Layer::Parameters moe;
    };
    Matrix<T, Space> embedding, head;  // (256, H)
    Vector<T, Space> norm;             // (H)
    std::vector<Block> blocks;

    template <class F, class First, class... Same>
    static void visit(F&& f, First& first, Same&... same) {
      f("embedding", first.embedding, same.embedding...);
      for (std::size_t i = 0; i < first.blocks.size(); ++i) {
        const std::string prefix = "blocks." + std::to_string(i) + ".";
        f(prefix + "norm1", first.blocks[i].norm1, same.blocks[i].norm1...);
        f(prefix + "norm2", first.blocks[i].norm2, same.blocks[i].norm2...);
        auto named = [&](std::string_view name, auto&... views) { f(prefix + std::string(name), views...); };
        SelfAttention::Parameters::visit(named, first.blocks[i].attention, same.blocks[i].attention...);
        Layer::Parameters::visit(named, first.blocks[i].moe, same.blocks[i].moe...);
      }
      f("norm", first.norm, same.norm...);
      f("head", first.head, same.head...);
    }
  };

  /// Gradients: the same arrays, and for each MoE layer its own aggregate, which shares them.
  struct Gradients : Parameters {
    std::vector<typename Layer::Gradients> moe;
  };

  /// The balancing biases, by reference to the layers'.
  struct Buffers {
    std::vector<typename Layer::Buffers> blocks;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      std::size_t i = 0;
      auto one = [&](auto&... buffers) {
        const std::string prefix = "blocks." + std::to_string(i++) + ".";
        auto named = [&](std::string_view name, auto&... views) { f(prefix + std::string(name), views...); };
        Layer::Buffers::visit(named, buffers...);
      };
      static_assert(sizeof...(Same) == 1);
      (..., [&] {
        for (auto& block : same.blocks) one(block);
      }());
    }
  };

  /// What one forward pass leaves.
  struct Tape {
    struct Block {
      Matrix<T, Space> x, normed1, attended, middle, normed2;
      Vector<Real, Space> inverse1, inverse2;
      typename SelfAttention::Saved attention;
      typename Layer::Tape moe;
    };
    Shape shape;
    Vector<const std::int32_t, Space> tokens;
    Vector<Index, Space> sequences;  // (batch + 1) first tokens
    std::vector<Block> blocks;
    Matrix<T, Space> last, normed, logits;
    Vector<Real, Space> inverse;
    Vector<double, Space> losses;  // (T)
  };

  /// `make_layer(number)` builds the MoE layer of each block.
  template <class MakeLayer>
  Transformer(Index hidden, Index layers, Index heads, moe::Seed seed, const MakeLayer& make_layer) : heads_(heads) {
    moe::detail::require<moe::ConfigError>(heads > 0 && hidden % (2 * heads) == 0, "train_text: hidden ", hidden,
                                           " does not divide into ", heads, " heads of even width.");
    auto matrix = [](Index rows, Index columns) { return Matrix<T, Space>("parameter", rows, columns); };
    auto ones = [&] {
      Vector<T, Space> weight("norm", hidden);
      Kokkos::deep_copy(weight, T(1));
      return weight;
    };
    parameters.embedding = matrix(vocabulary, hidden);
    parameters.head = matrix(vocabulary, hidden);
    parameters.norm = ones();
    for (Index i = 0; i < layers; ++i) {
      layers_.push_back(make_layer(i));
      parameters.blocks.push_back({ones(), ones(), SelfAttention::parameters(hidden), layers_.back().parameters});
      buffers.blocks.push_back(layers_.back().buffers);
    }
    const Space space{};
    auto draw = [&](std::string_view name, auto& view) {
      const bool ours = name.find("norm") == std::string_view::npos && name.find("router") == std::string_view::npos &&
                        name.find("experts") == std::string_view::npos;
      if (ours) moe::detail::initialise(space, name, view, seed, 1.0);
    };
    Parameters::visit(draw, parameters);
  }

  Parameters parameters;
  Buffers buffers;

  std::vector<Layer>& layers() { return layers_; }

  Gradients gradients() const {
    Gradients result;
    static_cast<Parameters&>(result) = moe::detail::zeros_like(parameters);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      result.moe.push_back(layers_[i].gradients());
      result.blocks[i].moe = result.moe.back();  // views: both names, one memory
    }
    return result;
  }

  /// tokens, targets (batch * length): fills tape.losses with each byte's loss in nats, and tape.logits with the
  /// gradient of their mean times `scale` (or, without targets, with the logits).
  void forward(moe::Context<Space>& ctx, const Vector<const std::int32_t, Space>& tokens,
               const Vector<const std::int32_t, Space>& targets, Index batch, Index length, Tape& tape,
               double scale = 1) const {
    const Index hidden = parameters.embedding.extent(1), count = batch * length;
    tape.shape = {batch, length, heads_, hidden / heads_};
    tape.tokens = tokens;
    tape.blocks.resize(layers_.size());
    auto reshape = [&](auto& view, Index width) { moe::detail::shape(view, "activation", count, width); };
    reshape(tape.last, hidden);
    reshape(tape.normed, hidden);
    reshape(tape.logits, vocabulary);
    moe::detail::shape(tape.inverse, "inverse", count);
    moe::detail::shape(tape.losses, "losses", count);
    moe::detail::shape(tape.sequences, "sequences", batch + 1);
    run(ctx, "sequences", batch + 1, GroupOffsets<Space>{length, tape.sequences});
    for (auto& block : tape.blocks) {
      for (auto* view : {&block.x, &block.normed1, &block.attended, &block.middle, &block.normed2})
        reshape(*view, hidden);
      moe::detail::shape(block.inverse1, "inverse", count);
      moe::detail::shape(block.inverse2, "inverse", count);
    }

    run(ctx, "embed", count,
        Embed<T, Space>{tokens, parameters.embedding, tape.blocks.empty() ? tape.last : tape.blocks[0].x});
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      auto& s = tape.blocks[i];
      const auto& p = parameters.blocks[i];
      const Matrix<T, Space>& next = i + 1 < layers_.size() ? tape.blocks[i + 1].x : tape.last;
      run(ctx, "norm", count, RmsNorm<T, Space>{s.x, p.norm1, s.normed1, s.inverse1});
      {
        const Stage stage("attention");
        SelfAttention::forward(ctx, tape.shape, s.normed1, p.attention, s.attended, s.attention);
      }
      run(ctx, "add", Index(s.x.size()), Add<T>{s.x.data(), s.attended.data(), s.middle.data()});
      run(ctx, "norm", count, RmsNorm<T, Space>{s.middle, p.norm2, s.normed2, s.inverse2});
      moe::Batch<T, Space> rows;
      rows.x = s.normed2;
      rows.sequence_offsets = tape.sequences;
      const auto y = layers_[i].forward(ctx, rows, s.moe);
      run(ctx, "add", Index(y.size()), Add<T>{s.middle.data(), y.data(), next.data()});
    }
    run(ctx, "norm", count, RmsNorm<T, Space>{tape.last, parameters.norm, tape.normed, tape.inverse});
    moe::kernels::dense_forward<T, Space>(ctx.space, tape.normed, parameters.head, tape.logits);
    if (targets.data() != nullptr)
      run(ctx, "loss", count, CrossEntropy<T, Space>{tape.logits, targets, tape.losses, Real(scale / double(count))});
  }

  /// After a forward with targets and the same scale; adds into gradients, the MoE layers' losses included.
  void backward(moe::Context<Space>& ctx, Tape& tape, Gradients& gradients, double scale = 1) const {
    const Index hidden = parameters.embedding.extent(1), count = tape.shape.tokens();
    typename moe::Context<Space>::Scratch scratch(ctx);
    auto dx = scratch.template matrix<T>(count, hidden), dnormed = scratch.template matrix<T>(count, hidden);
    moe::detail::fill(ctx.space, dx, T(0));
    moe::kernels::dense_backward_rows<T, Space>(ctx.space, tape.logits, parameters.head, dnormed, false);
    moe::kernels::dense_backward_weight<T, Space>(ctx.space, tape.logits, tape.normed, gradients.head);
    pull_norm(ctx, tape.last, dnormed, parameters.norm, tape.inverse, dx, gradients.norm);
    for (std::size_t i = layers_.size(); i-- > 0;) {
      auto& s = tape.blocks[i];
      auto& g = gradients.blocks[i];
      const auto& p = parameters.blocks[i];
      const auto dmoe = layers_[i].backward(ctx, dx, s.moe, gradients.moe[i], scale);
      pull_norm(ctx, s.middle, dmoe, p.norm2, s.inverse2, dx, g.norm2);
      {
        const Stage stage("attention");
        SelfAttention::backward(ctx, dx, s.normed1, p.attention, s.attention, dnormed, g.attention);
      }
      pull_norm(ctx, s.x, dnormed, p.norm1, s.inverse1, dx, g.norm1);
    }
    auto sums = scratch.template matrix<Real>(vocabulary, hidden);
    moe::detail::fill(ctx.space, sums, Real(0));
    run(ctx, "embed", hidden, EmbedGradient<T, Space>{tape.tokens, dx, gradients.embedding, sums});
  }

 private:
  static void pull_norm(moe::Context<Space>& ctx, const Matrix<T, Space>& x, const Matrix<T, Space>& dy,
                        const Vector<T, Space>& weight, const Vector<Real, Space>& inverse, const Matrix<T, Space>& dx,
                        const Vector<T, Space>& gradient) {
    run(ctx, "norm", Index(x.extent(0)), RmsNormGradient<T, Space>{x, dy, weight, inverse, dx});
    run(ctx, "norm", Index(x.extent(1)), RmsNormWeightGradient<T, Space>{x, dy, inverse, gradient});
  }

  Index heads_;
  std::vector<Layer> layers_;
};

}  // namespace text
