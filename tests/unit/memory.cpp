// What a layer keeps a token, beside the allocator's count of Kokkos' arrays.
#include <moe_test/cases.hpp>

#include "moe/models/mixtral.hpp"

namespace {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;

std::uint64_t held = 0;

/// Counts what arrays take while it lives; what all layers share is left out: the context's workspace, and Kokkos' own
/// memory for teams.
struct Count {
  Count() {
    held = 0;
    Kokkos::Tools::Experimental::set_allocate_data_callback(
        [](Kokkos_Profiling_SpaceHandle, const char* label, const void*, std::uint64_t size) {
          const std::string_view name = label;
          if (name != "moe::workspace" && !name.starts_with("Kokkos::")) held += size;
        });
  }
  ~Count() { Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr); }
};

template <class Layer>
std::uint64_t kept(const Layer& layer, Index tokens, bool backward) {
  using T = typename Layer::Scalar;
  moe::Context<Space> ctx;
  moe::Matrix<T, Space> x("x", tokens, layer.config().hidden);
  for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] = T(float(i * 37 % 101) / 101 - 0.5f);
  auto gradients = layer.gradients();
  typename Layer::Tape tape;
  const Count count;
  layer.forward(ctx, x, tape);
  if (backward) layer.backward(ctx, x, tape, gradients);
  return held;
}

}  // namespace

// The gathered row and both halves before the activation for each of K choices, the output, and the routing: 3 numbers
// an expert (logits, scores, and the loss's share) and up to 48 bytes a choice. Backward adds dx.
TEMPLATE_TEST_CASE("A tape keeps so much a token", "", float, moe::bfloat16) {
  using Layer =
      moe::MoELayer<moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>, moe::On<Space>, moe::Precision<TestType, float>>;
  const Index hidden = 96, inner = 160, experts = 8, k = 2, size = sizeof(TestType);
  const Layer layer({.hidden = hidden, .intermediate = inner, .experts = experts}, moe::Seed{1});
  const Index rows = Layer::reads_tokens ? 0 : hidden;  // on devices' paths gathered rows are never written
  for (const bool backward : {false, true}) {
    CAPTURE(backward);
    const double a_token = double(kept(layer, 3000, backward) - kept(layer, 1000, backward)) / 2000;
    const double numbers = double(size) * double(k * (rows + 2 * inner) + hidden * (backward ? 2 : 1));
    CHECK(a_token >= numbers);
    CHECK(a_token <= numbers + 3 * 4 * double(experts) + 48 * k + 16);
  }
}

TEST_CASE("A layer and its gradients take the size of their numbers") {
  using Layer = moe::MoELayer<moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>, moe::On<Space>>;
  const Index hidden = 96, inner = 160, experts = 8, parameters = experts * (3 * hidden * inner + hidden);
  const Count count;
  const Layer layer({.hidden = hidden, .intermediate = inner, .experts = experts}, moe::Seed{1});
  const std::uint64_t weights = held;
  CHECK(weights >= std::uint64_t(4 * parameters));
  CHECK(weights <= std::uint64_t(4 * parameters) + 4096);
  const auto gradients = layer.gradients();
  CHECK(held - weights >= std::uint64_t(4 * parameters));
  CHECK(held - weights <= std::uint64_t(4 * parameters) + 4096);
}
