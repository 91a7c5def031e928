// expect: two scorings are given
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Router = moe::Router<moe::Softmax>;
#else
using Router = moe::Router<moe::Softmax, moe::TopK<2>, moe::Sigmoid>;
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  moe::MoELayer<Router> layer(moe::MoEConfig{.hidden = 8, .intermediate = 8, .experts = 4});
  layer.forward(ctx, x);
}
