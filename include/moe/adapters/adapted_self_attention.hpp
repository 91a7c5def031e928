#pragma once
/// @file
/// `AdaptedSelfAttention`: frozen self-attention with a mixture of adapters on each projection.

#include "moe/adapters/adapted_linear.hpp"
#include "moe/attention/self_attention.hpp"
#include "moe/layers/block.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of adapted self-attention.
struct AdaptedAttentionConfig {
  Index hidden = 0;            ///< H
  Index heads = 1;             ///< of queries
  Index key_heads = 0;         ///< of keys and values, a divisor of heads; 0: as many
  Index head_width = 0;        ///< D; 0: hidden / heads
  double rotary_base = 10000;  ///< of rotary positions; 0: none
  Index experts = 1;           ///< E, adapters of each projection
  Index rank = 8;              ///< r, of one adapter
  double alpha = 16;           ///< of the scaling
  Index router_hidden = 0;     ///< width of Batch::router_input, where it is not what the router reads without it
  std::uint32_t layer = 0;     ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;    ///< weights start as N(0, initial_scale^2 / fan_in)

  AttentionConfig attention() const {
    return {hidden, heads, key_heads, head_width, rotary_base, layer, initial_scale};
  }
};

/// The projections of SelfAttention, in its layout, not trained. Shared: views of arrays that live elsewhere.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct FrozenAttention {
  Matrix<const T, Space> qkv;     ///< ((heads + 2 key_heads) D, H): queries, keys, values
  Matrix<const T, Space> output;  ///< (H, heads D)
};

/// SelfAttention whose projections q, k, v and o are each an AdaptedLinear<Policies...> over the frozen ones: with the
/// default policies a LoRA on each (MixLoRA's attention), with others mixtures (MoLA, X-LoRA). It is a LayerBlock with
/// a cache.
///
///     moe::AdaptedSelfAttention<> attention({.hidden = 64, .heads = 4, .rank = 8},
///                                           moe::FrozenAttention<float>{dense.parameters.qkv,
///                                           dense.parameters.output});
template <class... Policies>
class AdaptedSelfAttention {
 public:
  using Linear = AdaptedLinear<Policies...>;
  using Config = AdaptedAttentionConfig;
  using Space = typename Linear::Space;
  using Scalar = typename Linear::Scalar;
  using Cache = KeyValueCache<Scalar, Space>;
  using Base = FrozenAttention<Scalar, Space>;

  /// "q.router.*", "q.adapters.*", and the same of k, v and o.
  struct Parameters {
    typename Linear::Parameters q, k, v, o;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(q)::visit(detail::Prefixed{f, "q."}, same.q...);
      decltype(k)::visit(detail::Prefixed{f, "k."}, same.k...);
      decltype(v)::visit(detail::Prefixed{f, "v."}, same.v...);
      decltype(o)::visit(detail::Prefixed{f, "o."}, same.o...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
    typename Linear::Gradients of_q, of_k, of_v, of_o;  ///< the same arrays
  };
  struct Buffers {
    typename Linear::Buffers q, k, v, o;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(q)::visit(detail::Prefixed{f, "q."}, same.q...);
      decltype(k)::visit(detail::Prefixed{f, "k."}, same.k...);
      decltype(v)::visit(detail::Prefixed{f, "v."}, same.v...);
      decltype(o)::visit(detail::Prefixed{f, "o."}, same.o...);
    }
  };
  struct Tape {
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    typename Linear::Tape q, k, v, o;  ///< y of the first two is turned
    Matrix<Scalar, Space> mixed;       ///< (T, heads D)
    detail::AttentionSaved<Scalar, Space> attention;
    Matrix<Scalar, Space> dx;
    Matrix<Scalar, Space> drouter_input;  ///< where the batch gave the routers an input of their own
    /// The sum of all losses, coefficients included. Waits for the device.
    double loss() const { return q.loss() + k.loss() + v.loss() + o.loss(); }
  };

  Parameters parameters;
  Buffers buffers;
  Base base;

  /// `values`: a FrozenAttention, or what AdaptedLinear takes, for all projections alike. The frozen projections may
  /// also be given later, as `base`.
  template <class... Values>
  explicit AdaptedSelfAttention(const Config& config, const Values&... values)
      : config_(config),
        q_(of(config, 0, config.hidden, columns(config)), linear_value(values)...),
        k_(of(config, 1, config.hidden, key_columns(config)), linear_value(values)...),
        v_(of(config, 2, config.hidden, key_columns(config)), linear_value(values)...),
        o_(of(config, 3, columns(config), config.hidden), linear_value(values)...) {
    config.attention().check("moe::AdaptedSelfAttention");
    (take(values), ...);
    parameters = {q_.parameters, k_.parameters, v_.parameters, o_.parameters};
    buffers = {q_.buffers, k_.buffers, v_.buffers, o_.buffers};
  }
  AdaptedSelfAttention(const AdaptedSelfAttention&) = delete;
  AdaptedSelfAttention& operator=(const AdaptedSelfAttention&) = delete;
  AdaptedSelfAttention(AdaptedSelfAttention&&) = default;
  AdaptedSelfAttention& operator=(AdaptedSelfAttention&&) = default;

  const Config& config() const { return config_; }
  /// The projections, to move a balancing bias, or to assign arrays; their arrays are this layer's.
  Linear& q() { return q_; }
  Linear& k() { return k_; }
  Linear& v() { return v_; }
  Linear& o() { return o_; }
  Gradients gradients() const {
    Gradients result;
    result.owner = id_;
    result.q = result.of_q = q_.gradients();
    result.k = result.of_k = k_.gradients();
    result.v = result.of_v = v_.gradients();
    result.o = result.of_o = o_.gradients();
    return result;
  }
  /// For `sequences` sequences of up to `capacity` tokens each.
  Cache cache(Index sequences, Index capacity) const { return Cache(sequences, capacity, key_columns(config_)); }

  /// y (T, H) for x (T, H); y is the tape's. Throws as AdaptedLinear and SelfAttention do.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    const auto y = run(ctx, batch, tape, nullptr);
    tape.owner = id_;
    return y;
  }
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }
  /// The same behind the tokens that the cache holds, which then holds these, too.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Cache& cache) const {
    return run(ctx, batch, ctx.template kept<Tape>(id_), &cache);
  }

  /// dx (T, H) for dy (T, H), the tape's; adds into gradients, losses included.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const {
    using M = Matrix<const Scalar, Space>;
    const Index tokens = tape.batch.tokens();
    detail::check_backward("moe::AdaptedSelfAttention", id_, tape.owner, gradients.owner, dy, tokens, config_.hidden);
    typename Context<Space>::Scratch scratch(ctx);
    auto dq = scratch.template matrix<Scalar>(tokens, columns(config_)),
         dk = scratch.template matrix<Scalar>(tokens, key_columns(config_)),
         dv = scratch.template matrix<Scalar>(tokens, key_columns(config_));
    const auto dmixed = o_.backward(ctx, dy, tape.o, gradients.of_o, loss_scale, frozen_output());
    detail::attend_backward(ctx, settings(), detail::constant(heads(tape.q.y)), detail::constant(heads(tape.k.y)),
                            detail::constant(heads(tape.v.y)), detail::constant(heads(tape.mixed)), tape.attention,
                            detail::constant(heads(dmixed)), heads(dq), heads(dk), heads(dv));
    const auto from_q = q_.backward(ctx, M(dq), tape.q, gradients.of_q, loss_scale, frozen(0));
    const auto from_k = k_.backward(ctx, M(dk), tape.k, gradients.of_k, loss_scale, frozen(1));
    const auto from_v = v_.backward(ctx, M(dv), tape.v, gradients.of_v, loss_scale, frozen(2));
    sum(ctx, from_q, from_k, tape.dx);
    sum(ctx, tape.dx, from_v, tape.dx);
    if (tape.batch.router_input.is_allocated()) {
      sum(ctx, tape.q.drouter_input, tape.k.drouter_input, tape.drouter_input);
      sum(ctx, tape.drouter_input, tape.v.drouter_input, tape.drouter_input);
      sum(ctx, tape.drouter_input, tape.o.drouter_input, tape.drouter_input);
    }
    return tape.dx;
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  using FrozenMap = FrozenLinear<Scalar, Space>;

  static Index columns(const Config& config) { return config.heads * config.attention().width(); }
  static Index key_columns(const Config& config) { return config.attention().keys() * config.attention().width(); }
  static AdaptedLinearConfig of(const Config& config, std::uint32_t projection, Index in, Index out) {
    return {
        .in = in,
        .out = out,
        .experts = config.experts,
        .rank = config.rank,
        .alpha = config.alpha,
        .router_hidden = config.router_hidden,
        .layer = (config.layer * 4 + projection) ^ 0x200000u,  // a feed-forward layer of the same number draws others
        .initial_scale = config.initial_scale};
  }
  template <class V>
  static auto linear_value(const V& value) {
    if constexpr (std::is_same_v<V, Base>) {
      return detail::NoValue{};  // not the projections'
    } else {
      return value;
    }
  }
  template <class V>
  void take(const V& value) {
    if constexpr (std::is_same_v<V, Base>) base = value;
  }
  /// The frozen queries, keys or values.
  FrozenMap frozen(int part) const {
    const Index q = columns(config_), k = key_columns(config_), first = part == 0 ? 0 : q + (part - 1) * k;
    return {{base.qkv.data() + first * config_.hidden, std::size_t(part == 0 ? q : k), std::size_t(config_.hidden)},
            {}};
  }
  FrozenMap frozen_output() const { return {base.output, {}}; }
  detail::HeadRows<Scalar> heads(const Matrix<Scalar, Space>& rows) const {
    return {rows.data(), Index(rows.extent(1)), Index(rows.extent(1)) / config_.attention().width()};
  }
  detail::AttentionSettings settings() const { return {config_.attention().width(), config_.rotary_base, false}; }
  static void sum(Context<Space>& ctx, const Matrix<const Scalar, Space>& a, const Matrix<const Scalar, Space>& b,
                  Matrix<Scalar, Space>& to) {
    detail::shape(to, "moe::sum", a.extent(0), a.extent(1));
    detail::add_rows<Scalar>(ctx.space, "moe::AdaptedSelfAttention::sum", a, b, to);
  }

  Matrix<Scalar, Space> run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape, Cache* cache) const {
    detail::check_tokens("moe::AdaptedSelfAttention", batch, config_.hidden);
    detail::check_frozen<Scalar, Space>("moe::AdaptedSelfAttention", base.qkv,
                                        columns(config_) + 2 * key_columns(config_), config_.hidden);
    detail::check_frozen<Scalar, Space>("moe::AdaptedSelfAttention", base.output, config_.hidden, columns(config_));
    tape.batch = batch;
    q_.forward(ctx, batch, tape.q, frozen(0));
    k_.forward(ctx, batch, tape.k, frozen(1));
    v_.forward(ctx, batch, tape.v, frozen(2));
    detail::shape(tape.mixed, "moe::mixed", batch.tokens(), columns(config_));
    detail::attend(ctx, settings(), batch, heads(tape.q.y), heads(tape.k.y), heads(tape.v.y), heads(tape.mixed),
                   tape.attention, cache);
    Batch<Scalar, Space> inner = batch;
    inner.x = tape.mixed;
    return o_.forward(ctx, inner, tape.o, frozen_output());
  }

  Config config_;
  Linear q_, k_, v_, o_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END
