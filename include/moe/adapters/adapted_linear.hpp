#pragma once
/// @file
/// `AdaptedLinear`: a frozen linear map with a mixture of adapters.

#include "moe/adapters/detail/concepts.hpp"
#include "moe/adapters/low_rank_adapters.hpp"
#include "moe/layers/detail/layer.hpp"
#include "moe/routing/simple_logits.hpp"

MOE_NAMESPACE_BEGIN

/// The router of adapters that all act with weight 1: it learns nothing.
using Unrouted = Router<NoLogits, Identity, AllExperts, ConstantWeight>;

/// Sizes of an adapted linear map.
struct AdaptedLinearConfig {
  Index in = 0;
  Index out = 0;
  Index experts = 1;         ///< E, adapters
  Index rank = 8;            ///< r, of one adapter
  double alpha = 16;         ///< of the scaling, alpha / r in LoRA
  Index router_hidden = 0;   ///< width of Batch::router_input, where it is not what the router reads without it
  std::uint32_t layer = 0;   ///< number of the map in its model: keys its random draws
  double initial_scale = 1;  ///< weights start as N(0, initial_scale^2 / fan_in)
};

/// A linear map that is not trained. Shared: views of arrays that live elsewhere.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct FrozenLinear {
  Matrix<const T, Space> weight;  ///< (out, in)
  Vector<const T, Space> bias;    ///< (out), or empty
};

/// y = W x + bias + sum_e w_e(x) scaling B_e A_e x, W and bias frozen, w by a router.
///
///     using Linear = moe::AdaptedLinear<moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>>;  // MoLA
///     Linear linear({.in = 64, .out = 128, .experts = 8, .rank = 8}, moe::FrozenLinear<float>{weight}, moe::Seed{1});
///     auto y = linear.forward(ctx, batch, tape);                // (T, out)
///     auto dx = linear.backward(ctx, dy, tape, gradients);      // (T, in); adds into gradients, losses included
///
/// Policies, in any order: a Router<...> (default Unrouted: all adapters, weight 1), a form of adapters (default
/// LowRankAdapters<>), a CapacityPolicy<...>, losses, losses on adapters (ContrastiveExpertLoss), On<Space>,
/// Precision<T>. The router reads x, or Batch::router_input, whose gradient is then tape.drouter_input; forms may have
/// it read W x. Where a token gets no adapter, y is W x; padding gets 0.
template <class... Policies>
class AdaptedLinear {
  static_assert((sizeof(detail::CheckAdaptedPolicy<Policies>) + ... +
                 sizeof(detail::CheckAdaptedCounts<detail::count_kind<kind::router, Policies...>,
                                                   detail::count_kind<kind::adapters, Policies...>>)) > 0);

 public:
  using Config = AdaptedLinearConfig;
  using Router = typename detail::Pick<kind::router, Unrouted, Policies...>::type;
  using Adapters = typename detail::Pick<kind::adapters, LowRankAdapters<>, Policies...>::type;
  using Capacity = typename detail::Pick<kind::capacity, CapacityPolicy<Dropless>, Policies...>::type;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Losses = typename detail::Filter<kind::loss, detail::List<>, Policies...>::type;
  using AdapterLosses = typename detail::Filter<kind::adapter_loss, detail::List<>, Policies...>::type;
  using Base = FrozenLinear<Scalar, Space>;
  /// Do dense products serve, since all tokens take all adapters?
  static constexpr bool takes_all = detail::takes_all<Router, Capacity>;

  /// All trained arrays, under the names "router.*" and "adapters.*". Also the type of gradients.
  struct Parameters {
    typename Router::template Parameters<Real, Space> router;
    typename Adapters::template Parameters<Scalar, Space> adapters;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
      decltype(adapters)::visit(detail::Prefixed{f, "adapters."}, same.adapters...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };
  /// Saved with the model, not trained; the frozen map is not among them.
  struct Buffers {
    typename Router::template Buffers<Real, Space> router;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
    }
  };
  /// What one forward pass leaves for its backward, losses and reports (which read its routing and plan).
  struct Tape : HeadRouting<Real, Space>, detail::LossValues<Space> {
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    Batch<Scalar, Space> batch;
    Matrix<Scalar, Space> base;  ///< (T, out) W x, where the router reads it
    typename Adapters::template Saved<Scalar, Space> adapters;
    Matrix<Scalar, Space> y, dx;
    Matrix<Scalar, Space> drouter_input;  ///< where the batch gave the router an input of its own
  };

  Parameters parameters;
  Buffers buffers;
  Base base;

  /// `values`: a FrozenLinear, a Router, adapters, CapacityPolicy or losses with values of their own, and a Seed, in
  /// any order. The frozen map may also be given later, as `base`.
  template <class... Values>
  explicit AdaptedLinear(const Config& config, const Values&... values) : config_(config) {
    (take(values), ...);
    parameters.adapters = adapters_.template parameters<Scalar, Space>(map_shape());
    parameters.router = router_.template parameters<Real, Space>(router_shape());
    buffers.router = router_.template buffers<Real, Space>(router_shape());
    capacity_.check(config.experts);
    detail::initialise_layer<Space>(parameters, seed_, config.layer, config.initial_scale, "adapted.", true);
    const Space space{};
    adapters_.start(space, parameters.adapters);
    space.fence("moe::AdaptedLinear");
  }

  AdaptedLinear(const AdaptedLinear&) = delete;
  AdaptedLinear& operator=(const AdaptedLinear&) = delete;
  AdaptedLinear(AdaptedLinear&&) = default;
  AdaptedLinear& operator=(AdaptedLinear&&) = default;

  const Config& config() const { return config_; }
  const Router& router() const { return router_; }
  const Adapters& adapters() const { return adapters_; }
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }

  /// y (T, out) for x (T, in). y is the tape's: valid until its next forward. Throws ShapeError where the batch or the
  /// frozen map does not fit; DataError as MoELayer does.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    return forward(ctx, batch, tape, base);
  }
  /// The same with a frozen map that is not this layer's own: for layers that hold several.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape,
                                const Base& base) const {
    check(batch, base);
    detail::check_seen(ctx.space, "moe::AdaptedLinear::forward", tape.y, batch.tokens());
    tape.space = ctx.space;
    tape.batch = batch;
    detail::shape(tape.y, "moe::adapted_y", batch.tokens(), config_.out);
    detail::frozen_forward<Scalar, Space>(ctx, base.weight, base.bias, batch.x, tape.y);
    detail::clear_padding<Scalar, Space>(ctx.space, batch.mask, tape.y);
    if constexpr (detail::reads_output<Adapters>()) {
      detail::shape(tape.base, "moe::adapted_base", batch.tokens(), config_.out);
      if (batch.tokens() != 0) Kokkos::deep_copy(ctx.space, tape.base, tape.y);
    }
    router_of().forward(ctx, routed(batch, tape), parameters.router, buffers.router, tape);
    adapters_.forward(ctx, input(tape, base), parameters.adapters, tape.y, tape.adapters);
    detail::clear_padding<Scalar, Space>(ctx.space, batch.mask, tape.y);
    detail::shape(tape.losses, "moe::losses", detail::length<Losses> + detail::length<AdapterLosses>);
    detail::fill(ctx.space, tape.losses, 0.0);
    router_of().add_losses(ctx, batch, tape, tape.losses.data());
    detail::each_loss(AdapterLosses{}, policies_, [&](const auto& loss, Index number) {
      loss.value(ctx, input(tape, base), parameters.adapters,
                 Vector<double, Space>(tape.losses.data() + detail::length<Losses> + number, 1));
    });
    if constexpr (!detail::device_path<Space>) ctx.check();
    tape.owner = id_;
    return tape.y;
  }
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Matrix<const Scalar, Space>& x, Tape& tape) const {
    Batch<Scalar, Space> batch;
    batch.x = x;
    return forward(ctx, batch, tape);
  }
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }

  /// dx (T, in) for dy (T, out); adds into gradients, with the losses' gradients times loss_scale. dx is the tape's.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const {
    return backward(ctx, dy, tape, gradients, loss_scale, base);
  }
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale, const Base& base) const {
    using M = Matrix<const Scalar, Space>;
    const auto& batch = tape.batch;
    const Index tokens = batch.tokens(), bound = tape.routing.assignments.bound;
    detail::check_backward("moe::AdaptedLinear", id_, tape.owner, gradients.owner, dy, tokens, config_.out);
    detail::check_seen(ctx.space, "moe::AdaptedLinear::backward", tape.dx, tokens);
    typename Context<Space>::Scratch scratch(ctx);
    auto dbase = scratch.template matrix<Scalar>(tokens, config_.out);
    auto dweight = scratch.template vector<Real>(bound);
    if (tokens != 0) Kokkos::deep_copy(ctx.space, dbase, dy);
    detail::clear_padding<Scalar, Space>(ctx.space, batch.mask, dbase);
    detail::shape(tape.dx, "moe::dx", tokens, config_.in);
    detail::fill(ctx.space, tape.dx, Scalar(0));
    adapters_.backward(ctx, input(tape, base), dbase, parameters.adapters, tape.adapters, tape.dx, dweight,
                       gradients.adapters);
    detail::each_loss(AdapterLosses{}, policies_, [&](const auto& loss, Index) {
      loss.backward(ctx, input(tape, base), parameters.adapters, loss_scale, tape.dx, gradients.adapters);
    });
    auto drouter = tape.dx;
    if (batch.router_input.is_allocated()) {
      detail::shape(tape.drouter_input, "moe::drouter_input", tokens, batch.router_input.extent(1));
      detail::fill(ctx.space, tape.drouter_input, Scalar(0));
      drouter = tape.drouter_input;
    } else if constexpr (detail::reads_output<Adapters>()) {
      drouter = dbase;
    }
    router_of().backward(ctx, routed(batch, tape), parameters.router, tape, dweight, loss_scale, drouter,
                         gradients.router);
    kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, M(dbase), base.weight, tape.dx, true);
    return tape.dx;
  }

  /// Moves the balancing bias, where there is one. Once an optimiser step, with the counts of all its microbatches.
  void update_balance(Context<Space>& ctx, const LoadStatistics<Space>& statistics) {
    detail::update_balance("moe::AdaptedLinear", ctx, router_, config_.experts, buffers.router, statistics);
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  template <class V>
  void take(const V& value) {
    if constexpr (std::is_same_v<V, Seed>) {
      seed_ = value;
    } else if constexpr (std::is_same_v<V, Base>) {
      base = value;
    } else if constexpr (std::is_same_v<V, Router>) {
      router_ = value;
    } else if constexpr (std::is_same_v<V, Adapters>) {
      adapters_ = value;
    } else if constexpr (std::is_same_v<V, Capacity>) {
      capacity_ = value;
    } else if constexpr (!std::is_same_v<V, detail::NoValue>) {
      static_assert(detail::one_of<V, Policies...>,
                    "moe::AdaptedLinear: a value was given of a policy that this layer's type does not name. Add the "
                    "policy to AdaptedLinear<...>, or drop the value.");
      std::get<V>(policies_) = value;
    }
  }

  LowRankShape map_shape() const { return {config_.experts, config_.in, config_.out, config_.rank}; }
  RouterShape router_shape() const {
    const Index own = detail::reads_output<Adapters>() ? config_.out : config_.in;
    return {config_.experts, config_.router_hidden > 0 ? config_.router_hidden : own};
  }
  detail::HeadRouter<Router, Capacity, Losses, std::tuple<Policies...>, Scalar, Space> router_of() const {
    return {router_, capacity_, policies_, config_.experts, config_.layer};
  }
  /// The batch as the router sees it.
  static Batch<Scalar, Space> routed(Batch<Scalar, Space> batch, const Tape& tape) {
    if (detail::reads_output<Adapters>() && !batch.router_input.is_allocated()) batch.router_input = tape.base;
    return batch;
  }
  AdapterInput<Scalar, Space, takes_all> input(const Tape& tape, const Base& base) const {
    return {tape.batch, tape.batch.x, base.weight, base.bias, tape, config_.alpha};
  }

  void check(const Batch<Scalar, Space>& batch, const Base& base) const {
    detail::check_tokens("moe::AdaptedLinear", batch, config_.in);
    detail::check_frozen<Scalar, Space>("moe::AdaptedLinear", base.weight, config_.out, config_.in);
    detail::require<ShapeError>(!base.bias.is_allocated() || Index(base.bias.extent(0)) == config_.out,
                                "moe::AdaptedLinear: a frozen bias of ", base.bias.extent(0), " numbers for ",
                                config_.out, " outputs.");
    detail::check_router_input("moe::AdaptedLinear", batch, router_shape().hidden);
  }

  Config config_;
  Seed seed_;
  Router router_;
  Capacity capacity_;
  Adapters adapters_;
  std::tuple<Policies...> policies_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END
