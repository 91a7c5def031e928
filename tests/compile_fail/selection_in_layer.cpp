// expect: this argument is not a layer policy
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Layer = moe::MoELayer<moe::Router<moe::TopK<2>>>;
#else
using Layer = moe::MoELayer<moe::TopK<2>>;
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  Layer layer(Layer::Config{.hidden = 8, .intermediate = 8, .experts = 4});
  layer.forward(ctx, x);
}
