// expect: these experts lack a member
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Mine = moe::ExpertFFN<moe::ReLU>;
#else
struct Mine {
  using policy = moe::kind::experts;
};
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  using Layer = moe::MoELayer<Mine>;
  Layer layer(Layer::Config{.hidden = 8, .intermediate = 8, .experts = 4});
  layer.forward(ctx, x);
}
