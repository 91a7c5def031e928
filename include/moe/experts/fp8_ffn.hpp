#pragma once
/// @file
/// `FP8FFN`: the experts of `ExpertFFN` for inference in FP8, with a scale a block.

#include "moe/core/float8.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/packed_ffn.hpp"
#include "moe/kernels/scaled8.hpp"

MOE_NAMESPACE_BEGIN

/// ExpertFFN<Activation> with weights in float8_e4m3: a scale for each 128 x 128 of a weight, and for each 128 numbers
/// of a token and of a hidden row, which are found on the way (DeepSeek-AI 2024, "DeepSeek-V3", section 3.3.2). Sums of
/// a block's products are f32, multiplied by both scales and added up in f32.
///
/// On NVIDIA's devices from sm_89 the products run on the matrix units; elsewhere plain threads make the same ones,
/// which is right but slow. Arrays have the names and the meaning of DeepSeek-V3's checkpoints: weight = number *
/// scale_inv. It has no backward.
template <class Activation = SwiGLU>
struct FP8FFN {
  using policy = kind::experts;
  static constexpr bool gated = Activation::gated;
  Activation activation{};

  template <class T, class Space>
  struct Parameters {
    Tensor3<float8_e4m3, Space> up;        ///< (E, 2I, H) gate above up where gated, else (E, I, H)
    Tensor3<float, Space> up_scale_inv;    ///< (E, 2I / 128, H / 128), both rounded up
    Tensor3<float8_e4m3, Space> down;      ///< (E, H, I)
    Tensor3<float, Space> down_scale_inv;  ///< (E, H / 128, I / 128), both rounded up

    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f(gated ? "gate_up_proj" : "up_proj", same.up...);
      f(gated ? "gate_up_proj_scale_inv" : "up_proj_scale_inv", same.up_scale_inv...);
      f("down_proj", same.down...);
      f("down_proj_scale_inv", same.down_scale_inv...);
    }

    /// Takes the weights of `from`, an ExpertFFN's parameters.
    template <class From>
    void assign(const Space& space, const From& from) {
      convert(space, from.up, up, up_scale_inv);
      convert(space, from.down, down, down_scale_inv);
      space.fence("moe::FP8FFN");
    }

   private:
    template <class From>
    static void convert(const Space& space, const Tensor3<From, Space>& from, const Tensor3<float8_e4m3, Space>& to,
                        const Tensor3<float, Space>& scale) {
      kernels::scale_blocks(space, from.data(), Index(from.extent(0)), Index(from.extent(1)), Index(from.extent(2)),
                            kernels::scale_block, to.data(), scale.data());
    }
  };

  template <class, class>
  struct Saved {};

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    detail::require<ConfigError>(shape.experts > 0 && shape.hidden > 0 && shape.intermediate > 0,
                                 "moe::FP8FFN: ", shape.experts, " experts, hidden ", shape.hidden, ", intermediate ",
                                 shape.intermediate, "; all must be positive.");
    const Index width = (gated ? 2 : 1) * shape.intermediate;
    // A block of 128 rows must not hold both the gate's and up's.
    detail::require<ConfigError>(!gated || shape.intermediate % kernels::scale_block == 0, "moe::FP8FFN: intermediate ",
                                 shape.intermediate, shape.experts == 1 ? " (of shared experts, all together)" : "",
                                 " is no multiple of 128, so a scale would span the gate's rows and up's. Pad it, or "
                                 "pack as moe::bfloat16.");
    Parameters<T, Space> p;
    const auto blocks = [](Index size) { return kernels::blocks_of(size); };
    p.up = Tensor3<float8_e4m3, Space>("moe::up_proj", shape.experts, width, shape.hidden);
    p.up_scale_inv = Tensor3<float, Space>("moe::up_scale", shape.experts, blocks(width), blocks(shape.hidden));
    p.down = Tensor3<float8_e4m3, Space>("moe::down_proj", shape.experts, shape.hidden, shape.intermediate);
    p.down_scale_inv =
        Tensor3<float, Space>("moe::down_scale", shape.experts, blocks(shape.hidden), blocks(shape.intermediate));
    return p;
  }

  /// rows (R, H) to out (R, H), sorted by expert as `plan` says.
  template <class T, class Space>
  void forward(Context<Space>& ctx, const Matrix<T, Space>& rows, const DispatchPlan<Space>& plan,
               const Parameters<T, Space>& p, const Matrix<T, Space>& out, Saved<T, Space>&) const {
    const Index r = rows.extent(0), h = p.down.extent(1), inner = p.down.extent(2);
    typename Context<Space>::Scratch scratch(ctx);
    auto hidden = scratch.template matrix<T>(r, inner);
    multiply(ctx, scratch, plan, rows, p.up, p.up_scale_inv, inner, activation, hidden);
    multiply(ctx, scratch, plan, hidden, p.down, p.down_scale_inv, h, Linear{}, out);
  }

  template <class T, class Space, class... Rest>
  void backward(Context<Space>&, const Matrix<T, Space>&, const Rest&...) const {
    (void)sizeof(detail::PackedBackward<T>);
  }

 private:
  template <class T, class Space, class Function>
  static void multiply(Context<Space>& ctx, typename Context<Space>::Scratch& scratch, const DispatchPlan<Space>& plan,
                       const Matrix<T, Space>& rows, const Tensor3<float8_e4m3, Space>& weight,
                       const Tensor3<float, Space>& scale, Index n, const Function& function,
                       const Matrix<T, Space>& out) {
    const Index r = rows.extent(0), k = rows.extent(1);
    auto number = scratch.template matrix<float8_e4m3>(r, k);
    auto steps = scratch.template matrix<float>(r, kernels::blocks_of(k));
    kernels::scale_blocks(ctx.space, rows.data(), 1, r, k, 1, number.data(), steps.data(),
                          plan.expert_offsets.data() + plan.experts);
    kernels::multiply_scaled(ctx.space, plan.expert_offsets, r, {number.data(), steps.data()},
                             {weight.data(), scale.data()}, n, k, function, out.data());
  }
};

MOE_NAMESPACE_END
