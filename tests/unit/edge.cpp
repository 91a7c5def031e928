// The corners: few tokens, full and empty experts, padding, ids given by hand, several tapes, and misuse.
#include <limits>
#include <moe/moe.hpp>
#include <sstream>

#include "moe_test/cases.hpp"

namespace edge_test {

using namespace moe_test;

template <class C, class... Policies>
using LayerOf = moe::MoELayer<moe::On<typename C::Space>, moe::Precision<typename C::T>, Policies...>;
template <class C>
using Plain =
    LayerOf<C, moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>, moe::SwitchBalanceLoss, moe::RouterZLoss>;

const moe::MoEConfig config{.hidden = 13, .intermediate = 7, .experts = 5};

template <class View>
bool finite(const View& view) {
  const auto values = host(view);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(double(values.data()[i]))) return false;
  }
  return true;
}

/// Every array of a struct of gradients.
template <class Parameters>
bool all_finite(Parameters& gradients) {
  bool good = true;
  auto look = [&](std::string_view, auto& view) { good = good && finite(view); };
  Parameters::visit(look, gradients);
  return good;
}

TEMPLATE_LIST_TEST_CASE("No token, one token, fewer tokens than experts", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  Plain<TestType> layer(config, moe::Seed{1});
  moe::Context<Space> ctx;
  typename Plain<TestType>::Tape tape;
  auto gradients = layer.gradients();
  for (Index tokens : {0, 1, 3}) {
    const auto x = random<moe::Matrix<T, Space>>(1, tokens, config.hidden);
    const auto y = layer.forward(ctx, x, tape);
    const auto dx = layer.backward(ctx, x, tape, gradients);
    CHECK(Index(y.extent(0)) == tokens);
    CHECK(finite(y));
    CHECK(finite(dx));
    CHECK(all_finite(static_cast<typename Plain<TestType>::Parameters&>(gradients)));
    CHECK(moe::load_report(tape).assignments() == 2 * tokens);
  }
}

TEMPLATE_LIST_TEST_CASE("Ids given by hand: duplicates add up, -1 is nothing, an expert may have all", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  using Layer = Plain<TestType>;
  Layer layer(config, moe::Seed{2});
  moe::Context<Space> ctx;
  const Index tokens = 4;
  moe::Batch<T, Space> batch;
  batch.x = random<moe::Matrix<T, Space>>(1, tokens, config.hidden);
  auto run = [&](const std::vector<moe::ExpertId>& ids, const std::vector<double>& weights,
                 typename Layer::Tape& tape) {
    moe::Routing<typename Layer::Real, Space> routing;
    layer.router().forward(ctx, batch, layer.parameters.router, layer.buffers.router, config.experts, routing);
    auto expert = Kokkos::create_mirror_view(routing.assignments.expert);
    auto weight = Kokkos::create_mirror_view(routing.assignments.weight);
    for (std::size_t a = 0; a < ids.size(); ++a) {
      expert(a) = ids[a];
      weight(a) = typename Layer::Real(weights[a]);
    }
    Kokkos::deep_copy(routing.assignments.expert, expert);
    Kokkos::deep_copy(routing.assignments.weight, weight);
    return host(clone(layer.forward(ctx, batch, routing, tape)));
  };
  typename Layer::Tape tape;
  const auto twice = run({3, 3, 3, 3, 3, 3, 3, 3}, {0.25, 0.5, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5}, tape);
  const auto report = moe::load_report(tape);
  CHECK(report.routed == std::vector<Index>{0, 0, 0, 8, 0});
  auto gradients = layer.gradients();
  CHECK(finite(layer.backward(ctx, batch.x, tape, gradients)));
  CHECK(all_finite(static_cast<typename Layer::Parameters&>(gradients)));

  const auto once = run({3, -1, 3, -1, -1, 3, -1, -1}, {0.75, 9, 0.75, 9, 9, 0.75, 9, 9}, tape);
  CHECK(moe::load_report(tape).routed == std::vector<Index>{0, 0, 0, 3, 0});
  for (Index h = 0; h < config.hidden; ++h) {
    for (Index t = 0; t < 3; ++t) CHECK(std::abs(double(once(t, h)) - double(twice(t, h))) < 1e-5);
    CHECK(once(3, h) == T(0));
  }
}

/// A batch of x whose tokens from `live` on are padding.
template <class T, class Space>
moe::Batch<T, Space> padded_behind(const moe::Matrix<T, Space>& x, Index live) {
  moe::Batch<T, Space> batch;
  batch.x = x;
  auto mask = Kokkos::View<std::uint8_t*, Kokkos::HostSpace>("mask", x.extent(0));
  for (Index t = 0; t < live; ++t) mask(t) = 1;
  batch.mask = Kokkos::create_mirror_view_and_copy(typename Space::memory_space{}, mask);
  return batch;
}

TEMPLATE_LIST_TEST_CASE("Padding changes nothing, counts nowhere and comes out as zero", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  using Layer = LayerOf<TestType, moe::Router<moe::Sigmoid, moe::TopK<2>>, moe::SharedExperts<1>,
                        moe::SequenceBalanceLoss, moe::RouterZLoss>;
  Layer layer(config, moe::Seed{3});
  moe::Context<Space> ctx;
  const Index live = 6, padding = 3, tokens = live + padding;
  const auto x = random<moe::Matrix<T, Space>>(1, tokens, config.hidden);
  const moe::Matrix<T, Space> head(x.data(), live, config.hidden);
  typename Layer::Tape alone, padded;
  const auto expected = host(clone(layer.forward(ctx, head, alone)));

  const auto y = host(layer.forward(ctx, padded_behind<T, Space>(x, live), padded));
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < config.hidden; ++h) CHECK(y(t, h) == (t < live ? expected(t, h) : T(0)));
  }
  CHECK(moe::load_report(padded).routed == moe::load_report(alone).routed);
  CHECK(padded.loss() == Approx(alone.loss()));
  auto gradients = layer.gradients();
  const auto dx = host(layer.backward(ctx, x, padded, gradients));
  for (Index h = 0; h < config.hidden; ++h) CHECK(dx(tokens - 1, h) == T(0));
}

template <class C, class Layer>
void padding_leaves_capacity_alone() {
  using T = typename C::T;
  using Space = typename C::Space;
  Layer layer(config, moe::Seed{3});
  moe::Context<Space> ctx;
  const Index live = 20, tokens = 50;
  const auto x = random<moe::Matrix<T, Space>>(1, tokens, config.hidden);
  typename Layer::Tape alone, padded;
  const auto expected = host(clone(layer.forward(ctx, moe::Matrix<T, Space>(x.data(), live, config.hidden), alone)));
  const auto y = host(layer.forward(ctx, padded_behind<T, Space>(x, live), padded));
  for (Index t = 0; t < live; ++t) {
    for (Index h = 0; h < config.hidden; ++h) CHECK(y(t, h) == expected(t, h));
  }
  CHECK(moe::load_report(padded).kept == moe::load_report(alone).kept);
}

TEMPLATE_LIST_TEST_CASE("Padding does not raise a capacity", "", Cases) {
  using Router = moe::Router<moe::Softmax, moe::TopK<2>>;
  padding_leaves_capacity_alone<TestType, LayerOf<TestType, Router, moe::CapacityPolicy<moe::Drop>>>();
  padding_leaves_capacity_alone<TestType, LayerOf<TestType, Router, moe::CapacityPolicy<moe::Pad>>>();
  padding_leaves_capacity_alone<TestType, LayerOf<TestType, moe::Router<moe::Softmax, moe::ExpertChoice>>>();
}

TEMPLATE_LIST_TEST_CASE("Microbatches keep apart, in any order of backward", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  using Layer = Plain<TestType>;
  Layer layer(config, moe::Seed{4});
  moe::Context<Space> ctx;
  typename Layer::Tape a, b;
  const auto x = random<moe::Matrix<T, Space>>(1, 9, config.hidden),
             z = random<moe::Matrix<T, Space>>(2, 11, config.hidden);
  auto gradients = layer.gradients(), again = layer.gradients();
  layer.forward(ctx, x, a);
  const auto dx = clone(layer.backward(ctx, x, a, gradients));
  layer.forward(ctx, x, a);
  layer.forward(ctx, z, b);
  layer.backward(ctx, z, b, again);
  auto fresh = layer.gradients();
  CHECK(same_bits(layer.backward(ctx, x, a, fresh), dx));
  auto compare = [](std::string_view, auto& one, auto& other) { CHECK(same_bits(one, other)); };
  Layer::Parameters::visit(compare, static_cast<typename Layer::Parameters&>(gradients),
                           static_cast<typename Layer::Parameters&>(fresh));
}

TEMPLATE_LIST_TEST_CASE("Old contents of buffers do not matter", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  using Capacity = moe::CapacityPolicy<moe::Pad>;
  using Layer =
      LayerOf<TestType, moe::Router<moe::Softmax, moe::TopK<2>>, moe::ExpertFFN<moe::SwiGLU, moe::Bias>, Capacity>;
  Layer layer(config, moe::Seed{5});
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  const auto x = random<moe::Matrix<T, Space>>(1, 17, config.hidden);
  auto first = layer.gradients(), second = layer.gradients();
  const auto y = clone(layer.forward(ctx, x, tape));
  const auto dx = clone(layer.backward(ctx, x, tape, first));
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (auto* view : {&tape.rows, &tape.out, &tape.y, &tape.dx, &tape.experts.up}) Kokkos::deep_copy(*view, nan);
  {
    typename moe::Context<Space>::Scratch scratch(ctx);
    Kokkos::deep_copy(scratch.template vector<T>(100000), nan);
  }
  CHECK(same_bits(layer.forward(ctx, x, tape), y));
  Kokkos::deep_copy(tape.dx, nan);
  CHECK(same_bits(layer.backward(ctx, x, tape, second), dx));
  CHECK(all_finite(static_cast<typename Layer::Parameters&>(second)));
}

template <class F>
std::string message(const F& f) {
  try {
    f();
  } catch (const moe::Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// A selection that chooses an expert there is not.
struct Astray {
  using policy = moe::kind::selection;
  Index choices() const { return 1; }
  template <class Real>
  KOKKOS_FUNCTION void select(const moe::Team&, moe::Row<Real> key, moe::Row<moe::ExpertId> chosen) const {
    chosen[0] = moe::ExpertId(key.size);
  }
};

TEST_CASE("Misuse gets a sentence with the numbers") {
  using C = Case<Kokkos::DefaultHostExecutionSpace, float>;
  using Space = C::Space;
  using Layer = Plain<C>;
  using M = moe::Matrix<float, Space>;
  using Catch::Matchers::Contains;
  Layer layer(config, moe::Seed{6}), other(config, moe::Seed{7});
  moe::Context<Space> ctx;
  Layer::Tape tape, foreign, empty;
  auto gradients = layer.gradients(), foreign_gradients = other.gradients();
  const M x = random<M>(1, 8, config.hidden), wide("wide", 8, 14);
  CHECK_THAT(message([&] { layer.forward(ctx, wide, tape); }), Contains("(8, 14), but hidden is 13"));
  CHECK_THAT(message([&] { layer.backward(ctx, x, empty, gradients); }), Contains("this tape is empty"));
  other.forward(ctx, x, foreign);
  CHECK_THAT(message([&] { layer.backward(ctx, x, foreign, gradients); }), Contains("belongs to another layer"));
  layer.forward(ctx, x, tape);
  CHECK_THAT(message([&] { layer.backward(ctx, x, tape, foreign_gradients); }),
             Contains("gradients belong to another"));
  CHECK_THAT(message([&] { layer.backward(ctx, wide, tape, gradients); }), Contains("dy has shape (8, 14)"));
  CHECK_THAT(message([&] { Layer bad(moe::MoEConfig{.hidden = 8, .intermediate = 0, .experts = 4}); }),
             Contains("intermediate 0"));
  CHECK_THAT(message([&] { Layer bad(moe::MoEConfig{.hidden = 8, .intermediate = 8, .experts = 1}); }),
             Contains("cannot choose 2 of 1 experts"));
  CHECK_THAT(message([&] { (void)moe::load_report(empty); }), Contains("this tape is empty"));
  using Grouped = LayerOf<C, moe::Router<moe::TopK<4>, moe::GroupLimit<4, 1>>>;
  CHECK_THAT(message([&] { Grouped bad(moe::MoEConfig{.hidden = 8, .intermediate = 8, .experts = 6}); }),
             Contains("6 experts do not divide into 4 groups"));
  CHECK_THAT(message([&] { Grouped bad(moe::MoEConfig{.hidden = 8, .intermediate = 8, .experts = 8}); }),
             Contains("leaves 2 experts"));
  Layer::Tape replay;
  moe::Batch<float, Space> batch;
  batch.x = x;
  const moe::ExpertId good = tape.routing.assignments.expert(5);
  for (moe::ExpertId bad : {5, -2, 1 << 20}) {
    tape.routing.assignments.expert(5) = bad;
    CHECK_THAT(message([&] { layer.forward(ctx, batch, tape.routing, replay), ctx.check(); }),
               Contains("expert that does not exist"));
    // The caller's array stays as it was; devices, which cannot stop here, mend it.
    CHECK(tape.routing.assignments.expert(5) == (moe::detail::device_path<Space> ? moe::no_expert : bad));
  }
  tape.routing.assignments.expert(5) = good;
  CHECK_NOTHROW(layer.forward(ctx, batch, tape.routing, replay));
  LayerOf<C, moe::Router<Astray>> astray(config);
  CHECK_THAT(message([&] { astray.forward(ctx, x), ctx.check(); }), Contains("expert that does not exist"));
  Kokkos::deep_copy(Kokkos::subview(x, 3, Kokkos::ALL), NAN);
  CHECK_THROWS_AS((layer.forward(ctx, x, tape), ctx.check()), moe::DataError);
  CHECK_NOTHROW(layer.forward(ctx, M("zeros", 8, 13), tape));  // the flag is down again
}

TEST_CASE("A load report measures what it says") {
  const moe::LoadReport report{8, {6, 2, 0, 8}, {4, 2, 0, 4}};
  CHECK(report.assignments() == 16);
  CHECK(report.dropped() == 6);
  CHECK(report.maximum_violation() == Approx(1.0));
  CHECK(report.coefficient_of_variation() == Approx(std::sqrt((4. + 4. + 16. + 16.) / 4) / 4));
  CHECK(report.entropy() ==
        Approx((0.375 * std::log(1 / 0.375) + 0.125 * std::log(8.) + 0.5 * std::log(2.)) / std::log(4.)));
  std::ostringstream out;
  out << report;
  CHECK_THAT(out.str(), Catch::Matchers::Contains("8 tokens, 16 assignments, 6 dropped; maximum violation 1.000"));
}

}  // namespace edge_test
