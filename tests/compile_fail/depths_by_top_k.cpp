// expect: does not choose the best tokens of a sequence
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Router = moe::Router<moe::Sigmoid, moe::ExpertChoice>;
#else
using Router = moe::Router<moe::Sigmoid, moe::TopK<1> >;
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  moe::MixtureOfDepths<moe::MoELayer<>, Router> layer({.block = {.hidden = 8, .intermediate = 8, .experts = 4}});
  layer.forward(ctx, x);
}
