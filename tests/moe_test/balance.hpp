#pragma once
/// Losses on a router's choices: their values and gradients on given logits, with padding, sequences and tasks.
#include <memory>
#include <moe/routing/router.hpp>
#include <moe/routing/simple_logits.hpp>

#include "moe_test/cases.hpp"

namespace moe_test::balance {

using Space = Kokkos::DefaultHostExecutionSpace;
using Matrix = moe::Matrix<double, Space>;
using Batch = moe::Batch<double, Space>;
using Routing = moe::Routing<double, Space>;
using TopTwo = moe::Router<moe::GivenLogits, moe::Softmax, moe::TopK<2>>;

/// Given logits under a router, and a loss on them.
template <class Router>
struct Routed {
  Router router;
  Matrix logits;
  Batch batch;
  std::unique_ptr<moe::Context<Space>> context = std::make_unique<moe::Context<Space>>();
  Routing routing;

  explicit Routed(const Matrix& z) : logits(z) {
    batch.x = Matrix("x", z.extent(0), 1);
    batch.router_input = logits;
    route();
  }
  void route() { router.forward(*context, batch, {}, {}, Index(logits.extent(1)), routing); }
  template <class Loss>
  double value(const Loss& loss) {
    moe::Vector<double, Space> slot("slot", 1);
    loss.value(*context, batch, routing, slot);
    return slot(0);
  }
  /// d loss / d logits.
  template <class Loss>
  Matrix gradient(const Loss& loss, double scale = 1) {
    const std::size_t tokens = logits.extent(0), experts = logits.extent(1);
    const moe::RoutingGradients<double, Space> to{moe::Vector<double, Space>("dweight", routing.assignments.bound),
                                                  Matrix("dscores", tokens, experts),
                                                  Matrix("dlogits", tokens, experts),
                                                  {},
                                                  {}};
    loss.backward(*context, batch, routing, scale, to);
    Matrix result("gradient", tokens, experts);
    typename Router::template Parameters<double, Space> none;
    router.backward(*context, batch, none, routing, to, result, none);
    return result;
  }
};

inline constexpr Index tokens = 12, experts = 4;

/// Twelve tokens in sequences of 5, 2 and 5, of tasks 1, 0 and 2; tokens 2 and 6 are padding.
template <class Router>
Routed<Router> padded(unsigned seed = 1) {
  Routed<Router> result(random<Matrix>(seed, tokens, experts));
  result.batch.sequence_offsets = indices<Space>({0, 5, 7, 12});
  moe::Vector<std::int32_t, Space> tasks("tasks", 3);
  tasks(0) = 1, tasks(2) = 2;
  result.batch.task_ids = tasks;
  const auto mask = filled<moe::Vector<std::uint8_t, Space>>(1, tokens);
  mask(2) = mask(6) = 0;
  result.batch.mask = mask;
  result.route();
  return result;
}

/// Its tokens without the padding.
template <class Router>
Routed<Router> compact(const Routed<Router>& from) {
  Matrix z("z", tokens - 2, experts);
  for (Index t = 0, to = 0; t < tokens; ++t) {
    if (from.batch.mask(t) == 0) continue;
    for (Index e = 0; e < experts; ++e) z(to, e) = from.logits(t, e);
    ++to;
  }
  Routed<Router> result(z);
  result.batch.sequence_offsets = indices<Space>({0, 4, 5, 10});
  result.batch.task_ids = from.batch.task_ids;
  result.route();
  return result;
}

/// Padding in no sum, two passes in flight, no tokens.
template <class Router, class Loss>
void check_batches(const Loss& loss) {
  auto whole = padded<Router>();
  auto live = compact(whole);
  CHECK(whole.value(loss) == Approx(live.value(loss)).margin(1e-14));
  const auto of_whole = whole.gradient(loss), of_live = live.gradient(loss);
  for (Index t = 0, from = 0; t < tokens; ++t) {
    const bool padding = whole.batch.mask(t) == 0;
    for (Index e = 0; e < experts; ++e) CHECK(of_whole(t, e) == Approx(padding ? 0 : of_live(from, e)).margin(1e-14));
    from += padding ? 0 : 1;
  }

  auto other = padded<Router>(7);
  const auto first = whole.gradient(loss);
  const auto between = other.gradient(loss);
  CHECK(same_bits(whole.gradient(loss), first));
  const auto halved = whole.gradient(loss, 0.5);
  for (std::size_t i = 0; i < halved.size(); ++i) CHECK(2 * halved.data()[i] == Approx(first.data()[i]).margin(1e-15));

  auto all_padding = padded<Router>();
  all_padding.batch.mask = moe::Vector<std::uint8_t, Space>("mask", tokens);
  all_padding.route();
  CHECK(all_padding.value(loss) == 0);
  const auto nothing = all_padding.gradient(loss);
  for (std::size_t i = 0; i < nothing.size(); ++i) CHECK(nothing.data()[i] == 0);

  Routed<Router> empty(Matrix("z", 0, experts));
  empty.batch.task_ids = moe::Vector<std::int32_t, Space>("tasks", 1);
  CHECK(empty.value(loss) == 0);
  CHECK(empty.gradient(loss).size() == 0);
}

template <class Router, class Loss>
void check_differences(const Loss& loss) {
  auto routed = padded<Router>();
  const auto gradient = routed.gradient(loss);
  const auto chosen = clone(routed.routing.assignments.expert);
  check_gradient(routed.logits, gradient, [&] {
    routed.route();
    return routed.value(loss);
  });
  CHECK(same_bits(chosen, routed.routing.assignments.expert));
}

/// Token t prefers expert t, then t + 1.
inline Matrix balanced_logits() {
  Matrix z("z", tokens, experts);
  for (Index t = 0; t < tokens; ++t) z(t, t % experts) = 2, z(t, (t + 1) % experts) = 1;
  return z;
}

/// All tokens have the experts 0 and 1 by equal parts, and no other.
inline Matrix collapsed_logits() {
  Matrix z("z", tokens, experts);
  for (Index t = 0; t < tokens; ++t) z(t, 0) = z(t, 1) = 1000;
  return z;
}

}  // namespace moe_test::balance
