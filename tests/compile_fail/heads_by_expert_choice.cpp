// expect: attention needs as many heads of every token
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Selection = moe::TopK<2>;
#else
using Selection = moe::ExpertChoice;
#endif

void use(moe::Context<>& ctx, const moe::Batch<float>& batch) {
  using Attention = moe::MixtureOfAttentionHeads<moe::Router<moe::Softmax, Selection>>;
  Attention attention(Attention::Config{.hidden = 8, .experts = 4});
  Attention::Tape tape;
  attention.forward(ctx, batch, tape);
}
