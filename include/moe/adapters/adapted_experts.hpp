#pragma once
/// @file
/// `AdaptedExperts`: a layer's own experts, frozen, with a low-rank update for each expert's projections.

#include <any>
#include <cmath>

#include "moe/adapters/low_rank.hpp"
#include "moe/experts/ffn.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// data(r, k) *= factor * weight(r), or factor alone.
template <class T, class Real>
struct ScaleLowRank {
  T* data;
  Index width;
  Real factor;
  const Real* weight;
  KOKKOS_FUNCTION void operator()(Index i) const {
    data[i] = T(Real(data[i]) * (weight == nullptr ? factor : factor * weight[i / width]));
  }
};

/// Says which experts can be adapted.
template <class Inner>
inline constexpr bool is_expert_ffn = false;
template <class Activation, class BiasChoice>
inline constexpr bool is_expert_ffn<ExpertFFN<Activation, BiasChoice>> = true;

}  // namespace detail

/// Sizes of the updates that a layer's experts get.
struct AdaptedExpertsOptions {
  Index rank = 8;                ///< r
  double alpha = 8;              ///< updates count alpha / r times
  bool rank_stabilized = false;  ///< alpha / sqrt(r) instead (Kalajdzievski 2023, "rsLoRA")

  double scaling() const { return alpha / (rank_stabilized ? std::sqrt(double(rank)) : double(rank)); }
};

/// Experts policy: `Inner`'s experts, frozen, where each projection W_e of expert e is W_e + scaling * B_e A_e (Hu et
/// al. 2021, equation 3). A has the shape (E, r, in), B (E, out, r) and starts at zero. Where the experts are gated,
/// gate and up are one matrix and have one update, as PEFT gives a fused gate_up_proj.
///
/// The value holds the frozen arrays as views, so that they share memory with whoever owns them; only updates are
/// Parameters, named "gate_up_proj.lora_A" (or "up_proj"), "gate_up_proj.lora_B", "down_proj.lora_A",
/// "down_proj.lora_B". Frozen arrays get no gradients, and backward does not spend time on them. `adapt_experts` makes
/// such layers. A forward product through an update costs r (in + out) beside in * out.
template <class Inner = ExpertFFN<SwiGLU>>
struct AdaptedExperts {
  static_assert(detail::is_expert_ffn<Inner>,
                "moe::AdaptedExperts: the experts to adapt must be an ExpertFFN<...>. Put wrappers such as "
                "WithExtraExperts around AdaptedExperts.");
  using policy = kind::experts;
  static constexpr bool gated = Inner::gated, biased = Inner::biased;

  Inner inner{};
  AdaptedExpertsOptions options{};
  std::any frozen{};  ///< the experts' arrays, an Inner::Parameters<T, Space>

  template <class T, class Space>
  struct Parameters {
    LowRank<T, Space> up;    ///< a (E, r, H), b (E, 2I, r) or (E, I, r)
    LowRank<T, Space> down;  ///< a (E, r, I), b (E, H, r)

    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      LowRank<T, Space>::visit(detail::Prefixed{f, gated ? "gate_up_proj." : "up_proj."}, same.up...);
      LowRank<T, Space>::visit(detail::Prefixed{f, "down_proj."}, same.down...);
    }
  };

  /// What backward needs: the activation is recomputed from it.
  template <class T, class Space>
  struct Saved {
    Matrix<T, Space> up;                ///< (R, 2I) or (R, I) before the activation
    Matrix<T, Space> low_up, low_down;  ///< (R, r) scaling * A x, for either projection
  };

  /// Throws ConfigError where `frozen` holds nothing of this type, ShapeError where it does not fit the layer.
  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    detail::require<ConfigError>(options.rank > 0, "moe::AdaptedExperts: rank ", options.rank,
                                 "; it must be positive.");
    const auto& base = frozen_as<T, Space>();
    const Index width = (gated ? 2 : 1) * shape.intermediate;
    const auto check = [](const char* name, const auto& view, Index e, Index out, Index in) {
      detail::require<ShapeError>(
          Index(view.extent(0)) == e && Index(view.extent(1)) == out && Index(view.extent(2)) == in,
          "moe::AdaptedExperts: the frozen ", name, " has shape (", view.extent(0), ", ", view.extent(1), ", ",
          view.extent(2), "), the layer needs (", e, ", ", out, ", ", in, ").");
    };
    check(gated ? "gate_up_proj" : "up_proj", base.up, shape.experts, width, shape.hidden);
    check("down_proj", base.down, shape.experts, shape.hidden, shape.intermediate);
    const auto update = [&](Index in, Index out) {
      using A = Tensor3<T, Space>;
      return LowRank<T, Space>{detail::allocate_zeros<A>("moe::lora_A", shape.experts, options.rank, in),
                               detail::allocate_zeros<A>("moe::lora_B", shape.experts, out, options.rank)};
    };
    return {update(shape.hidden, width), update(shape.intermediate, shape.hidden)};
  }

  /// rows (R, H) to out (R, H), sorted by expert as `plan` says.
  template <class T, class Space>
  void forward(Context<Space>& ctx, const Matrix<T, Space>& rows, const DispatchPlan<Space>& plan,
               const Parameters<T, Space>& p, const Matrix<T, Space>& out, Saved<T, Space>& saved) const {
    const auto& base = frozen_as<T, Space>();
    const Index r = out.extent(0);
    detail::shape(saved.up, "moe::up", r, base.up.extent(1));
    detail::shape(saved.low_up, "moe::low_up", r, p.up.rank());
    detail::shape(saved.low_down, "moe::low_down", r, p.down.rank());
    typename Context<Space>::Scratch scratch(ctx);
    const auto hidden = scratch.template matrix<T>(r, base.down.extent(2));
    enter(ctx, rows, plan, p, saved, hidden);
    project(ctx, plan, hidden, base.down, p.down, saved.low_down, out);
    if constexpr (biased) add_bias(ctx, plan, base.down_bias, out);
  }

  /// From dout (R, H), the gradient of out, to drows (R, H), overwritten. Adds into gradients.
  template <class T, class Space>
  void backward(Context<Space>& ctx, const Matrix<T, Space>& dout, const DispatchPlan<Space>& plan,
                const Parameters<T, Space>& p, const Matrix<T, Space>& rows, const Saved<T, Space>& saved,
                const Matrix<T, Space>& drows, Parameters<T, Space>& gradients) const {
    pull(ctx, dout, Vector<RouterReal<T>, Space>{}, plan, p, rows, saved, drows, Vector<RouterReal<T>, Space>{},
         gradients);
  }

  /// The same where row r entered the layer's output times weight(r), as ExpertFFN has it. dy is used up.
  template <class T, class Real, class Space>
  void backward_weighted(Context<Space>& ctx, const Matrix<T, Space>& dy, const Vector<Real, Space>& weight,
                         const DispatchPlan<Space>& plan, const Parameters<T, Space>& p, const Matrix<T, Space>& rows,
                         const Saved<T, Space>& saved, const Matrix<T, Space>& drows,
                         const Vector<Real, Space>& dweight, Parameters<T, Space>& gradients) const {
    pull(ctx, dy, weight, plan, p, rows, saved, drows, dweight, gradients);
  }

  /// What forward saves of R rows, in scratch memory: for layers that recompute it (ActivationCheckpointing).
  template <class T, class Space>
  Saved<T, Space> workspace(typename Context<Space>::Scratch& scratch, Index rows,
                            const Parameters<T, Space>& p) const {
    return {scratch.template matrix<T>(rows, p.up.out()), scratch.template matrix<T>(rows, p.up.rank()),
            scratch.template matrix<T>(rows, p.down.rank())};
  }

  /// Fills a workspace with what forward saves, to the bit, without the experts' outputs.
  template <class T, class Space>
  void recompute(Context<Space>& ctx, const Matrix<T, Space>& rows, const DispatchPlan<Space>& plan,
                 const Parameters<T, Space>& p, const Saved<T, Space>& saved) const {
    typename Context<Space>::Scratch scratch(ctx);
    const auto hidden = scratch.template matrix<T>(rows.extent(0), p.down.in());
    enter(ctx, rows, plan, p, saved, hidden);
    lower(ctx, plan, hidden, p.down, saved.low_down);
  }

 private:
  template <class T, class Space>
  using Base = typename Inner::template Parameters<T, Space>;

  template <class T, class Space>
  const Base<T, Space>& frozen_as() const {
    const auto* base = std::any_cast<Base<T, Space>>(&frozen);
    detail::require<ConfigError>(base != nullptr,
                                 "moe::AdaptedExperts: no frozen experts of the layer's precision and space are given. "
                                 "Make the layer with moe::adapt_experts(layer, options), or give the experts a value "
                                 "whose `frozen` holds them.");
    return *base;
  }

  /// From rows to what backward needs of them, and to hidden values.
  template <class T, class Space>
  void enter(Context<Space>& ctx, const Matrix<T, Space>& rows, const DispatchPlan<Space>& plan,
             const Parameters<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& hidden) const {
    const auto& base = frozen_as<T, Space>();
    project(ctx, plan, rows, base.up, p.up, saved.low_up, saved.up);
    if constexpr (biased) add_bias(ctx, plan, base.up_bias, saved.up);
    detail::each_wide_row(ctx.space, "moe::AdaptedExperts", Index(rows.extent(0)), Index(hidden.extent(1)),
                          detail::ActivateRow<std::remove_const_t<decltype(inner.activation)>, T, Space>{
                              plan, saved.up, hidden, inner.activation});
  }

  /// low = scaling * rows A^T
  template <class T, class Space>
  void lower(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<T, Space>& rows,
             const LowRank<T, Space>& update, const Matrix<T, Space>& low) const {
    kernels::grouped_forward<T, Space>(ctx.space, plan.expert_offsets, Matrix<const T, Space>(rows),
                                       Tensor3<const T, Space>(update.a), low, {plan.rows_each});
    scale<T>(ctx, low, Vector<RouterReal<T>, Space>{}, options.scaling());
  }

  /// out = rows W^T + low B^T
  template <class T, class Space>
  void project(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<T, Space>& rows,
               const Tensor3<T, Space>& weight, const LowRank<T, Space>& update, const Matrix<T, Space>& low,
               const Matrix<T, Space>& out) const {
    using M = Matrix<const T, Space>;
    using W = Tensor3<const T, Space>;
    lower(ctx, plan, rows, update, low);
    kernels::grouped_forward<T, Space>(ctx.space, plan.expert_offsets, M(rows), W(weight), out, {plan.rows_each});
    kernels::grouped_forward<T, Space>(ctx.space, plan.expert_offsets, M(low), W(update.b), out,
                                       {.rows_each = plan.rows_each, .accumulate = true});
  }

  /// drows = dout W + dlow A with dlow = scaling * dout B
  template <class T, class Space>
  void project_backward(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<T, Space>& dout,
                        const Tensor3<T, Space>& weight, const LowRank<T, Space>& update, const Matrix<T, Space>& dlow,
                        const Matrix<T, Space>& drows) const {
    using M = Matrix<const T, Space>;
    using W = Tensor3<const T, Space>;
    kernels::grouped_backward_rows<T, Space>(ctx.space, plan.expert_offsets, M(dout), W(update.b), dlow,
                                             {plan.rows_each});
    scale<T>(ctx, dlow, Vector<RouterReal<T>, Space>{}, options.scaling());
    kernels::grouped_backward_rows<T, Space>(ctx.space, plan.expert_offsets, M(dout), W(weight), drows,
                                             {plan.rows_each});
    kernels::grouped_backward_rows<T, Space>(ctx.space, plan.expert_offsets, M(dlow), W(update.a), drows,
                                             {.rows_each = plan.rows_each, .accumulate = true});
  }

  template <class T, class Space>
  static void update_gradient(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<T, Space>& dout,
                              const Matrix<T, Space>& dlow, const Matrix<T, Space>& low, const Matrix<T, Space>& rows,
                              const LowRank<T, Space>& gradient) {
    using M = Matrix<const T, Space>;
    kernels::grouped_backward_weight<T, Space>(ctx.space, plan.expert_offsets, M(dout), M(low), gradient.b,
                                               {plan.rows_each});
    kernels::grouped_backward_weight<T, Space>(ctx.space, plan.expert_offsets, M(dlow), M(rows), gradient.a,
                                               {plan.rows_each});
  }

  template <class T, class Space>
  static void scale(Context<Space>& ctx, const Matrix<T, Space>& rows, const Vector<RouterReal<T>, Space>& weight,
                    double factor) {
    if (factor == 1 && weight.data() == nullptr) return;
    using Real = RouterReal<T>;
    Kokkos::parallel_for(
        "moe::AdaptedExperts::scale", detail::Range<Space>(ctx.space, 0, Index(rows.size())),
        detail::ScaleLowRank<T, Real>{rows.data(), Index(rows.extent(1)), Real(factor), weight.data()});
  }

  template <class T, class Space>
  static void add_bias(Context<Space>& ctx, const DispatchPlan<Space>& plan, const Matrix<T, Space>& bias,
                       const Matrix<T, Space>& out) {
    detail::each_wide_row(ctx.space, "moe::AdaptedExperts", Index(out.extent(0)), Index(out.extent(1)),
                          detail::AddBiasRow<T, Space>{plan, bias, out});
  }

  template <class T, class Real, class Space>
  void pull(Context<Space>& ctx, const Matrix<T, Space>& dy, const Vector<Real, Space>& weight,
            const DispatchPlan<Space>& plan, const Parameters<T, Space>& p, const Matrix<T, Space>& rows,
            const Saved<T, Space>& saved, const Matrix<T, Space>& drows, const Vector<Real, Space>& dweight,
            Parameters<T, Space>& gradients) const {
    const auto& base = frozen_as<T, Space>();
    const Index r = dy.extent(0), middle = base.down.extent(2);
    typename Context<Space>::Scratch scratch(ctx);
    const auto hidden = scratch.template matrix<T>(r, middle), dhidden = scratch.template matrix<T>(r, middle);
    const auto dup = scratch.template matrix<T>(r, base.up.extent(1)),
               dlow_up = scratch.template matrix<T>(r, p.up.rank()),
               dlow_down = scratch.template matrix<T>(r, p.down.rank());
    project_backward(ctx, plan, dy, base.down, p.down, dlow_down, dhidden);
    // dy becomes dy times weight here, and so must what was made of it.
    detail::each_row(ctx.space, "moe::AdaptedExperts", r,
                     detail::PullRow<std::remove_const_t<decltype(inner.activation)>, T, Real, Space>{
                         plan, saved.up, dhidden, dy, weight, dweight, biased ? base.down_bias : Matrix<T, Space>{},
                         hidden, dup, inner.activation});
    if (weight.data() != nullptr) scale<T>(ctx, dlow_down, weight, 1);
    update_gradient(ctx, plan, dy, dlow_down, saved.low_down, hidden, gradients.down);
    project_backward(ctx, plan, dup, base.up, p.up, dlow_up, drows);
    update_gradient(ctx, plan, dup, dlow_up, saved.low_up, rows, gradients.up);
  }
};

MOE_NAMESPACE_END
