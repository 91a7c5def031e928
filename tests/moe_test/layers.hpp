#pragma once
/// @file
/// Whole layers on the host: batches of random tokens, gradients against central differences, empty batches, and float
/// beside double.

#include <moe/moe.hpp>
#include <string>
#include <vector>

#include "moe_test/cases.hpp"

namespace moe_test {

template <class T, class... Policies>
using HostLayer = moe::MoELayer<moe::On<Kokkos::DefaultHostExecutionSpace>, moe::Precision<T>, Policies...>;

/// Random tokens in three sequences, some of them padding, and a gradient of y.
template <class T>
struct Tokens {
  using Space = Kokkos::DefaultHostExecutionSpace;
  moe::Matrix<T, Space> x, dy, router_input;  ///< the last is empty unless given
  moe::Batch<T, Space> batch;

  Tokens(Index tokens, Index hidden, const std::vector<Index>& padding = {})
      : x(random<moe::Matrix<T, Space>>(1, tokens, hidden)), dy(random<moe::Matrix<T, Space>>(2, tokens, hidden)) {
    batch.x = x;
    batch.sequence_offsets = indices<Space>({0, tokens / 2, tokens / 2 + (tokens > 0 ? 1 : 0), tokens});
    if (padding.empty()) return;
    const auto mask = filled<moe::Vector<std::uint8_t, Space>>(1, tokens);
    for (Index t : padding) mask(t) = 0;
    batch.mask = mask;
  }
  void give_router_input(Index width) {
    router_input = random<moe::Matrix<T, Space>>(3, batch.tokens(), width);
    batch.router_input = router_input;
  }
};

/// Vectors start at 0 or 1, where gradients may hide: moves them away from there.
template <class Parameters>
void vary_vectors(Parameters& parameters) {
  unsigned seed = 20;
  auto vary = [&](std::string_view, auto& view) {
    if constexpr (std::decay_t<decltype(view)>::rank() == 1) {
      const auto shift = random<std::decay_t<decltype(view)>>(++seed, view.extent(0));
      for (std::size_t i = 0; i < view.size(); ++i) view(i) += shift(i) / 2;
    }
  };
  Parameters::visit(vary, parameters);
}

template <class View>
double largest(const View& view) {
  const auto values = host(view);
  double result = 0;
  for (std::size_t i = 0; i < values.size(); ++i) result = std::max(result, std::abs(double(values.data()[i])));
  return result;
}

/// Compares the gradients of sum(y dy) + losses by x, the router's own input and every parameter with central
/// differences. Every parameter must have some gradient, and no choice may change on the way.
template <class Layer>
void check_layer(Layer& layer, const Tokens<double>& tokens, bool training = false) {
  using Space = typename Layer::Space;
  vary_vectors(layer.parameters);
  moe::Context<Space> ctx;
  ctx.training = training;
  ctx.step = 3;
  ctx.first_token = 100;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  decltype(tape.plan.assignment_row) rows;
  bool flipped = false;
  const auto value = [&] {
    const auto y = layer.forward(ctx, tokens.batch, tape);
    flipped = flipped || (rows.is_allocated() && !same_bits(rows, tape.plan.assignment_row));
    double sum = tape.loss();
    for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * tokens.dy.data()[i];
    return sum;
  };
  value();
  rows = clone(tape.plan.assignment_row);
  const auto dx = clone(layer.backward(ctx, tokens.dy, tape, gradients));
  check_gradient(tokens.x, dx, value);
  if (tokens.router_input.is_allocated()) check_gradient(tokens.router_input, clone(tape.drouter_input), value);
  auto compare = [&](std::string_view name, auto& parameter, auto& gradient) {
    CAPTURE(std::string(name));
    check_gradient(parameter, gradient, value);
    CHECK(largest(gradient) > 1e-4);
  };
  Layer::Parameters::visit(compare, layer.parameters, static_cast<typename Layer::Parameters&>(gradients));
  CHECK_FALSE(flipped);
}

/// Compares the gradients of a router alone, by its input and every parameter, with central differences: of a random
/// weighted sum of all that losses and experts look at. Every parameter must have some gradient, and no choice may
/// change on the way. Returns how many choices were made.
template <class Router>
Index check_router(const Router& router, Index experts, const Tokens<double>& tokens, bool training = false) {
  using Space = Tokens<double>::Space;
  using M = moe::Matrix<double, Space>;
  using Parameters = typename Router::template Parameters<double, Space>;
  const Index count = tokens.batch.tokens();
  const moe::RouterShape shape{experts, Index(tokens.x.extent(1))};
  auto parameters = router.template parameters<double, Space>(shape);
  auto draw = [](std::string_view name, auto& view) {
    if constexpr (std::decay_t<decltype(view)>::rank() > 1) randomise(view, unsigned(name.size()));
  };
  Parameters::visit(draw, parameters);
  vary_vectors(parameters);
  const auto buffers = router.template buffers<double, Space>(shape);
  moe::Context<Space> ctx;
  ctx.training = training;
  ctx.step = 3;
  moe::Routing<double, Space> routing;
  const auto forward = [&] { router.forward(ctx, tokens.batch, parameters, buffers, experts, routing); };
  forward();
  const auto chosen = clone(routing.assignments.expert);
  const auto live = [&](Index t) { return tokens.batch.mask.data() == nullptr || tokens.batch.mask(t) != 0; };
  const auto part = [&](unsigned seed) {
    const auto result = random<M>(seed, count, experts);
    for (Index t = 0; t < count; ++t) {
      for (Index e = 0; e < experts; ++e) result(t, e) *= live(t);
    }
    return result;
  };
  const auto dot = [](const auto& a, const auto& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a.data()[i] * b.data()[i];
    return sum;
  };
  const auto dweight = random<moe::Vector<double, Space>>(41, routing.assignments.bound);
  for (std::size_t a = 0; a < dweight.size(); ++a) {
    if (chosen(a) != moe::no_expert) continue;
    dweight(a) = 0;
    CHECK(routing.assignments.weight(a) == 0);  // a choice that was not made
  }
  const M dscores = part(42), dlogits = part(43), dclean = part(44), ddeviation = part(45);
  bool flipped = false;
  const auto value = [&] {
    forward();
    flipped = flipped || !same_bits(chosen, routing.assignments.expert);
    double sum = dot(routing.assignments.weight, dweight) + dot(routing.scores, dscores) + dot(routing.logits, dlogits);
    if (routing.clean_logits.is_allocated())
      sum += dot(routing.clean_logits, dclean) + dot(routing.deviation, ddeviation);
    return sum;
  };
  const M dx("dx", count, tokens.x.extent(1));
  auto gradients = moe::detail::zeros_like(parameters);
  router.backward(ctx, tokens.batch, parameters, routing, {dweight, clone(dscores), clone(dlogits), dclean, ddeviation},
                  dx, gradients);
  check_gradient(tokens.x, dx, value);
  auto compare = [&](std::string_view name, auto& parameter, auto& gradient) {
    CAPTURE(std::string(name));
    check_gradient(parameter, gradient, value);
    CHECK(largest(gradient) > 1e-4);
  };
  Parameters::visit(compare, parameters, gradients);
  CHECK_FALSE(flipped);
  return std::count_if(chosen.data(), chosen.data() + chosen.size(), [](auto e) { return e != moe::no_expert; });
}

/// No tokens at all: nothing comes out, and no gradient changes.
template <class Layer>
void check_empty(Layer& layer) {
  moe::Context<typename Layer::Space> ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  Tokens<typename Layer::Scalar> tokens(0, layer.config().hidden);
  if (layer.config().router_hidden > 0) tokens.give_router_input(layer.config().router_hidden);
  CHECK(layer.forward(ctx, tokens.batch, tape).extent(0) == 0);
  CHECK(tape.loss() == 0);
  CHECK(layer.backward(ctx, tokens.dy, tape, gradients).extent(0) == 0);
  auto zero = [](std::string_view name, auto& gradient) {
    CAPTURE(std::string(name));
    CHECK(largest(gradient) == 0);
  };
  Layer::Parameters::visit(zero, static_cast<typename Layer::Parameters&>(gradients));
}

/// Gives `to` the weights of `from`, whose scalar may be another.
template <class From, class To>
void copy_parameters(From& from, To& to) {
  auto copy = [](std::string_view, auto& a, auto& b) {
    using T = typename std::decay_t<decltype(b)>::value_type;
    const auto from_values = host(a);
    const auto to_values = host(b);
    for (std::size_t i = 0; i < from_values.size(); ++i) to_values.data()[i] = T(from_values.data()[i]);
    Kokkos::deep_copy(b, to_values);
  };
  From::Parameters::visit(copy, from.parameters, to.parameters);
}

}  // namespace moe_test
