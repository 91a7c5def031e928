#pragma once
/// @file
/// `ExpertFFN`: each expert a feed-forward network of its own.

#include "moe/core/activation.hpp"
#include "moe/core/context.hpp"
#include "moe/core/parameter.hpp"
#include "moe/dispatch/plan.hpp"
#include "moe/experts/detail/ffn_rows.hpp"
#include "moe/kernels/gemm.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes experts are built for.
struct ExpertShape {
  Index experts = 0;       ///< E
  Index hidden = 0;        ///< H
  Index intermediate = 0;  ///< I
};

/// An FFN without biases, and one with a bias in each projection.
struct NoBias {};
struct Bias {};

/// out = activation(rows W_up^T) W_down^T, or with a gate: (value(rows W_gate^T) * rows W_up^T) W_down^T.
///
/// Experts of one's own are a struct with `using policy = moe::kind::experts;`, `Parameters`, `Saved`, `parameters`,
/// `forward` and `backward` as here. With `backward_weighted` too, the layer need not look at the experts' outputs.
template <class Activation = SwiGLU, class BiasChoice = NoBias>
struct ExpertFFN {
  using policy = kind::experts;
  static constexpr bool gated = Activation::gated;
  static constexpr bool biased = std::is_same_v<BiasChoice, Bias>;
  Activation activation{};

  template <class T, class Space>
  struct Parameters {
    Tensor3<T, Space> up;        ///< (E, 2I, H) gate above up where gated, else (E, I, H)
    Tensor3<T, Space> down;      ///< (E, H, I)
    Matrix<T, Space> up_bias;    ///< (E, 2I) or (E, I), where biased
    Matrix<T, Space> down_bias;  ///< (E, H), where biased

    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f(gated ? "gate_up_proj" : "up_proj", same.up...);
      f("down_proj", same.down...);
      if constexpr (biased) {
        f(gated ? "gate_up_proj_bias" : "up_proj_bias", same.up_bias...);
        f("down_proj_bias", same.down_bias...);
      }
    }
  };

  /// What backward needs: the activation is recomputed from it.
  template <class T, class Space>
  struct Saved {
    Matrix<T, Space> up;  ///< (R, 2I) or (R, I) before the activation
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    detail::require<ConfigError>(shape.experts > 0 && shape.hidden > 0 && shape.intermediate > 0,
                                 "moe::ExpertFFN: ", shape.experts, " experts, hidden ", shape.hidden,
                                 ", intermediate ", shape.intermediate, "; all must be positive.");
    const Index width = (gated ? 2 : 1) * shape.intermediate;
    Parameters<T, Space> p;
    p.up = detail::allocate_zeros<Tensor3<T, Space>>("moe::up_proj", shape.experts, width, shape.hidden);
    p.down =
        detail::allocate_zeros<Tensor3<T, Space>>("moe::down_proj", shape.experts, shape.hidden, shape.intermediate);
    if constexpr (biased) {
      p.up_bias = Matrix<T, Space>("moe::up_proj_bias", shape.experts, width);
      p.down_bias = Matrix<T, Space>("moe::down_proj_bias", shape.experts, shape.hidden);
    }
    return p;
  }

  /// What the methods below take as rows: (R, H) themselves, or on devices the tokens (T, H) that `plan` gathers them
  /// from, so that they are never written down.
  template <class T, class Space>
  struct Rows {
    Matrix<const T, Space> from;
    const Index* number = nullptr;  ///< (R) row r is from(number[r]), zeros where that is negative; null: r itself

    Rows(const Matrix<T, Space>& rows) : from(rows) {}
    Rows(const Matrix<const T, Space>& tokens, const DispatchPlan<Space>& plan)
        : from(tokens), number(plan.row_token.data()) {
      static_assert(detail::device_path<Space>, "moe::ExpertFFN: hosts gather rows first.");
    }
  };

  /// rows (R, H) to out (R, H), sorted by expert as `plan` says.
  template <class T, class Space>
  void forward(Context<Space>& ctx, const std::type_identity_t<Rows<T, Space>>& rows, const DispatchPlan<Space>& plan,
               const Parameters<T, Space>& p, const Matrix<T, Space>& out, Saved<T, Space>& saved) const {
    using M = Matrix<const T, Space>;
    using W = Tensor3<const T, Space>;
    const Index r = out.extent(0), inner = p.down.extent(2);
    detail::shape(saved.up, "moe::up", r, p.up.extent(1));
    typename Context<Space>::Scratch scratch(ctx);
    auto hidden = scratch.template matrix<T>(r, inner);
    if constexpr (detail::device_path<Space>) {
      kernels::device::multiply_and_activate<Activation, T, Space>(
          ctx.space, plan.expert_offsets, rows.from, W(p.up), M(p.up_bias), activation, saved.up, hidden, rows.number);
    } else {
      kernels::grouped_forward<T, Space>(ctx.space, plan.expert_offsets, rows.from, W(p.up), saved.up);
      if constexpr (biased) add_bias(ctx, plan, p.up_bias, saved.up);
      detail::each_wide_row(ctx.space, "moe::ExpertFFN", r, inner,
                            detail::ActivateRow<Activation, T, Space>{plan, saved.up, hidden, activation});
    }
    kernels::grouped_forward<T, Space>(ctx.space, plan.expert_offsets, M(hidden), W(p.down), out, {plan.rows_each});
    if constexpr (biased) add_bias(ctx, plan, p.down_bias, out);
  }

  /// From dout (R, H), the gradient of out, to drows (R, H), overwritten. Adds into gradients.
  template <class T, class Space>
  void backward(Context<Space>& ctx, const Matrix<T, Space>& dout, const DispatchPlan<Space>& plan,
                const Parameters<T, Space>& p, const std::type_identity_t<Rows<T, Space>>& rows,
                const Saved<T, Space>& saved, const Matrix<T, Space>& drows, Parameters<T, Space>& gradients) const {
    pull(ctx, dout, Vector<RouterReal<T>, Space>{}, plan, p, rows, saved, drows, Vector<RouterReal<T>, Space>{},
         gradients);
  }

  /// The same where row r entered the layer's output times weight(r): dy (R, H) is the gradient of that sum, and
  /// dweight(r) = dy . out(r) is found as (dy W_down) . hidden, without out. dy is used up.
  template <class T, class Real, class Space>
  void backward_weighted(Context<Space>& ctx, const Matrix<T, Space>& dy, const Vector<Real, Space>& weight,
                         const DispatchPlan<Space>& plan, const Parameters<T, Space>& p,
                         const std::type_identity_t<Rows<T, Space>>& rows, const Saved<T, Space>& saved,
                         const Matrix<T, Space>& drows, const Vector<Real, Space>& dweight,
                         Parameters<T, Space>& gradients) const {
    pull(ctx, dy, weight, plan, p, rows, saved, drows, dweight, gradients);
  }

  /// What forward saves of R rows, in scratch memory: for layers that recompute it (ActivationCheckpointing).
  template <class T, class Space>
  Saved<T, Space> workspace(typename Context<Space>::Scratch& scratch, Index rows,
                            const Parameters<T, Space>& p) const {
    return {scratch.template matrix<T>(rows, p.up.extent(1))};
  }

  /// Fills a workspace with what forward saves, to the bit, without the experts' outputs.
  template <class T, class Space>
  void recompute(Context<Space>& ctx, const std::type_identity_t<Rows<T, Space>>& rows, const DispatchPlan<Space>& plan,
                 const Parameters<T, Space>& p, const Saved<T, Space>& saved) const {
    kernels::grouped_forward<T, Space>(ctx.space, plan.expert_offsets, rows.from, Tensor3<const T, Space>(p.up),
                                       saved.up, {-1, rows.number});
    if constexpr (biased) add_bias(ctx, plan, p.up_bias, saved.up);
  }

 private:
  template <class Space, class Functor>
  static void run(Context<Space>& ctx, Index items, const Functor& functor) {
    Kokkos::parallel_for("moe::ExpertFFN", detail::Range<Space>(ctx.space, 0, items), functor);
  }

  template <class T, class Space>
  static void add_bias(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<T, Space>& bias,
                       const Matrix<T, Space>& out) {
    detail::each_wide_row(ctx.space, "moe::ExpertFFN", Index(out.extent(0)), Index(out.extent(1)),
                          detail::AddBiasRow<T, Space>{plan, bias, out});
  }

  template <class T, class Real, class Space>
  void pull(Context<Space>& ctx, const Matrix<T, Space>& dy, const Vector<Real, Space>& weight,
            const DispatchPlan<Space>& plan, const Parameters<T, Space>& p, const Rows<T, Space>& rows,
            const Saved<T, Space>& saved, const Matrix<T, Space>& drows, const Vector<Real, Space>& dweight,
            Parameters<T, Space>& gradients) const {
    using M = Matrix<const T, Space>;
    using W = Tensor3<const T, Space>;
    const Index r = dy.extent(0), inner = p.down.extent(2), each = plan.rows_each;
    const auto& offsets = plan.expert_offsets;
    typename Context<Space>::Scratch scratch(ctx);
    auto hidden = scratch.template matrix<T>(r, inner), dhidden = scratch.template matrix<T>(r, inner);
    auto dup = scratch.template matrix<T>(r, p.up.extent(1));
    kernels::grouped_backward_rows<T, Space>(ctx.space, offsets, M(dy), W(p.down), dhidden, {each});
    detail::each_row(ctx.space, "moe::ExpertFFN", r,
                     detail::PullRow<Activation, T, Real, Space>{plan, saved.up, dhidden, dy, weight, dweight,
                                                                 biased ? p.down_bias : Matrix<T, Space>{}, hidden, dup,
                                                                 activation});
    kernels::grouped_backward_weight<T, Space>(ctx.space, offsets, M(dy), M(hidden), gradients.down, {each});
    kernels::grouped_backward_weight<T, Space>(ctx.space, offsets, M(dup), rows.from, gradients.up,
                                               {each, rows.number});
    kernels::grouped_backward_rows<T, Space>(ctx.space, offsets, M(dup), W(p.up), drows, {each});
    if constexpr (biased) {
      run(ctx, Index(gradients.down_bias.size()), detail::BiasGradient<T, Space>{plan, dy, gradients.down_bias});
      run(ctx, Index(gradients.up_bias.size()), detail::BiasGradient<T, Space>{plan, dup, gradients.up_bias});
    }
  }
};

MOE_NAMESPACE_END
