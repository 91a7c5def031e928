// expect: this argument is not a router policy
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Scores = moe::Sigmoid;
#else
struct Scores {};
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  moe::MoELayer<moe::Router<Scores, moe::TopK<2>>> layer(moe::MoEConfig{.hidden = 8, .intermediate = 8, .experts = 4});
  layer.forward(ctx, x);
}
