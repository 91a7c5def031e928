// Four mixtures of adapters over one frozen linear map learn what a random change of it does; the map stays as it is.
// A rank of 4 for each of 4 adapters: 16 in all, as wide as the change.
#include <iomanip>
#include <iostream>
#include <moe/models/adapters.hpp>
#include <moe/moe.hpp>

using moe::Index;
constexpr Index tokens = 512, width = 32;
using Space = Kokkos::DefaultExecutionSpace;

/// dy = (y - target) / tokens, the gradient of half the mean squared distance.
struct Distance {
  moe::Matrix<float> y, target, dy;
  KOKKOS_FUNCTION void operator()(Index i, double& sum) const {
    const float d = y.data()[i] - target.data()[i];
    dy.data()[i] = d / float(tokens);
    sum += double(d) * double(d);
  }
};

template <class Layer>
void train(const char* name, Layer& layer, const moe::Matrix<float>& x, const moe::Matrix<float>& target) {
  moe::Context ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW optimizer(layer.parameters);  // the frozen map is not among the parameters
  moe::Matrix<float> dy("dy", tokens, width);
  double first = 0, last = 0;
  for (; ctx.step < 400; ++ctx.step) {
    const auto y = layer.forward(ctx, x, tape);
    Kokkos::parallel_reduce(Kokkos::RangePolicy<>(ctx.space, 0, Index(y.size())), Distance{y, target, dy}, last);
    if (ctx.step == 0) first = last;
    moe::zero(ctx, gradients);
    layer.backward(ctx, dy, tape, gradients);
    optimizer.step(ctx, layer.parameters, gradients, 1e-2);
  }
  Index numbers = 0;
  layer.visit([&](const moe::ParameterInfo&, const auto& array) { numbers += Index(array.size()); });
  std::cout << std::left << std::setw(10) << name << std::right << std::setw(9) << numbers << std::fixed
            << std::setprecision(3) << std::setw(12) << last / first << '\n';
}

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  const Space space;
  moe::Matrix<float> x("x", tokens, width), weight("weight", width, width), changed("changed", width, width),
      target("target", tokens, width);
  moe::fill_normal(space, x, moe::Seed{1});
  moe::fill_normal(space, weight, moe::Seed{2}, 0.2);
  moe::fill_normal(space, changed, moe::Seed{3}, 0.2);
  using Const = moe::Matrix<const float>;
  moe::kernels::dense_forward<float, Space>(space, Const(x), Const(changed), target);

  const moe::AdaptedLinearConfig sizes{.in = width, .out = width, .experts = 4, .rank = 4, .alpha = 8};
  const moe::FrozenLinear<float> base{weight, {}};
  moe::LoRA lora(sizes, base, moe::Seed{4});
  moe::HydraLoRA hydra(sizes, base, moe::Seed{4});
  moe::MoLoRA molora(sizes, base, moe::Seed{4});
  moe::MoLA mola(sizes, base, moe::Seed{4});
  std::cout << "adapters   trained   error (of 1 at first)\n";
  train("LoRA", lora, x, target);
  train("HydraLoRA", hydra, x, target);
  train("MoLoRA", molora, x, target);
  train("MoLA", mola, x, target);
}
