// expect: this block lacks a member
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Mine = moe::MoELayer<>;
#else
struct Mine {
  using Config = moe::MoEConfig;
  moe::Matrix<float> forward(moe::Context<>& ctx, const moe::Batch<float>& batch) const;
};
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  moe::MixtureOfDepths<Mine> layer({.block = {.hidden = 8, .intermediate = 8, .experts = 4}});
  layer.forward(ctx, x);
}
