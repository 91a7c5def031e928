// expect: the scalar type of the tokens
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Tokens = moe::Matrix<float>;
#else
using Tokens = moe::Matrix<double>;
#endif

void use(moe::Context<>& ctx, const Tokens& x) {
  moe::MoELayer<> layer(moe::MoEConfig{.hidden = 8, .intermediate = 8, .experts = 4});
  layer.forward(ctx, x);
}
