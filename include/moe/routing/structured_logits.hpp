#pragma once
/// @file
/// Logits with structure: two levels of experts, and product keys.

#include "moe/routing/linear_logits.hpp"

MOE_NAMESPACE_BEGIN

/// Two levels (Jordan and Jacobs 1994; Shazeer et al. 2017, appendix B): groups by a gate of their own, experts in each
/// group by theirs. z_ij = log softmax(top)_i + log softmax(low_i)_j, so that Softmax gives the product of both levels.
/// With GroupLimit only the best groups are looked into.
struct HierarchicalLogits {
  using policy = kind::logits;
  int groups = 2;

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> top;     ///< (G, H')
    Matrix<Real, Space> weight;  ///< (E, H')
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("top.weight", same.top...);
      f("weight", same.weight...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    detail::require<ConfigError>(groups > 0 && shape.experts % groups == 0, "moe::HierarchicalLogits: ", shape.experts,
                                 " experts do not divide into ", groups, " groups.");
    return {Matrix<Real, Space>("moe::router.top.weight", groups, shape.hidden),
            Matrix<Real, Space>("moe::router.weight", shape.experts, shape.hidden)};
  }

  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
               const Matrix<Real, Space>& logits) const;
  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& p, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const;
};

/// E = n^2 experts at the crossings of two times n keys (Lample et al. 2019, "Large memory layers with product keys";
/// PEER; Doge): z_ij = x_1 . k_i + x_2 . k'_j with x in two halves. All E logits are made: right for thousands of
/// experts.
struct ProductKeyLogits {
  using policy = kind::logits;

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> keys;  ///< (2n, H'/2): n for the first half of x, then n for the second
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("keys", same.keys...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    Index n = 1;
    while (n * n < shape.experts) ++n;
    detail::require<ConfigError>(n * n == shape.experts && shape.hidden % 2 == 0,
                                 "moe::ProductKeyLogits: ", shape.experts, " experts and an input of width ",
                                 shape.hidden, "; the first must be a square, the second even.");
    return {Matrix<Real, Space>("moe::router.keys", 2 * n, shape.hidden / 2)};
  }

  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
               const Matrix<Real, Space>& logits) const;
  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& p, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const;
};

namespace detail {

/// logits(t, i * n + j) += top(t, i), both levels turned into log-softmax first.
template <class Real, class Space>
struct JoinLevels {
  Matrix<Real, Space> top, logits;
  KOKKOS_FUNCTION static void log_softmax(Real* row, Index size) {
    Real best = row[0];
    for (Index i = 1; i < size; ++i) best = row[i] > best ? row[i] : best;
    Real total = 0;
    for (Index i = 0; i < size; ++i) total += Kokkos::exp(row[i] - best);
    const Real log_total = best + Kokkos::log(total);
    for (Index i = 0; i < size; ++i) row[i] -= log_total;
  }
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index groups = top.extent(1), size = Index(logits.extent(1)) / groups;
    log_softmax(&top(t, 0), groups);
    for (Index g = 0; g < groups; ++g) {
      Real* low = &logits(t, g * size);
      log_softmax(low, size);
      for (Index j = 0; j < size; ++j) low[j] += top(t, g);
    }
  }
};

/// The gradients before the two log-softmaxes; top and logits are JoinLevels' results.
template <class Real, class Space>
struct SplitLevels {
  Matrix<Real, Space> top, logits;
  Matrix<const Real, Space> dlogits;
  Matrix<Real, Space> dtop, dlow;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index groups = top.extent(1), size = Index(logits.extent(1)) / groups;
    Real total = 0;
    for (Index g = 0; g < groups; ++g) {
      Real sum = 0;
      for (Index j = 0; j < size; ++j) sum += dlogits(t, g * size + j);
      for (Index j = 0; j < size; ++j) {
        const Index e = g * size + j;
        dlow(t, e) = dlogits(t, e) - Kokkos::exp(logits(t, e) - top(t, g)) * sum;
      }
      dtop(t, g) = sum;
      total += sum;
    }
    for (Index g = 0; g < groups; ++g) dtop(t, g) -= Kokkos::exp(top(t, g)) * total;
  }
};

/// One token's product-key logits.
template <class Real, class Space>
struct ProductKeys {
  Matrix<const Real, Space> x;
  Matrix<const Real, Space> keys;
  Matrix<Real, Space> parts, logits;  // (T, 2n), (T, n^2)
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index n = Index(keys.extent(0)) / 2, half = keys.extent(1);
    for (Index i = 0; i < 2 * n; ++i) {
      Real sum = 0;
      for (Index h = 0; h < half; ++h) sum += x(t, (i < n ? 0 : half) + h) * keys(i, h);
      parts(t, i) = sum;
    }
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) logits(t, i * n + j) = parts(t, i) + parts(t, n + j);
    }
  }
};

template <class Real, class Space>
struct ProductKeysRows {
  Matrix<const Real, Space> dlogits, keys;
  Matrix<Real, Space> dparts, dx;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index n = Index(keys.extent(0)) / 2, half = keys.extent(1);
    for (Index i = 0; i < 2 * n; ++i) dparts(t, i) = 0;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        dparts(t, i) += dlogits(t, i * n + j);
        dparts(t, n + j) += dlogits(t, i * n + j);
      }
    }
    for (Index h = 0; h < 2 * half; ++h) {
      Real sum = 0;
      const Index first = h < half ? 0 : n;
      for (Index i = first; i < first + n; ++i) sum += dparts(t, i) * keys(i, h % half);
      dx(t, h) = sum;
    }
  }
};

template <class Real, class Space>
struct ProductKeysWeight {
  Matrix<const Real, Space> x;
  Matrix<Real, Space> dparts, gradient;
  KOKKOS_FUNCTION void operator()(Index i) const {
    const Index n = Index(gradient.extent(0)) / 2, half = gradient.extent(1);
    for (Index h = 0; h < half; ++h) {
      Real sum = 0;
      for (Index t = 0; t < Index(x.extent(0)); ++t) sum += dparts(t, i) * x(t, (i < n ? 0 : half) + h);
      gradient(i, h) += sum;
    }
  }
};

}  // namespace detail

template <class Real, class Space>
void HierarchicalLogits::forward(Context<Space>& ctx, const Matrix<const Real, Space>& x,
                                 const Parameters<Real, Space>& p, const Matrix<Real, Space>& logits) const {
  using M = Matrix<const Real, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  auto top = scratch.template matrix<Real>(x.extent(0), p.top.extent(0));
  kernels::dense_forward<Real, Space>(ctx.space, x, M(p.top), top);
  kernels::dense_forward<Real, Space>(ctx.space, x, M(p.weight), logits);
  Kokkos::parallel_for("moe::HierarchicalLogits", detail::Range<Space>(ctx.space, 0, Index(x.extent(0))),
                       detail::JoinLevels<Real, Space>{top, logits});
}

template <class Real, class Space>
void HierarchicalLogits::backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits,
                                  const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
                                  const Matrix<Real, Space>& dx, Parameters<Real, Space>& gradients) const {
  using M = Matrix<const Real, Space>;
  using Range = detail::Range<Space>;
  typename Context<Space>::Scratch scratch(ctx);
  const Index tokens = x.extent(0), experts = p.weight.extent(0), g = p.top.extent(0);
  auto top = scratch.template matrix<Real>(tokens, g), dtop = scratch.template matrix<Real>(tokens, g);
  auto logits = scratch.template matrix<Real>(tokens, experts), dlow = scratch.template matrix<Real>(tokens, experts);
  kernels::dense_forward<Real, Space>(ctx.space, x, M(p.top), top);
  kernels::dense_forward<Real, Space>(ctx.space, x, M(p.weight), logits);
  Kokkos::parallel_for("moe::HierarchicalLogits", Range(ctx.space, 0, tokens),
                       detail::JoinLevels<Real, Space>{top, logits});
  Kokkos::parallel_for("moe::HierarchicalLogits::backward", Range(ctx.space, 0, tokens),
                       detail::SplitLevels<Real, Space>{top, logits, dlogits, dtop, dlow});
  kernels::dense_backward_rows<Real, Space>(ctx.space, M(dlow), M(p.weight), dx, false);
  kernels::dense_backward_rows<Real, Space>(ctx.space, M(dtop), M(p.top), dx, true);
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(dlow), x, gradients.weight);
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(dtop), x, gradients.top);
}

template <class Real, class Space>
void ProductKeyLogits::forward(Context<Space>& ctx, const Matrix<const Real, Space>& x,
                               const Parameters<Real, Space>& p, const Matrix<Real, Space>& logits) const {
  typename Context<Space>::Scratch scratch(ctx);
  auto parts = scratch.template matrix<Real>(x.extent(0), p.keys.extent(0));
  Kokkos::parallel_for("moe::ProductKeyLogits", detail::Range<Space>(ctx.space, 0, Index(x.extent(0))),
                       detail::ProductKeys<Real, Space>{x, p.keys, parts, logits});
}

template <class Real, class Space>
void ProductKeyLogits::backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits,
                                const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
                                const Matrix<Real, Space>& dx, Parameters<Real, Space>& gradients) const {
  using Range = detail::Range<Space>;
  typename Context<Space>::Scratch scratch(ctx);
  auto dparts = scratch.template matrix<Real>(x.extent(0), p.keys.extent(0));
  Kokkos::parallel_for("moe::ProductKeyLogits::rows", Range(ctx.space, 0, Index(x.extent(0))),
                       detail::ProductKeysRows<Real, Space>{dlogits, p.keys, dparts, dx});
  Kokkos::parallel_for("moe::ProductKeyLogits::weight", Range(ctx.space, 0, Index(p.keys.extent(0))),
                       detail::ProductKeysWeight<Real, Space>{x, dparts, gradients.keys});
}

MOE_NAMESPACE_END
