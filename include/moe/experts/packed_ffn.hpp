#pragma once
/// @file
/// `PackedFFN`: the experts of `ExpertFFN` for inference on hosts, their weights laid out for the kernels. `moe::pack`
/// makes them.

#include "moe/core/bfloat16.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/kernels/packed_ffn.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// to = T(from), or T(to + from).
template <class T, class Space, bool add>
struct NarrowRow {
  Matrix<float, Space> from;
  Matrix<T, Space> to;
  KOKKOS_FUNCTION void operator()(Index r) const {
    const Index width = to.extent(1);
    const float* in = from.data() + r * width;
    T* out = to.data() + r * width;
    for (Index i = 0; i < width; ++i) out[i] = T(add ? float(out[i]) + in[i] : in[i]);
  }
};

/// Runs `call` with a sum in f32 that ends in y (R, H): y itself where it is float, else a scratch array.
/// One workspace a context: layers run one after another in it.
template <bool add, class Weight, class T, class Activation, class Space>
void packed_ffn(Context<Space>& ctx, kernels::PackedFFNCall<Weight, Activation>& call, const Matrix<T, Space>& y) {
  auto& work = ctx.template kept<kernels::PackedWorkspace>(0);
  if constexpr (std::is_same_v<T, float>) {
    if (!add) fill(ctx.space, y, 0.0f);
    call.y = y.data();
    kernels::packed_ffn(ctx.space, call, work);
  } else {
    typename Context<Space>::Scratch scratch(ctx);
    auto sum = scratch.template matrix<float>(y.extent(0), y.extent(1));
    fill(ctx.space, sum, 0.0f);
    call.y = sum.data();
    kernels::packed_ffn(ctx.space, call, work);
    Kokkos::parallel_for("moe::PackedFFN::narrow", detail::Range<Space>(ctx.space, 0, Index(y.extent(0))),
                         NarrowRow<T, Space, add>{sum, y});
  }
}

/// Says why a packed layer cannot be trained, once for all its parts.
template <class T>
struct PackedBackward {
  static_assert(std::is_void_v<T>,
                "moe::pack: a packed layer is for inference and has no backward. Train the layer that it was made "
                "from, and pack that layer again.");
};

}  // namespace detail

/// Weights have the type of the layer's tokens.
struct LikeTokens {};

/// ExpertFFN<Activation, BiasChoice> with packed weights, in float or bfloat16 like the tokens, with sums in f32; or in
/// int8 beside float. It has no backward: train the layer that was packed.
///
/// int8: each row of a weight has a scale, its largest magnitude / 127. So has each row of tokens and of hidden values,
/// found on the way (quantization granularity "per-channel" and "per-token" of Xiao et al. 2022, "SmoothQuant"). Sums
/// of products are exact in int32, then multiplied by both scales in f32; biases and activations are f32. A token that
/// holds NaN or an infinity gives NaN throughout.
template <class Activation = SwiGLU, class BiasChoice = NoBias, class Weight = LikeTokens>
struct PackedFFN {
  using policy = kind::experts;
  using Unpacked = ExpertFFN<Activation, BiasChoice>;
  static constexpr bool gated = Activation::gated, biased = Unpacked::biased;
  Activation activation{};

  /// What weights are beside tokens of T.
  template <class T>
  using Number = std::conditional_t<std::is_same_v<Weight, LikeTokens>, T, Weight>;

  template <class T, class Space>
  struct Parameters {
    static_assert(on_host<Space>,
                  "moe::PackedFFN: packed weights are for host spaces. Give the layer On<a host space>.");
    static_assert(std::is_same_v<T, float> || (std::is_same_v<T, bfloat16> && std::is_same_v<Number<T>, T>),
                  "moe::PackedFFN: packed weights are float or moe::bfloat16 beside tokens of the same, or std::int8_t "
                  "beside float; say which: moe::pack<float>(layer).");
    kernels::PackedWeights<Number<T>> up;    ///< (E, I or 2I, H)
    kernels::PackedWeights<Number<T>> down;  ///< (E, H, I)
    Matrix<float, Space> up_bias;            ///< (E, columns of up) in their order, where biased
    Matrix<float, Space> down_bias;          ///< (E, columns of down), where biased

    /// Packed weights are not visited: save and change the layer that was packed.
    template <class F, class... Same>
    static void visit(F&&, Same&...) {}

    /// Takes the weights of `from`.
    template <class From>
    void assign(const Space& space, const typename Unpacked::template Parameters<From, Space>& from) {
      kernels::pack<gated>(space, from.up, up);
      kernels::pack<false>(space, from.down, down);
      if constexpr (biased) {
        for (Index e = 0; e < up.experts; ++e) {
          for (Index i = 0; i < Index(from.up_bias.extent(1)); ++i)
            up_bias(e, kernels::column_of<gated>(i, from.up_bias.extent(1))) = float(from.up_bias(e, i));
          for (Index i = 0; i < Index(from.down_bias.extent(1)); ++i) down_bias(e, i) = float(from.down_bias(e, i));
        }
      }
    }
  };

  template <class, class>
  struct Saved {};

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    detail::require<ConfigError>(shape.experts > 0 && shape.hidden > 0 && shape.intermediate > 0,
                                 "moe::PackedFFN: ", shape.experts, " experts, hidden ", shape.hidden,
                                 ", intermediate ", shape.intermediate, "; all must be positive.");
    Parameters<T, Space> p;
    // Gate and up take 16 columns each of a pair of panels, so both are padded to a multiple of 32.
    const Index inner = (shape.intermediate + 31) / 32 * 32;
    p.up = kernels::PackedWeights<Number<T>>(shape.experts, (gated ? 2 : 1) * inner, shape.hidden);
    p.down = kernels::PackedWeights<Number<T>>(shape.experts, shape.hidden, shape.intermediate);
    if constexpr (biased) {
      p.up_bias = Matrix<float, Space>("moe::up_proj_bias", shape.experts, p.up.columns);
      p.down_bias = Matrix<float, Space>("moe::down_proj_bias", shape.experts, p.down.columns);
    }
    return p;
  }

  /// rows (R, H) to out (R, H), sorted by expert as `plan` says.
  template <class T, class Space>
  void forward(Context<Space>& ctx, const Matrix<T, Space>& rows, const DispatchPlan<Space>& plan,
               const Parameters<T, Space>& p, const Matrix<T, Space>& out, Saved<T, Space>&) const {
    auto call = arguments(rows.data(), Index(rows.extent(1)), plan, p);
    detail::packed_ffn<false>(ctx, call, out);
  }

  /// The same from tokens to tokens: y(t) = the sum of weight * FFN(x(t)) over t's rows. x, y (T, H), weight (A).
  template <class T, class Real, class Space>
  void forward_combined(Context<Space>& ctx, const Matrix<const T, Space>& x, const Vector<const Real, Space>& weight,
                        const DispatchPlan<Space>& plan, const Parameters<T, Space>& p, const Matrix<T, Space>& y,
                        Saved<T, Space>&) const {
    auto call = arguments(x.data(), Index(x.extent(1)), plan, p);
    call.row_token = plan.row_token.data();
    call.row_assignment = plan.row_assignment.data();
    call.weight = weight.data();
    detail::packed_ffn<false>(ctx, call, y);
  }

  /// y(t) += weight(t) * FFN_0(x(t)) for every t of one expert, but where row_token(t) is -1. Null pointers: 1, and
  /// all.
  template <class T, class Space>
  void add_all(Context<Space>& ctx, const Matrix<const T, Space>& x, const float* weight, const Index* row_token,
               const DispatchPlan<Space>& plan, const Parameters<T, Space>& p, const Matrix<T, Space>& y) const {
    auto call = arguments(x.data(), Index(x.extent(1)), plan, p);
    call.row_token = row_token;
    call.weight = weight;
    detail::packed_ffn<true>(ctx, call, y);
  }

  template <class T, class Space, class... Rest>
  void backward(Context<Space>&, const Matrix<T, Space>&, const Rest&...) const {
    (void)sizeof(detail::PackedBackward<T>);
  }

 private:
  template <class T, class Space>
  kernels::PackedFFNCall<Number<T>, Activation> arguments(const T* x, Index hidden, const DispatchPlan<Space>& plan,
                                                          const Parameters<T, Space>& p) const {
    return {x,
            hidden,
            plan.expert_offsets.data(),
            nullptr,
            nullptr,
            nullptr,
            p.up,
            p.down,
            biased ? p.up_bias.data() : nullptr,
            biased ? p.down_bias.data() : nullptr,
            activation,
            nullptr};
  }
};

MOE_NAMESPACE_END
