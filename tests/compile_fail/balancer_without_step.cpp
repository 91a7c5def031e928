// expect: this balancer lacks a member
#include <moe/moe.hpp>

struct Still {
  using policy = moe::kind::balancer;
#ifdef MOE_COMPILE_FAIL_FIXED
  template <class Real>
  KOKKOS_FUNCTION void step(moe::Row<Real>, moe::Row<const moe::Index>, double) const {}
#endif
};

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  using Layer = moe::MoELayer<moe::Router<Still>>;
  Layer layer(Layer::Config{.hidden = 8, .intermediate = 8, .experts = 4});
  Layer::Tape tape;
  layer.forward(ctx, x, tape);
  moe::LoadStatistics<> loads(4);
  layer.update_balance(ctx, loads);
}
