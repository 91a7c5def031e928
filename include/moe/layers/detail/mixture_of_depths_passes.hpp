#pragma once
/// @file
/// A mixture of depths' forward and backward, in the order of the data.

#include <Kokkos_Profiling_ScopedRegion.hpp>

#include "moe/layers/mixture_of_depths.hpp"

MOE_NAMESPACE_BEGIN

template <class Block, class... Policies>
void MixtureOfDepths<Block, Policies...>::make(Seed seed) {
  using detail::require;
  const Index hidden = block_.config().hidden;
  require<ConfigError>(config_.hidden == 0 || config_.hidden == hidden, "moe::MixtureOfDepths: hidden is ",
                       config_.hidden, ", but the block's is ", hidden, ". Leave it out: it is the block's.");
  config_.hidden = hidden;
  const ExpertChoice& choice = router_.template get<ExpertChoice>();
  require<ConfigError>(choice.tokens_per_expert > 0 || (config_.capacity > 0 && config_.capacity <= 1),
                       "moe::MixtureOfDepths: capacity is ", config_.capacity,
                       "; it is the part of a sequence that goes through the block, above 0 and at most 1.");
  parameters.router = router_.template parameters<Real, Space>(router_shape());
  buffers.router = router_.template buffers<Real, Space>(router_shape());
  if constexpr (has_predictor)
    parameters.predictor = predictor().template parameters<Real, Space>(router_shape().hidden);
  parameters.block = block_.parameters;
  buffers.block = block_.buffers;

  const typename Space::execution_space space{};
  auto draw = [&](std::string_view name, const auto& view) {  // not the numbers that a block draws for the same names
    const std::string own = "depths." + std::string(name);
    const Seed layer_seed{seed.value * 0x9E3779B97F4A7C15ull + config_.layer};
    if (view.rank() > 1) detail::initialise(space, own, view, layer_seed, config_.initial_scale);
  };
  decltype(parameters.router)::visit(detail::Prefixed{draw, "router."}, parameters.router);
  if constexpr (has_predictor)
    decltype(parameters.predictor)::visit(detail::Prefixed{draw, "predictor."}, parameters.predictor);
  space.fence("moe::MixtureOfDepths");
}

template <class Block, class... Policies>
void MixtureOfDepths<Block, Policies...>::check(const Batch<Scalar, Space>& batch, DepthChoice rule) const {
  using detail::require;
  detail::check_tokens("moe::MixtureOfDepths", batch, config_.hidden);
  const auto input = batch.for_router();
  require<ShapeError>(Index(input.extent(0)) == batch.tokens() && Index(input.extent(1)) == router_shape().hidden,
                      "moe::MixtureOfDepths::forward: the router's input has shape (", input.extent(0), ", ",
                      input.extent(1), "), expected (", batch.tokens(), ", ", router_shape().hidden, ").");
  require<ShapeError>(!batch.branch_input.is_allocated(),
                      "moe::MixtureOfDepths::forward: the batch gives branches an input of their own, which is not "
                      "handed to the block. Leave Batch::branch_input out.");
  require<ConfigError>(rule != DepthChoice::router || has_router_rule,
                       "moe::MixtureOfDepths: DepthChoice::router goes by the sign of the router's logit, but nothing "
                       "trains that. Add moe::ChoiceCrossEntropy to the layer's policies, or choose by top_k.");
  require<ConfigError>(rule != DepthChoice::predictor || has_predictor,
                       "moe::MixtureOfDepths: DepthChoice::predictor is chosen, but the layer has no predictor. Add "
                       "moe::DepthPredictor to its policies, or choose by top_k.");
}

template <class Block, class... Policies>
void MixtureOfDepths<Block, Policies...>::check_capture(const Batch<Scalar, Space>& batch, DepthChoice rule,
                                                        const Tape& tape) const {
  const bool seen = tape.owner == id_ && tape.batch.tokens() == batch.tokens() && tape.choice == rule &&
                    tape.batch.sequence_offsets.extent(0) == batch.sequence_offsets.extent(0) &&
                    tape.batch.mask.is_allocated() == batch.mask.is_allocated() &&
                    tape.batch.token_ids.is_allocated() == batch.token_ids.is_allocated();
  detail::require<Error>(seen,
                         "moe::MixtureOfDepths::forward cannot be captured in a graph yet: its tape holds no pass of "
                         "this layer and rule on ",
                         batch.tokens(), " tokens, so it has to allocate. Run the same calls once before capturing.");
}

template <class Block, class... Policies>
void MixtureOfDepths<Block, Policies...>::check_generation(const Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                                           const Cache& cache) const {
  using detail::require;
  require<ConfigError>(inference != DepthChoice::top_k,
                       "moe::MixtureOfDepths: generation cannot choose by top_k, which compares a token with later "
                       "ones. Train the layer with moe::ChoiceCrossEntropy or moe::DepthPredictor among its policies, "
                       "and set `inference` to DepthChoice::router or predictor.");
  require<ConfigError>(!ctx.training,
                       "moe::MixtureOfDepths: ctx.training is set, but a forward with a cache is "
                       "generation. Set ctx.training = false.");
  const Index sequences = batch.sequence_offsets.is_allocated() ? Index(batch.sequence_offsets.extent(0)) - 1 : 1;
  require<ShapeError>(Index(cache.seen.extent(0)) == sequences, "moe::MixtureOfDepths::forward: a batch of ", sequences,
                      " sequences for a cache of ", cache.seen.extent(0),
                      ". Make it with cache(sequences, capacity); sequences without new tokens are empty ones.");
}

template <class Block, class... Policies>
void MixtureOfDepths<Block, Policies...>::choose(Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                                 DepthChoice rule, Tape& tape) const {
  tape.owner = id_;
  tape.space = ctx.space;
  tape.choice = rule;
  tape.batch = batch;
  const Kokkos::Profiling::ScopedRegion stage("moe::route");
  route(ctx, batch, rule, tape);
  dispatch(ctx, tape.routing.assignments, batch, 1, CapacityPolicy<Dropless>{}, tape.plan, config_.layer);
  detail::shape(tape.chosen, "moe::chosen", batch.tokens());
  detail::each(ctx.space, "moe::MixtureOfDepths::chosen", batch.tokens(),
               detail::MarkChosen<Space>{tape.plan.token_offsets, tape.chosen});
  take_rows(ctx, tape);
}

template <class Block, class... Policies>
void MixtureOfDepths<Block, Policies...>::route(Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                                DepthChoice rule, Tape& tape) const {
  auto& routing = tape.routing;
  if (has_predictor && rule != DepthChoice::router) {
    detail::shape(tape.predictor_logits, "moe::predictor_logits", batch.tokens(), 1);
    predictor().forward(ctx, batch.for_router(), parameters.predictor, tape.predictor_logits);
  }
  if (rule == DepthChoice::top_k) {
    router_.forward(ctx, batch, parameters.router, buffers.router, 1, routing, config_.layer);
    return;
  }
  using All = typename Tokenwise::type;
  typename All::template Buffers<Real, Space> all;
  all.balance_bias = buffers.router.balance_bias;
  Tokenwise::make(router_).forward(ctx, batch, parameters.router, all, 1, routing, config_.layer);
  detail::each(
      ctx.space, "moe::MixtureOfDepths::keep", batch.tokens(),
      detail::KeepPositive<Real, Space>{rule == DepthChoice::predictor ? tape.predictor_logits : routing.logits,
                                        routing.assignments, ctx.flag()});
}

template <class Block, class... Policies>
bool MixtureOfDepths<Block, Policies...>::may_pad(const Batch<Scalar, Space>& batch, DepthChoice rule) const {
  if (!detail::device_path<Space>) return false;
  return rule != DepthChoice::top_k || !Tokenwise::fills || batch.mask.is_allocated() ||
         detail::groups(router_.template get<ExpertChoice>().scope, batch).stride == 0;
}

template <class Block, class... Policies>
void MixtureOfDepths<Block, Policies...>::take_rows(Context<Space>& ctx, Tape& tape) const {
  const Batch<Scalar, Space>& batch = tape.batch;
  Index rows = tape.plan.rows;
  if constexpr (!detail::device_path<Space>) {
    rows = tape.plan.expert_offsets(1);  // hosts know how many tokens there are
    tape.plan.rows = rows;
  }
  Batch<Scalar, Space>& to = tape.rows;
  to = {};
  const Vector<const Index, Space> row_token = tape.plan.row_token;
  const auto x = detail::first_of(tape.row_storage_, "moe::rows", rows, config_.hidden);
  detail::each_wide_row(ctx.space, "moe::gather", rows, config_.hidden,
                        detail::TakeRow<Scalar, Space>{batch.x, row_token, x});
  to.x = x;
  const auto positions = detail::first_of(tape.positions_, "moe::positions", rows);
  to.positions = positions;
  Vector<std::int32_t, Space> ids;
  if (batch.token_ids.is_allocated()) to.token_ids = ids = detail::first_of(tape.ids_, "moe::token_ids", rows);
  Vector<std::uint8_t, Space> mask;
  if (may_pad(batch, tape.choice)) to.mask = mask = detail::first_of(tape.mask_, "moe::mask", rows);
  detail::each(ctx.space, "moe::MixtureOfDepths::facts", rows,
               detail::TakeFacts<Space>{row_token, detail::groups(Scope::sequence(), batch), batch.positions,
                                        batch.token_ids, positions, ids, mask});
  if (batch.sequence_offsets.is_allocated()) {
    detail::shape(tape.offsets_, "moe::sequence_offsets", batch.sequence_offsets.extent(0));
    detail::each(ctx.space, "moe::MixtureOfDepths::offsets", Index(tape.offsets_.extent(0)),
                 detail::TakeOffsets<Space>{batch.sequence_offsets, tape.plan.token_offsets, rows, tape.offsets_});
    to.sequence_offsets = tape.offsets_;
  }
  to.task_ids = batch.task_ids;
}

template <class Block, class... Policies>
auto MixtureOfDepths<Block, Policies...>::follow(Context<Space>& ctx, Scratch& scratch,
                                                 const Batch<Scalar, Space>& batch, const Cache& cache) const
    -> Batch<Scalar, Space> {
  Batch<Scalar, Space> result = batch;
  Vector<Index, Space> positions;
  if (!batch.positions.is_allocated()) result.positions = positions = scratch.template vector<Index>(batch.tokens());
  auto sequences = detail::groups(Scope::sequence(), batch);
  if (batch.tokens() == 0) return result;
  detail::each(ctx.space, "moe::MixtureOfDepths::seen", sequences.count,
               detail::CountSeen<Space>{sequences, batch.mask, cache.seen, positions});
  return result;
}

template <class Block, class... Policies>
auto MixtureOfDepths<Block, Policies...>::finish(Context<Space>& ctx, Tape& tape) const -> Matrix<Scalar, Space> {
  using Stage = Kokkos::Profiling::ScopedRegion;
  const Batch<Scalar, Space>& batch = tape.batch;
  detail::require<ShapeError>(
      Index(tape.update.extent(0)) == tape.rows.tokens() && Index(tape.update.extent(1)) == config_.hidden,
      "moe::MixtureOfDepths::forward: the block gave an update of shape (", tape.update.extent(0), ", ",
      tape.update.extent(1), ") for rows of shape (", tape.rows.tokens(), ", ", config_.hidden, ").");
  {
    const Stage stage("moe::combine");
    detail::shape(tape.y, "moe::y", batch.tokens(), config_.hidden);
    detail::each_wide_row(ctx.space, "moe::MixtureOfDepths::combine", batch.tokens(), config_.hidden,
                          detail::AddUpdates<Scalar, Real, Space>{batch.x, tape.update, tape.routing.assignments.weight,
                                                                  tape.plan, tape.y});
  }
  const Stage stage("moe::losses");
  detail::shape(tape.losses, "moe::losses", loss_count);
  detail::fill(ctx.space, tape.losses, 0.0);
  if (tape.choice == DepthChoice::top_k) {  // the choice that is learned
    const auto slot = [&](Index number) { return Vector<double, Space>(tape.losses.data() + number, 1); };
    detail::each_loss(Losses{}, policies_,
                      [&](const auto& loss, Index number) { loss.value(ctx, batch, tape.routing, slot(number)); });
    if constexpr (has_predictor) {
      auto foretold = tape.routing;
      foretold.logits = tape.predictor_logits;
      ChoiceCrossEntropy{predictor().coefficient}.value(ctx, batch, foretold, slot(loss_count - 1));
    }
  }
  if constexpr (!detail::device_path<Space>) ctx.check();
  return tape.y;
}

template <class Block, class... Policies>
auto MixtureOfDepths<Block, Policies...>::pull(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                               Gradients& gradients, double loss_scale) const -> Matrix<Scalar, Space> {
  const Index tokens = tape.batch.tokens(), hidden = config_.hidden, rows = tape.rows.tokens();
  detail::check_backward("moe::MixtureOfDepths", id_, tape.owner, gradients.owner, dy, tokens, hidden);
  detail::check_seen(ctx.space, "moe::MixtureOfDepths::backward", tape.dx, tokens);
  using Stage = Kokkos::Profiling::ScopedRegion;
  const Batch<Scalar, Space>& batch = tape.batch;
  Scratch scratch(ctx);
  RoutingGradients<Real, Space> of{scratch.template vector<Real>(tape.routing.assignments.bound),
                                   scratch.template matrix<Real>(tokens, 1),
                                   scratch.template matrix<Real>(tokens, 1),
                                   {},
                                   {}};
  detail::fill(ctx.space, of.dweight, Real(0));
  detail::fill(ctx.space, of.dscores, Real(0));
  detail::fill(ctx.space, of.dlogits, Real(0));
  if (tape.routing.clean_logits.is_allocated()) {
    of.dclean = scratch.template matrix<Real>(tokens, 1);
    of.ddeviation = scratch.template matrix<Real>(tokens, 1);
    detail::fill(ctx.space, of.dclean, Real(0));
    detail::fill(ctx.space, of.ddeviation, Real(0));
  }
  auto dupdate = scratch.template matrix<Scalar>(rows, hidden);
  {
    const Stage stage("moe::combine");
    detail::each_row(ctx.space, "moe::MixtureOfDepths::combine", rows,
                     detail::UpdateGradientRow<Scalar, Real, Space>{dy, tape.update, tape.routing.assignments.weight,
                                                                    tape.plan, dupdate, of.dweight});
  }
  const Matrix<Scalar, Space> drows = block_.backward(ctx, dupdate, tape.block, gradients.of_block, loss_scale);
  detail::shape(tape.dx, "moe::dx", tokens, hidden);
  {
    const Stage stage("moe::dispatch");
    detail::each_wide_row(ctx.space, "moe::MixtureOfDepths::scatter", tokens, hidden,
                          detail::InputGradientOfDepth<Scalar, Space>{dy, drows, tape.plan, tape.dx});
  }
  if (tape.choice == DepthChoice::top_k) {
    const Stage stage("moe::losses");
    detail::each_loss(Losses{}, policies_,
                      [&](const auto& loss, Index) { loss.backward(ctx, batch, tape.routing, loss_scale, of); });
    if constexpr (has_predictor) {
      auto foretold = tape.routing;
      foretold.logits = tape.predictor_logits;
      RoutingGradients<Real, Space> to;
      to.dlogits = scratch.template matrix<Real>(tokens, 1);
      detail::fill(ctx.space, to.dlogits, Real(0));
      ChoiceCrossEntropy{predictor().coefficient}.backward(ctx, batch, foretold, loss_scale, to);
      predictor().backward(ctx, batch.for_router(), to.dlogits, parameters.predictor, gradients.predictor);
    }
  }
  const Stage stage("moe::route");
  Matrix<Scalar, Space> dinput = tape.dx;
  if (batch.router_input.is_allocated()) {
    detail::shape(tape.drouter_input, "moe::dinput", tokens, batch.router_input.extent(1));
    detail::fill(ctx.space, tape.drouter_input, Scalar(0));
    dinput = tape.drouter_input;
  }
  router_.backward(ctx, batch, parameters.router, tape.routing, of, dinput, gradients.router);
  return tape.dx;
}

MOE_NAMESPACE_END
