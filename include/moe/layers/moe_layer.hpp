#pragma once
/// @file
/// `MoELayer`: router, dispatch, experts, combine, branches and losses as one object.

#include <memory>
#include <optional>

#include "moe/balance/load.hpp"
#include "moe/balance/losses.hpp"
#include "moe/combine/combine.hpp"
#include "moe/combine/renormalize.hpp"
#include "moe/dispatch/dispatch.hpp"
#include "moe/layers/checkpointing.hpp"
#include "moe/layers/concepts.hpp"
#include "moe/layers/detail/layer.hpp"
#include "moe/layers/detail/parts.hpp"
#include "moe/layers/input.hpp"
#include "moe/layers/latent.hpp"
#include "moe/layers/output.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of a layer.
struct MoEConfig {
  Index hidden = 0;          ///< H
  Index intermediate = 0;    ///< I, of one expert
  Index experts = 0;         ///< E
  Index router_hidden = 0;   ///< width of Batch::router_input, where it is not H
  std::uint32_t layer = 0;   ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;  ///< weights start as N(0, initial_scale^2 / fan_in)
};

/// A mixture-of-experts layer composed of policies in any order.
///
///     using Block = moe::MoELayer<moe::Router<moe::Softmax, moe::TopK<2>>, moe::ExpertFFN<moe::SwiGLU>>;
///     Block block(Block::Config{.hidden = 64, .intermediate = 128, .experts = 8}, moe::Seed{42});
///     auto y = block.forward(ctx, x, tape);                 // (T, H)
///     auto dx = block.backward(ctx, dy, tape, gradients);   // (T, H); adds into gradients, losses included
///
/// Defaults: Router<>, ExpertFFN<SwiGLU>, CapacityPolicy<Dropless>, Kokkos' default execution space, float. Tokens
/// choose experts, rows are gathered, experts run on them, and y is the weighted sum plus the branches. In full: input
/// map, router, capacity, latent projection, experts (weights on their output, or with WeightOnInput on their input),
/// sum, projection back, output policies on the routed part, branches, other output policies.
template <class... Policies>
class MoELayer {
  static_assert(
      (sizeof(detail::CheckLayerPolicy<Policies>) + ... +
       sizeof(detail::CheckLayerCounts<
              detail::count_kind<kind::router, Policies...>, detail::count_kind<kind::experts, Policies...>,
              detail::count_kind<kind::capacity, Policies...>, detail::count_kind<kind::space, Policies...>,
              detail::count_kind<kind::precision, Policies...>, detail::count_kind<kind::latent, Policies...>,
              detail::count_kind<kind::input_map, Policies...>, detail::count_kind<kind::recompute, Policies...>>)) >
      0);
  template <class P, class Default>
  using Valid = std::conditional_t<detail::fits_layer<P>, P, Default>;

 public:
  using Config = MoEConfig;
  using Router = typename detail::Pick<kind::router, moe::Router<>, Policies...>::type;
  using Experts = Valid<typename detail::Pick<kind::experts, ExpertFFN<SwiGLU>, Policies...>::type, ExpertFFN<SwiGLU>>;
  using Capacity = typename detail::Pick<kind::capacity, CapacityPolicy<Dropless>, Policies...>::type;
  using Space = typename detail::Pick<kind::space, On<Kokkos::DefaultExecutionSpace>, Policies...>::type::space;
  using Scalar = typename detail::Pick<kind::precision, Precision<float>, Policies...>::type::storage;
  using Real = RouterReal<Scalar>;
  using Branches = typename detail::Filter<kind::branch, detail::List<>, Policies...>::type;
  using Outputs = typename detail::Filter<kind::output, detail::List<>, Policies...>::type;
  using LatentPolicy = typename detail::Pick<kind::latent, detail::NoLatent, Policies...>::type;
  using InputMap = typename detail::Pick<kind::input_map, detail::NoInputMap, Policies...>::type;
  static constexpr bool has_latent = !std::is_same_v<LatentPolicy, detail::NoLatent>;
  static constexpr bool has_input_map = !std::is_same_v<InputMap, detail::NoInputMap>;
  static constexpr bool weight_on_input = detail::count_kind<kind::weight_place, Policies...> != 0;
  using Losses = typename detail::Filter<kind::loss, detail::List<>, Policies...>::type;
  /// Do the experts gather their rows and weigh their sum themselves?
  static constexpr bool combines_itself = !weight_on_input && requires {
    &Experts::template forward_combined<Scalar, Real, Space>;
  };

  /// Do the experts read tokens by the plan's numbers, so that rows need no array?
  static constexpr bool reads_tokens = detail::device_path<Space> && !weight_on_input && requires {
    typename Experts::template Rows<Scalar, Space>;
  };

  /// Does a gradient of the combine weights need the experts' outputs?
  static constexpr bool needs_out = !weight_on_input && !requires {
    &Experts::template backward_weighted<Scalar, Real, Space>;
  };
  using Checkpointing = typename detail::Pick<kind::recompute, detail::NoCheckpointing, Policies...>::type;
  static constexpr bool asks_checkpointing = !std::is_same_v<Checkpointing, detail::NoCheckpointing>;
  static constexpr bool checkpoints = asks_checkpointing && !combines_itself && detail::has_workspace<Experts>;
  static_assert(sizeof(detail::CheckCheckpointing < Experts, checkpoints || !asks_checkpointing || combines_itself >) >
                0);

  /// All trained arrays, under the names "router.*", "experts.*", "shared_experts.*". Also the type of gradients.
  struct Parameters {
    typename Router::template Parameters<Real, Space> router;
    typename Experts::template Parameters<Scalar, Space> experts;
    detail::PartParameters<Branches, Scalar, Space> branches;
    detail::PartParameters<Outputs, Scalar, Space> outputs;
    typename LatentPolicy::template Parameters<Scalar, Space> latent;

    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
      decltype(experts)::visit(detail::Prefixed{f, "experts."}, same.experts...);
      decltype(branches)::visit(f, same.branches...);
      decltype(outputs)::visit(f, same.outputs...);
      decltype(latent)::visit(detail::Prefixed{f, "latent."}, same.latent...);
    }
  };

  /// Gradients of every parameter; they know their layer.
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
  };

  /// Saved with the model, not trained: "router.balance_bias".
  struct Buffers {
    typename Router::template Buffers<Real, Space> router;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
    }
  };

  /// What one forward pass leaves for its backward, losses and reports. One for each microbatch in flight; reusable.
  struct Tape {
    Tape() = default;
    Tape(Tape&&) = default;
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    std::optional<Space> space;                ///< the stream of its last forward
    Recompute recompute = Recompute::nothing;  ///< what that forward did not keep
    Batch<Scalar, Space> batch;
    moe::Routing<Real, Space> routing;
    Vector<Real, Space> weight;  ///< (A) combine weights after drops
    DispatchPlan<Space> plan;
    Matrix<Scalar, Space> rows;  ///< (R, H) gathered tokens, where they are kept
    Matrix<Scalar, Space> out;   ///< (R, H) what the experts gave, where backward needs it
    typename Experts::template Saved<Scalar, Space> experts;
    detail::PartSaved<Branches, Scalar, Space> branches;
    detail::PartSaved<Outputs, Scalar, Space> outputs;
    typename LatentPolicy::template Saved<Scalar, Space> latent;
    Matrix<Scalar, Space> mapped;         ///< (T, H) the input behind its map, where there is one
    detail::RowDraws<Space> input_draws;  ///< of that map
    Vector<double, Space> losses;         ///< (number of losses), coefficients included
    Matrix<Scalar, Space> y, dx;
    Matrix<Scalar, Space> drouter_input, dbranch_input;  ///< where the batch gave those inputs of their own

    /// The sum of the layer's losses, coefficients included. Waits for the device.
    double loss() const {
      double sum = 0;
      for (double value : loss_values()) sum += value;
      return sum;
    }
    /// Each loss in the order of the layer's arguments. Waits for the device.
    std::vector<double> loss_values() const {
      return detail::read_losses<Space>(space, losses, "moe::MoELayer::Tape::loss_values");
    }
  };

  Parameters parameters;
  Buffers buffers;

  /// A layer with fresh weights. `values`: a Router, CapacityPolicy, experts, branches or losses with values of their
  /// own, and a Seed, in any order. Throws ConfigError for sizes that cannot work.
  template <class... Values>
  explicit MoELayer(const Config& config, const Values&... values) : config_(config) {
    static_assert(
        (sizeof(detail::CheckLayerValue<Values, detail::one_of<Values, Policies..., Seed, Router, Capacity, Experts>>) +
         ... + 1) > 0);
    if constexpr ((detail::one_of<Values, std::tuple<Policies...>, Policies..., Seed, Router, Capacity, Experts> &&
                   ...)) {
      (take(values), ...);
    }
    check();
    const ExpertShape shape{config.experts, config.hidden, config.intermediate};
    ExpertShape inner = shape;
    if constexpr (has_latent) {
      parameters.latent = latent().template parameters<Scalar, Space>(shape);
      inner.hidden = latent().width;
    }
    const RouterShape router_shape = this->router_shape();
    parameters.router = router_.template parameters<Real, Space>(router_shape);
    parameters.experts = experts_.template parameters<Scalar, Space>(inner);
    detail::allocate_parts(Branches{}, policies_, shape, parameters.branches);
    detail::allocate_parts(Outputs{}, policies_, shape, parameters.outputs);
    buffers.router = router_.template buffers<Real, Space>(router_shape);
    detail::initialise_layer<Space>(parameters, seed_, config_.layer, config_.initial_scale);
  }
  MoELayer(const MoELayer&) = delete;
  MoELayer& operator=(const MoELayer&) = delete;
  MoELayer(MoELayer&&) = default;
  MoELayer& operator=(MoELayer&&) = default;

  const Config& config() const { return config_; }
  const Router& router() const { return router_; }
  const Capacity& capacity() const { return capacity_; }
  /// The value of one of its losses, branches or experts, to change in a sweep.
  template <class P>
  P& get() {
    return std::get<P>(policies_);
  }
  /// The value of any of its policies, to read.
  template <class P>
  const P& value() const {
    if constexpr (std::is_same_v<P, Router>) {
      return router_;
    } else if constexpr (std::is_same_v<P, Capacity>) {
      return capacity_;
    } else if constexpr (std::is_same_v<P, Experts>) {
      return experts_;
    } else {
      return std::get<P>(policies_);
    }
  }

  /// Fresh gradients, zero.
  Gradients gradients() const { return {detail::zeros_like(parameters), id_}; }

  /// y (T, H) for x (T, H). y is the tape's: valid until the tape's next forward. Throws ShapeError where x does not
  /// fit; DataError for NaN logits and for ids that name no expert (on host spaces; else at ctx.check()).
  template <class X>
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const X& x, Tape& tape) const {
    if constexpr (detail::is_token_matrix<X, Scalar, Space>) {
      Batch<Scalar, Space> batch;
      batch.x = x;
      return forward(ctx, batch, tape);
    } else {
      detail::CheckMatrix<X, Scalar, Space>{};
      return {};
    }
  }
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    check(batch);
    if (capturing(ctx.space)) check_capture(ctx, batch, tape);
    typename Context<Space>::Scratch scratch(ctx);
    const Batch<Scalar, Space> mapped = map_input(ctx, scratch, batch, tape);
    route(ctx, mapped, tape);
    return run(ctx, batch, mapped, tape);
  }
  /// With a routing made elsewhere: logits, scores and assignments are taken as they are.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                const moe::Routing<Real, Space>& routing, Tape& tape) const {
    check(batch);
    detail::require<ShapeError>(routing.assignments.tokens == batch.tokens(), "moe::MoELayer::forward: a routing of ",
                                routing.assignments.tokens, " tokens for a batch of ", batch.tokens(), ".");
    if (capturing(ctx.space)) check_capture(ctx, batch, tape);
    Kokkos::parallel_for(
        "moe::MoELayer::check_ids", detail::Range<Space>(ctx.space, 0, batch.tokens()),
        detail::CheckIds<Real, Space>{routing.assignments, config_.experts, ctx.flag(),
                                      detail::device_path<Space>});  // a device cannot throw: it repairs
    if constexpr (!detail::device_path<Space>) ctx.check();
    typename Context<Space>::Scratch scratch(ctx);
    const Batch<Scalar, Space> mapped = map_input(ctx, scratch, batch, tape);
    tape.routing = routing;
    return run(ctx, batch, mapped, tape);
  }

  /// Inference: leaves no tape. y is the context's: valid until this layer's next forward with it.
  template <class X>
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const X& x) const {
    return forward(ctx, x, ctx.template kept<Tape>(id_));
  }

  /// dx (T, H) for dy (T, H); adds into gradients, with the losses' gradients times loss_scale. dx is the tape's.
  /// Throws Error for a tape or gradients of another layer, or a tape without a forward.
  template <class DY>
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const DY& dy, Tape& tape, Gradients& gradients,
                                 double loss_scale = 1) const {
    if constexpr (detail::is_token_matrix<DY, Scalar, Space>) {
      return pull(ctx, Matrix<const Scalar, Space>(dy), tape, gradients, loss_scale);
    } else {
      detail::CheckMatrix<DY, Scalar, Space>{};
      return {};
    }
  }

  /// Computes the losses of a tape anew, for those that look at more than its forward knew: PooledBalanceLoss'
  /// counts, ReinforceLoss' rewards. Their gradients need no such call.
  void evaluate_losses(Context<Space>& ctx, Tape& tape) const;

  /// Moves the balancing bias, where there is one. Once an optimiser step, with the counts of all its microbatches.
  void update_balance(const LoadStatistics<Space>& statistics) {
    detail::refuse_capture(statistics.space(), "moe::MoELayer::update_balance without a context, which it makes,",
                           "Give it the context: update_balance(ctx, statistics).");
    Context<Space> ctx;
    ctx.space = statistics.space();
    update_balance(ctx, statistics);
  }
  void update_balance(Context<Space>& ctx, const LoadStatistics<Space>& statistics) {
    detail::require<ShapeError>(Index(statistics.counts().extent(0)) == config_.experts,
                                "moe::MoELayer::update_balance: counts of ", statistics.counts().extent(0),
                                " experts for a layer of ", config_.experts, ". Call statistics.add(tape) first.");
    router_.update_balance(ctx, buffers.router, Vector<const Index, Space>(statistics.counts()),
                           Vector<const Index, Space>(statistics.tokens()));
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
    } else if constexpr (std::is_same_v<V, Router>) {
      router_ = value;
    } else if constexpr (std::is_same_v<V, Capacity>) {
      capacity_ = value;
    } else if constexpr (std::is_same_v<V, Experts>) {
      experts_ = value;
    } else {
      std::get<V>(policies_) = value;
    }
  }

  RouterShape router_shape() const {
    return {config_.experts, config_.router_hidden > 0 ? config_.router_hidden : config_.hidden};
  }

  void check() const {
    detail::require<ConfigError>(config_.hidden > 0 && config_.intermediate > 0 && config_.experts > 0,
                                 "moe::MoELayer: hidden ", config_.hidden, ", intermediate ", config_.intermediate,
                                 ", experts ", config_.experts, "; all must be positive.");
    capacity_.check(config_.experts);
  }

  const LatentPolicy& latent() const { return std::get<LatentPolicy>(policies_); }
  /// The width at which experts work.
  Index inner_width() const {
    if constexpr (has_latent) return latent().width;
    return config_.hidden;
  }

  Recompute recompute_level() const {
    if constexpr (checkpoints) return std::get<Checkpointing>(policies_).level;
    return Recompute::nothing;
  }
  /// (T, L): what rows are gathered from.
  static Matrix<const Scalar, Space> inner_of(const Batch<Scalar, Space>& batch, const Tape& tape) {
    if constexpr (has_latent) return tape.latent.normed;
    return batch.x;
  }

  /// Where the experts' weighted sum goes.
  static Matrix<Scalar, Space> sum_of(const Tape& tape) {
    if constexpr (has_latent) return tape.latent.sum;
    return tape.y;
  }

  void check(const Batch<Scalar, Space>& batch) const;
  /// Throws where this forward would allocate, or has a selection that needs the host: a graph cannot hold it.
  void check_capture(const Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Tape& tape) const;
  using Scratch = typename Context<Space>::Scratch;
  Batch<Scalar, Space> map_input(Context<Space>& ctx, Scratch& scratch, const Batch<Scalar, Space>& batch,
                                 Tape& tape) const;
  /// The same draws as map_input's.
  Matrix<const Scalar, Space> jitter_input(Context<Space>& ctx, const Matrix<const Scalar, Space>& x, const Tape& tape,
                                           const Matrix<Scalar, Space>& mapped) const;
  void route(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const;
  /// `batch` is `given` behind the input map.
  Matrix<Scalar, Space> run(Context<Space>& ctx, const Batch<Scalar, Space>& given, const Batch<Scalar, Space>& batch,
                            Tape& tape) const;
  /// What the experts take as rows.
  auto rows_of(const Batch<Scalar, Space>& batch, const Tape& tape, const Matrix<Scalar, Space>& rows) const {
    if constexpr (reads_tokens) {
      return typename Experts::template Rows<Scalar, Space>(inner_of(batch, tape), tape.plan);
    } else {
      return rows;
    }
  }

  /// (R, L): what the experts work on, with weights on it where they act there.
  void gather_rows(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Tape& tape,
                   const Matrix<Scalar, Space>& rows) const;
  Matrix<Scalar, Space> pull(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                             Gradients& gradients, double loss_scale) const;

  Config config_;
  Seed seed_;
  Router router_;
  Capacity capacity_;
  Experts experts_;
  std::tuple<Policies...> policies_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END

#include "moe/layers/detail/moe_layer_passes.hpp"
