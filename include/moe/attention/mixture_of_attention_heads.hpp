#pragma once
/// @file
/// `MixtureOfAttentionHeads`: each token chooses the heads that it attends with (MoA, JetMoE).

#include "moe/attention/detail/head_routing.hpp"
#include "moe/attention/detail/slots.hpp"
#include "moe/attention/self_attention.hpp"
#include "moe/layers/output.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of a mixture of attention heads.
struct AttentionMixtureConfig {
  Index hidden = 0;            ///< H
  Index experts = 0;           ///< E
  Index key_heads = 1;         ///< of keys and values, and of each expert's queries
  Index head_width = 0;        ///< D; 0: hidden / key_heads
  double rotary_base = 10000;  ///< of rotary positions; 0: none
  std::uint32_t layer = 0;     ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;    ///< weights start as N(0, initial_scale^2 / fan_in)

  Index width() const { return head_width > 0 ? head_width : hidden / key_heads; }
  /// key_heads D: the columns of an expert's queries.
  Index columns() const { return key_heads * width(); }

  /// Throws ConfigError for sizes that cannot work.
  void check(const char* who) const {
    detail::require<ConfigError>(experts > 0 && key_heads > 0, who, ": ", experts, " experts, ", key_heads,
                                 " key_heads; both must be positive.");
    AttentionConfig{.hidden = hidden, .heads = key_heads, .head_width = head_width, .rotary_base = rotary_base}.check(
        who);
  }
};

/// y(t) = sum over the K experts e that t chooses of weight_e W_o[e] concat_g o_(e,g), where
/// o_(e,g) = attention of the query head g of W_q[e] x(t) to key head g: experts have queries and outputs of their own,
/// keys and values are shared by all (Zhang et al. 2022, "Mixture of attention heads", MoA, with key_heads = 1; Shen et
/// al. 2024, "JetMoE"). Attention itself, positions and cache are SelfAttention's.
///
///     using Attention = moe::MixtureOfAttentionHeads<moe::JetMoERouter, moe::OutputBias, moe::SwitchBalanceLoss>;
///     Attention attention(Attention::Config{.hidden = 64, .experts = 8, .key_heads = 4}, moe::Seed{1});
///     auto y = attention.forward(ctx, batch, tape);               // (T, H)
///     auto dx = attention.backward(ctx, dy, tape, gradients);     // adds into gradients, losses included
///
/// Policies, in any order: a Router<...> of a token's own choice (default Router<Identity, TopK<2>, SoftmaxOfChosen>,
/// JetMoE's), CapacityPolicy<...> (default Dropless; a choice that is dropped gives nothing), losses on the routing,
/// output policies (OutputBias, as JetMoE has), On<Space>, Precision<T>.
template <class... Policies>
class MixtureOfAttentionHeads {
  static_assert(((detail::is_kind<Policies, kind::router, kind::capacity, kind::loss, kind::output, kind::space,
                                  kind::precision>)&&...),
                "moe::MixtureOfAttentionHeads: its arguments are a Router<...>, a CapacityPolicy<...>, losses, output "
                "policies such as OutputBias, On<Space> and Precision<...>.");
  using DefaultRouter = moe::Router<Identity, TopK<2>, SoftmaxOfChosen>;
  using GivenRouter = typename detail::Pick<kind::router, DefaultRouter, Policies...>::type;
  static_assert(sizeof(detail::CheckHeadRouter<GivenRouter>) > 0);

 public:
  using Config = AttentionMixtureConfig;
  using Router = std::conditional_t<detail::routes_heads<GivenRouter>, GivenRouter, DefaultRouter>;
  using Capacity = typename detail::Pick<kind::capacity, CapacityPolicy<Dropless>, Policies...>::type;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Cache = KeyValueCache<Scalar, Space>;
  using Losses = typename detail::Filter<kind::loss, detail::List<>, Policies...>::type;
  using Outputs = typename detail::Filter<kind::output, detail::List<>, Policies...>::type;

  struct Parameters {
    typename Router::template Parameters<Real, Space> router;
    Tensor3<Scalar, Space> query;     ///< (E, key_heads D, H)
    Matrix<Scalar, Space> key_value;  ///< (2 key_heads D, H): keys, values
    Tensor3<Scalar, Space> output;    ///< (E, H, key_heads D)
    detail::PartParameters<Outputs, Scalar, Space> outputs;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
      f("experts.q_proj", same.query...);
      f("kv_proj", same.key_value...);
      f("experts.o_proj", same.output...);
      decltype(outputs)::visit(f, same.outputs...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };
  struct Buffers {
    typename Router::template Buffers<Real, Space> router;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
    }
  };
  /// What forward leaves for backward; `routing`, `weight` and `plan` serve queries and outputs alike.
  struct Tape : HeadRouting<Real, Space>, detail::LossValues<Space> {
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    Matrix<Scalar, Space> rows;       ///< (R, H) gathered tokens, on hosts
    Matrix<Scalar, Space> query;      ///< (T, K key_heads D) best choice first, turned
    Matrix<Scalar, Space> key_value;  ///< (T, 2 key_heads D), keys turned
    Matrix<Scalar, Space> mixed;      ///< (T, K key_heads D) what attention gave
    Vector<Real, Space> dweight;      ///< (A), of the combine weights
    detail::AttentionSaved<Scalar, Space> attention;
    detail::PartSaved<Outputs, Scalar, Space> outputs;
    Matrix<Scalar, Space> y, dx;
  };

  Parameters parameters;
  Buffers buffers;

  /// `values`: a Router, CapacityPolicy, losses or output policies with values of their own, and a Seed, in any order.
  template <class... Values>
  explicit MixtureOfAttentionHeads(const Config& config, const Values&... values) : config_(config) {
    (take(values), ...);
    config.check("moe::MixtureOfAttentionHeads");
    capacity_.check(config.experts);
    const std::size_t e = config.experts, h = config.hidden, c = config.columns();
    parameters.router = router_.template parameters<Real, Space>({config.experts, config.hidden});
    buffers.router = router_.template buffers<Real, Space>({config.experts, config.hidden});
    parameters.query = detail::allocate_zeros<Tensor3<Scalar, Space>>("moe::q_proj", e, c, h);
    parameters.key_value = detail::allocate_zeros<Matrix<Scalar, Space>>("moe::kv_proj", 2 * c, h);
    parameters.output = detail::allocate_zeros<Tensor3<Scalar, Space>>("moe::o_proj", e, h, c);
    detail::allocate_parts(Outputs{}, policies_, ExpertShape{config.experts, config.hidden, config.columns()},
                           parameters.outputs);
    detail::initialise_layer<Space>(parameters, seed_, config.layer, config.initial_scale, "attention.");
  }

  MixtureOfAttentionHeads(const MixtureOfAttentionHeads&) = delete;
  MixtureOfAttentionHeads& operator=(const MixtureOfAttentionHeads&) = delete;
  MixtureOfAttentionHeads(MixtureOfAttentionHeads&&) = default;
  MixtureOfAttentionHeads& operator=(MixtureOfAttentionHeads&&) = default;

  const Config& config() const { return config_; }
  const Router& router() const { return router_; }
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }
  /// For `sequences` sequences of up to `capacity` tokens each.
  Cache cache(Index sequences, Index capacity) const { return Cache(sequences, capacity, config_.columns()); }

  /// y (T, H). Throws ShapeError where the batch does not fit.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    return run(ctx, batch, tape, nullptr);
  }
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return run(ctx, batch, ctx.template kept<Tape>(id_), nullptr);
  }
  /// The same behind the tokens that the cache holds, which then holds these, too.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Cache& cache) const {
    Tape& tape = ctx.template kept<Tape>(id_);
    run(ctx, batch, tape, &cache);
    tape.owner = 0;
    return tape.y;
  }

  /// dx (T, H) for dy (T, H), the tape's; adds into gradients, with the losses' gradients times loss_scale.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const;

  // The halves of the layer, for an attention of one's own between them. One routing and one plan serve both.

  /// Routes the batch; tape.query (T, K key_heads D) = W_q[e] x of the chosen e, zeros where none was.
  void project_queries(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const;
  /// tape.y (T, H) from tape.mixed (T, K key_heads D), which has to be allocated and filled; losses, too.
  void combine_outputs(Context<Space>& ctx, Tape& tape) const;
  /// dmixed (T, K key_heads D), overwritten; keeps the gradient of the weights in the tape.
  void combine_outputs_backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                const Matrix<Scalar, Space>& dmixed, Gradients& gradients) const;
  /// tape.dx (T, H), overwritten, from the gradient of the queries, behind combine_outputs_backward; the router's part
  /// and the losses' included.
  void project_queries_backward(Context<Space>& ctx, const Matrix<Scalar, Space>& dquery, Tape& tape,
                                Gradients& gradients, double loss_scale = 1) const;

  /// Moves the balancing bias, where there is one. Once an optimiser step, with the counts of all its microbatches.
  void update_balance(Context<Space>& ctx, const LoadStatistics<Space>& statistics) {
    detail::update_balance("moe::MixtureOfAttentionHeads", ctx, router_, config_.experts, buffers.router, statistics);
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

  detail::HeadRouter<Router, Capacity, Losses, std::tuple<Policies...>, Scalar, Space> head_router() const {
    return {router_, capacity_, policies_, config_.experts, detail::head_draws(config_.layer, 0)};
  }
  detail::AttentionSettings settings() const { return {config_.width(), config_.rotary_base, true}; }
  /// (T, K key_heads D) as heads, and as an array of slots (A, key_heads D).
  detail::HeadRows<Scalar> heads(const Matrix<Scalar, Space>& rows) const {
    return {rows.data(), Index(rows.extent(1)), Index(rows.extent(1)) / config_.width()};
  }
  M slots(const Matrix<Scalar, Space>& rows) const {
    return M(rows.data(), rows.size() / config_.columns(), config_.columns());
  }
  /// Keys and values lie side by side.
  detail::HeadRows<Scalar> keys(const Matrix<Scalar, Space>& rows, Index from = 0) const {
    return {rows.data() + from, Index(rows.extent(1)), config_.key_heads};
  }
  detail::HeadRows<Scalar> values(const Matrix<Scalar, Space>& rows) const { return keys(rows, config_.columns()); }

  static void check_slots(const char* what, const Matrix<Scalar, Space>& rows, const Tape& tape) {
    detail::require<ShapeError>(rows.extent(0) == tape.query.extent(0) && rows.extent(1) == tape.query.extent(1),
                                "moe::MixtureOfAttentionHeads::", what, " has shape (", rows.extent(0), ", ",
                                rows.extent(1), "), but the queries have (", tape.query.extent(0), ", ",
                                tape.query.extent(1), ").");
  }
  Matrix<Scalar, Space> run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape, Cache* cache) const;

  Config config_;
  Seed seed_;
  Router router_;
  Capacity capacity_;
  std::tuple<Policies...> policies_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END

#include "moe/attention/detail/mixture_of_attention_heads_passes.hpp"
