#pragma once
/// @file
/// `Router`: the policies of routing composed, forward and backward.
///
/// The order of work does not depend on the order of arguments: input maps, logits, logit maps, scoring, balancing
/// bias, choice keys, selection, weightings. What is missing has a default: LinearLogits, Softmax, TopK<>.

#include <algorithm>

#include "moe/routing/choice_key.hpp"
#include "moe/routing/concepts.hpp"
#include "moe/routing/detail/rows.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/weighting.hpp"

MOE_NAMESPACE_BEGIN

/// A router composed of policies in any order, each single-choice category at most once.
///
///     using Router = moe::Router<moe::Sigmoid, moe::TopK<8>, moe::GroupLimit<8, 4, moe::BestTwo>, moe::BiasBalancer,
///                                moe::NormalizeSum, moe::Scale>;
///     Router router{moe::Scale{2.5}};  // values of policies, in any order
template <class... Policies>
class Router {
 public:
  using policy = kind::router;
  // sizeof makes the compiler look at each argument, and say what is wrong with it.
  static_assert(
      (sizeof(detail::CheckRouterPolicy<Policies>) + ... +
       sizeof(detail::CheckRouterCounts<
              detail::count_kind<kind::scoring, Policies...>, detail::count_kind<kind::selection, Policies...>,
              detail::count_kind<kind::balancer, Policies...>, detail::count_kind<kind::logits, Policies...>>)) > 0);

  using Source = detail::ValidOr<typename detail::Pick<kind::logits, LinearLogits, Policies...>::type, LinearLogits>;
  using Scoring = detail::ValidOr<typename detail::Pick<kind::scoring, Softmax, Policies...>::type, Softmax>;
  using Selection = detail::ValidOr<typename detail::Pick<kind::selection, TopK<>, Policies...>::type, TopK<>>;
  using Balancer = typename detail::Pick<kind::balancer, detail::NoBalancer, Policies...>::type;
  static constexpr bool has_balancer = !std::is_same_v<Balancer, detail::NoBalancer>;

  template <class Real, class Space>
  using Parameters = typename Source::template Parameters<Real, Space>;

  /// What is saved with the model but not trained: the balancing bias.
  template <class Real, class Space>
  struct Buffers {
    Vector<Real, Space> balance_bias;  ///< (E), where there is a balancer
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      if constexpr (has_balancer) f("balance_bias", same.balance_bias...);
    }
  };

  /// Values of policies, in any order; the others keep their defaults.
  template <class... Values>
  explicit Router(const Values&... values) {
    static_assert((sizeof(detail::CheckRouterValue<Values, detail::one_of<Values, Policies...>>) + ... + 1) > 0);
    if constexpr ((detail::one_of<Values, Policies...> && ...)) detail::assign_values(values_, values...);
  }

  /// The value of one of its policies, to read or to change.
  template <class P>
  P& get() {
    return std::get<P>(values_);
  }
  template <class P>
  const P& get() const {
    return std::get<P>(values_);
  }

  /// Throws ConfigError where a policy cannot work with these sizes.
  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(shape.experts > 0 && shape.hidden > 0, "moe::Router: ", shape.experts,
                                 " experts and a router input of width ", shape.hidden, "; both must be positive.");
    detail::check_policy(selection(), shape);
    (detail::check_policy(std::get<Policies>(values_), shape), ...);
    if constexpr (RowSelection<Selection>) {
      (detail::check_choices(std::get<Policies>(values_), Index(selection().choices()), shape), ...);
    }
  }

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    check(shape);
    return source().template parameters<Real, Space>(shape);
  }

  template <class Real, class Space>
  Buffers<Real, Space> buffers(const RouterShape& shape) const {
    Buffers<Real, Space> result;
    if constexpr (has_balancer) result.balance_bias = Vector<Real, Space>("moe::balance_bias", shape.experts);
    return result;
  }

  /// Routes a batch: fills `routing`. `layer` tells this router's random draws from those of other layers.
  template <class T, class Real, class Space>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<Real, Space>& parameters,
               const Buffers<Real, Space>& buffers, Index experts, Routing<Real, Space>& routing,
               std::uint32_t layer = 0) const {
    const Index tokens = batch.tokens();
    detail::shape(routing.logits, "moe::logits", tokens, experts);
    detail::shape(routing.scores, "moe::scores", tokens, experts);
    shape_assignments(batch, experts, routing.assignments);
    routing.random = {ctx.seed, ctx.step, layer, Purpose::jitter};
    routing.noisy = ctx.training;

    typename Context<Space>::Scratch scratch(ctx);
    const auto input = router_input<Real>(ctx, scratch, batch, routing);
    source().forward(ctx, input, parameters, routing.logits);

    auto keys = scratch.template matrix<Real>(tokens, experts);
    const detail::RowMaps<MapPlace::logits, LogitMaps> maps{LogitMaps::from(values_)};
    const Vector<const Real, Space> bias = balance_bias(buffers);
    run(ctx, "moe::Router::score", tokens,
        detail::ScoreRow<Real, Space, decltype(maps), Scoring, Balancer, Keys>{
            routing.logits, routing.scores, keys, batch.mask, bias, random(ctx, routing), maps, scoring(), balancer(),
            Keys::from(values_), ctx.flag()});
    select(ctx, keys, batch, routing.assignments);
    run(ctx, "moe::Router::weigh", tokens,
        detail::WeighRow<Real, Space, Weightings>{routing.scores, routing.assignments, Weightings::from(values_)});
  }

  /// From the gradients of the combine weights (A), of the scores (T, E) and of the logits (T, E) (those two hold the
  /// losses' part and are used up) to the gradient of the router's input, which is ADDED to dx (T, H'). Adds into
  /// gradients. No gradient flows through the choice itself.
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<Real, Space>& parameters,
                const Routing<Real, Space>& routing, const Vector<const Real, Space>& dweight,
                const Matrix<Real, Space>& dscores, const Matrix<Real, Space>& dlogits, const Matrix<T, Space>& dx,
                Parameters<Real, Space>& gradients) const {
    const Index tokens = batch.tokens();
    typename Context<Space>::Scratch scratch(ctx);
    const Index bound = routing.assignments.bound;
    auto work = scratch.template matrix<Real>(Weightings::size + 1, bound);
    auto dchosen = scratch.template vector<Real>(bound);
    const detail::RowMaps<MapPlace::logits, LogitMaps> maps{LogitMaps::from(values_)};
    run(ctx, "moe::Router::backward", tokens,
        detail::BackwardRow<Real, Space, decltype(maps), Scoring, Weightings>{
            routing.logits, routing.scores, routing.assignments, dweight, work, dchosen, dscores, dlogits, batch.mask,
            random(ctx, routing), maps, scoring(), Weightings::from(values_)});

    const auto input = router_input<Real>(ctx, scratch, batch, routing);
    auto dinput = scratch.template matrix<Real>(tokens, input.extent(1));
    source().backward(ctx, Matrix<const Real, Space>(dlogits), input, parameters, dinput, gradients);
    const detail::RowMaps<MapPlace::input, LogitMaps> input_maps{LogitMaps::from(values_)};
    run(ctx, "moe::Router::input_gradient", tokens,
        detail::InputGradientRow<T, Real, Space, decltype(input_maps)>{input, dinput, dx, random(ctx, routing),
                                                                       input_maps});
  }

  /// Moves the balancing bias one step. `counts` (E): assignments of the whole optimiser step, before drops.
  template <class Real, class Space>
  void update_balance(Context<Space>& ctx, Buffers<Real, Space>& buffers,
                      const Vector<const Index, Space>& counts) const {
    if constexpr (has_balancer) {
      Kokkos::parallel_for("moe::Router::update_balance", Kokkos::RangePolicy<Space>(ctx.space, 0, 1),
                           detail::BalanceStep<Real, Space, Balancer>{buffers.balance_bias, counts, balancer()});
    }
  }

 private:
  using LogitMaps = detail::ChainFor<kind::row_map, Policies...>;
  using Keys = detail::ChainFor<kind::choice_key, Policies...>;
  using Weightings = detail::ChainFor<kind::weighting, Policies...>;

  template <class P>
  P value_or_default() const {
    if constexpr (detail::one_of<P, Policies...>) {
      return std::get<P>(values_);
    } else {
      return P{};
    }
  }
  Source source() const { return value_or_default<Source>(); }
  Scoring scoring() const { return value_or_default<Scoring>(); }
  Selection selection() const { return value_or_default<Selection>(); }
  Balancer balancer() const { return value_or_default<Balancer>(); }

  template <class Space, class Functor>
  static void run(Context<Space>& ctx, const char* name, Index tokens, const Functor& functor) {
    Kokkos::parallel_for(name, Kokkos::RangePolicy<Space>(ctx.space, 0, tokens), functor);
  }

  template <class Space, class Real>
  static detail::RowDraws random(const Context<Space>& ctx, const Routing<Real, Space>& routing) {
    return {routing.random, ctx.first_token, routing.noisy};
  }

  template <class Real, class Space>
  static Vector<const Real, Space> balance_bias(const Buffers<Real, Space>& buffers) {
    return buffers.balance_bias;
  }

  /// The router's input in the router's precision, with input maps applied; a plain view where nothing is to be done.
  template <class Real, class T, class Space>
  Matrix<const Real, Space> router_input(Context<Space>& ctx, typename Context<Space>::Scratch& scratch,
                                         const Batch<T, Space>& batch, const Routing<Real, Space>& routing) const {
    const Matrix<const T, Space> x = batch.for_router();
    const detail::RowMaps<MapPlace::input, LogitMaps> maps{LogitMaps::from(values_)};
    if constexpr (std::is_same_v<T, Real> && !decltype(maps)::any) {
      return x;
    } else {
      auto input = scratch.template matrix<Real>(x.extent(0), x.extent(1));
      run(ctx, "moe::Router::input", Index(x.extent(0)),
          detail::InputRow<T, Real, Space, decltype(maps)>{x, input, random(ctx, routing), maps});
      return input;
    }
  }

  template <class T, class Real, class Space>
  void shape_assignments(const Batch<T, Space>& batch, Index experts, Assignments<Real, Space>& assignments) const {
    assignments.tokens = batch.tokens();
    if constexpr (RowSelection<Selection>) {
      assignments.uniform_k = selection().choices();
      assignments.bound = assignments.tokens * assignments.uniform_k;
    } else {
      assignments.uniform_k = 0;
      assignments.bound = selection().bound(batch, experts);
      detail::shape(assignments.token_offsets, "moe::token_offsets", assignments.tokens + 1);
    }
    detail::shape(assignments.expert, "moe::expert", assignments.bound);
    detail::shape(assignments.weight, "moe::weight", assignments.bound);
  }

  template <class T, class Real, class Space>
  void select(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch,
              Assignments<Real, Space>& assignments) const {
    if constexpr (RowSelection<Selection>) {
      run(ctx, "moe::Router::select", assignments.tokens,
          detail::SelectRow<Real, Space, Selection>{keys, assignments, batch.mask, selection(), ctx.flag()});
    } else {
      detail::fill(ctx.space, assignments.expert, no_expert);
      selection().select(ctx, keys, batch, assignments);
      run(ctx, "moe::Router::check_ids", assignments.tokens,
          detail::CheckIds<Real, Space>{assignments, Index(keys.extent(1)), ctx.flag(), true});
    }
  }

  std::tuple<Policies...> values_{};
};

MOE_NAMESPACE_END
