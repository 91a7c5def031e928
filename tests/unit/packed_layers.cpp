// Packed layers beside the layers that they were made from: values, precision, allocations, misuse.
#include <moe_test/packed_layers.hpp>

#include "moe/models/gpt_oss.hpp"
#include "moe/models/qwen.hpp"

namespace packed_layers_test {

using namespace moe_test;
using moe::bfloat16;

constexpr Index tokens = 43;
const moe::MoEConfig config{.hidden = 37, .intermediate = 21, .experts = 8};

/// Everything that starts at 0 or 1 gets random numbers too; all that is stored in T is rounded to T.
template <class T, class Layer>
void fill_parameters(Layer& layer) {
  unsigned seed = 30;
  auto draw = [&](std::string_view name, auto& view) {
    const bool bias = name.size() >= 4 && name.substr(name.size() - 4) == "bias";
    if (view.size() > 0 && (bias || view.rank() == 1)) randomise(view, ++seed);
    if (name.substr(0, 7) != "router." && name.find("gate.weight") == std::string_view::npos) round_to<T>(view);
  };
  Layer::Parameters::visit(draw, layer.parameters);
  auto fill = [&](std::string_view, auto& view) { randomise(view, ++seed); };
  Layer::Buffers::visit(fill, layer.buffers);
}

template <class From, class To>
void copy_all(From& from, To& to) {
  copy_parameters(from, to);
  auto copy = [](std::string_view, const auto& a, const auto& b) {
    for (std::size_t i = 0; i < a.size(); ++i) b.data()[i] = a.data()[i];
  };
  From::Buffers::visit(copy, from.buffers, to.buffers);
}

/// pack<T> of a layer in float against the layer in double with the same weights. Padding is NaN, and must give 0.
template <class T, class... Policies, class... Values>
void check(bool masked, const Values&... values) {
  using Judge = HostLayer<double, Policies...>;
  HostLayer<float, Policies...> layer(config, moe::Seed{5}, values...);
  Judge judge(config, moe::Seed{6}, values...);
  fill_parameters<T>(layer);
  copy_all(layer, judge);
  auto packed = moe::pack<T>(layer);
  STATIC_REQUIRE(std::is_same_v<typename decltype(packed)::Scalar, T>);

  const auto x = random<moe::Matrix<float, Host>>(7, tokens, config.hidden);
  const moe::Matrix<T, Host> in("x", tokens, config.hidden);
  const moe::Matrix<double, Host> exact("x", tokens, config.hidden);
  const auto mask = filled<moe::Vector<std::uint8_t, Host>>(1, tokens);
  for (const Index t : {0, 5, 6, 42}) mask(t) = masked ? 0 : 1;
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < config.hidden; ++h) {
      in(t, h) = T(mask(t) ? x(t, h) : NAN);
      exact(t, h) = mask(t) ? double(float(in(t, h))) : 0;
    }
  }
  moe::Batch<T, Host> batch;
  moe::Batch<double, Host> judged;
  batch.x = in;
  judged.x = exact;
  if (masked) batch.mask = judged.mask = mask;
  moe::Context<Host> ctx;
  ctx.training = false;
  typename decltype(packed)::Tape tape;
  typename Judge::Tape judge_tape;
  const auto y = packed.forward(ctx, batch, tape);
  const auto expected = judge.forward(ctx, judged, judge_tape);
  REQUIRE(same_bits(tape.plan.expert_offsets, judge_tape.plan.expert_offsets));
  REQUIRE(same_bits(tape.plan.assignment_row, judge_tape.plan.assignment_row));

  const auto outputs = outputs_of<T>(judge, judge_tape);
  Worst worst;
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < config.hidden; ++h) {
      const double value = expected(t, h), bound = outputs[t].y.bound(h);
      if (std::abs(outputs[t].y.value(h) - value) > 1e-12) FAIL("the reference is not this layer's");
      if (mask(t) == 0 && float(y(t, h)) != 0.0f) FAIL_CHECK("padding is not 0: " << t << ", " << h);
      worst.see(std::abs(double(float(y(t, h))) - value), bound);
    }
  }
  worst.check(2e-4);  // bounds of many stages multiply

  // Without a tape, and for one token alone, the same bits.
  CHECK(same_bits(clone(y), packed.forward(ctx, batch)));
  if (decltype(packed)::Capacity::drops) return;
  const Kokkos::pair<Index, Index> rows(9, 10);
  const moe::Matrix<T, Host> alone("alone", 1, config.hidden), one("one", 1, config.hidden);
  Kokkos::deep_copy(one, Kokkos::subview(y, rows, Kokkos::ALL));
  Kokkos::deep_copy(alone, Kokkos::subview(in, rows, Kokkos::ALL));
  CHECK(same_bits(packed.forward(ctx, alone), one));
}

template <class T>
void check_all() {
  using Softmax2 = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
  using DeepSeek = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::GroupLimit<4, 2, moe::BestTwo>, moe::BiasBalancer,
                               moe::NormalizeSum, moe::Scale>;
  SECTION("Mixtral") {
    check<T, moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>, moe::SwitchBalanceLoss>(false);
  }
  SECTION("DeepSeek-V3") {
    check<T, DeepSeek, moe::SharedExperts<1>>(true, DeepSeek{moe::Scale{2.5}});
  }
  SECTION("Qwen2") {
    check<T, moe::Router<moe::Softmax, moe::TopK<4>>, moe::SharedExperts<4, moe::SwiGLU, moe::SigmoidGate>>(true);
  }
  SECTION("Switch, with drops") {
    check<T, moe::Router<moe::Softmax, moe::TopK<1>>, moe::ExpertFFN<moe::ReLU>, moe::CapacityPolicy<moe::Drop>>(
        true, moe::CapacityPolicy<moe::Drop>{.factor = 0.75});
  }
  SECTION("Rows padded to the capacity") {
    check<T, Softmax2, moe::CapacityPolicy<moe::Pad>, moe::SharedExperts<1, moe::ReLU>>(
        true, moe::CapacityPolicy<moe::Pad>{.factor = 1, .renormalize = moe::Renormalize::after_drops});
  }
  SECTION("gpt-oss") {
    check<T, moe::GptOssRouter, moe::ExpertFFN<moe::ClampedSwiGLU, moe::Bias>, moe::OutputBias>(true);
  }
  SECTION("Latent experts") {
    check<T, Softmax2, moe::Latent<>, moe::SharedExperts<1>>(false, moe::Latent<>{.width = 19});
  }
  SECTION("Weights on the input") {
    check<T, moe::Router<moe::Sigmoid, moe::TopK<2>>, moe::WeightOnInput, moe::SharedExperts<1>>(true);
  }
  SECTION("Scales of the routed part and of all") {
    check<T, moe::RoutedScale, moe::SharedExperts<2, moe::GeGLU>, Softmax2, moe::LayerScale>(
        false, moe::RoutedScale{2.5}, moe::LayerScale{0.5});
  }
  SECTION("A branch of one's own, and shared experts of a width of their own") {
    using Shared = moe::SharedExperts<1>;
    check<T, Softmax2, ScaledInput, Shared>(true, ScaledInput{.factor = 0.5}, Shared{.intermediate = 50});
  }
  SECTION("Custom activation") {
    check<T, Softmax2, moe::ExpertFFN<ShiftedProduct>, moe::SharedExperts<1, Shifted>>(true);
  }
}

TEST_CASE("Layers packed in f32 are the layers in double, within their roundings") {
  check_all<float>();
}
TEST_CASE("Layers packed in bfloat16 are the layers in double, within their roundings") {
  check_all<bfloat16>();
}

/// Experts that are not the library's: they give their input.
struct Same {
  using policy = moe::kind::experts;
  template <class, class>
  using Parameters = moe::NoParameters;
  template <class, class>
  struct Saved {};
  template <class T, class Space>
  moe::NoParameters parameters(const moe::ExpertShape&) const {
    return {};
  }
  template <class T, class Space, class S>
  void forward(moe::Context<Space>&, const moe::Matrix<T, Space>& rows, const moe::DispatchPlan<Space>&,
               const moe::NoParameters&, const moe::Matrix<T, Space>& out, S&) const {
    Kokkos::deep_copy(out, rows);
  }
};

TEST_CASE("Experts of one's own stay as they are in a packed layer") {
  using Layer = HostLayer<float, moe::MixtralRouter, Same, moe::SharedExperts<1>>;
  using Packed = moe::Packed<Layer>;
  STATIC_REQUIRE(std::is_same_v<Packed::Experts, Same>);
  STATIC_REQUIRE(std::is_same_v<Packed::Branches, moe::detail::List<moe::PackedSharedExperts<1>>>);
  HostLayer<float, moe::MixtralRouter, Same> layer(config, moe::Seed{5});
  const auto packed = moe::pack(layer);
  moe::Context<Host> ctx;
  const auto x = random<moe::Matrix<float, Host>>(7, tokens, config.hidden);
  CHECK(same_bits(clone(layer.forward(ctx, x)), packed.forward(ctx, x)));
}

using Plain = HostLayer<float, moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU, moe::Bias>, moe::SharedExperts<1>>;

TEST_CASE("A packed layer keeps the weights that it was made with") {
  Plain layer(config, moe::Seed{5});
  fill_parameters<float>(layer);
  const auto packed = moe::pack<float>(layer);
  moe::Context<Host> ctx;
  const auto x = random<moe::Matrix<float, Host>>(7, tokens, config.hidden);
  const auto before = clone(packed.forward(ctx, x));
  auto change = [](std::string_view, auto& view) { Kokkos::deep_copy(view, 3.0f); };
  Plain::Parameters::visit(change, layer.parameters);
  CHECK(same_bits(before, packed.forward(ctx, x)));
  CHECK_FALSE(same_bits(before, moe::pack<float>(layer).forward(ctx, x)));
}

TEMPLATE_TEST_CASE("A packed layer takes no tokens at all", "", float, bfloat16) {
  Plain layer(config, moe::Seed{5});
  const auto packed = moe::pack<TestType>(layer);
  moe::Context<Host> ctx;
  CHECK(packed.forward(ctx, moe::Matrix<TestType, Host>("x", 0, config.hidden)).extent(0) == 0);
  CHECK(packed.forward(ctx, moe::Matrix<TestType, Host>("x", 2, config.hidden)).extent(0) == 2);
}

TEMPLATE_TEST_CASE("A packed layer refuses tokens that do not fit", "", float, bfloat16) {
  Plain layer(config, moe::Seed{5});
  const auto packed = moe::pack<TestType>(layer);
  moe::Context<Host> ctx;
  using M = moe::Matrix<TestType, Host>;
  CHECK_THROWS_AS(packed.forward(ctx, M("x", 3, config.hidden + 1)), moe::ShapeError);
  moe::Batch<TestType, Host> batch;
  batch.x = M("x", 3, config.hidden);
  batch.mask = filled<moe::Vector<std::uint8_t, Host>>(1, 4);
  CHECK_THROWS_AS(packed.forward(ctx, batch), moe::ShapeError);
  batch.mask = {};
  batch.branch_input = M("x", 3, config.hidden - 1);
  CHECK_THROWS_AS(packed.forward(ctx, batch), moe::ShapeError);
  batch.branch_input = {};
  batch.x = nans<M>(3, config.hidden);
  CHECK_THROWS_AS(packed.forward(ctx, batch), moe::DataError);
}

}  // namespace packed_layers_test
