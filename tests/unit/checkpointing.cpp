// ActivationCheckpointing: gradients are the same bits whatever backward recomputes, and a tape keeps so much less.
#include "moe_test/layers.hpp"
#include "moe_test/step.hpp"

namespace checkpointing_test {

using namespace moe_test;
using moe::Recompute;
using Space = Kokkos::DefaultExecutionSpace;

/// Two microbatches in flight, each jittered by draws of its own, and an optimiser step: all that came of it.
template <class Layer>
std::vector<double> two_passes(Layer layer, Recompute level) {
  layer.template get<moe::ActivationCheckpointing>().level = level;
  const Index hidden = layer.config().hidden;
  using Matrix = moe::Matrix<typename Layer::Scalar, Space>;
  moe::Context<Space> ctx;
  typename Layer::Tape first, second;
  auto gradients = layer.gradients();
  const auto x = random<Matrix>(1, 50, hidden), more = random<Matrix>(2, 30, hidden);
  const auto dy = random<Matrix>(3, 50, hidden), dmore = random<Matrix>(4, 30, hidden);
  layer.forward(ctx, x, first);
  ctx.first_token = 50;
  layer.forward(ctx, more, second);
  ctx.step = 7;  // draws are those of the forward pass
  ctx.first_token = 1000;
  layer.backward(ctx, dy, first, gradients);
  layer.backward(ctx, dmore, second, gradients);
  std::vector<double> result;
  auto keep = [&](const auto& view) {
    const auto values = host(view);
    for (std::size_t i = 0; i < values.size(); ++i) result.push_back(double(values.data()[i]));
  };
  for (const auto* tape : {&first, &second}) {
    keep(tape->y);
    keep(tape->dx);
    CHECK(tape->rows.is_allocated() == (level != Recompute::everything && !Layer::reads_tokens));
  }
  auto named = [&](std::string_view, const auto& view) { keep(view); };
  Layer::Parameters::visit(named, static_cast<const typename Layer::Parameters&>(gradients));
  return result;
}

template <class... Policies, class... Values>
void same_bits_at_all_levels(const char* name, const Values&... values) {
  INFO(name);
  using Layer = moe::MoELayer<moe::On<Space>, Policies..., moe::ActivationCheckpointing>;
  const auto kept = two_passes(Layer(step_config, values..., moe::Seed{1}), Recompute::nothing);
  double sum = 0;
  for (double each : kept) sum += std::abs(each);
  CHECK(sum > 1);
  for (Recompute level : {Recompute::experts, Recompute::everything})
    CHECK(two_passes(Layer(step_config, values..., moe::Seed{1}), level) == kept);
}

TEST_CASE("Gradients are the same bits whatever is recomputed") {
  using moe::MixtralRouter;
  using SwiGLU = moe::ExpertFFN<moe::SwiGLU>;
  using Half = moe::Precision<moe::bfloat16, float>;
  same_bits_at_all_levels<MixtralRouter, SwiGLU, moe::SwitchBalanceLoss>("Mixtral");
  same_bits_at_all_levels<MixtralRouter, SwiGLU, Half>("bf16");
  same_bits_at_all_levels<MixtralRouter, moe::ExpertFFN<moe::ReLU, moe::Bias>>("biases");
  same_bits_at_all_levels<moe::DeepSeekV3Router, SwiGLU, moe::SharedExperts<1>>("shared experts");
  same_bits_at_all_levels<moe::GShardRouter, SwiGLU, moe::CapacityPolicy<moe::Drop>>("drops", moe::gshard_capacity());
  same_bits_at_all_levels<moe::SwitchRouter, SwiGLU, moe::InputJitter>("jitter of router and input");
  same_bits_at_all_levels<MixtralRouter, moe::InputJitter, moe::WeightOnInput, moe::Latent<>>("latent, weight on input",
                                                                                              moe::Latent<>{12});
  same_bits_at_all_levels<MixtralRouter, moe::WithExtraExperts<SwiGLU, 4>, moe::InputJitter>("extra experts");
  same_bits_at_all_levels<MixtralRouter, moe::NormalizedExperts<SwiGLU, moe::ScaledUnitRms>>("normed experts");
}

// As in memory.cpp, on the host: bytes that the allocator gives a tape for each token more, its workspace left out.
std::uint64_t held = 0;

template <class T>
double kept_a_token(Recompute level) {
  using Host = Kokkos::DefaultHostExecutionSpace;
  using Layer = moe::MoELayer<moe::On<Host>, moe::Precision<T, float>, moe::MixtralRouter, moe::ExpertFFN<moe::SwiGLU>,
                              moe::ActivationCheckpointing>;
  const Layer layer({.hidden = 96, .intermediate = 160, .experts = 8}, moe::ActivationCheckpointing{level});
  auto gradients = layer.gradients();
  const auto bytes = [&](Index tokens) {
    moe::Context<Host> ctx;
    const moe::Matrix<T, Host> x("x", tokens, 96);
    Kokkos::deep_copy(x, T(1));
    typename Layer::Tape tape;
    held = 0;
    Kokkos::Tools::Experimental::set_allocate_data_callback(
        [](Kokkos_Profiling_SpaceHandle, const char* label, const void*, std::uint64_t size) {
          if (std::string_view(label) != "moe::workspace") held += size;
        });
    layer.forward(ctx, x, tape);
    layer.backward(ctx, x, tape, gradients);
    Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr);
    return double(held);
  };
  return (bytes(3000) - bytes(1000)) / 2000;
}

TEMPLATE_TEST_CASE("A tape keeps K (H + 2I), K H or no numbers of rows a token", "", float, moe::bfloat16) {
  const double size = sizeof(TestType), hidden = 96, inner = 160, k = 2, experts = 8;
  // Never written on devices' paths.
  const double rows = moe::detail::device_path<Kokkos::DefaultHostExecutionSpace> ? 0 : hidden;
  const double numbers[] = {k * (rows + 2 * inner), k * rows, 0};
  const double routing = 3 * 4 * experts + 48 * k + 16;
  for (Recompute level : {Recompute::nothing, Recompute::experts, Recompute::everything}) {
    const double kept = kept_a_token<TestType>(level), least = size * (numbers[int(level)] + 2 * hidden);  // y, dx
    CHECK(kept >= least);
    CHECK(kept <= least + routing);
  }
}

}  // namespace checkpointing_test
