// expect: experts with biases have no FP8 form
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Choice = moe::NoBias;
#else
using Choice = moe::Bias;
#endif

void use() {
  using Layer = moe::MoELayer<moe::ExpertFFN<moe::SwiGLU, Choice>>;
  const Layer layer(Layer::Config{.hidden = 128, .intermediate = 128, .experts = 4});
  auto small = moe::pack<moe::float8_e4m3>(layer);
}
