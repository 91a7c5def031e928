// expect: a packed layer is for inference and has no backward
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Layer = moe::DeepSeekV3Layer<>;
#else
using Layer = moe::Packed<moe::DeepSeekV3Layer<> >;
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x, Layer& layer, Layer::Tape& tape, Layer::Gradients& to) {
  layer.forward(ctx, x, tape);
  layer.backward(ctx, x, tape, to);
}
