// expect: packed weights are float, moe::bfloat16, std::int8_t or moe::float8_e4m3
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Number = moe::bfloat16;
#else
using Number = double;
#endif

void use(const moe::MoELayer<moe::Precision<double>, moe::SharedExperts<1>>& layer) {
  auto packed = moe::pack<Number>(layer);
  static_cast<void>(packed);
}
