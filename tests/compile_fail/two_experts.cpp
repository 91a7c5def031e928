// expect: two kinds of experts are given
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Layer = moe::MoELayer<moe::ExpertFFN<moe::ReLU>>;
#else
using Layer = moe::MoELayer<moe::ExpertFFN<moe::ReLU>, moe::ExpertFFN<moe::GELU>>;
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  Layer layer(Layer::Config{.hidden = 8, .intermediate = 8, .experts = 4});
  layer.forward(ctx, x);
}
