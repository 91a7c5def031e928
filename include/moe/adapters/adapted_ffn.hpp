#pragma once
/// @file
/// `AdaptedFFN`: a frozen feed-forward network whose projections are adapted by one choice of experts a token.

#include "moe/adapters/adapted_linear.hpp"
#include "moe/adapters/detail/adapted_rows.hpp"
#include "moe/layers/block.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of an adapted feed-forward network.
struct AdaptedFFNConfig {
  Index hidden = 0;          ///< H
  Index intermediate = 0;    ///< I
  Index experts = 1;         ///< E, sets of adapters
  Index rank = 8;            ///< r, of one adapter
  double alpha = 16;         ///< of the scaling
  Index router_hidden = 0;   ///< width of Batch::router_input, where it is not H
  std::uint32_t layer = 0;   ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;  ///< weights start as N(0, initial_scale^2 / fan_in)
};

/// A feed-forward network that is not trained, in ExpertFFN's layout. Shared: views of arrays that live elsewhere.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct FrozenFFN {
  Tensor3<const T, Space> up;    ///< (1, 2I, H) gate above up where gated, else (1, I, H)
  Tensor3<const T, Space> down;  ///< (1, H, I)
};

/// y = sum_e w_e(x) FFN_e(x), where expert e is one frozen network, shared by all, with low-rank updates of its own on
/// gate, up and down: FFN_e(x) = (W_down + B_d A_d)(value((W_gate + B_g A_g) x) * (W_up + B_u A_u) x), scalings left
/// out (Li et al. 2024, "MixLoRA"). The frozen projections of a token are computed once, whatever the
/// number of its experts.
///
///     using FFN = moe::AdaptedFFN<moe::SwiGLU, moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>>;
///     FFN ffn({.hidden = 64, .intermediate = 128, .experts = 8}, moe::FrozenFFN<float>{up, down}, moe::Seed{1});
///
/// Policies as AdaptedLinear's, of which adapters are LowRankAdapters<...>. It is a LayerBlock. A token that no expert
/// takes, as where capacity drops it, gets 0.
template <class ActivationPolicy, class... Policies>
class AdaptedFFN {
  static_assert((sizeof(detail::CheckAdaptedPolicy<Policies>) + ... +
                 sizeof(detail::CheckAdaptedCounts<detail::count_kind<kind::router, Policies...>,
                                                   detail::count_kind<kind::adapters, Policies...>>)) > 0);

 public:
  using Activation = ActivationPolicy;
  using Config = AdaptedFFNConfig;
  using Router = typename detail::Pick<kind::router, Unrouted, Policies...>::type;
  using Adapters = typename detail::Pick<kind::adapters, LowRankAdapters<>, Policies...>::type;
  using Capacity = typename detail::Pick<kind::capacity, CapacityPolicy<Dropless>, Policies...>::type;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Losses = typename detail::Filter<kind::loss, detail::List<>, Policies...>::type;
  using Base = FrozenFFN<Scalar, Space>;
  static constexpr bool gated = Activation::gated;
  static_assert(sizeof(detail::CheckRowAdapters<Adapters>) > 0);

  /// All trained arrays, under the names "router.*" and "adapters.gate.*", "adapters.up.*", "adapters.down.*".
  struct Parameters {
    typename Router::template Parameters<Real, Space> router;
    LowRank<Scalar, Space> gate, up, down;  ///< the first where gated
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
      if constexpr (gated) decltype(gate)::visit(detail::Prefixed{f, "adapters.gate."}, same.gate...);
      decltype(up)::visit(detail::Prefixed{f, "adapters.up."}, same.up...);
      decltype(down)::visit(detail::Prefixed{f, "adapters.down."}, same.down...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };
  /// Saved with the model, not trained; the frozen network is not among them.
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
    Matrix<Scalar, Space> up;                             ///< (R, 2I) or (R, I) before the activation
    Matrix<Scalar, Space> gate_down, up_down, down_down;  ///< (R, r) what the adapters' A gave
    Matrix<Scalar, Space> y, dx;
    Matrix<Scalar, Space> drouter_input;  ///< where the batch gave the router an input of its own
  };

  Parameters parameters;
  Buffers buffers;
  Base base;

  /// `values`: a FrozenFFN, an activation, a Router, adapters, CapacityPolicy or losses with values of their own, and a
  /// Seed, in any order. The frozen network may also be given later, as `base`.
  template <class... Values>
  explicit AdaptedFFN(const Config& config, const Values&... values) : config_(config) {
    (take(values), ...);
    const Index e = config.experts, h = config.hidden, i = config.intermediate, r = config.rank;
    if constexpr (gated) parameters.gate = adapters_.template parameters<Scalar, Space>({e, h, i, r});
    parameters.up = adapters_.template parameters<Scalar, Space>({e, h, i, r});
    parameters.down = adapters_.template parameters<Scalar, Space>({e, i, h, r});
    parameters.router = router_.template parameters<Real, Space>(router_shape());
    buffers.router = router_.template buffers<Real, Space>(router_shape());
    capacity_.check(config.experts);
    detail::initialise_layer<Space>(parameters, seed_, config.layer, config.initial_scale, "adapted.", true);
    const Space space{};
    if constexpr (gated) adapters_.start(space, parameters.gate);
    adapters_.start(space, parameters.up);
    adapters_.start(space, parameters.down);
    space.fence("moe::AdaptedFFN");
  }

  AdaptedFFN(const AdaptedFFN&) = delete;
  AdaptedFFN& operator=(const AdaptedFFN&) = delete;
  AdaptedFFN(AdaptedFFN&&) = default;
  AdaptedFFN& operator=(AdaptedFFN&&) = default;

  const Config& config() const { return config_; }
  const Router& router() const { return router_; }
  const Adapters& adapters() const { return adapters_; }
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }

  /// y (T, H) for x (T, H). y is the tape's: valid until its next forward. Throws ShapeError where the batch or the
  /// frozen network does not fit; DataError as MoELayer does.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const;
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Matrix<const Scalar, Space>& x, Tape& tape) const {
    Batch<Scalar, Space> batch;
    batch.x = x;
    return forward(ctx, batch, tape);
  }
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }

  /// dx (T, H) for dy (T, H); adds into gradients, with the losses' gradients times loss_scale. dx is the tape's.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const;

  /// Moves the balancing bias, where there is one. Once an optimiser step, with the counts of all its microbatches.
  void update_balance(Context<Space>& ctx, const LoadStatistics<Space>& statistics) {
    detail::update_balance("moe::AdaptedFFN", ctx, router_, config_.experts, buffers.router, statistics);
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  using M = Matrix<const Scalar, Space>;
  using Scratch = typename Context<Space>::Scratch;

  template <class V>
  void take(const V& value) {
    if constexpr (std::is_same_v<V, Seed>) {
      seed_ = value;
    } else if constexpr (std::is_same_v<V, Base>) {
      base = value;
    } else if constexpr (std::is_same_v<V, Activation>) {
      activation_ = value;
    } else if constexpr (std::is_same_v<V, Router>) {
      router_ = value;
    } else if constexpr (std::is_same_v<V, Adapters>) {
      adapters_ = value;
    } else if constexpr (std::is_same_v<V, Capacity>) {
      capacity_ = value;
    } else {
      static_assert(detail::one_of<V, Policies...>,
                    "moe::AdaptedFFN: a value was given of a policy that this layer's type does not name. Add the "
                    "policy to AdaptedFFN<...>, or drop the value.");
      std::get<V>(policies_) = value;
    }
  }

  RouterShape router_shape() const {
    return {config_.experts, config_.router_hidden > 0 ? config_.router_hidden : config_.hidden};
  }
  detail::HeadRouter<Router, Capacity, Losses, std::tuple<Policies...>, Scalar, Space> router_of() const {
    return {router_, capacity_, policies_, config_.experts, config_.layer};
  }
  /// The frozen weights of (T, H) to (T, I): the gate, and up behind it.
  M frozen_gate() const { return {base.up.data(), std::size_t(config_.intermediate), std::size_t(config_.hidden)}; }
  M frozen_up() const {
    return {base.up.data() + (gated ? config_.intermediate * config_.hidden : 0), std::size_t(config_.intermediate),
            std::size_t(config_.hidden)};
  }
  M frozen_down() const { return {base.down.data(), std::size_t(config_.hidden), std::size_t(config_.intermediate)}; }
  double factor(const LowRank<Scalar, Space>& p) const {
    return Adapters::scaling(config_.alpha, {p.adapters(), p.in(), p.out(), p.rank()});
  }
  bool drops(const Tape& tape) const { return adapters_.dropout > 0 && tape.routing.noisy; }
  /// Rows (R, H) that the adapters of gate (map 0) and up (1) read.
  Matrix<Scalar, Space> input_rows(Context<Space>& ctx, Scratch& scratch, const Tape& tape, std::uint32_t map) const {
    auto rows = scratch.template matrix<Scalar>(tape.plan.rows, config_.hidden);
    gather(ctx, tape.batch.x, tape.plan, rows);
    drop_rows(ctx, tape, map, rows);
    return rows;
  }
  void drop_rows(Context<Space>& ctx, const Tape& tape, std::uint32_t map, const Matrix<Scalar, Space>& rows) const {
    if (drops(tape))
      detail::drop_input<Scalar, Space>(ctx, tape.routing, map, adapters_.dropout, M(rows), tape.plan.row_token, rows,
                                        false);
  }

  Config config_;
  Activation activation_;
  Seed seed_;
  Router router_;
  Capacity capacity_;
  Adapters adapters_;
  std::tuple<Policies...> policies_;
  std::uint64_t id_ = detail::next_layer_id();
};

template <class ActivationPolicy, class... Policies>
auto AdaptedFFN<ActivationPolicy, Policies...>::forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                                        Tape& tape) const -> Matrix<Scalar, Space> {
  const Index tokens = batch.tokens(), inner = config_.intermediate, r = config_.rank;
  detail::check_tokens("moe::AdaptedFFN", batch, config_.hidden);
  detail::check_seen(ctx.space, "moe::AdaptedFFN::forward", tape.y, tokens);
  detail::check_frozen<Scalar, Space>("moe::AdaptedFFN", base.up, (gated ? 2 : 1) * inner, config_.hidden);
  detail::check_frozen<Scalar, Space>("moe::AdaptedFFN", base.down, config_.hidden, inner);
  detail::check_router_input("moe::AdaptedFFN", batch, router_shape().hidden);
  if constexpr (gated)
    detail::check_low_rank("moe::AdaptedFFN", parameters.gate, Adapters::shared,
                           {config_.experts, config_.hidden, inner, r});
  detail::check_low_rank("moe::AdaptedFFN", parameters.up, Adapters::shared,
                         {config_.experts, config_.hidden, inner, r});
  detail::check_low_rank("moe::AdaptedFFN", parameters.down, Adapters::shared,
                         {config_.experts, inner, config_.hidden, r});
  tape.space = ctx.space;
  tape.batch = batch;
  router_of().forward(ctx, batch, parameters.router, buffers.router, tape);
  const auto& plan = tape.plan;
  const Index rows = plan.rows;
  detail::shape(tape.up, "moe::adapted_up", rows, (gated ? 2 : 1) * inner);
  detail::shape(tape.up_down, "moe::lora_down", rows, r);
  detail::shape(tape.down_down, "moe::lora_down", rows, r);
  detail::shape(tape.y, "moe::y", tokens, config_.hidden);

  Scratch scratch(ctx);
  auto hidden = scratch.template matrix<Scalar>(rows, inner);
  {
    Scratch own(ctx);
    auto gate = own.template matrix<Scalar>(gated ? tokens : 0, inner), up = own.template matrix<Scalar>(tokens, inner),
         gate_rows = own.template matrix<Scalar>(gated ? rows : 0, inner),
         up_rows = own.template matrix<Scalar>(rows, inner);
    if constexpr (gated) {
      Scratch inputs(ctx);
      detail::shape(tape.gate_down, "moe::lora_down", rows, r);
      kernels::dense_forward<Scalar, Space, false>(ctx.space, batch.x, frozen_gate(), gate);
      detail::low_rank_rows<Scalar, Space>(ctx, plan, M(input_rows(ctx, inputs, tape, 0)), parameters.gate, {},
                                           factor(parameters.gate), tape.gate_down, gate_rows, false);
    }
    Scratch inputs(ctx);
    kernels::dense_forward<Scalar, Space, false>(ctx.space, batch.x, frozen_up(), up);
    detail::low_rank_rows<Scalar, Space>(ctx, plan, M(input_rows(ctx, inputs, tape, 1)), parameters.up, {},
                                         factor(parameters.up), tape.up_down, up_rows, false);
    detail::each_wide_row(ctx.space, "moe::AdaptedFFN::activate", rows, inner,
                          detail::ActivateAdapted<Activation, Scalar, Space>{plan, gate, up, gate_rows, up_rows,
                                                                             tape.up, hidden, activation_});
  }
  auto sum = scratch.template matrix<Scalar>(tokens, inner),
       out = scratch.template matrix<Scalar>(rows, config_.hidden);
  combine(ctx, M(hidden), Vector<const Real, Space>(tape.weight), plan, sum);
  kernels::dense_forward<Scalar, Space, false>(ctx.space, M(sum), frozen_down(), tape.y);
  drop_rows(ctx, tape, 2, hidden);
  detail::low_rank_rows<Scalar, Space>(ctx, plan, M(hidden), parameters.down, tape.weight, factor(parameters.down),
                                       tape.down_down, out, false);
  detail::add_token_rows<Scalar, Space>(ctx.space, plan, M(out), tape.y);

  detail::shape(tape.losses, "moe::losses", detail::length<Losses>);
  detail::fill(ctx.space, tape.losses, 0.0);
  router_of().add_losses(ctx, batch, tape, tape.losses.data());
  if constexpr (!detail::device_path<Space>) ctx.check();
  tape.owner = id_;
  return tape.y;
}

template <class ActivationPolicy, class... Policies>
auto AdaptedFFN<ActivationPolicy, Policies...>::backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy,
                                                         Tape& tape, Gradients& gradients, double loss_scale) const
    -> Matrix<Scalar, Space> {
  const auto& batch = tape.batch;
  const auto& plan = tape.plan;
  const Index tokens = batch.tokens(), inner = config_.intermediate, rows = plan.rows;
  detail::check_backward("moe::AdaptedFFN", id_, tape.owner, gradients.owner, dy, tokens, config_.hidden);
  detail::check_seen(ctx.space, "moe::AdaptedFFN::backward", tape.dx, tokens);
  Scratch scratch(ctx);
  auto dweight = scratch.template vector<Real>(tape.routing.assignments.bound);
  auto dgate = scratch.template matrix<Scalar>(gated ? rows : 0, inner),
       dup = scratch.template matrix<Scalar>(rows, inner);
  detail::fill(ctx.space, dweight, Real(0));
  detail::shape(tape.dx, "moe::dx", tokens, config_.hidden);
  {
    Scratch own(ctx);
    auto hidden = own.template matrix<Scalar>(rows, inner), dhidden = own.template matrix<Scalar>(rows, inner),
         dout = own.template matrix<Scalar>(rows, config_.hidden), dsum = own.template matrix<Scalar>(tokens, inner);
    detail::each_wide_row(ctx.space, "moe::AdaptedFFN::hidden", rows, inner,
                          detail::ActivateRow<Activation, Scalar, Space>{plan, tape.up, hidden, activation_});
    drop_rows(ctx, tape, 2, hidden);
    gather(ctx, dy, plan, dout);
    detail::low_rank_rows_backward<Scalar, Space>(ctx, plan, M(hidden), parameters.down, tape.weight,
                                                  factor(parameters.down), M(tape.down_down), M(dout), dhidden, false,
                                                  dweight, gradients.down);
    drop_rows(ctx, tape, 2, dhidden);
    kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, dy, frozen_down(), dsum, false);
    detail::each_row(ctx.space, "moe::AdaptedFFN::pull", rows,
                     detail::PullAdapted<Activation, Scalar, Real, Space>{plan, tape.weight, tape.up, dhidden, dsum,
                                                                          dgate, dup, dweight, activation_});
  }
  const auto pull = [&](const Matrix<Scalar, Space>& drows, const LowRank<Scalar, Space>& p, std::uint32_t map,
                        const Matrix<Scalar, Space>& down, const M& weight, bool add,
                        const LowRank<Scalar, Space>& gradient) {
    Scratch own(ctx);
    auto sum = own.template matrix<Scalar>(tokens, inner), dinput = own.template matrix<Scalar>(rows, config_.hidden);
    scatter_add(ctx, M(drows), plan, sum);
    kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, M(sum), weight, tape.dx, add);
    detail::low_rank_rows_backward<Scalar, Space>(ctx, plan, M(input_rows(ctx, own, tape, map)), p, {}, factor(p),
                                                  M(down), M(drows), dinput, false, {}, gradient);
    drop_rows(ctx, tape, map, dinput);
    detail::add_token_rows<Scalar, Space>(ctx.space, plan, M(dinput), tape.dx);
  };
  pull(dup, parameters.up, 1, tape.up_down, frozen_up(), false, gradients.up);
  if constexpr (gated) pull(dgate, parameters.gate, 0, tape.gate_down, frozen_gate(), true, gradients.gate);

  auto drouter = tape.dx;
  if (batch.router_input.is_allocated()) {
    detail::shape(tape.drouter_input, "moe::drouter_input", tokens, batch.router_input.extent(1));
    detail::fill(ctx.space, tape.drouter_input, Scalar(0));
    drouter = tape.drouter_input;
  }
  router_of().backward(ctx, batch, parameters.router, tape, dweight, loss_scale, drouter, gradients.router);
  return tape.dx;
}

MOE_NAMESPACE_END
