#pragma once
/// @file
/// `RoutedAttention`: attention whose queries, keys and values are a few tokens each, chosen apart.

#include "moe/attention/detail/head_routing.hpp"
#include "moe/attention/detail/routed_rows.hpp"
#include "moe/attention/self_attention.hpp"
#include "moe/routing/expert_choice.hpp"
#include "moe/routing/router.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of a RoutedAttention layer. Capacities are the parts of a sequence's tokens that are chosen, at least one.
struct RoutedAttentionConfig {
  Index hidden = 0;             ///< H
  Index heads = 1;              ///< of queries, keys and values
  Index head_width = 0;         ///< D; 0: hidden / heads
  double rotary_base = 10000;   ///< of rotary positions; 0: none
  double query_capacity = 0.5;  ///< tokens that get an update
  double key_capacity = 0.5;    ///< tokens that are attended to
  double value_capacity = 0.5;  ///< tokens that have something to say
  std::uint32_t layer = 0;      ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;     ///< weights start as N(0, initial_scale^2 / fan_in)

  Index width() const { return head_width > 0 ? head_width : hidden / heads; }
  /// heads D
  Index columns() const { return heads * width(); }

  /// Throws ConfigError for sizes that cannot work.
  void check(const char* who) const {
    AttentionConfig{.hidden = hidden, .heads = heads, .head_width = head_width, .rotary_base = rotary_base}.check(who);
    const auto part = [&](const char* name, double capacity) {
      detail::require<ConfigError>(capacity > 0 && capacity <= 1, who, ": ", name, " is ", capacity,
                                   "; it is a part of a sequence's tokens, above 0 and up to 1.");
    };
    part("query_capacity", query_capacity);
    part("key_capacity", key_capacity);
    part("value_capacity", value_capacity);
  }
};

/// Attention in which tokens are chosen apart as queries, as keys and as values, as the discussion of Mixture-of-Depths
/// (Raposo et al. 2024) suggests; it gives no formulas, so these are ours. With logits r = w . x of three routers, each
/// of which takes the max(1, capacity n) best of a sequence's n tokens:
///
///     y(t)  = r_q(t) W_o concat_h(sum over chosen keys j <= t of p_h(t, j) v_h(j)),   0 for t that is no query
///     p(t, j) = softmax over those j of W_q x(t) . k(j) / sqrt(D),                    0 in all where t sees no key
///     k(j)  = r_k(j) W_k x(j)
///     v(j)  = r_v(j) W_v x(j) where j was chosen as a value, too; else 0: it only takes attention away
///
/// so that every router is trained by what it lets through. Rotary positions are those of the whole sequence. y is the
/// update of a block: Residual adds x.
///
///     using Attention = moe::RoutedAttention<moe::ChoiceCrossEntropy>;
///     Attention attention({.hidden = 64, .heads = 4, .key_capacity = 0.25}, moe::Seed{1});
///     auto y = attention.forward(ctx, batch, tape);               // (T, H)
///     auto dx = attention.backward(ctx, dy, tape, gradients);     // adds into gradients, losses included
///
/// Policies, in any order: losses, each on all three routings; On<Space>, Precision<T>. Padding is never chosen, and
/// Batch::router_input is not read. Choices compare a token with later ones, so there is no cache. See docs/depths.md.
template <class... Policies>
class RoutedAttention {
  static_assert(((detail::is_kind<Policies, kind::loss, kind::space, kind::precision>)&&...),
                "moe::RoutedAttention: its arguments are losses, On<Space> and Precision<...>.");

 public:
  using Config = RoutedAttentionConfig;
  using Router = moe::Router<Identity, ExpertChoice>;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Losses = typename detail::Filter<kind::loss, detail::List<>, Policies...>::type;

  struct Parameters {
    typename Router::template Parameters<Real, Space> query_router, key_router, value_router;  ///< (1, H)
    Matrix<Scalar, Space> query, key, value;                                                   ///< (heads D, H)
    Matrix<Scalar, Space> output;                                                              ///< (H, heads D)
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(query_router)::visit(detail::Prefixed{f, "query_router."}, same.query_router...);
      decltype(key_router)::visit(detail::Prefixed{f, "key_router."}, same.key_router...);
      decltype(value_router)::visit(detail::Prefixed{f, "value_router."}, same.value_router...);
      f("q_proj", same.query...);
      f("k_proj", same.key...);
      f("v_proj", same.value...);
      f("o_proj", same.output...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };
  struct Buffers {
    typename Router::template Buffers<Real, Space> query_router, key_router, value_router;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(query_router)::visit(detail::Prefixed{f, "query_router."}, same.query_router...);
      decltype(key_router)::visit(detail::Prefixed{f, "key_router."}, same.key_router...);
      decltype(value_router)::visit(detail::Prefixed{f, "value_router."}, same.value_router...);
    }
  };
  /// One choice of tokens. Its plan is of one expert: rows are the chosen tokens in their order.
  struct Side : HeadRouting<Real, Space> {
    Matrix<Scalar, Space> x;          ///< (R, H) the chosen tokens
    Matrix<Scalar, Space> projected;  ///< (R, heads D); queries turned, keys and values without their weights
  };
  struct Tape : detail::LossValues<Space> {  ///< losses of the queries, of the keys, of the values
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    Side query, key, value;
    Matrix<Scalar, Space> keys, values;               ///< (key rows, heads D) as attention sees them; keys turned
    Matrix<Scalar, Space> mixed;                      ///< (query rows, heads D) what attention gave
    Matrix<Scalar, Space> update;                     ///< (query rows, H) the same through W_o
    detail::AttentionSaved<Scalar, Space> attention;  ///< its rotary table is the queries'
    Matrix<Real, Space> key_rotary;
    Matrix<Scalar, Space> y, dx;
  };

  Parameters parameters;
  Buffers buffers;

  /// `values`: losses with values of their own, and a Seed, in any order.
  template <class... Values>
  explicit RoutedAttention(const Config& config, const Values&... values) : config_(config) {
    (take(values), ...);
    config.check("moe::RoutedAttention");
    choose(query_router_, config.query_capacity, parameters.query_router, buffers.query_router);
    choose(key_router_, config.key_capacity, parameters.key_router, buffers.key_router);
    choose(value_router_, config.value_capacity, parameters.value_router, buffers.value_router);
    using Weights = Matrix<Scalar, Space>;
    parameters.query = detail::allocate_zeros<Weights>("moe::q_proj", config.columns(), config.hidden);
    parameters.key = detail::allocate_zeros<Weights>("moe::k_proj", config.columns(), config.hidden);
    parameters.value = detail::allocate_zeros<Weights>("moe::v_proj", config.columns(), config.hidden);
    parameters.output = detail::allocate_zeros<Weights>("moe::o_proj", config.hidden, config.columns());
    detail::initialise_layer<Space>(parameters, seed_, config.layer, config.initial_scale, "attention.");
  }

  RoutedAttention(const RoutedAttention&) = delete;
  RoutedAttention& operator=(const RoutedAttention&) = delete;
  RoutedAttention(RoutedAttention&&) = default;
  RoutedAttention& operator=(RoutedAttention&&) = default;

  const Config& config() const { return config_; }
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }

  /// y (T, H). Throws ShapeError where the batch does not fit, DataError for NaN logits (on host spaces; else at
  /// ctx.check()).
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const;
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }

  /// dx (T, H) for dy (T, H), the tape's; adds into gradients, with the losses' gradients times loss_scale.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const;

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  using M = Matrix<const Scalar, Space>;
  using Scratch = typename Context<Space>::Scratch;
  using Chooser = detail::HeadRouter<Router, CapacityPolicy<Dropless>, Losses, std::tuple<Policies...>, Scalar, Space>;

  template <class V>
  void take(const V& value) {
    if constexpr (std::is_same_v<V, Seed>) {
      seed_ = value;
    } else {
      std::get<V>(policies_) = value;
    }
  }

  template <class P, class B>
  void choose(Router& router, double capacity, P& of_router, B& its_buffers) const {
    router.template get<ExpertChoice>() = {.capacity_factor = capacity, .scope = Scope::sequence()};
    of_router = router.template parameters<Real, Space>({1, config_.hidden});
    its_buffers = router.template buffers<Real, Space>({1, config_.hidden});
  }

  Chooser chooser(const Router& router) const { return {router, capacity_, policies_, 1, config_.layer}; }
  double scale() const { return detail::AttentionSettings{config_.width()}.scale(); }
  detail::HeadRows<Scalar> heads(const Matrix<Scalar, Space>& rows) const {
    return {rows.data(), config_.columns(), config_.heads};
  }
  static detail::ChosenTokens<Real, Space> chosen(const Side& side) {
    return {side.plan.row_token, side.plan.row_assignment, side.plan.token_offsets, side.weight};
  }

  void take_rows(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const M& weight, Side& side) const;
  void plan_attention(Context<Space>& ctx, Tape& tape) const;
  void turn(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Side& side, Matrix<Real, Space>& table,
            const Matrix<Scalar, Space>& rows) const;
  void weigh(Context<Space>& ctx, const Side& of, const Side& keys, Matrix<Scalar, Space>& to) const;
  Matrix<Scalar, Space> project_back(Context<Space>& ctx, Scratch& scratch, const Side& side,
                                     const Matrix<Scalar, Space>& drows, const M& weight,
                                     const Matrix<Scalar, Space>& dweight) const;

  Config config_;
  Seed seed_;
  Router query_router_, key_router_, value_router_;
  CapacityPolicy<Dropless> capacity_;
  std::tuple<Policies...> policies_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END

#include "moe/attention/detail/routed_attention_passes.hpp"
