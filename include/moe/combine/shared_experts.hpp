#pragma once
/// @file
/// `SharedExperts`: experts that every token uses, beside the routed ones.
///
/// A branch is a struct with `using policy = moe::kind::branch;`, `static constexpr const char* name`, `Parameters`,
/// `Saved`, `parameters`, and `forward` and `backward` as here, which add to what is there.

#include "moe/experts/ffn.hpp"

MOE_NAMESPACE_BEGIN

/// Shared experts added as they are, and times a sigmoid gate of their own (Qwen2-MoE).
struct NoGate {};
struct SigmoidGate {};

namespace detail {

/// A plan in which one expert takes every token.
template <class Space>
struct EveryToken {
  DispatchPlan<Space> plan;
  void reshape(const Space& space, Index tokens) {
    if (plan.experts == 1 && plan.tokens == tokens) return;
    plan.tokens = plan.rows = tokens;
    plan.experts = 1;
    shape(plan.expert_offsets, "moe::expert_offsets", 2);
    fill(space, plan.expert_offsets, Index(0));
    fill(space, Kokkos::subview(plan.expert_offsets, Kokkos::pair<int, int>(1, 2)), tokens);
  }
};

/// y += gate * out, where not padding.
template <class T, class Real, class Space>
struct AddBranchRow {
  Matrix<const T, Space> out;
  Vector<const Real, Space> gate;
  Vector<const std::uint8_t, Space> mask;
  Matrix<T, Space> y;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    if (is_padding<Space>(mask, t)) return;
    const Real g = gate.data() == nullptr ? Real(1) : gate(t);
    team.each(Index(y.extent(1)), [&](Index h) { y(t, h) += T(g * Real(out(t, h))); });
  }
};

template <class Real, class Space>
struct GateSigmoid {
  Matrix<Real, Space> logits;
  KOKKOS_FUNCTION void operator()(Index t) const { logits(t, 0) = Real(1) / (Real(1) + Kokkos::exp(-logits(t, 0))); }
};

template <class T, class Space>
struct ConvertRow {
  Matrix<const T, Space> from;
  Matrix<RouterReal<T>, Space> to;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    team.each(Index(to.extent(1)), [&](Index h) { to(t, h) = RouterReal<T>(from(t, h)); });
  }
};

/// The gradient of out (times the gate) and of the gate's logit.
template <class T, class Real, class Space>
struct BranchGradientRow {
  Matrix<const T, Space> dy;
  Matrix<const T, Space> out;
  Vector<const Real, Space> gate;
  Vector<const std::uint8_t, Space> mask;
  Matrix<T, Space> dout;
  Matrix<Real, Space> dlogit;  // (T, 1), or empty
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const bool live = !is_padding<Space>(mask, t);
    const Real g = gate.data() == nullptr ? Real(1) : gate(t);
    Real dot = 0;  // of this lane
    team.each(Index(dout.extent(1)), [&](Index h) {
      dout(t, h) = live ? T(g * Real(dy(t, h))) : T(0);
      if (gate.data() != nullptr && live) dot += Real(dy(t, h)) * Real(out(t, h));
    });
    if (gate.data() == nullptr) return;
    dot = team.total_of(dot);
    team.single([&] { dlogit(t, 0) = dot * g * (Real(1) - g); });
  }
};

template <class T, class Real, class Space>
struct AddRow {
  Matrix<const Real, Space> from;
  Matrix<T, Space> to;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    team.each(Index(to.extent(1)), [&](Index h) { to(t, h) += T(from(t, h)); });
  }
};

}  // namespace detail

/// n experts in one FFN of width n * I over all tokens (Dai et al. 2024, DeepSeekMoE, section 3.2). Masked tokens
/// get nothing. `Experts` is what computes them.
template <int n = 1, class Activation = SwiGLU, class Gate = NoGate, class Experts = ExpertFFN<Activation>>
struct SharedExperts {
  using policy = kind::branch;
  static constexpr const char* name = "shared_experts.";
  static constexpr bool has_gate = std::is_same_v<Gate, SigmoidGate>;
  using FFN = Experts;
  Activation activation{};
  Index intermediate = 0;  ///< of all n together, where it is not n times the layer's
  static_assert(n > 0, "moe::SharedExperts<n>: n is the number of shared experts, at least 1.");

  template <class T, class Space>
  struct Parameters {
    typename FFN::template Parameters<T, Space> ffn;  ///< E = 1, I = n times the layer's
    Matrix<RouterReal<T>, Space> gate;                ///< (1, H), where gated
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(ffn)::visit(f, same.ffn...);
      if constexpr (has_gate) f("gate.weight", same.gate...);
    }
  };

  template <class T, class Space>
  struct Saved {
    typename FFN::template Saved<T, Space> ffn;
    detail::EveryToken<Space> every;
    Matrix<T, Space> out;                      ///< (T, H)
    Matrix<RouterReal<T>, Space> input, gate;  ///< (T, H) and (T, 1), where gated
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    Parameters<T, Space> p;
    p.ffn = FFN{}.template parameters<T, Space>(
        {1, shape.hidden, intermediate > 0 ? intermediate : n * shape.intermediate});
    if constexpr (has_gate) p.gate = Matrix<RouterReal<T>, Space>("moe::shared_gate", 1, shape.hidden);
    return p;
  }

  /// y (T, H) += gate * FFN(batch.for_branches()).
  template <class T, class Space>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<T, Space>& p,
               const Matrix<T, Space>& y, Saved<T, Space>& saved) const {
    using Real = RouterReal<T>;
    const Index tokens = batch.tokens();
    const Matrix<T, Space> x = rows_of(batch);
    saved.every.reshape(ctx.space, tokens);
    detail::shape(saved.out, "moe::shared_out", tokens, batch.hidden());
    FFN{activation}.forward(ctx, x, saved.every.plan, p.ffn, saved.out, saved.ffn);
    if constexpr (has_gate) gates(ctx, Matrix<const T, Space>(x), p.gate, saved.input, saved.gate);
    run_rows(ctx, tokens, batch.hidden(), detail::AddBranchRow<T, Real, Space>{saved.out, gate(saved), batch.mask, y});
  }

  /// gate (T, 1): the sigmoid of x times the gate's weight; input (T, H) is x in the router's precision.
  template <class T, class Space>
  static void gates(Context<Space>& ctx, const Matrix<const T, Space>& x, const Matrix<RouterReal<T>, Space>& weight,
                    Matrix<RouterReal<T>, Space>& input, Matrix<RouterReal<T>, Space>& gate) {
    using Real = RouterReal<T>;
    const Index tokens = x.extent(0);
    detail::shape(input, "moe::shared_input", tokens, x.extent(1));
    detail::shape(gate, "moe::shared_gate", tokens, 1);
    run_rows(ctx, tokens, Index(x.extent(1)), detail::ConvertRow<T, Space>{x, input});
    kernels::dense_forward<Real, Space>(ctx.space, input, weight, gate);
    run(ctx, tokens, detail::GateSigmoid<Real, Space>{gate});
  }

  /// Adds to dx (T, H) and into gradients.
  template <class T, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Matrix<const T, Space>& dy,
                const Parameters<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                Parameters<T, Space>& gradients) const {
    using Real = RouterReal<T>;
    const Index tokens = batch.tokens(), hidden = batch.hidden();
    typename Context<Space>::Scratch scratch(ctx);
    auto dout = scratch.template matrix<T>(tokens, hidden), drows = scratch.template matrix<T>(tokens, hidden);
    auto dlogit = scratch.template matrix<Real>(tokens, 1);
    detail::each_row(ctx.space, "moe::SharedExperts", tokens,
                     detail::BranchGradientRow<T, Real, Space>{dy, saved.out, gate(saved), batch.mask, dout, dlogit});
    FFN{activation}.backward(ctx, dout, saved.every.plan, p.ffn, rows_of(batch), saved.ffn, drows, gradients.ffn);
    run_rows(ctx, tokens, hidden, detail::AddRow<T, T, Space>{drows, dx});
    if constexpr (has_gate) {
      auto dinput = scratch.template matrix<Real>(tokens, hidden);
      kernels::dense_backward_rows<Real, Space>(ctx.space, dlogit, p.gate, dinput, false);
      kernels::dense_backward_weight<Real, Space>(ctx.space, dlogit, saved.input, gradients.gate);
      run_rows(ctx, tokens, hidden, detail::AddRow<T, Real, Space>{dinput, dx});
    }
  }

 private:
  template <class Space, class Functor>
  static void run(Context<Space>& ctx, Index tokens, const Functor& functor) {
    Kokkos::parallel_for("moe::SharedExperts", detail::Range<Space>(ctx.space, 0, tokens), functor);
  }
  template <class Space, class Functor>
  static void run_rows(Context<Space>& ctx, Index tokens, Index width, const Functor& functor) {
    detail::each_wide_row(ctx.space, "moe::SharedExperts", tokens, width, functor);
  }
  /// The branch's input as the experts take it; they only read.
  template <class T, class Space>
  static Matrix<T, Space> rows_of(const Batch<T, Space>& batch) {
    const auto x = batch.for_branches();
    return Matrix<T, Space>(const_cast<T*>(x.data()), x.extent(0), x.extent(1));
  }
  template <class T, class Space>
  static Vector<const RouterReal<T>, Space> gate(const Saved<T, Space>& saved) {
    return Vector<const RouterReal<T>, Space>(saved.gate.data(), saved.gate.size());
  }
};

MOE_NAMESPACE_END
