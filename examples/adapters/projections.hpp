#pragma once
/// @file
/// A frozen feed-forward network whose three projections are adapted, each by adapters and a router of its own: as the
/// papers of LoRA's mixtures have it. (moe::AdaptedFFN has one choice of experts for all three, as MixLoRA has it.)

#include <moe/adapters/adapted_linear.hpp>
#include <moe/moe.hpp>

namespace adapt {

using moe::Index;

/// hidden = SiLU(gate) up, of (T, I).
template <class T, class Space>
struct Gate {
  moe::Matrix<const T, Space> gate, up;
  moe::Matrix<T, Space> hidden;
  KOKKOS_FUNCTION void operator()(Index t, const moe::Team& team) const {
    using Real = moe::RouterReal<T>;
    const Index width = hidden.extent(1);
    const T *g = gate.data() + t * width, *u = up.data() + t * width;
    T* to = hidden.data() + t * width;
    team.each_apart(width, [=](Index i) { to[i] = T(moe::SwiGLU::value(Real(g[i])) * Real(u[i])); });
  }
};

template <class T, class Space>
struct GateGradient {
  moe::Matrix<const T, Space> gate, up, dhidden;
  moe::Matrix<T, Space> dgate, dup;
  KOKKOS_FUNCTION void operator()(Index t, const moe::Team& team) const {
    using Real = moe::RouterReal<T>;
    const Index width = dhidden.extent(1);
    const T *g = gate.data() + t * width, *u = up.data() + t * width, *d = dhidden.data() + t * width;
    T *to_gate = dgate.data() + t * width, *to_up = dup.data() + t * width;
    team.each_apart(width, [=](Index i) {
      to_gate[i] = T(Real(d[i]) * Real(u[i]) * moe::SwiGLU::derivative(Real(g[i])));
      to_up[i] = T(Real(d[i]) * moe::SwiGLU::value(Real(g[i])));
    });
  }
};

struct ProjectionsConfig {
  Index hidden = 0;         // H
  Index intermediate = 0;   // I
  Index experts = 1;        // of each projection
  Index rank = 8;           // of one adapter
  double alpha = 16;        // of the scaling
  std::uint32_t layer = 0;  // number of the layer in its model: keys its random draws
};

/// `Linear` is a moe::AdaptedLinear. The layer has MoELayer's interface (moe/layers/block.hpp).
template <class Linear>
class AdaptedProjections {
 public:
  using Scalar = typename Linear::Scalar;
  using Space = typename Linear::Space;
  using Config = ProjectionsConfig;
  using Frozen = moe::Tensor3<Scalar, Space>;

  struct Parameters {
    typename Linear::Parameters gate, up, down;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      Linear::Parameters::visit(moe::detail::Prefixed{f, "gate_proj."}, same.gate...);
      Linear::Parameters::visit(moe::detail::Prefixed{f, "up_proj."}, same.up...);
      Linear::Parameters::visit(moe::detail::Prefixed{f, "down_proj."}, same.down...);
    }
  };
  struct Gradients : Parameters {
    typename Linear::Gradients of_gate, of_up, of_down;  // the same arrays
  };
  struct Buffers {
    typename Linear::Buffers gate, up, down;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      Linear::Buffers::visit(moe::detail::Prefixed{f, "gate_proj."}, same.gate...);
      Linear::Buffers::visit(moe::detail::Prefixed{f, "up_proj."}, same.up...);
      Linear::Buffers::visit(moe::detail::Prefixed{f, "down_proj."}, same.down...);
    }
  };
  /// Reports read the routing of the gate's projection.
  struct Tape : moe::HeadRouting<typename Linear::Real, Space> {
    moe::Batch<Scalar, Space> batch;
    typename Linear::Tape gate, up, down;
    moe::Matrix<Scalar, Space> hidden, dx;  // (T, I), (T, H)
    double loss() const { return gate.loss() + up.loss() + down.loss(); }
  };

  Parameters parameters;
  Buffers buffers;

  explicit AdaptedProjections(const Config& config, moe::Seed seed = {}) : AdaptedProjections(config, {}, {}, seed) {}
  /// Over up (1, 2I, H), gates first, and down (1, H, I), which the layer does not keep alive. `values` go to each of
  /// the projections.
  template <class... Values>
  AdaptedProjections(const Config& config, const Frozen& up, const Frozen& down, moe::Seed seed,
                     const Values&... values)
      : config_(config),
        gate_(sizes(0), frozen(up, 0, config.intermediate, config.hidden), seed, values...),
        up_(sizes(1), frozen(up, config.intermediate, config.intermediate, config.hidden), seed, values...),
        down_(sizes(2), frozen(down, 0, config.hidden, config.intermediate), seed, values...) {
    parameters = {gate_.parameters, up_.parameters, down_.parameters};
    buffers = {gate_.buffers, up_.buffers, down_.buffers};
  }

  const Config& config() const { return config_; }
  Gradients gradients() const {
    Gradients result;
    result.gate = result.of_gate = gate_.gradients();
    result.up = result.of_up = up_.gradients();
    result.down = result.of_down = down_.gradients();
    return result;
  }

  /// y (T, H), the tape's.
  moe::Matrix<Scalar, Space> forward(moe::Context<Space>& ctx, const moe::Batch<Scalar, Space>& batch,
                                     Tape& tape) const {
    const auto gate = gate_.forward(ctx, batch, tape.gate), up = up_.forward(ctx, batch, tape.up);
    moe::detail::shape(tape.hidden, "hidden", batch.tokens(), config_.intermediate);
    moe::detail::each_row(ctx.space, "gate", batch.tokens(), Gate<Scalar, Space>{gate, up, tape.hidden});
    moe::Batch<Scalar, Space> inner = batch;
    inner.x = tape.hidden;
    static_cast<moe::HeadRouting<typename Linear::Real, Space>&>(tape) = tape.gate;
    tape.batch = batch;
    return down_.forward(ctx, inner, tape.down);
  }

  /// dx (T, H), the tape's; adds into gradients.
  moe::Matrix<Scalar, Space> backward(moe::Context<Space>& ctx, const moe::Matrix<const Scalar, Space>& dy, Tape& tape,
                                      Gradients& gradients, double loss_scale = 1) const {
    using M = moe::Matrix<const Scalar, Space>;
    const Index tokens = tape.batch.tokens();
    typename moe::Context<Space>::Scratch scratch(ctx);
    auto dgate = scratch.template matrix<Scalar>(tokens, config_.intermediate),
         dup = scratch.template matrix<Scalar>(tokens, config_.intermediate);
    const auto dhidden = down_.backward(ctx, dy, tape.down, gradients.of_down, loss_scale);
    moe::detail::each_row(ctx.space, "gate", tokens,
                          GateGradient<Scalar, Space>{tape.gate.y, tape.up.y, dhidden, dgate, dup});
    const auto left = gate_.backward(ctx, M(dgate), tape.gate, gradients.of_gate, loss_scale),
               right = up_.backward(ctx, M(dup), tape.up, gradients.of_up, loss_scale);
    moe::detail::shape(tape.dx, "dx", tokens, config_.hidden);
    moe::detail::add_rows<Scalar>(ctx.space, "gate", M(left), M(right), tape.dx);
    return tape.dx;
  }

 private:
  /// Of projection 0 (gate), 1 (up) or 2 (down).
  moe::AdaptedLinearConfig sizes(Index number) const {
    const bool down = number == 2;
    return {.in = down ? config_.intermediate : config_.hidden,
            .out = down ? config_.hidden : config_.intermediate,
            .experts = config_.experts,
            .rank = config_.rank,
            .alpha = config_.alpha,
            .layer = 3 * config_.layer + std::uint32_t(number)};
  }
  /// Rows [first, first + out) of the only expert's array.
  static moe::FrozenLinear<Scalar, Space> frozen(const Frozen& weights, Index first, Index out, Index in) {
    return {moe::Matrix<const Scalar, Space>(weights.data() + first * in, std::size_t(out), std::size_t(in)), {}};
  }

  Config config_;
  Linear gate_, up_, down_;
};

}  // namespace adapt
