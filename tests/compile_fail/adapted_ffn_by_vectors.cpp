// expect: its adapters are LowRankAdapters<...>
#include <moe/adapters/activation_scaling.hpp>
#include <moe/adapters/adapted_ffn.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Adapters = moe::LowRankAdapters<>;
#else
using Adapters = moe::ActivationScaling;
#endif

void use(moe::Context<>& ctx, const moe::Batch<float>& batch) {
  using FFN = moe::AdaptedFFN<moe::SwiGLU, Adapters>;
  FFN ffn(FFN::Config{.hidden = 8, .intermediate = 16});
  FFN::Tape tape;
  ffn.forward(ctx, batch, tape);
}
