#pragma once
/// @file
/// `PackedSharedExperts`: `SharedExperts` for inference on hosts, with packed weights. `moe::pack` makes them.

#include "moe/combine/shared_experts.hpp"
#include "moe/experts/packed_ffn.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The token itself, or -1 where it is padding.
template <class Space>
struct LiveToken {
  Vector<const std::uint8_t, Space> mask;
  Vector<Index, Space> token;
  KOKKOS_FUNCTION void operator()(Index t) const { token(t) = is_padding<Space>(mask, t) ? -1 : t; }
};

}  // namespace detail

/// n experts over all tokens, added to the routed sum; see SharedExperts, and PackedFFN for their weights.
template <int n = 1, class Activation = SwiGLU, class Gate = NoGate, class Weight = LikeTokens>
struct PackedSharedExperts {
  using policy = kind::branch;
  using Unpacked = SharedExperts<n, Activation, Gate>;
  using FFN = PackedFFN<Activation, NoBias, Weight>;
  static constexpr const char* name = Unpacked::name;
  static constexpr bool has_gate = Unpacked::has_gate;
  Activation activation{};
  Index intermediate = 0;  ///< of all n together, where it is not n times the layer's

  template <class T, class Space>
  struct Parameters {
    typename FFN::template Parameters<T, Space> ffn;  ///< E = 1
    Matrix<RouterReal<T>, Space> gate;                ///< (1, H), where gated
    template <class F, class... Same>
    static void visit(F&&, Same&...) {}

    template <class From>
    void assign(const Space& space, const typename Unpacked::template Parameters<From, Space>& from) {
      ffn.assign(space, from.ffn);
      if constexpr (has_gate) {
        for (Index h = 0; h < Index(gate.extent(1)); ++h) gate(0, h) = RouterReal<T>(from.gate(0, h));
      }
    }
  };

  template <class T, class Space>
  struct Saved {
    detail::EveryToken<Space> every;
    Matrix<RouterReal<T>, Space> input, gate;  ///< (T, H) and (T, 1), where gated
    Vector<Index, Space> token;                ///< (T), where the batch has a mask
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    Parameters<T, Space> p;
    p.ffn = FFN{}.template parameters<T, Space>(
        {1, shape.hidden, intermediate > 0 ? intermediate : n * shape.intermediate});
    if constexpr (has_gate) p.gate = Matrix<RouterReal<T>, Space>("moe::shared_gate", 1, shape.hidden);
    return p;
  }

  template <class T, class Space>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<T, Space>& p,
               const Matrix<T, Space>& y, Saved<T, Space>& saved) const {
    const Index tokens = batch.tokens();
    const auto x = batch.for_branches();
    saved.every.reshape(ctx.space, tokens);
    const float* gate = nullptr;
    if constexpr (has_gate) {
      Unpacked::gates(ctx, x, p.gate, saved.input, saved.gate);
      gate = saved.gate.data();
    }
    const Index* token = nullptr;
    if (batch.mask.is_allocated()) {
      detail::shape(saved.token, "moe::shared_token", tokens);
      Kokkos::parallel_for("moe::SharedExperts", detail::Range<Space>(ctx.space, 0, tokens),
                           detail::LiveToken<Space>{batch.mask, saved.token});
      token = saved.token.data();
    }
    FFN{activation}.add_all(ctx, Matrix<const T, Space>(x), gate, token, saved.every.plan, p.ffn, y);
  }

  template <class T, class Space, class... Rest>
  void backward(Context<Space>&, const Batch<T, Space>&, const Rest&...) const {
    (void)sizeof(detail::PackedBackward<T>);
  }
};

MOE_NAMESPACE_END
