#pragma once
/// @file
/// Logit sources: tokens become logits.
///
/// A logit source is a struct with `using policy = moe::kind::logits;`, `Parameters<Real, Space>`,
/// `parameters(shape)`, `forward` and `backward` as here. Its arithmetic is the router's: f32 or wider. Arrays of rank
/// 2 and more are drawn by the layer; others keep what `parameters` gives them.
///
/// A source that wants more of the batch, or leaves more in the routing, has instead
///
///     forward(ctx, batch, draws, x, parameters, routing)                          // fills routing.logits
///     backward(ctx, batch, draws, routing, RoutingGradients, x, parameters, dx, gradients)

#include "moe/core/parameter.hpp"
#include "moe/kernels/gemm.hpp"
#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// z = x W^T, without bias: the gate of nearly every published system.
struct LinearLogits {
  using policy = kind::logits;

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> weight;  ///< (E, H')
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("weight", same.weight...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    return {Matrix<Real, Space>("moe::router.weight", shape.experts, shape.hidden)};
  }

  /// x (T, H') to logits (T, E).
  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& parameters,
               const Matrix<Real, Space>& logits) const {
    kernels::dense_forward<Real, Space>(ctx.space, x, Matrix<const Real, Space>(parameters.weight), logits);
  }

  /// dlogits (T, E) to dx (T, H'), which is overwritten; adds into gradients.
  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& parameters, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const {
    kernels::dense_backward_rows<Real, Space>(ctx.space, dlogits, Matrix<const Real, Space>(parameters.weight), dx,
                                              false);
    kernels::dense_backward_weight<Real, Space>(ctx.space, dlogits, x, gradients.weight);
  }
};

namespace detail {

template <class Real, class Space>
struct CopyRow {
  Matrix<const Real, Space> from;
  Matrix<Real, Space> to;
  KOKKOS_FUNCTION void operator()(Index t) const {
    for (Index i = 0; i < Index(to.extent(1)); ++i) to(t, i) = from(t, i);
  }
};

template <class Real, class Space>
struct AddVector {
  Vector<const Real, Space> bias;
  Matrix<Real, Space> rows;
  KOKKOS_FUNCTION void operator()(Index t) const {
    for (Index i = 0; i < Index(rows.extent(1)); ++i) rows(t, i) += bias(i);
  }
};

}  // namespace detail

/// z = x W^T + b (gpt-oss).
struct BiasedLogits {
  using policy = kind::logits;

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> weight;  ///< (E, H')
    Vector<Real, Space> bias;    ///< (E), 0 at the start
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("weight", same.weight...);
      f("bias", same.bias...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    return {Matrix<Real, Space>("moe::router.weight", shape.experts, shape.hidden),
            Vector<Real, Space>("moe::router.bias", shape.experts)};
  }

  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
               const Matrix<Real, Space>& logits) const {
    kernels::dense_forward<Real, Space>(ctx.space, x, Matrix<const Real, Space>(p.weight), logits);
    Kokkos::parallel_for("moe::BiasedLogits", detail::Range<Space>(ctx.space, 0, Index(logits.extent(0))),
                         detail::AddVector<Real, Space>{p.bias, logits});
  }

  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& p, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const {
    kernels::dense_backward_rows<Real, Space>(ctx.space, dlogits, Matrix<const Real, Space>(p.weight), dx, false);
    kernels::dense_backward_weight<Real, Space>(ctx.space, dlogits, x, gradients.weight);
    Kokkos::parallel_for("moe::BiasedLogits", detail::Range<Space>(ctx.space, 0, Index(p.bias.size())),
                         detail::SumRows<Real, Real, Space>{dlogits, gradients.bias});
  }
};

namespace detail {

/// Runs a source by whichever contract it has.
template <class Source, class Real, class T, class Space, class Parameters>
void source_forward(const Source& source, Context<Space>& ctx, const Batch<T, Space>& batch,
                    const RowDraws<Space>& draws, const Matrix<const Real, Space>& x, const Parameters& parameters,
                    Routing<Real, Space>& routing) {
  if constexpr (requires { source.forward(ctx, batch, draws, x, parameters, routing); }) {
    source.forward(ctx, batch, draws, x, parameters, routing);
  } else {
    source.forward(ctx, x, parameters, routing.logits);
  }
}
template <class Source, class Real, class T, class Space, class Parameters>
void source_backward(const Source& source, Context<Space>& ctx, const Batch<T, Space>& batch,
                     const RowDraws<Space>& draws, const Routing<Real, Space>& routing,
                     const RoutingGradients<Real, Space>& of, const Matrix<const Real, Space>& x,
                     const Parameters& parameters, const Matrix<Real, Space>& dx, Parameters& gradients) {
  if constexpr (requires { source.backward(ctx, batch, draws, routing, of, x, parameters, dx, gradients); }) {
    source.backward(ctx, batch, draws, routing, of, x, parameters, dx, gradients);
  } else {
    source.backward(ctx, Matrix<const Real, Space>(of.dlogits), x, parameters, dx, gradients);
  }
}

}  // namespace detail

MOE_NAMESPACE_END
