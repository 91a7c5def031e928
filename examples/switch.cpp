// Switch Transformer's layer at laptop size: what the capacity factor and the balance loss do to a skewed batch.
#include <iomanip>
#include <iostream>
#include <moe/moe.hpp>

/// dy = y - x, the gradient of |y - x|^2 / 2: the layer learns the identity.
struct Residual {
  moe::Matrix<float> x, y, dy;
  KOKKOS_FUNCTION void operator()(moe::Index i) const {
    dy.data()[i] = (y.data()[i] - x.data()[i]) / float(x.extent(0));
  }
};

/// Trains a layer and returns the report of its last step.
static moe::LoadReport train(double capacity_factor, double coefficient, const moe::Matrix<float>& x) {
  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.factor = capacity_factor;
  moe::Switch layer(moe::Switch::Config{.hidden = 64, .intermediate = 128, .experts = 8}, capacity,
                    moe::SwitchBalanceLoss(coefficient), moe::Seed{3});
  moe::Context ctx;
  moe::Switch::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW optimizer(layer.parameters);
  moe::Matrix<float> dy("dy", x.extent(0), x.extent(1));
  for (; ctx.step < 150; ++ctx.step) {
    auto y = layer.forward(ctx, x, tape);
    Kokkos::parallel_for(Kokkos::RangePolicy<>(ctx.space, 0, moe::Index(x.size())), Residual{x, y, dy});
    moe::zero(ctx, gradients);
    layer.backward(ctx, dy, tape, gradients);
    optimizer.step(ctx, layer.parameters, gradients, 3e-3);
  }
  return moe::load_report(tape);
}

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  moe::Matrix<float> x("x", 1024, 64);
  moe::fill_normal(Kokkos::DefaultExecutionSpace{}, x, moe::Seed{1});
  // A common direction in all tokens draws them to the same experts.
  Kokkos::deep_copy(Kokkos::subview(x, Kokkos::ALL, Kokkos::pair<int, int>(0, 4)), 1.5f);

  std::cout << "capacity factor   balance loss   dropped   maximum violation\n" << std::fixed;
  for (double factor : {1.0, 1.25, 2.0}) {
    for (double coefficient : {0.0, 1e-2, 1e-1}) {
      const moe::LoadReport report = train(factor, coefficient, x);
      std::cout << std::setw(15) << std::setprecision(2) << factor << std::setw(15) << std::setprecision(3)
                << coefficient << std::setw(9) << std::setprecision(1)
                << 100.0 * double(report.dropped()) / double(report.assignments()) << '%' << std::setw(20)
                << std::setprecision(3) << report.maximum_violation() << '\n';
    }
  }
}
