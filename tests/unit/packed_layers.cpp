// Packed layers beside the layers that they were made from: values, precision, allocations, misuse.
#include <moe_test/packed_layers.hpp>

#include "moe/models/gpt_oss.hpp"
#include "moe/models/qwen.hpp"

namespace packed_layers_test {

using namespace moe_test;
using moe::bfloat16;

template <class T>
void check_all() {
  using Softmax2 = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
  using DeepSeek = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::GroupLimit<4, 2, moe::BestTwo>, moe::BiasBalancer,
                               moe::NormalizeSum, moe::Scale>;
  SECTION("Mixtral") {
    check_packed<T, moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>, moe::SwitchBalanceLoss>(false);
  }
  SECTION("DeepSeek-V3") {
    check_packed<T, DeepSeek, moe::SharedExperts<1>>(true, DeepSeek{moe::Scale{2.5}});
  }
  SECTION("Qwen2") {
    check_packed<T, moe::Router<moe::Softmax, moe::TopK<4>>, moe::SharedExperts<4, moe::SwiGLU, moe::SigmoidGate>>(
        true);
  }
  SECTION("gpt-oss") {
    check_packed<T, moe::GptOssRouter, moe::ExpertFFN<moe::ClampedSwiGLU, moe::Bias>, moe::OutputBias>(true);
  }
  SECTION("Custom activation") {
    check_packed<T, Softmax2, moe::ExpertFFN<ShiftedProduct>, moe::SharedExperts<1, Shifted>>(true);
  }
}

TEST_CASE("Layers packed in f32 are the layers in double, within their roundings") {
  check_all<float>();
}
TEST_CASE("Layers packed in bfloat16 are the layers in double, within their roundings") {
  check_all<bfloat16>();
}
TEST_CASE("Layers packed in int8 are quantised layers in double, within their roundings") {
  check_all<std::int8_t>();
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
  HostLayer<float, moe::MixtralRouter, Same> layer(packed_config, moe::Seed{5});
  const auto packed = moe::pack(layer);
  moe::Context<Host> ctx;
  const auto x = random<moe::Matrix<float, Host>>(7, packed_tokens, packed_config.hidden);
  CHECK(same_bits(clone(layer.forward(ctx, x)), packed.forward(ctx, x)));
}

#if defined(KOKKOS_ENABLE_SERIAL)
TEST_CASE("A packed layer runs where its source does") {
  using Serial = moe::On<Kokkos::Serial>;
  moe::MoELayer<Serial, moe::MixtralRouter, moe::SharedExperts<1>> layer(packed_config, moe::Seed{5});
  const HostLayer<float, moe::MixtralRouter, moe::SharedExperts<1>> same(packed_config, moe::Seed{5});
  moe::Context<Kokkos::Serial> serial;
  moe::Context<Host> ctx;
  const auto x = random<moe::Matrix<float, Host>>(7, packed_tokens, packed_config.hidden);
  const auto packed = moe::pack(layer);
  STATIC_REQUIRE(std::is_same_v<decltype(packed)::Space, Kokkos::Serial>);
  CHECK(same_bits(packed.forward(serial, x), moe::pack(same).forward(ctx, x)));
}
#endif

using Plain = HostLayer<float, moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU, moe::Bias>, moe::SharedExperts<1>>;

TEST_CASE("A packed layer keeps the weights that it was made with") {
  Plain layer(packed_config, moe::Seed{5});
  fill_parameters<float>(layer);
  const auto packed = moe::pack<float>(layer);
  moe::Context<Host> ctx;
  const auto x = random<moe::Matrix<float, Host>>(7, packed_tokens, packed_config.hidden);
  const auto before = clone(packed.forward(ctx, x));
  auto change = [](std::string_view, auto& view) { Kokkos::deep_copy(view, 3.0f); };
  Plain::Parameters::visit(change, layer.parameters);
  CHECK(same_bits(before, packed.forward(ctx, x)));
  CHECK_FALSE(same_bits(before, moe::pack<float>(layer).forward(ctx, x)));
}

TEMPLATE_TEST_CASE("A packed layer takes no tokens at all", "", float, bfloat16, std::int8_t) {
  Plain layer(packed_config, moe::Seed{5});
  const auto packed = moe::pack<TestType>(layer);
  moe::Context<Host> ctx;
  CHECK(packed.forward(ctx, moe::Matrix<Token<TestType>, Host>("x", 0, packed_config.hidden)).extent(0) == 0);
  CHECK(packed.forward(ctx, moe::Matrix<Token<TestType>, Host>("x", 2, packed_config.hidden)).extent(0) == 2);
}

TEMPLATE_TEST_CASE("A packed layer refuses tokens that do not fit", "", float, bfloat16, std::int8_t) {
  Plain layer(packed_config, moe::Seed{5});
  const auto packed = moe::pack<TestType>(layer);
  moe::Context<Host> ctx;
  using M = moe::Matrix<Token<TestType>, Host>;
  CHECK_THROWS_AS(packed.forward(ctx, M("x", 3, packed_config.hidden + 1)), moe::ShapeError);
  moe::Batch<Token<TestType>, Host> batch;
  batch.x = M("x", 3, packed_config.hidden);
  batch.mask = filled<moe::Vector<std::uint8_t, Host>>(1, 4);
  CHECK_THROWS_AS(packed.forward(ctx, batch), moe::ShapeError);
  batch.mask = {};
  batch.branch_input = M("x", 3, packed_config.hidden - 1);
  CHECK_THROWS_AS(packed.forward(ctx, batch), moe::ShapeError);
  batch.branch_input = {};
  batch.x = nans<M>(3, packed_config.hidden);
  CHECK_THROWS_AS(packed.forward(ctx, batch), moe::DataError);
}

TEST_CASE("Experts that compute nothing stay around packed ones") {
  using Experts = moe::WithExtraExperts<moe::ExpertFFN<moe::SwiGLU>, 2>;
  using Layer = HostLayer<float, moe::Router<moe::Softmax, moe::TopK<3>>, Experts>;
  using Space = Layer::Space;
  const Layer layer(moe::MoEConfig{.hidden = 21, .intermediate = 18, .experts = 6}, moe::Seed{5});
  const auto packed = moe::pack(layer);
  static_assert(std::is_same_v<decltype(packed)::Experts, moe::WithExtraExperts<moe::PackedFFN<moe::SwiGLU>, 2>>);
  const auto x = random<moe::Matrix<float, Space>>(1, 40, 21);
  moe::Context<Space> ctx;
  const auto y = layer.forward(ctx, x), z = packed.forward(ctx, x);
  const auto difference = [&](const auto& other) {
    double worst = 0;
    for (std::size_t i = 0; i < y.size(); ++i) worst = std::max(worst, std::abs(double(y.data()[i]) - other.data()[i]));
    return worst / largest(y);
  };
  CHECK(difference(z) < 1e-5);
  const auto small = moe::pack<std::int8_t>(layer);
  static_assert(std::is_same_v<decltype(small)::Experts,
                               moe::WithExtraExperts<moe::PackedFFN<moe::SwiGLU, moe::NoBias, std::int8_t>, 2>>);
  const double apart = difference(small.forward(ctx, x));
  CHECK(apart < 0.05);
  CHECK(apart > 1e-4);
}

}  // namespace packed_layers_test
