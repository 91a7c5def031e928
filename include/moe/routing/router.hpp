#pragma once
/// @file
/// `Router`: the policies of routing composed, forward and backward.
///
/// The order of work does not depend on the order of arguments: input map, logits, logit maps, scoring, choice keys of
/// order -1, balancing bias, other choice keys, selection, weightings, skipping. What is missing has a default:
/// LinearLogits, Softmax, TopK<>.

#include <algorithm>

#include "moe/routing/balancer.hpp"
#include "moe/routing/choice_key.hpp"
#include "moe/routing/compatibility.hpp"
#include "moe/routing/concepts.hpp"
#include "moe/routing/detail/backward_rows.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/skipping.hpp"
#include "moe/routing/table.hpp"
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
  static_assert((detail::CheckCompatible<Policies, Scoring, Selection, detail::weighs_logits<Policies...>,
                                         RowSelection<Selection>>::size +
                 ... + 1) > 0);
  using Weightings = detail::ChainFor<kind::weighting, Policies...>;
  static constexpr bool has_balancer = !std::is_same_v<Balancer, detail::NoBalancer>;
  static constexpr bool has_table = detail::TableSelection<Selection>;

  /// The source's arrays, and those of learned weightings.
  template <class Real, class Space>
  using Parameters =
      std::conditional_t<detail::WeightingParametersOf<Weightings, Real, Space>::any,
                         detail::WithWeightings<typename Source::template Parameters<Real, Space>,
                                                typename detail::WeightingParametersOf<Weightings, Real, Space>::type>,
                         typename Source::template Parameters<Real, Space>>;

  /// What is saved with the model but not trained: the balancing bias, a table of choices.
  template <class Real, class Space>
  struct Buffers {
    Vector<Real, Space> balance_bias{};  ///< (E), where there is a balancer
    Matrix<ExpertId, Space> table{};     ///< (rows, K), where choices come from a table
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      if constexpr (has_balancer) f("balance_bias", same.balance_bias...);
      if constexpr (has_table) f("table", same.table...);
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
    (detail::check_policy(std::get<Policies>(values_), shape_for<Policies>(shape)), ...);
    if constexpr (requires { selection().choices(); })  // else it takes all it can get
      (detail::check_choices(std::get<Policies>(values_), Index(selection().choices()), shape), ...);
  }

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    check(shape);
    auto own = source().template parameters<Real, Space>(shape);
    if constexpr (LearnsWeightings<Real, Space>::any) {
      return {own, LearnsWeightings<Real, Space>::type::make(Weightings::from(values_), shape)};
    } else {
      return own;
    }
  }

  template <class Real, class Space>
  Buffers<Real, Space> buffers(const RouterShape& shape) const {
    Buffers<Real, Space> result;
    if constexpr (has_balancer) result.balance_bias = Vector<Real, Space>("moe::balance_bias", shape.experts);
    if constexpr (has_table) {
      const Index rows = selection().table_rows, k = selection().choices();
      result.table = Matrix<ExpertId, Space>("moe::table", rows, k);
      assign_table(result.table, random_hash(rows, shape.experts, k, Seed{0}));
    }
    return result;
  }

  /// Routes a batch: fills `routing`. `layer` tells this router's random draws from those of other layers.
  template <class T, class Real, class Space>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<Real, Space>& parameters,
               const Buffers<Real, Space>& buffers, Index experts, Routing<Real, Space>& routing,
               std::uint32_t layer = 0) const {
    const Index tokens = batch.tokens();
    if constexpr (requires { selection().check_batch(batch); }) selection().check_batch(batch);
    detail::shape(routing.logits, "moe::logits", tokens, experts);
    detail::shape(routing.scores, "moe::scores", tokens, experts);
    shape_assignments(batch, experts, routing.assignments);
    routing.random = {ctx.seed, ctx.step, layer, Purpose::jitter};
    routing.noisy = ctx.training;
    routing.logit_scores = detail::says_logits<Scoring>();
    routing.first_token = ctx.first_token;
    const detail::RowDraws<Space> draws = detail::row_draws(batch, routing, table_of(buffers));

    typename Context<Space>::Scratch scratch(ctx);
    const auto input = router_input<Real>(ctx, scratch, batch, draws);
    detail::source_forward(source(), ctx, batch, draws, input, parameters, routing);
    if constexpr (LogitMaps::count > 1) {
      detail::shape(routing.raw_logits, "moe::raw_logits", tokens, experts);
      if (tokens != 0) Kokkos::deep_copy(ctx.space, routing.raw_logits, routing.logits);
    }

    const Vector<const Real, Space> bias = balance_bias(buffers);
    detail::ScoreRow<Real, Space, LogitMaps, Scoring, has_balancer, Keys> score{
        routing.logits, routing.scores,      {},        batch.mask, bias, draws, LogitMaps{Maps::from(values_)},
        scoring(),      Keys::from(values_), ctx.flag()};
    const detail::WeighRow<Real, Space, Selection, Weightings, Skips> weigh{
        routing.scores,      routing.assignments,       draws,
        selection(),         Weightings::from(values_), weighting_rows<Real, Space>(parameters),
        Skips::from(values_)};
    if constexpr (RowSelection<Selection> && by_team && detail::device_path<Space>) {
      const detail::SelectRow<Real, Space, Selection> select{routing.assignments, batch.mask, selection(), draws,
                                                             ctx.flag()};
      using Route = detail::RouteToken<Space, Real, decltype(score), std::remove_const_t<decltype(select)>,
                                       std::remove_const_t<decltype(weigh)>>;
      const std::size_t bytes = Route::bytes(experts);
      Matrix<Real, Space> keys;
      if (bytes == 0) keys = scratch.template matrix<Real>(tokens, experts);
      auto teams = detail::teams_for(ctx.space, tokens);
      teams.set_scratch_size(0, Kokkos::PerThread(bytes));
      if (tokens != 0) detail::launch_teams("moe::Router::route", teams, Route{score, select, weigh, keys, tokens});
    } else if constexpr (RowSelection<Selection>) {
      // Keys that a host keeps in its nearest cache; a device has a row for every thread.
      const Index chunk = on_host<Space> ? 16 : 1, chunks = (tokens + chunk - 1) / chunk;
      const auto keys = scratch.template matrix<Real>(chunks, experts);
      const detail::SelectRow<Real, Space, Selection> select{routing.assignments, batch.mask, selection(), draws,
                                                             ctx.flag()};
      run(ctx, "moe::Router::route", chunks,
          detail::RouteChunk<Real, decltype(score), std::remove_const_t<decltype(select)>,
                             std::remove_const_t<decltype(weigh)>, std::remove_const_t<decltype(keys)>>{
              score, select, weigh, keys, chunk, tokens});
    } else {
      score.keys = scratch.template matrix<Real>(tokens, experts);
      run_rows<by_team>(ctx, "moe::Router::score", tokens, score);
      detail::fill(ctx.space, routing.assignments.expert, no_expert);
      selection().select(ctx, score.keys, batch, routing.assignments);
      run(ctx, "moe::Router::check_ids", tokens,
          detail::CheckIds<Real, Space>{routing.assignments, experts, ctx.flag(), true});
      run_rows<by_team>(ctx, "moe::Router::weigh", tokens, weigh);
    }
  }

  /// From the gradients of the combine weights, of the scores and of the logits (which hold the losses' part and are
  /// used up) to the gradient of the router's input, which is ADDED to dx (T, H'). Adds into gradients. No gradient
  /// flows through the choice itself.
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<Real, Space>& parameters,
                const Routing<Real, Space>& routing, const RoutingGradients<Real, Space>& of,
                const Matrix<T, Space>& dx, Parameters<Real, Space>& gradients) const {
    using Learns = LearnsWeightings<Real, Space>;
    const Index tokens = batch.tokens(), bound = routing.assignments.bound;
    typename Context<Space>::Scratch scratch(ctx);
    auto work = scratch.template matrix<Real>(Weightings::size + 1, bound);
    auto dchosen = scratch.template vector<Real>(bound);
    const Index maps_width = LogitMaps::count > 1 ? LogitMaps::count * Index(routing.logits.extent(1)) : 0;
    auto maps_work = scratch.template matrix<Real>(tokens, maps_width);
    const detail::RowDraws<Space> draws = detail::row_draws(batch, routing);

    const Index chunk = Learns::any ? 64 : 1, chunks = (tokens + chunk - 1) / chunk;
    const auto rows = weighting_rows<Real, Space>(parameters);
    Index learned = 0;
    for (const auto& row : rows.rows) learned += row.size;
    Matrix<Real, Space> partial;
    if constexpr (Learns::any) {
      partial = scratch.template matrix<Real>(chunks, learned);
      detail::fill(ctx.space, partial, Real(0));
    }
    const detail::BackwardChunk<Real, Space, LogitMaps, Scoring, Selection, Weightings> pull{
        routing,
        of,
        work,
        dchosen,
        maps_work,
        batch.mask,
        draws,
        LogitMaps{Maps::from(values_)},
        scoring(),
        selection(),
        Weightings::from(values_),
        rows,
        chunk,
        partial};
    if constexpr (by_team && !Learns::any && detail::device_path<Space>) {
      detail::each_row(ctx.space, "moe::Router::backward", tokens, pull);
    } else {
      run(ctx, "moe::Router::backward", chunks, pull);
    }
    if constexpr (Learns::any) {
      Index first = 0;
      for (const auto& gradient : gradients.weightings.values) {
        run(ctx, "moe::Router::weighting_gradient", Index(gradient.size()),
            detail::SumPartials<Real, Space>{partial, first, gradient});
        first += Index(gradient.size());
      }
    }

    const auto input = router_input<Real>(ctx, scratch, batch, draws);
    auto dinput = scratch.template matrix<Real>(tokens, input.extent(1));
    using SourceParameters = typename Source::template Parameters<Real, Space>;
    detail::source_backward(source(), ctx, batch, draws, routing, of, input,
                            static_cast<const SourceParameters&>(parameters), dinput,
                            static_cast<SourceParameters&>(gradients));
    run_rows<InputMaps::takes_team>(
        ctx, "moe::Router::input_gradient", tokens,
        detail::InputGradientRow<T, Real, Space, InputMaps>{input, dinput, dx, draws, {Maps::from(values_)}});
  }

  /// Moves the balancing bias one step. `counts` (E): assignments of the whole optimiser step, before drops; `tokens`
  /// (1): its tokens, padding not counted.
  template <class Real, class Space>
  void update_balance(Context<Space>& ctx, Buffers<Real, Space>& buffers, const Vector<const Index, Space>& counts,
                      const Vector<const Index, Space>& tokens) const {
    if constexpr (has_balancer) {
      Kokkos::parallel_for("moe::Router::update_balance", detail::Range<Space>(ctx.space, 0, 1),
                           detail::BalanceStep<Real, Space, Balancer>{buffers.balance_bias, counts, tokens, balancer(),
                                                                      detail::shared_experts<Selection>()});
    }
  }

 private:
  /// Experts that every token has are no matter of balance.
  template <class P>
  static RouterShape shape_for(RouterShape shape) {
    if constexpr (detail::is_kind<P, kind::balancer>) shape.experts -= detail::shared_experts<Selection>();
    return shape;
  }

  using Maps = detail::ChainFor<kind::row_map, Policies...>;
  using InputMaps = detail::RowMaps<MapPlace::input, Maps>;
  using LogitMaps = detail::RowMaps<MapPlace::logits, Maps>;
  using Keys = detail::ChainFor<kind::choice_key, Policies...>;
  using Skips = detail::ChainFor<kind::skipping, Policies...>;
  template <class Real, class Space>
  using LearnsWeightings = detail::WeightingParametersOf<Weightings, Real, Space>;

  /// Are all policies that see a token's row of logits or of choices written for several lanes?
  static constexpr bool by_team = LogitMaps::takes_team && detail::takes_team<Scoring>() && Keys::takes_team &&
                                  Weightings::takes_team && Skips::takes_team &&
                                  (!RowSelection<Selection> || detail::takes_team<Selection>());

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
    detail::each(ctx.space, name, tokens, functor, 4);
  }

  /// The same by a warp a row on devices, where the policies allow it.
  template <bool team, class Space, class Functor>
  static void run_rows(Context<Space>& ctx, const char* name, Index rows, const Functor& functor) {
    if constexpr (team) {
      detail::each_row(ctx.space, name, rows, functor, 4);
    } else {
      run(ctx, name, rows, detail::RowByThread<Functor>{functor});
    }
  }

  template <class Real, class Space>
  static auto weighting_rows(const Parameters<Real, Space>& parameters) {
    if constexpr (LearnsWeightings<Real, Space>::any) {
      return detail::weighting_rows<Real>(parameters.weightings);
    } else {
      return detail::WeightingRows<const Real, Weightings::size>{};
    }
  }

  template <class Real, class Space>
  static Matrix<const ExpertId, Space> table_of(const Buffers<Real, Space>& buffers) {
    return buffers.table;
  }
  template <class Real, class Space>
  static Vector<const Real, Space> balance_bias(const Buffers<Real, Space>& buffers) {
    return buffers.balance_bias;
  }

  /// The router's input in the router's precision, with input maps applied; a plain view where nothing is to be done.
  template <class Real, class T, class Space>
  Matrix<const Real, Space> router_input(Context<Space>& ctx, typename Context<Space>::Scratch& scratch,
                                         const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws) const {
    const Matrix<const T, Space> x = batch.for_router();
    if constexpr (std::is_same_v<T, Real> && InputMaps::count == 0) {
      return x;
    } else {
      auto input = scratch.template matrix<Real>(x.extent(0), x.extent(1));
      run_rows<InputMaps::takes_team>(
          ctx, "moe::Router::input", Index(x.extent(0)),
          detail::InputRow<T, Real, Space, InputMaps>{x, input, draws, {Maps::from(values_)}});
      return input;
    }
  }

  template <class T, class Real, class Space>
  void shape_assignments(const Batch<T, Space>& batch, Index experts, Assignments<Real, Space>& assignments) const {
    assignments.tokens = batch.tokens();
    if constexpr (RowSelection<Selection>) {
      assignments.uniform_k = detail::choices_of(selection(), experts);
      assignments.bound = assignments.tokens * assignments.uniform_k;
    } else {
      assignments.uniform_k = 0;
      assignments.bound = selection().bound(batch, experts);
      detail::shape(assignments.token_offsets, "moe::token_offsets", assignments.tokens + 1);
    }
    detail::shape(assignments.expert, "moe::expert", assignments.bound);
    detail::shape(assignments.weight, "moe::weight", assignments.bound);
    if constexpr (Skips::size > 0) detail::shape(assignments.live, "moe::live", assignments.bound);
  }

  std::tuple<Policies...> values_{};
};

MOE_NAMESPACE_END
