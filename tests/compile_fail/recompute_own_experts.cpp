// expect: ActivationCheckpointing cannot recompute these experts
#include <moe/moe.hpp>

#ifdef MOE_COMPILE_FAIL_FIXED
using Mine = moe::ExpertFFN<moe::ReLU>;
#else
/// Gives its rows back.
struct Mine {
  using policy = moe::kind::experts;
  template <class T, class Space>
  using Parameters = moe::NoParameters;
  template <class T, class Space>
  struct Saved {};
  template <class T, class Space>
  moe::NoParameters parameters(const moe::ExpertShape&) const {
    return {};
  }
  template <class T, class Space>
  void forward(moe::Context<Space>& ctx, const moe::Matrix<T, Space>& rows, const moe::DispatchPlan<Space>&,
               const moe::NoParameters&, const moe::Matrix<T, Space>& out, Saved<T, Space>&) const {
    Kokkos::deep_copy(ctx.space, out, rows);
  }
  template <class T, class Space>
  void backward(moe::Context<Space>& ctx, const moe::Matrix<T, Space>& dout, const moe::DispatchPlan<Space>&,
                const moe::NoParameters&, const moe::Matrix<T, Space>&, const Saved<T, Space>&,
                const moe::Matrix<T, Space>& drows, moe::NoParameters&) const {
    Kokkos::deep_copy(ctx.space, drows, dout);
  }
};
#endif

void use(moe::Context<>& ctx, const moe::Matrix<float>& x) {
  using Layer = moe::MoELayer<Mine, moe::ActivationCheckpointing>;
  Layer layer(Layer::Config{.hidden = 8, .intermediate = 8, .experts = 4});
  Layer::Tape tape;
  auto gradients = layer.gradients();
  layer.forward(ctx, x, tape);
  layer.backward(ctx, x, tape, gradients);
}
