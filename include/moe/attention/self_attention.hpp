#pragma once
/// @file
/// `SelfAttention`: dense causal attention with rotary positions and grouped queries, and the interface that the
/// mixtures of attention heads share.

#include <Kokkos_Profiling_ScopedRegion.hpp>

#include "moe/attention/detail/attend.hpp"
#include "moe/core/policy.hpp"
#include "moe/kernels/gemm.hpp"
#include "moe/layers/detail/layer.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of an attention layer.
struct AttentionConfig {
  Index hidden = 0;            ///< H
  Index heads = 1;             ///< of queries
  Index key_heads = 0;         ///< of keys and values, a divisor of heads; 0: as many
  Index head_width = 0;        ///< D; 0: hidden / heads
  double rotary_base = 10000;  ///< of rotary positions; 0: none
  std::uint32_t layer = 0;     ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;    ///< weights start as N(0, initial_scale^2 / fan_in)

  Index keys() const { return key_heads > 0 ? key_heads : heads; }
  Index width() const { return head_width > 0 ? head_width : hidden / heads; }

  /// Throws ConfigError for sizes that cannot work.
  void check(const char* who) const {
    detail::require<ConfigError>(hidden > 0 && heads > 0 && head_width >= 0 && key_heads >= 0, who, ": hidden ", hidden,
                                 ", heads ", heads, ", key_heads ", key_heads, ", head_width ", head_width,
                                 "; hidden and heads must be positive, the others not negative.");
    detail::require<ConfigError>(head_width > 0 || hidden % heads == 0, who, ": hidden ", hidden,
                                 " does not divide into ", heads, " heads. Choose another number, or set head_width.");
    detail::require<ConfigError>(heads % keys() == 0, who, ": ", heads, " heads cannot share ", keys(),
                                 " key heads alike. Choose a divisor of the heads.");
    detail::require<ConfigError>(width() <= kernels::most_head_width, who, ": heads are ", width(),
                                 " wide; they may have up to ", kernels::most_head_width, " columns.");
    detail::require<ConfigError>(rotary_base == 0 || (rotary_base > 1 && width() % 2 == 0), who, ": rotary_base ",
                                 rotary_base, " with heads of width ", width(),
                                 "; it must be 0, or above 1 with heads of even width.");
  }
};

/// y = concat_h(softmax(q_h k_h^T / sqrt(D)) v_h) W_o: each token sees itself and what came before it in its sequence
/// (Vaswani et al. 2017), with rotary positions (Su et al. 2021) and keys shared by neighbouring heads (Ainslie et al.
/// 2023) on request. Scores are never held as a whole (Dao et al. 2022). Policies: On<Space>, Precision<T>.
///
///     moe::SelfAttention<> attention(moe::AttentionConfig{.hidden = 64, .heads = 4}, moe::Seed{1});
///     auto y = attention.forward(ctx, batch, tape);               // (T, H)
///     auto dx = attention.backward(ctx, dy, tape, gradients);     // adds into gradients
///     auto cache = attention.cache(sequences, capacity);
///     auto next = attention.forward(ctx, new_tokens, cache);      // token by token
///
/// Sequences are Batch::sequence_offsets, positions Batch::positions (else counted). Padding is seen by no one.
template <class... Policies>
class SelfAttention {
 public:
  using Config = AttentionConfig;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Cache = KeyValueCache<Scalar, Space>;
  using Buffers = NoParameters;
  static_assert(((detail::is_kind<Policies, kind::space, kind::precision>)&&...),
                "moe::SelfAttention: its arguments are On<Space> and Precision<...>.");

  struct Parameters {
    Matrix<Scalar, Space> qkv;     ///< ((heads + 2 key_heads) D, H): queries, keys, values
    Matrix<Scalar, Space> output;  ///< (H, heads D)
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("qkv_proj", same.qkv...);
      f("o_proj", same.output...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };
  struct Tape {
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    Matrix<Scalar, Space> qkv;    ///< (T, (heads + 2 key_heads) D), turned
    Matrix<Scalar, Space> mixed;  ///< (T, heads D)
    detail::AttentionSaved<Scalar, Space> attention;
    Matrix<Scalar, Space> y, dx;
    double loss() const { return 0; }
  };

  Parameters parameters;
  Buffers buffers;

  explicit SelfAttention(const Config& config, Seed seed = {}) : config_(config) {
    config.check("moe::SelfAttention");
    const Index columns = (config.heads + 2 * config.keys()) * config.width();
    parameters.qkv = {"moe::qkv_proj", std::size_t(columns), std::size_t(config.hidden)};
    parameters.output = {"moe::o_proj", std::size_t(config.hidden), std::size_t(config.heads * config.width())};
    detail::initialise_layer<Space>(parameters, seed, config.layer, config.initial_scale, "attention.");
  }

  SelfAttention(const SelfAttention&) = delete;
  SelfAttention& operator=(const SelfAttention&) = delete;
  SelfAttention(SelfAttention&&) = default;
  SelfAttention& operator=(SelfAttention&&) = default;

  const Config& config() const { return config_; }
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }
  /// For `sequences` sequences of up to `capacity` tokens each.
  Cache cache(Index sequences, Index capacity) const {
    return Cache(sequences, capacity, config_.keys() * config_.width());
  }

  /// y (T, H). Throws ShapeError where the batch does not fit.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    run(ctx, batch, tape, nullptr);
    tape.owner = id_;
    return tape.y;
  }
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }
  /// The same behind the tokens that the cache holds, which then holds these, too.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Cache& cache) const {
    Tape& tape = ctx.template kept<Tape>(id_);
    run(ctx, batch, tape, &cache);
    return tape.y;
  }

  /// dx (T, H) for dy (T, H), the tape's; adds into gradients.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double = 1) const {
    using M = Matrix<const Scalar, Space>;
    const Kokkos::Profiling::ScopedRegion stage("moe::attention");
    detail::check_backward("moe::SelfAttention", id_, tape.owner, gradients.owner, dy, tape.batch.tokens(),
                           config_.hidden);
    detail::check_seen(ctx.space, "moe::SelfAttention::backward", tape.dx, tape.batch.tokens());
    typename Context<Space>::Scratch scratch(ctx);
    auto dqkv = scratch.template matrix<Scalar>(tape.qkv.extent(0), tape.qkv.extent(1));
    auto dmixed = scratch.template matrix<Scalar>(tape.mixed.extent(0), tape.mixed.extent(1));
    detail::shape(tape.dx, "moe::dx", tape.batch.tokens(), config_.hidden);
    kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, dy, M(parameters.output), dmixed, false);
    kernels::dense_backward_weight<Scalar, Space, false>(ctx.space, dy, M(tape.mixed), gradients.output);
    const auto from = heads(tape.qkv), to = heads(dqkv);
    detail::attend_backward(ctx, settings(), detail::constant(from.q), detail::constant(from.k),
                            detail::constant(from.v), detail::constant(mixed(tape.mixed)), tape.attention,
                            detail::constant(mixed(dmixed)), to.q, to.k, to.v);
    kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, M(dqkv), M(parameters.qkv), tape.dx, false);
    kernels::dense_backward_weight<Scalar, Space, false>(ctx.space, M(dqkv), tape.batch.x, gradients.qkv);
    return tape.dx;
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  struct Heads {
    detail::HeadRows<Scalar> q, k, v;
  };
  Heads heads(const Matrix<Scalar, Space>& qkv) const {
    const Index columns = qkv.extent(1), width = config_.width(), q = config_.heads, k = config_.keys();
    return {{qkv.data(), columns, q}, {qkv.data() + q * width, columns, k}, {qkv.data() + (q + k) * width, columns, k}};
  }
  detail::HeadRows<Scalar> mixed(const Matrix<Scalar, Space>& rows) const {
    return {rows.data(), Index(rows.extent(1)), config_.heads};
  }
  detail::AttentionSettings settings() const { return {config_.width(), config_.rotary_base, false}; }

  void run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape, Cache* cache) const {
    using M = Matrix<const Scalar, Space>;
    const Kokkos::Profiling::ScopedRegion stage("moe::attention");
    const Index tokens = batch.tokens();
    detail::check_tokens("moe::SelfAttention", batch, config_.hidden);
    detail::check_seen(ctx.space, "moe::SelfAttention::forward", tape.y, tokens);
    tape.batch = batch;
    detail::shape(tape.qkv, "moe::qkv", tokens, Index(parameters.qkv.extent(0)));
    detail::shape(tape.mixed, "moe::mixed", tokens, config_.heads * config_.width());
    detail::shape(tape.y, "moe::y", tokens, config_.hidden);
    kernels::dense_forward<Scalar, Space, false>(ctx.space, batch.x, M(parameters.qkv), tape.qkv);
    const auto from = heads(tape.qkv);
    detail::attend(ctx, settings(), batch, from.q, from.k, from.v, mixed(tape.mixed), tape.attention, cache);
    kernels::dense_forward<Scalar, Space, false>(ctx.space, M(tape.mixed), M(parameters.output), tape.y);
  }

  Config config_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END
