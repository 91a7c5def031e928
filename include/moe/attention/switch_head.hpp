#pragma once
/// @file
/// `SwitchHead`: a few attention heads, each with experts of its own for values and for outputs.

#include "moe/attention/detail/head_routing.hpp"
#include "moe/attention/detail/slots.hpp"
#include "moe/attention/self_attention.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of a SwitchHead layer.
struct SwitchHeadConfig {
  Index hidden = 0;            ///< H
  Index heads = 1;             ///< of queries, keys and values
  Index experts = 0;           ///< E, of each head
  Index head_width = 0;        ///< D; 0: hidden / heads
  double rotary_base = 10000;  ///< of rotary positions; 0: none
  std::uint32_t layer = 0;     ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;    ///< weights start as N(0, initial_scale^2 / fan_in)

  Index width() const { return head_width > 0 ? head_width : hidden / heads; }
  /// heads D
  Index columns() const { return heads * width(); }
  /// Of all heads.
  Index all_experts() const { return heads * experts; }

  /// Throws ConfigError for sizes that cannot work.
  void check(const char* who) const {
    AttentionConfig{.hidden = hidden, .heads = heads, .head_width = head_width, .rotary_base = rotary_base}.check(who);
    detail::require<ConfigError>(experts > 0, who, ": ", experts, " experts a head; there must be one at least.");
  }
};

/// y(t) = sum over heads h and the k best e of d(t, h) of d_e W_o[h, e] att_h(t), with values
/// v_h(t) = sum over the k best e of s(t, h) of s_e W_v[h, e] x(t), scores s = sigmoid(W_s x), d = sigmoid(W_d x),
/// which are weights as they are (Csordás et al. 2024, "SwitchHead"). Queries and keys are dense, so a head's attention
/// matrix is computed once, however many experts it has. Expert e of head h is number h E + e.
///
///     using Attention = moe::SwitchHead<2, moe::EntropyLoss>;
///     Attention attention(Attention::Config{.hidden = 64, .heads = 2, .experts = 4}, moe::Seed{1});
///     auto y = attention.forward(ctx, batch, tape);               // (T, H)
///     auto dx = attention.backward(ctx, dy, tape, gradients);     // adds into gradients, losses included
///
/// Policies, in any order: another Router<...> with TopKPerGroup<k> than Router<Sigmoid, TopKPerGroup<k>> (say, with
/// ExpertDropout), which both sides take with weights of their own; CapacityPolicy<...> (default Dropless); losses,
/// each on both routings (those that have `groups` get one a head); On<Space>, Precision<T>. The cache holds mixed
/// values.
template <int k, class... Policies>
class SwitchHead {
  static_assert(
      ((detail::is_kind<Policies, kind::router, kind::capacity, kind::loss, kind::space, kind::precision>)&&...),
      "moe::SwitchHead: behind k, its arguments are a Router<...>, a CapacityPolicy<...>, losses, On<Space> "
      "and Precision<...>.");

 public:
  using Config = SwitchHeadConfig;
  using Router = typename detail::Pick<kind::router, moe::Router<Sigmoid, TopKPerGroup<k>>, Policies...>::type;
  static_assert(std::is_same_v<typename Router::Selection, TopKPerGroup<k>>,
                "moe::SwitchHead<k, ...>: each head takes k experts of its own, so its router's selection is "
                "TopKPerGroup<k>.");
  using Capacity = typename detail::Pick<kind::capacity, CapacityPolicy<Dropless>, Policies...>::type;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Cache = KeyValueCache<Scalar, Space>;
  using Losses = typename detail::Filter<kind::loss, detail::List<>, Policies...>::type;

  struct Parameters {
    typename Router::template Parameters<Real, Space> source, destination;  ///< of values, of outputs: (heads E, H)
    Matrix<Scalar, Space> query_key;                                        ///< (2 heads D, H): queries, keys
    Tensor3<Scalar, Space> value;                                           ///< (heads E, D, H)
    Tensor3<Scalar, Space> output;                                          ///< (heads E, H, D)
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(source)::visit(detail::Prefixed{f, "source_router."}, same.source...);
      decltype(destination)::visit(detail::Prefixed{f, "destination_router."}, same.destination...);
      f("qk_proj", same.query_key...);
      f("experts.v_proj", same.value...);
      f("experts.o_proj", same.output...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };
  struct Buffers {
    typename Router::template Buffers<Real, Space> source, destination;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(source)::visit(detail::Prefixed{f, "source_router."}, same.source...);
      decltype(destination)::visit(detail::Prefixed{f, "destination_router."}, same.destination...);
    }
  };
  struct Tape : detail::LossValues<Space> {  ///< losses of the source, then those of the destination
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    HeadRouting<Real, Space> source, destination;
    Matrix<Scalar, Space> rows;        ///< (R, H) gathered tokens of the value experts, on hosts
    Matrix<Scalar, Space> value_rows;  ///< (R, D) what value experts gave
    Matrix<Scalar, Space> query_key;   ///< (T, 2 heads D), turned
    Matrix<Scalar, Space> value;       ///< (T, heads D)
    Matrix<Scalar, Space> mixed;       ///< (T, heads D) what attention gave
    detail::AttentionSaved<Scalar, Space> attention;
    Matrix<Scalar, Space> y, dx;
  };

  Parameters parameters;
  Buffers buffers;

  /// `values`: a Router, CapacityPolicy or losses with values of their own, and a Seed, in any order.
  template <class... Values>
  explicit SwitchHead(const Config& config, const Values&... values) : config_(config) {
    (take(values), ...);
    config.check("moe::SwitchHead");
    router_.template get<TopKPerGroup<k>>().groups = config.heads;
    (group_by_head(std::get<Policies>(policies_)), ...);
    const std::size_t e = config.all_experts(), h = config.hidden, d = config.width();
    capacity_.check(config.all_experts());
    for (auto* side : {&parameters.source, &parameters.destination})
      *side = router_.template parameters<Real, Space>({config.all_experts(), config.hidden});
    for (auto* side : {&buffers.source, &buffers.destination})
      *side = router_.template buffers<Real, Space>({config.all_experts(), config.hidden});
    parameters.query_key = detail::allocate_zeros<Matrix<Scalar, Space>>("moe::qk_proj", 2 * config.heads * d, h);
    parameters.value = detail::allocate_zeros<Tensor3<Scalar, Space>>("moe::v_proj", e, d, h);
    parameters.output = detail::allocate_zeros<Tensor3<Scalar, Space>>("moe::o_proj", e, h, d);
    detail::initialise_layer<Space>(parameters, seed_, config.layer, config.initial_scale, "attention.");
  }

  SwitchHead(const SwitchHead&) = delete;
  SwitchHead& operator=(const SwitchHead&) = delete;
  SwitchHead(SwitchHead&&) = default;
  SwitchHead& operator=(SwitchHead&&) = default;

  const Config& config() const { return config_; }
  const Router& router() const { return router_; }
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }
  /// For `sequences` sequences of up to `capacity` tokens each.
  Cache cache(Index sequences, Index capacity) const { return Cache(sequences, capacity, config_.columns()); }

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

  /// dx (T, H) for dy (T, H), the tape's; adds into gradients, with the losses' gradients times loss_scale.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const;

  /// Moves the balancing biases, where the router has one. Once an optimiser step, with the counts of
  /// tape.source.plan and of tape.destination.plan over all its microbatches.
  void update_balance(Context<Space>& ctx, const LoadStatistics<Space>& source,
                      const LoadStatistics<Space>& destination) {
    const Index experts = config_.all_experts();
    for (const auto* each : {&source, &destination}) detail::check_counts("moe::SwitchHead", *each, experts);
    detail::update_balance("moe::SwitchHead", ctx, router_, experts, buffers.source, source);
    detail::update_balance("moe::SwitchHead", ctx, router_, experts, buffers.destination, destination);
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  using M = Matrix<const Scalar, Space>;
  using W = Tensor3<const Scalar, Space>;
  using Scratch = typename Context<Space>::Scratch;
  using Side = detail::HeadRouter<Router, Capacity, Losses, std::tuple<Policies...>, Scalar, Space>;

  template <class V>
  void take(const V& value) {
    if constexpr (std::is_same_v<V, Seed>) {
      seed_ = value;
    } else if constexpr (std::is_same_v<V, Router>) {
      router_ = value;
    } else if constexpr (std::is_same_v<V, Capacity>) {
      capacity_ = value;
    } else {
      std::get<V>(policies_) = value;
    }
  }

  template <class P>
  void group_by_head(P& policy) const {
    if constexpr (detail::is_kind<P, kind::loss> && requires { policy.groups; }) policy.groups = config_.heads;
  }

  Side side(int number) const {
    return {router_, capacity_, policies_, config_.all_experts(), detail::head_draws(config_.layer, number)};
  }
  Side source() const { return side(0); }
  Side destination() const { return side(1); }
  detail::AttentionSettings settings() const { return {config_.width(), config_.rotary_base, false}; }
  detail::HeadRows<Scalar> heads(const Matrix<Scalar, Space>& rows, Index from = 0) const {
    return {rows.data() + from, Index(rows.extent(1)), config_.heads};
  }
  detail::HeadRows<Scalar> keys(const Matrix<Scalar, Space>& rows) const { return heads(rows, config_.columns()); }

  void run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape, Cache* cache) const;
  void mix_values(Context<Space>& ctx, Tape& tape) const;
  void combine_outputs(Context<Space>& ctx, Tape& tape) const;
  void combine_outputs_backward(Context<Space>& ctx, const M& dy, const Tape& tape, const Matrix<Scalar, Space>& dmixed,
                                const Vector<Real, Space>& dweight, Gradients& gradients) const;
  void mix_values_backward(Context<Space>& ctx, const Matrix<Scalar, Space>& dvalue, const Tape& tape,
                           const Vector<Real, Space>& dweight, Gradients& gradients) const;

  Config config_;
  Seed seed_;
  Router router_;
  Capacity capacity_;
  std::tuple<Policies...> policies_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END

#include "moe/attention/detail/switch_head_passes.hpp"
