#pragma once
/// @file
/// Every gradient of a layer against central differences in double.

#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace moe_test {

constexpr Index gradient_tokens = 24;

/// Where gradients are checked.
using Spaces = std::tuple<Kokkos::DefaultExecutionSpace
#if defined(KOKKOS_ENABLE_SERIAL) && defined(KOKKOS_ENABLE_OPENMP)
                          ,
                          Kokkos::Serial
#endif
                          >;

/// sum(y * g) + the layer's losses, and its gradients by every parameter and by x.
template <class Layer>
void check_layer(Layer& layer, bool with_mask = true) {
  using Space = typename Layer::Space;
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  auto x = random<moe::Matrix<double, Space>>(1, gradient_tokens, layer.config().hidden);
  auto g = random<moe::Matrix<double, Space>>(2, gradient_tokens, layer.config().hidden);
  moe::Batch<double, Space> batch;
  batch.x = x;
  batch.sequence_offsets = indices<Space>({0, 9, 10, gradient_tokens});
  if (with_mask) {
    moe::Vector<std::uint8_t, Space> mask("mask", gradient_tokens);
    Kokkos::deep_copy(mask, std::uint8_t(1));
    Kokkos::deep_copy(Kokkos::subview(mask, Kokkos::pair<int, int>(12, 15)), std::uint8_t(0));
    batch.mask = mask;
  }
  auto value = [&] {
    const auto y = host(layer.forward(ctx, batch, tape));
    const auto weight = host(g);
    double sum = tape.loss();
    for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * weight.data()[i];
    return sum;
  };
  value();
  const auto dx = clone(layer.backward(ctx, g, tape, gradients));
  check_gradient(x, dx, value);
  auto compare = [&](std::string_view name, auto& parameter, auto& gradient) {
    INFO(std::string(name));
    check_gradient(parameter, gradient, value);
  };
  Layer::Parameters::visit(compare, layer.parameters, static_cast<typename Layer::Parameters&>(gradients));
}

}  // namespace moe_test
