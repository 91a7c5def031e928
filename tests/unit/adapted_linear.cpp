// AdaptedLinear: gradients of dense and sorted mixtures, capacities, dropout, padding, empty batches, microbatches,
// 16 bits, misuse.
#include "moe_test/adapters.hpp"
#include "moe_test/layer_gradients.hpp"

namespace adapted_linear_test {

using namespace moe_test;

template <class Space, class... Policies>
using Linear = moe::AdaptedLinear<moe::On<Space>, moe::Precision<double>, Policies...>;

using Soft = moe::Router<moe::Softmax, moe::AllExperts>;
using Top2 = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
using Hydra = moe::LowRankAdapters<moe::SharedDown>;
using Space = Kokkos::DefaultExecutionSpace;
using M = moe::Matrix<double, Space>;

const moe::AdaptedLinearConfig config{.in = 7, .out = 5, .experts = 4, .rank = 3, .alpha = 6};

template <class Space, class... Policies, class... Values>
Linear<Space, Policies...> layer_of(const Values&... values) {
  Linear<Space, Policies...> layer(config, frozen_linear<double, Space>(5, 7, true), moe::Seed{3}, values...);
  randomise_parameters(layer);
  return layer;
}

TEMPLATE_LIST_TEST_CASE("AdaptedLinear passes the gradient check, dense and by rows", "", Spaces) {
  auto plain = layer_of<TestType>();
  check_adapted(plain, 7, 5);
  auto soft = layer_of<TestType, Soft, moe::RouterZLoss>();
  check_adapted(soft, 7, 5);
  auto hydra = layer_of<TestType, Soft, Hydra>();
  check_adapted(hydra, 7, 5);
  auto top2 = layer_of<TestType, Top2>();
  check_adapted(top2, 7, 5);
  auto hydra_top2 = layer_of<TestType, Top2, Hydra>();
  check_adapted(hydra_top2, 7, 5);
}

TEST_CASE("AdaptedLinear passes the gradient check with dropout, capacities and an input of the router's own") {
  auto soft = layer_of<Space, Soft>(moe::LowRankAdapters<>{.dropout = 0.4});
  check_adapted(soft, 7, 5, true);
  auto top2 = layer_of<Space, Top2>(moe::LowRankAdapters<>{.dropout = 0.4});
  check_adapted(top2, 7, 5, true);
  moe::CapacityPolicy<moe::Drop> drop;
  moe::CapacityPolicy<moe::Pad> pad;
  drop.factor = pad.factor = 0.75;
  auto drops = layer_of<Space, Top2, moe::CapacityPolicy<moe::Drop>>(drop);
  check_adapted(drops, 7, 5);
  auto pads = layer_of<Space, Top2, moe::CapacityPolicy<moe::Pad>>(pad);
  check_adapted(pads, 7, 5);
  auto given_config = config;
  given_config.router_hidden = 3;
  Linear<Space, Top2> given(given_config, frozen_linear<double, Space>(5, 7), moe::Seed{3});
  randomise_parameters(given);
  check_adapted(given, 7, 5, false, true);
}

TEST_CASE("Fresh adapters change nothing, and dropout acts while training alone") {
  const auto base = frozen_linear<double, Space>(5, 7, true);
  Linear<Space, Top2> fresh(config, base, moe::Seed{3});
  moe::AdaptedLinearConfig one = config;
  one.experts = 1;
  Linear<Space> other(one, base, moe::LowRankAdapters<>{.dropout = 0.5}, moe::Seed{4});
  const auto x = random<M>(1, 40, 7);
  const auto batch = adapter_batch<double, Space>(x);
  moe::Context<Space> ctx;
  decltype(fresh)::Tape tape;
  decltype(other)::Tape other_tape;
  const auto y = clone(fresh.forward(ctx, batch, tape));
  CHECK(same_bits(y, clone(other.forward(ctx, batch, other_tape))));
  CHECK(same_bits(y, fresh.forward(ctx, batch)));
  const auto copy = host(y);
  for (Index i = 0; i < 5; ++i) CHECK((copy(1, i) == 0 && copy(2, i) == 0 && copy(0, i) != 0));
  CHECK(moe::load_report(tape).assignments() == 2 * 38);

  randomise_parameters(other);
  ctx.training = false;
  const auto still = clone(other.forward(ctx, batch, other_tape));
  CHECK(same_bits(still, clone(other.forward(ctx, batch, other_tape))));
  ctx.training = true;
  const auto dropped = clone(other.forward(ctx, batch, other_tape));
  CHECK_FALSE(same_bits(still, dropped));
  CHECK(same_bits(dropped, clone(other.forward(ctx, batch, other_tape))));
  ctx.step = 1;
  CHECK_FALSE(same_bits(dropped, other.forward(ctx, batch, other_tape)));
}

template <class Layer>
void check_no_tokens(Layer layer) {
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::Batch<double, Space> batch;
  batch.x = M("x", 0, 7);
  CHECK(layer.forward(ctx, batch, tape).extent(0) == 0);
  CHECK(tape.loss() == 0);
  CHECK(layer.backward(ctx, M("dy", 0, 5), tape, gradients).extent(0) == 0);
  auto zero = [](std::string_view, auto& gradient) {
    const auto values = host(gradient);
    CHECK(std::all_of(values.data(), values.data() + values.size(), [](double v) { return v == 0; }));
  };
  Layer::Parameters::visit(zero, static_cast<typename Layer::Parameters&>(gradients));
}

/// The gradients of two microbatches, whose tapes are alive at once, and their outputs, are those of one batch.
template <class Layer>
void check_microbatches(Layer layer) {
  const Index tokens = 30, cut = 13;
  const auto x = random<M>(1, tokens, 7), dy = random<M>(2, tokens, 5);
  const auto part = [](const M& of, Index first, Index last) {
    return M(of.data() + first * Index(of.extent(1)), last - first, of.extent(1));
  };
  moe::Context<Space> ctx;
  typename Layer::Tape whole, first, second;
  auto expected = layer.gradients(), gradients = layer.gradients();
  const auto y = clone(layer.forward(ctx, x, whole)), dx = clone(layer.backward(ctx, dy, whole, expected));
  layer.forward(ctx, part(x, 0, cut), first);
  layer.forward(ctx, part(x, cut, tokens), second);
  CHECK(worst_difference(first.y, Table(part(y, 0, cut))) < 1e-13);
  CHECK(worst_difference(second.y, Table(part(y, cut, tokens))) < 1e-13);
  const auto back = layer.backward(ctx, part(dy, cut, tokens), second, gradients);
  layer.backward(ctx, part(dy, 0, cut), first, gradients);
  CHECK(worst_difference(back, Table(part(dx, cut, tokens))) < 1e-12);
  auto compare = [](std::string_view name, auto& a, auto& b) {
    INFO(std::string(name));
    CHECK(worst_difference(a, Table(b)) < 1e-11);
  };
  Layer::Parameters::visit(compare, static_cast<typename Layer::Parameters&>(gradients),
                           static_cast<typename Layer::Parameters&>(expected));
}

TEST_CASE("Adapters of no tokens and of two microbatches") {
  check_no_tokens(layer_of<Space, Soft>());
  check_no_tokens(layer_of<Space, Top2>());
  check_microbatches(layer_of<Space, Soft, Hydra>());
  check_microbatches(layer_of<Space, Top2>());
}

TEST_CASE("Adapters in bfloat16 are near those in double") {
  using Half = moe::bfloat16;
  moe::AdaptedLinear<moe::On<Space>, moe::Precision<Half>, Soft> soft(config, moe::Seed{3});
  moe::AdaptedLinear<moe::On<Space>, moe::Precision<Half>, Top2> top2(config, moe::Seed{3});
  const auto check = [](auto& layer, auto exact) {
    const auto copy = [](std::string_view, const auto& from, const auto& to) {
      const auto a = host(from);
      const auto b = host(to);
      for (std::size_t i = 0; i < a.size(); ++i)
        b.data()[i] = typename std::decay_t<decltype(b)>::value_type(float(a.data()[i]));
      Kokkos::deep_copy(to, b);
    };
    randomise_parameters(layer);
    decltype(exact)::Parameters::visit(copy, layer.parameters, exact.parameters);
    moe::Matrix<Half, Space> weight("weight", 5, 7), x("x", 20, 7);
    M wide_weight("weight", 5, 7), wide_x("x", 20, 7);
    randomise(weight, 1);
    randomise(x, 2);
    copy("", weight, wide_weight);
    copy("", x, wide_x);
    layer.base.weight = weight;
    exact.base = {wide_weight, {}};
    moe::Context<Space> ctx;
    typename std::decay_t<decltype(layer)>::Tape tape;
    typename decltype(exact)::Tape exact_tape;
    moe::Batch<Half, Space> batch;
    batch.x = x;
    CHECK(worst_difference(layer.forward(ctx, batch, tape), Table(exact.forward(ctx, wide_x, exact_tape))) < 0.15);
  };
  check(soft, layer_of<Space, Soft>());
  check(top2, layer_of<Space, Top2>());
}

TEST_CASE("Misuse of AdaptedLinear is refused in words") {
  using Catch::Matchers::Contains;
  Linear<Space, Top2> layer(config);
  moe::Context<Space> ctx;
  decltype(layer)::Tape tape;
  auto gradients = layer.gradients();
  CHECK_THROWS_WITH(layer.forward(ctx, M("x", 3, 7), tape), Contains("no frozen weight"));
  layer.base = frozen_linear<double, Space>(7, 5);
  CHECK_THROWS_WITH(layer.forward(ctx, M("x", 3, 7), tape), Contains("(7, 5), expected (5, 7)"));
  CHECK_THROWS_WITH(layer.backward(ctx, M("dy", 3, 5), tape, gradients), Contains("Run forward"));
  CHECK_THROWS_WITH((Linear<Space>({.in = 4, .out = 4, .rank = 0})), Contains("rank 0"));
  CHECK_THROWS_WITH(layer_of<Space>(moe::LowRankAdapters<>{.dropout = 1}), Contains("dropout 1"));
}

}  // namespace adapted_linear_test
