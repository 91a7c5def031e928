// Packed layers with capacities, latent experts, weights on the input, output policies and branches of one's own,
// beside the layers that they were made from.
#include <moe_test/packed_layers.hpp>

namespace packed_compositions_test {

using namespace moe_test;

template <class T>
void check_all() {
  using Softmax2 = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
  SECTION("Switch, with drops") {
    check_packed<T, moe::Router<moe::Softmax, moe::TopK<1>>, moe::ExpertFFN<moe::ReLU>, moe::CapacityPolicy<moe::Drop>>(
        true, moe::CapacityPolicy<moe::Drop>{.factor = 0.75});
  }
  SECTION("Rows padded to the capacity") {
    check_packed<T, Softmax2, moe::CapacityPolicy<moe::Pad>, moe::SharedExperts<1, moe::ReLU>>(
        true, moe::CapacityPolicy<moe::Pad>{.factor = 1, .renormalize = moe::Renormalize::after_drops});
  }
  SECTION("Latent experts") {
    check_packed<T, Softmax2, moe::Latent<>, moe::SharedExperts<1>>(false, moe::Latent<>{.width = 19});
  }
  SECTION("Weights on the input") {
    check_packed<T, moe::Router<moe::Sigmoid, moe::TopK<2>>, moe::WeightOnInput, moe::SharedExperts<1>>(true);
  }
  SECTION("Scales of the routed part and of all") {
    check_packed<T, moe::RoutedScale, moe::SharedExperts<2, moe::GeGLU>, Softmax2, moe::LayerScale>(
        false, moe::RoutedScale{2.5}, moe::LayerScale{0.5});
  }
  SECTION("A branch of one's own, and shared experts of a width of their own") {
    using Shared = moe::SharedExperts<1>;
    check_packed<T, Softmax2, ScaledInput, Shared>(true, ScaledInput{.factor = 0.5}, Shared{.intermediate = 50});
  }
}

TEST_CASE("Compositions packed in f32 are the layers in double, within their roundings") {
  check_all<float>();
}
TEST_CASE("Compositions packed in bfloat16 are the layers in double, within their roundings") {
  check_all<moe::bfloat16>();
}
TEST_CASE("Compositions packed in int8 are quantised layers in double, within their roundings") {
  check_all<std::int8_t>();
}

}  // namespace packed_compositions_test
