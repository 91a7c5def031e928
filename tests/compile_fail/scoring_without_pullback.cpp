// expect: this scoring lacks a member
#include <moe/moe.hpp>

struct Half {
  using policy = moe::kind::scoring;
  template <class Real>
  KOKKOS_FUNCTION void apply(const moe::Team&, moe::Row<Real> row) const {
    for (moe::Index e = 0; e < row.size; ++e) row[e] *= Real(0.5);
  }
#ifdef MOE_COMPILE_FAIL_FIXED
  template <class Real>
  KOKKOS_FUNCTION void pullback(const moe::Team&, moe::Row<const Real>, moe::Row<Real> gradient) const {
    for (moe::Index e = 0; e < gradient.size; ++e) gradient[e] *= Real(0.5);
  }
#endif
};

void use(moe::Context<>& ctx, const moe::Matrix<float>& x, const moe::Matrix<float>& dy) {
  using Layer = moe::MoELayer<moe::Router<Half>>;
  Layer layer(Layer::Config{.hidden = 8, .intermediate = 8, .experts = 4});
  Layer::Tape tape;
  auto gradients = layer.gradients();
  layer.forward(ctx, x, tape);
  layer.backward(ctx, dy, tape, gradients);
}
