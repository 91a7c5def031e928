#pragma once
/// @file
/// Mixture of depths (Raposo et al. 2024, "Mixture-of-Depths: dynamically allocating compute in transformer-based
/// language models"): a few tokens of each sequence go through a block, the others pass it by.

#include <optional>

#include "moe/layers/depth_choice.hpp"
#include "moe/layers/depth_statistics.hpp"
#include "moe/layers/detail/depth_rows.hpp"
#include "moe/layers/residual.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class P>
inline constexpr bool is_depth_policy = is_kind<P, kind::router, kind::loss, kind::predictor>;

template <class R>
inline constexpr bool chooses_tokens = std::is_same_v<typename R::Selection, ExpertChoice>;

/// Says what is wrong with one argument of MixtureOfDepths<Block, ...>.
template <class P>
struct CheckDepthPolicy {
  static_assert(is_depth_policy<P>,
                "moe::MixtureOfDepths: this argument is none of its policies. Behind the block it takes a Router<...>, "
                "a DepthPredictor and losses, which act on its own choice of tokens; the block's policies go into the "
                "block.");
};
template <class R>
struct CheckDepthRouter {
  static_assert(chooses_tokens<R>,
                "moe::MixtureOfDepths: this router does not choose the best tokens of a sequence. Write "
                "Router<..., ExpertChoice>.");
  static_assert(!chooses_tokens<R> || !std::is_same_v<typename R::Scoring, Softmax>,
                "moe::MixtureOfDepths: Softmax over one expert is 1 for every token, so this router chooses nothing. "
                "Write Router<Identity, ExpertChoice> or Router<Sigmoid, ExpertChoice>.");
};
template <int routers, int predictors>
struct CheckDepthCounts {
  static_assert(routers <= 1, "moe::MixtureOfDepths: two routers are given; a layer has one. Keep one of them.");
  static_assert(predictors <= 1,
                "moe::MixtureOfDepths: two DepthPredictors are given; a layer has one. Keep one of them.");
};
template <class Value, bool known>
struct CheckDepthValue {
  static_assert(known,
                "moe::MixtureOfDepths: a value was given of a policy that this layer's type does not name. Add the "
                "policy to MixtureOfDepths<Block, ...>, or drop the value. (Values of the block's policies go into a "
                "block of their own: MixtureOfDepths(config, Block(...), ...).)");
};

using DepthRouter = Router<Identity, ExpertChoice>;
template <class... Policies>
struct DepthRouterOf {
  using Given = typename Pick<kind::router, DepthRouter, Policies...>::type;
  static_assert(sizeof(CheckDepthRouter<Given>) > 0);
  using type = std::conditional_t<chooses_tokens<Given>, Given, DepthRouter>;
};

}  // namespace detail

/// Sizes of a mixture of depths around `Block`.
template <class Block>
struct MixtureOfDepthsConfig {
  typename Block::Config block{};  ///< of the block; not read where a block is given
  double capacity = 0.125;         ///< the part of a sequence's tokens that goes through the block, at least one token
  Index router_hidden = 0;         ///< width of Batch::router_input, where it is not H
  std::uint32_t layer = 0;         ///< number of the layer in its model: keys its random draws
  double initial_scale = 1;        ///< router and predictor start as N(0, initial_scale^2 / fan_in)
  Index hidden = 0;                ///< H: the block's, filled in
};

/// The k = max(1, capacity n) best of the n tokens of each sequence go through a block: y = x + r f(x), r = w . x; for
/// the others y = x. The block sees the chosen tokens alone, in their order and with their positions.
///
///     using Layer = moe::MixtureOfDepths<Block, moe::ChoiceCrossEntropy>;
///     Layer layer({.block = {.hidden = 64, .intermediate = 128, .experts = 8}, .capacity = 0.125}, moe::Seed{42});
///     auto y = layer.forward(ctx, batch, tape);                  // (T, H)
///     auto dx = layer.backward(ctx, dy, tape, gradients);        // (T, H); adds into gradients, losses included
///
/// Policies, in any order: a Router with ExpertChoice (default Router<Identity, ExpertChoice>), whose weight is r;
/// losses on its routing; ChoiceCrossEntropy and DepthPredictor, either of which lets inference choose causally. A
/// router's value that is given decides on capacity and scope itself. `Batch::router_input` and `draws` are read by
/// this router and not handed to the block. See docs/depths.md.
template <class Block, class... Policies>
class MixtureOfDepths {
  static_assert((sizeof(detail::CheckBlock<Block>) + ... + sizeof(detail::CheckDepthPolicy<Policies>)) > 0);
  static_assert(sizeof(detail::CheckDepthCounts<detail::count_kind<kind::router, Policies...>,
                                                detail::count_kind<kind::predictor, Policies...>>) > 0);

 public:
  using Inner = detail::ValidBlock<Block>;  ///< the block
  using Config = MixtureOfDepthsConfig<Inner>;
  using Scalar = typename Inner::Scalar;
  using Space = typename Inner::Space;
  using Real = RouterReal<Scalar>;
  using Router = typename detail::DepthRouterOf<Policies...>::type;
  using Losses = typename detail::Filter<kind::loss, detail::List<>, Policies...>::type;
  using Predictor = typename detail::Pick<kind::predictor, DepthPredictor, Policies...>::type;
  static constexpr bool has_predictor = detail::count_kind<kind::predictor, Policies...> != 0;
  /// Is the router trained to say by the sign of its logit what the choice over the sequence says?
  static constexpr bool has_router_rule = detail::one_of<ChoiceCrossEntropy, Policies...>;

  /// All trained arrays, under the names "router.*", "predictor.*", "block.*". The block's are those that the block
  /// itself works with.
  struct Parameters {
    typename Router::template Parameters<Real, Space> router;
    typename Predictor::template Parameters<Real, Space> predictor;
    typename Inner::Parameters block;

    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
      if constexpr (has_predictor) decltype(predictor)::visit(detail::Prefixed{f, "predictor."}, same.predictor...);
      decltype(block)::visit(detail::Prefixed{f, "block."}, same.block...);
    }
  };

  /// Gradients of every parameter; they know their layer.
  struct Gradients : Parameters {
    std::uint64_t owner = 0;
    typename Inner::Gradients of_block;  ///< the arrays of Parameters::block, as the block wants them
  };

  /// Saved with the model, not trained: "router.*", "block.*".
  struct Buffers {
    typename Router::template Buffers<Real, Space> router;
    typename Inner::Buffers block;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(router)::visit(detail::Prefixed{f, "router."}, same.router...);
      decltype(block)::visit(detail::Prefixed{f, "block."}, same.block...);
    }
  };

  /// What one forward pass leaves for its backward, losses and reports. One for each microbatch in flight; reusable.
  struct Tape {
    using Real = MixtureOfDepths::Real;
    static constexpr bool has_router_rule = MixtureOfDepths::has_router_rule;
    Tape() = default;
    Tape(Tape&&) = default;
    Tape& operator=(Tape&&) = default;

    std::uint64_t owner = 0;
    std::optional<Space> space;               ///< the stream of its last forward
    DepthChoice choice = DepthChoice::top_k;  ///< the rule that pass went by
    Batch<Scalar, Space> batch;               ///< all tokens
    moe::Routing<Real, Space> routing;        ///< logits r (T, 1), choices and weights
    DispatchPlan<Space> plan;                 ///< of one expert: row_token (R) are the chosen
    Matrix<Real, Space> predictor_logits;     ///< (T, 1), where there is a predictor
    Vector<std::uint8_t, Space> chosen;       ///< (T) 1 = went through the block. As the next mask: early exit
    Batch<Scalar, Space> rows;                ///< (R, H) the sub-batch that the block saw
    typename Inner::Tape block;
    Matrix<Scalar, Space> update;  ///< (R, H) f(x)
    Vector<double, Space> losses;  ///< its own, coefficients included; the predictor's is the last
    Matrix<Scalar, Space> y, dx;
    Matrix<Scalar, Space> drouter_input;  ///< where the batch gave the router an input of its own

    /// The sum of its losses and the block's, coefficients included. Waits for the device.
    double loss() const {
      double sum = detail::loss_of(block);
      for (double value : loss_values()) sum += value;
      return sum;
    }
    /// Its own losses in the order of the layer's arguments, then the predictor's. 0 where a causal rule chose. Waits
    /// for the device.
    std::vector<double> loss_values() const {
      return detail::read_losses<Space>(space, losses, "moe::MixtureOfDepths::Tape::loss_values");
    }

   private:
    friend MixtureOfDepths;
    Matrix<Scalar, Space> row_storage_;
    Vector<Index, Space> positions_;
    Vector<std::int32_t, Space> ids_;
    Vector<std::uint8_t, Space> mask_;
    Vector<Index, Space> offsets_;
  };

  /// What generation keeps: the block's cache, which holds the tokens that went through the block and no others, so a
  /// part of each sequence; and how many tokens each sequence has had.
  struct Cache {
    typename detail::CacheOf<Inner>::type block;
    Vector<Index, Space> seen;                 ///< (S) tokens so far, padding not counted
    Vector<const std::uint8_t, Space> chosen;  ///< (T) as Tape::chosen, of the last batch; the context's
  };

  Parameters parameters;
  Buffers buffers;
  /// The rule of inference; training takes top_k. The default is the predictor's, else the router's, where they are.
  DepthChoice inference = has_predictor     ? DepthChoice::predictor
                          : has_router_rule ? DepthChoice::router
                                            : DepthChoice::top_k;

  /// A layer with fresh weights. `values`: a Router, a DepthPredictor or losses with values of their own, and a Seed,
  /// in any order. Throws ConfigError for sizes that cannot work.
  template <class... Values>
  explicit MixtureOfDepths(const Config& config, const Values&... values)
      : config_(config), block_(config.block, seed_of(values...)) {
    take_all(values...);
  }
  /// Around a block that is ready.
  template <class... Values>
  MixtureOfDepths(const Config& config, Inner&& block, const Values&... values)
      : config_(config), block_(std::move(block)) {
    config_.block = block_.config();
    take_all(values...);
  }
  MixtureOfDepths(const MixtureOfDepths&) = delete;
  MixtureOfDepths& operator=(const MixtureOfDepths&) = delete;
  MixtureOfDepths(MixtureOfDepths&&) = default;
  MixtureOfDepths& operator=(MixtureOfDepths&&) = default;

  const Config& config() const { return config_; }
  const Router& router() const { return router_; }
  Inner& block() { return block_; }
  const Inner& block() const { return block_; }
  /// The value of one of its losses or of the predictor, to change in a sweep.
  template <class P>
  P& get() {
    static_assert(!std::is_same_v<P, Router>, "moe::MixtureOfDepths::get: the router is router().");
    return std::get<P>(policies_);
  }

  /// Fresh gradients, zero.
  Gradients gradients() const {
    Gradients result{
        {detail::zeros_like(parameters.router), detail::zeros_like(parameters.predictor), {}}, id_, block_.gradients()};
    result.block = result.of_block;
    return result;
  }

  /// y (T, H) for the tokens of a batch; y is the tape's. The rule is top_k while ctx.training, else `inference`.
  /// Throws ShapeError where the batch does not fit, ConfigError for a rule that this layer does not have, DataError
  /// for NaN logits (on host spaces; else at ctx.check()).
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    const DepthChoice rule = ctx.training ? DepthChoice::top_k : inference;
    check(batch, rule);
    if (capturing(ctx.space)) check_capture(batch, rule, tape);
    choose(ctx, batch, rule, tape);
    tape.update = block_.forward(ctx, tape.rows, tape.block);
    return finish(ctx, tape);
  }
  /// Inference: leaves no tape. y is the context's: valid until this layer's next forward with it.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }
  /// Room for `capacity` tokens of each sequence in the block's cache. Only chosen tokens take it up: by a causal rule,
  /// whose number is free, so that capacity is the sequence's length at worst.
  Cache cache(Index sequences, Index capacity) const {
    return {detail::cache_of(block_, sequences, capacity), Vector<Index, Space>("moe::seen", sequences), {}};
  }
  /// Generation: the new tokens of each sequence, which are chosen by `inference`, a causal rule. Those chosen go
  /// through the block and into its cache; the others leave nothing there. Positions that the batch does not give go on
  /// from the cache's. Throws ConfigError for top_k, which looks ahead.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Cache& cache) const {
    check(batch, inference);
    check_generation(ctx, batch, cache);
    typename Context<Space>::Scratch scratch(ctx);
    Tape& tape = ctx.template kept<Tape>(id_);
    if (capturing(ctx.space)) check_capture(batch, inference, tape);
    choose(ctx, follow(ctx, scratch, batch, cache), inference, tape);
    tape.update = detail::forward_cached(block_, ctx, tape.rows, cache.block, tape.block);
    const auto y = finish(ctx, tape);
    tape.batch.positions = batch.positions;  // the others were scratch memory
    cache.chosen = tape.chosen;
    return y;
  }
  /// The same for tokens alone, of one sequence.
  template <class X, class... State>
  requires Kokkos::is_view_v<X> Matrix<Scalar, Space> forward(Context<Space>& ctx, const X& x, State&... state)
  const {
    if constexpr (detail::is_token_matrix<X, Scalar, Space>) {
      Batch<Scalar, Space> batch;
      batch.x = x;
      return forward(ctx, batch, state...);
    } else {
      detail::CheckMatrix<X, Scalar, Space>{};
      return {};
    }
  }

  /// dx (T, H) for dy (T, H); adds into gradients, with the gradients of all losses times loss_scale. dx is the tape's.
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

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  using Scratch = typename Context<Space>::Scratch;
  using Tokenwise = detail::TokenwiseOf<Router>;
  static constexpr Index loss_count = detail::length<Losses> + (has_predictor ? 1 : 0);

  template <class... Values>
  static Seed seed_of(const Values&... values) {
    Seed seed;
    [[maybe_unused]] auto look = [&]<class V>(const V& value) {
      if constexpr (std::is_same_v<V, Seed>) seed = value;
    };
    (look(values), ...);
    return seed;
  }
  template <class... Values>
  void take_all(const Values&... values) {
    static_assert(
        (sizeof(detail::CheckDepthValue<Values, detail::one_of<Values, Policies..., Seed, Router>>) + ... + 1) > 0);
    router_.template get<ExpertChoice>().capacity_factor = config_.capacity;
    router_.template get<ExpertChoice>().scope = Scope::sequence();
    [[maybe_unused]] auto take = [&]<class V>(const V& value) {
      if constexpr (std::is_same_v<V, Router>) {
        router_ = value;
        config_.capacity = router_.template get<ExpertChoice>().capacity_factor;
      } else if constexpr (detail::one_of<V, Policies...>) {
        std::get<V>(policies_) = value;
      }
    };
    (take(values), ...);
    make(seed_of(values...));
  }
  /// Checks sizes, and makes parameters and buffers.
  void make(Seed seed);

  RouterShape router_shape() const { return {1, config_.router_hidden > 0 ? config_.router_hidden : config_.hidden}; }
  Predictor predictor() const {
    if constexpr (has_predictor) return std::get<Predictor>(policies_);
    return {};
  }

  void check(const Batch<Scalar, Space>& batch, DepthChoice rule) const;
  void check_capture(const Batch<Scalar, Space>& batch, DepthChoice rule, const Tape& tape) const;
  void check_generation(const Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Cache& cache) const;
  /// Logits, choices, plan and the sub-batch.
  void choose(Context<Space>& ctx, const Batch<Scalar, Space>& batch, DepthChoice rule, Tape& tape) const;
  void route(Context<Space>& ctx, const Batch<Scalar, Space>& batch, DepthChoice rule, Tape& tape) const;
  void take_rows(Context<Space>& ctx, Tape& tape) const;
  /// May rows of the sub-batch be no tokens?
  bool may_pad(const Batch<Scalar, Space>& batch, DepthChoice rule) const;
  /// The batch with positions, and the cache with its tokens counted.
  Batch<Scalar, Space> follow(Context<Space>& ctx, Scratch& scratch, const Batch<Scalar, Space>& batch,
                              const Cache& cache) const;
  /// y, and the losses of its own.
  Matrix<Scalar, Space> finish(Context<Space>& ctx, Tape& tape) const;
  Matrix<Scalar, Space> pull(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                             Gradients& gradients, double loss_scale) const;

  Config config_;
  Inner block_;
  Router router_;
  std::tuple<Policies...> policies_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END

#include "moe/layers/detail/mixture_of_depths_passes.hpp"
