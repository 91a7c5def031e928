#pragma once
/// @file
/// `ProjectionAdaptedFFN`: a frozen feed-forward network with a mixture of adapters on each projection.

#include "moe/adapters/adapted_ffn.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// hidden = value(gate) * up, or value(up), of tokens.
template <class Activation, class T, class Space>
struct ActivateTokens {
  Matrix<const T, Space> gate, up;  // (T, I); the first where gated
  Matrix<T, Space> hidden;
  Activation activation;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Real = RouterReal<T>;
    team.each(Index(hidden.extent(1)), [&](Index i) {
      if constexpr (Activation::gated) {
        hidden(t, i) = T(activate(activation, Real(gate(t, i)), Real(up(t, i))));
      } else {
        hidden(t, i) = T(activate(activation, Real(up(t, i)), Real(1)));
      }
    });
  }
};
template <class Activation, class T, class Space>
struct PullTokens {
  Matrix<const T, Space> gate, up, dhidden;
  Matrix<T, Space> dgate, dup;
  Activation activation;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Real = RouterReal<T>;
    team.each(Index(dup.extent(1)), [&](Index i) {
      const Real d = Real(dhidden(t, i));
      Real dfirst, dother;
      if constexpr (Activation::gated) {
        activate(activation, Real(gate(t, i)), Real(up(t, i)), dfirst, dother);
        dgate(t, i) = T(d * dfirst);
        dup(t, i) = T(d * dother);
      } else {
        activate(activation, Real(up(t, i)), Real(1), dfirst, dother);
        dup(t, i) = T(d * dfirst);
      }
    });
  }
};

}  // namespace detail

/// y = W_down'(value(W_gate' x) * W_up' x), where each W' is an AdaptedLinear<Policies...> with a router, adapters and
/// losses of its own: the feed-forward layer of MoLA, LoRAMoE, HydraLoRA and others whose adapters replace linear maps
/// one by one. It is a LayerBlock. The routers of gate and up read x, that of down what it is given, or all read
/// Batch::router_input.
template <class ActivationPolicy, class... Policies>
class ProjectionAdaptedFFN {
 public:
  using Activation = ActivationPolicy;
  using Linear = AdaptedLinear<Policies...>;
  using Config = AdaptedFFNConfig;
  using Space = typename Linear::Space;
  using Scalar = typename Linear::Scalar;
  using Base = FrozenFFN<Scalar, Space>;
  static constexpr bool gated = Activation::gated;

  /// "gate.router.*", "gate.adapters.*" where gated; "up.*", "down.*".
  struct Parameters {
    typename Linear::Parameters gate, up, down;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      if constexpr (gated) decltype(gate)::visit(detail::Prefixed{f, "gate."}, same.gate...);
      decltype(up)::visit(detail::Prefixed{f, "up."}, same.up...);
      decltype(down)::visit(detail::Prefixed{f, "down."}, same.down...);
    }
  };
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
    typename Linear::Gradients of_gate, of_up, of_down;  ///< the same arrays
  };
  struct Buffers {
    typename Linear::Buffers gate, up, down;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      if constexpr (gated) decltype(gate)::visit(detail::Prefixed{f, "gate."}, same.gate...);
      decltype(up)::visit(detail::Prefixed{f, "up."}, same.up...);
      decltype(down)::visit(detail::Prefixed{f, "down."}, same.down...);
    }
  };
  struct Tape {
    Tape() = default;
    Tape(Tape&&) = default;  // copies would share their arrays
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    typename Linear::Tape gate, up, down;
    Batch<Scalar, Space> batch;
    Matrix<Scalar, Space> hidden;  ///< (T, I)
    Matrix<Scalar, Space> dx;
    Matrix<Scalar, Space> drouter_input;  ///< where the batch gave the routers an input of their own
    /// The sum of all losses, coefficients included. Waits for the device.
    double loss() const { return (gated ? gate.loss() : 0) + up.loss() + down.loss(); }
  };

  Parameters parameters;
  Buffers buffers;
  Base base;

  /// `values`: a FrozenFFN, or what AdaptedLinear takes, for all projections alike. The frozen network may also be
  /// given later, as `base`.
  template <class... Values>
  explicit ProjectionAdaptedFFN(const Config& config, const Values&... values)
      : config_(config),
        gate_(of(config, 0, config.hidden, config.intermediate), linear_value(values)...),
        up_(of(config, 1, config.hidden, config.intermediate), linear_value(values)...),
        down_(of(config, 2, config.intermediate, config.hidden), linear_value(values)...) {
    (take(values), ...);
    parameters = {gate_.parameters, up_.parameters, down_.parameters};
    buffers = {gate_.buffers, up_.buffers, down_.buffers};
  }
  ProjectionAdaptedFFN(const ProjectionAdaptedFFN&) = delete;
  ProjectionAdaptedFFN& operator=(const ProjectionAdaptedFFN&) = delete;
  ProjectionAdaptedFFN(ProjectionAdaptedFFN&&) = default;
  ProjectionAdaptedFFN& operator=(ProjectionAdaptedFFN&&) = default;

  const Config& config() const { return config_; }
  /// The projections, to move a balancing bias; their weights are this layer's.
  Linear& gate() { return gate_; }
  Linear& up() { return up_; }
  Linear& down() { return down_; }
  Gradients gradients() const {
    Gradients result;
    result.owner = id_;
    if constexpr (gated) result.gate = result.of_gate = gate_.gradients();
    result.up = result.of_up = up_.gradients();
    result.down = result.of_down = down_.gradients();
    return result;
  }

  /// y (T, H) for x (T, H); y is the tape's. Throws as AdaptedLinear does.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    detail::check_tokens("moe::ProjectionAdaptedFFN", batch, config_.hidden);
    detail::check_frozen<Scalar, Space>("moe::ProjectionAdaptedFFN", base.up, (gated ? 2 : 1) * config_.intermediate,
                                        config_.hidden);
    detail::check_frozen<Scalar, Space>("moe::ProjectionAdaptedFFN", base.down, config_.hidden, config_.intermediate);
    tape.batch = batch;
    if constexpr (gated) gate_.forward(ctx, batch, tape.gate, frozen_gate());
    up_.forward(ctx, batch, tape.up, frozen_up());
    detail::shape(tape.hidden, "moe::adapted_hidden", batch.tokens(), config_.intermediate);
    detail::each_wide_row(
        ctx.space, "moe::ProjectionAdaptedFFN", batch.tokens(), config_.intermediate,
        detail::ActivateTokens<Activation, Scalar, Space>{tape.gate.y, tape.up.y, tape.hidden, activation_});
    Batch<Scalar, Space> inner = batch;
    inner.x = tape.hidden;
    const auto y = down_.forward(ctx, inner, tape.down, frozen_down());
    tape.owner = id_;
    return y;
  }
  /// Inference: leaves no tape; y is the context's until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }

  /// dx (T, H) for dy (T, H), the tape's; adds into gradients, losses included.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const {
    using M = Matrix<const Scalar, Space>;
    const Index tokens = tape.batch.tokens();
    detail::check_backward("moe::ProjectionAdaptedFFN", id_, tape.owner, gradients.owner, dy, tokens, config_.hidden);
    typename Context<Space>::Scratch scratch(ctx);
    auto dgate = scratch.template matrix<Scalar>(gated ? tokens : 0, config_.intermediate),
         dup = scratch.template matrix<Scalar>(tokens, config_.intermediate);
    const auto dhidden = down_.backward(ctx, dy, tape.down, gradients.of_down, loss_scale, frozen_down());
    detail::each_wide_row(
        ctx.space, "moe::ProjectionAdaptedFFN::backward", tokens, config_.intermediate,
        detail::PullTokens<Activation, Scalar, Space>{tape.gate.y, tape.up.y, dhidden, dgate, dup, activation_});
    auto dx = up_.backward(ctx, M(dup), tape.up, gradients.of_up, loss_scale, frozen_up());
    const bool own_input = tape.batch.router_input.is_allocated();
    auto drouter = tape.up.drouter_input;
    if (own_input) drouter = sum(ctx, tape.down.drouter_input, tape.up.drouter_input, tape.drouter_input);
    if constexpr (gated) {
      const auto from_gate = gate_.backward(ctx, M(dgate), tape.gate, gradients.of_gate, loss_scale, frozen_gate());
      dx = sum(ctx, dx, from_gate, tape.dx);
      if (own_input) sum(ctx, drouter, tape.gate.drouter_input, tape.drouter_input);
    }
    tape.dx = dx;
    return dx;
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  using FrozenMap = FrozenLinear<Scalar, Space>;

  static AdaptedLinearConfig of(const Config& config, std::uint32_t projection, Index in, Index out) {
    return {in,
            out,
            config.experts,
            config.rank,
            config.alpha,
            config.router_hidden,
            config.layer * 3 + projection,
            config.initial_scale};
  }
  template <class V>
  static auto linear_value(const V& value) {
    if constexpr (std::is_same_v<V, Base> || std::is_same_v<V, Activation>) {
      return detail::NoValue{};  // not the projections'
    } else {
      return value;
    }
  }
  template <class V>
  void take(const V& value) {
    if constexpr (std::is_same_v<V, Base>) base = value;
    if constexpr (std::is_same_v<V, Activation>) activation_ = value;
  }
  FrozenMap frozen_gate() const { return {rows_of_up(0), {}}; }
  FrozenMap frozen_up() const { return {rows_of_up(gated ? config_.intermediate : 0), {}}; }
  FrozenMap frozen_down() const {
    return {{base.down.data(), std::size_t(config_.hidden), std::size_t(config_.intermediate)}, {}};
  }
  Matrix<const Scalar, Space> rows_of_up(Index first) const {
    return {base.up.data() + first * config_.hidden, std::size_t(config_.intermediate), std::size_t(config_.hidden)};
  }
  static Matrix<Scalar, Space> sum(Context<Space>& ctx, const Matrix<const Scalar, Space>& a,
                                   const Matrix<const Scalar, Space>& b, Matrix<Scalar, Space>& to) {
    detail::shape(to, "moe::sum", a.extent(0), a.extent(1));
    detail::add_rows<Scalar>(ctx.space, "moe::ProjectionAdaptedFFN::sum", a, b, to);
    return to;
  }

  Config config_;
  Activation activation_;
  Linear gate_, up_, down_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END
