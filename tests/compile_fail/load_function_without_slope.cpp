// expect: this function of the load lacks a member
#include <moe/moe.hpp>

struct Largest {
  KOKKOS_FUNCTION double value(moe::Row<const double> load) const {
    double most = 0;
    for (moe::Index e = 0; e < load.size; ++e) most = load[e] > most ? load[e] : most;
    return most;
  }
#ifdef MOE_COMPILE_FAIL_FIXED
  KOKKOS_FUNCTION double slope(moe::Row<const double> load, moe::Index e) const {
    return load[e] == value(load) ? 1 : 0;
  }
#endif
};

void use(moe::Context<>& ctx, const moe::Matrix<float>& x, const moe::Matrix<float>& dy) {
  using Layer = moe::MoELayer<moe::StraightThroughLoss<Largest>>;
  Layer layer(Layer::Config{.hidden = 8, .intermediate = 8, .experts = 4});
  Layer::Tape tape;
  auto gradients = layer.gradients();
  layer.forward(ctx, x, tape);
  layer.backward(ctx, dy, tape, gradients);
}
