#pragma once
/// @file
/// `TransformerBlock`: attention and a feed-forward layer, each behind an RMSNorm.

#include "moe/layers/block.hpp"
#include "moe/layers/detail/rms_norm.hpp"

MOE_NAMESPACE_BEGIN

/// What a pre-norm block adds to its input (Xiong et al. 2020): with a = attention(norm(x)) and
/// m = feed_forward(norm(x + a)), forward gives a + m, and not x + a + m: so that `Residual` or `MixtureOfDepths` may
/// say what becomes of x. `Attention` is SelfAttention or a mixture of heads, `FeedForward` a MoELayer, with one expert
/// where it is dense.
///
///     using Block = moe::TransformerBlock<moe::SelfAttention<>, moe::MixtralLayer<>>;
///     Block block({.attention = {.hidden = 64, .heads = 4},
///                  .feed_forward = {.hidden = 64, .intermediate = 128, .experts = 8}}, moe::Seed{1});
template <class AttentionLayer, class FeedForwardLayer>
class TransformerBlock {
 public:
  using Attention = AttentionLayer;
  using FeedForward = FeedForwardLayer;
  using Scalar = typename Attention::Scalar;
  using Space = typename Attention::Space;
  using Real = RouterReal<Scalar>;
  static_assert(std::is_same_v<Scalar, typename FeedForward::Scalar> &&
                    std::is_same_v<Space, typename FeedForward::Space>,
                "moe::TransformerBlock: attention and feed-forward layer need the same Precision<T> and On<Space>.");

  struct Config {
    typename Attention::Config attention{};
    typename FeedForward::Config feed_forward{};
    double epsilon = 1e-6;  ///< of the norms
    Index hidden = 0;       ///< H, that of both; 0: theirs
  };

  /// "attention_norm", "attention.*", "feed_forward_norm", "feed_forward.*".
  struct Parameters {
    Vector<Scalar, Space> attention_norm, feed_forward_norm;  ///< (H), 1 at the start
    typename Attention::Parameters attention;
    typename FeedForward::Parameters feed_forward;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("attention_norm", same.attention_norm...);
      decltype(attention)::visit(detail::Prefixed{f, "attention."}, same.attention...);
      f("feed_forward_norm", same.feed_forward_norm...);
      decltype(feed_forward)::visit(detail::Prefixed{f, "feed_forward."}, same.feed_forward...);
    }
  };
  struct Buffers {
    typename Attention::Buffers attention;
    typename FeedForward::Buffers feed_forward;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(attention)::visit(detail::Prefixed{f, "attention."}, same.attention...);
      decltype(feed_forward)::visit(detail::Prefixed{f, "feed_forward."}, same.feed_forward...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
    typename Attention::Gradients of_attention;       ///< the same arrays
    typename FeedForward::Gradients of_feed_forward;  ///< the same arrays
  };
  struct Tape {
    Tape() = default;
    Tape(Tape&&) = default;
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    Matrix<Scalar, Space> normed, middle, middle_normed;  ///< (T, H) norm(x), x + a, norm(x + a)
    Vector<Real, Space> inverse, middle_inverse;          ///< (T) 1 / rms
    typename Attention::Tape attention;
    typename FeedForward::Tape feed_forward;
    Matrix<Scalar, Space> y, dx;
    /// The sum of both layers' losses. Waits for the device.
    double loss() const { return attention.loss() + feed_forward.loss(); }
  };
  /// The attention layer's, where it has one: keys and values of the tokens before.
  using Cache = typename detail::CacheOf<Attention>::type;

  Parameters parameters;  ///< the layers' arrays, and the norms
  Buffers buffers;        ///< the layers'

  explicit TransformerBlock(const Config& config, Seed seed = {})
      : TransformerBlock(Attention(config.attention, seed), FeedForward(config.feed_forward, seed), config.epsilon) {
    detail::require<ConfigError>(config.hidden == 0 || config.hidden == config_.hidden,
                                 "moe::TransformerBlock: hidden ", config.hidden, " around layers of hidden ",
                                 config_.hidden, ". Leave it out, or give the same number.");
  }
  /// Of layers made elsewhere, whose policies have values of their own. Throws ConfigError where hidden differs.
  TransformerBlock(Attention attention, FeedForward feed_forward, double epsilon = 1e-6)
      : config_{attention.config(), feed_forward.config(), epsilon, attention.config().hidden},
        attention_(std::move(attention)),
        feed_forward_(std::move(feed_forward)) {
    const Index hidden = config_.hidden;
    detail::require<ConfigError>(hidden == config_.feed_forward.hidden, "moe::TransformerBlock: attention of hidden ",
                                 hidden, " with a feed-forward layer of hidden ", config_.feed_forward.hidden, ".");
    parameters = {Vector<Scalar, Space>("moe::attention_norm", hidden),
                  Vector<Scalar, Space>("moe::feed_forward_norm", hidden), attention_.parameters,
                  feed_forward_.parameters};
    Kokkos::deep_copy(parameters.attention_norm, Scalar(1));
    Kokkos::deep_copy(parameters.feed_forward_norm, Scalar(1));
    buffers = {attention_.buffers, feed_forward_.buffers};
  }
  TransformerBlock(const TransformerBlock&) = delete;
  TransformerBlock& operator=(const TransformerBlock&) = delete;
  TransformerBlock(TransformerBlock&&) = default;
  TransformerBlock& operator=(TransformerBlock&&) = default;

  const Config& config() const { return config_; }
  Attention& attention() { return attention_; }
  const Attention& attention() const { return attention_; }
  FeedForward& feed_forward() { return feed_forward_; }
  const FeedForward& feed_forward() const { return feed_forward_; }

  Gradients gradients() const {
    Gradients result;
    static_cast<Parameters&>(result) = detail::zeros_like(parameters);
    result.owner = id_;
    result.of_attention = attention_.gradients();
    result.of_feed_forward = feed_forward_.gradients();
    result.attention = result.of_attention;
    result.feed_forward = result.of_feed_forward;
    return result;
  }
  Cache cache(Index sequences, Index capacity) const requires CachedBlock<Attention> {
    return attention_.cache(sequences, capacity);
  }

  /// a + m (T, H), the tape's.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    run(ctx, batch, tape,
        [&](const Batch<Scalar, Space>& rows) { return attention_.forward(ctx, rows, tape.attention); });
    tape.owner = id_;
    return tape.y;
  }
  /// Inference: y is the context's until this block's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }
  /// The same behind the tokens that the cache holds, which then holds these, too.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                Cache& cache) const requires CachedBlock<Attention> {
    Tape& tape = ctx.template kept<Tape>(id_);
    run(ctx, batch, tape, [&](const Batch<Scalar, Space>& rows) { return attention_.forward(ctx, rows, cache); });
    return tape.y;
  }

  /// dx (T, H) for the gradient of a + m, the tape's; adds into gradients.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const {
    using M = Matrix<const Scalar, Space>;
    const Index tokens = tape.batch.tokens(), hidden = config_.hidden;
    detail::check_backward("moe::TransformerBlock", id_, tape.owner, gradients.owner, dy, tokens, hidden);
    detail::check_seen(ctx.space, "moe::TransformerBlock::backward", tape.dx, tokens);
    typename Context<Space>::Scratch scratch(ctx);
    auto dmiddle = scratch.template matrix<Scalar>(tokens, hidden),
         da = scratch.template matrix<Scalar>(tokens, hidden);
    detail::shape(tape.dx, "moe::dx", tokens, hidden);
    const auto dm = feed_forward_.backward(ctx, dy, tape.feed_forward, gradients.of_feed_forward, loss_scale);
    detail::rms_norm_backward<Scalar>(ctx.space, M(tape.middle), M(dm), parameters.feed_forward_norm,
                                      tape.middle_inverse, dmiddle, false, gradients.feed_forward_norm);
    detail::add_rows<Scalar>(ctx.space, "moe::TransformerBlock", dy, M(dmiddle), da);
    const auto dnormed = attention_.backward(ctx, M(da), tape.attention, gradients.of_attention, loss_scale);
    if (tokens > 0) Kokkos::deep_copy(ctx.space, tape.dx, dmiddle);
    detail::rms_norm_backward<Scalar>(ctx.space, tape.batch.x, M(dnormed), parameters.attention_norm, tape.inverse,
                                      tape.dx, true, gradients.attention_norm);
    return tape.dx;
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  template <class Attend>
  void run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape, const Attend& attend) const {
    using M = Matrix<const Scalar, Space>;
    using Norm = detail::RmsNormRow<Scalar, Space>;
    const Index tokens = batch.tokens();
    detail::check_tokens("moe::TransformerBlock", batch, config_.hidden);
    detail::check_seen(ctx.space, "moe::TransformerBlock::forward", tape.y, tokens);
    tape.batch = batch;
    for (auto* view : {&tape.normed, &tape.middle, &tape.middle_normed, &tape.y})
      detail::shape(*view, "moe::block", tokens, config_.hidden);
    for (auto* view : {&tape.inverse, &tape.middle_inverse}) detail::shape(*view, "moe::inverse", tokens);
    const Real epsilon = Real(config_.epsilon);
    Batch<Scalar, Space> rows = batch;
    detail::each_row(ctx.space, "moe::rms_norm", tokens,
                     Norm{batch.x, {}, parameters.attention_norm, epsilon, {}, tape.normed, tape.inverse});
    rows.x = tape.normed;
    const auto a = attend(rows);
    detail::each_row(ctx.space, "moe::rms_norm", tokens,
                     Norm{batch.x, M(a), parameters.feed_forward_norm, epsilon, tape.middle, tape.middle_normed,
                          tape.middle_inverse});
    rows.x = tape.middle_normed;
    const auto m = feed_forward_.forward(ctx, rows, tape.feed_forward);
    detail::add_rows<Scalar>(ctx.space, "moe::TransformerBlock", M(a), M(m), tape.y);
  }

  Config config_;
  Attention attention_;
  FeedForward feed_forward_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END
