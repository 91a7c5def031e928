#pragma once
/// @file
/// The transformer's small parts: embedding, RMSNorm, residual sums, cross-entropy. Forward and backward.

#include <moe/moe.hpp>

namespace text {

using moe::Index;
using moe::Matrix;
using moe::Row;
using moe::Vector;

template <class Space, class Functor>
void run(moe::Context<Space>& ctx, const char* name, Index items, const Functor& functor) {
  Kokkos::parallel_for(name, Kokkos::RangePolicy<Space>(ctx.space, 0, items), functor);
}

/// x(t) = table(token(t)).
template <class T, class Space>
struct Embed {
  Vector<const std::int32_t, Space> tokens;
  Matrix<T, Space> table, x;
  KOKKOS_FUNCTION void operator()(Index t) const {
    for (Index h = 0; h < Index(x.extent(1)); ++h) x(t, h) = table(tokens(t), h);
  }
};

/// gradient(token(t)) += dx(t); an item is a column, so that no two add to one element.
template <class T, class Space>
struct EmbedGradient {
  Vector<const std::int32_t, Space> tokens;
  Matrix<T, Space> dx, gradient;
  KOKKOS_FUNCTION void operator()(Index h) const {
    for (Index t = 0; t < Index(dx.extent(0)); ++t) gradient(tokens(t), h) += dx(t, h);
  }
};

/// y = x * weight / sqrt(mean(x^2) + epsilon) (Zhang and Sennrich 2019); keeps the reciprocal root.
template <class T, class Space>
struct RmsNorm {
  static constexpr double epsilon = 1e-6;
  Matrix<T, Space> x;
  Vector<T, Space> weight;
  Matrix<T, Space> y;
  Vector<T, Space> inverse;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index n = x.extent(1);
    T squares = 0;
    for (Index h = 0; h < n; ++h) squares += x(t, h) * x(t, h);
    const T r = T(1) / Kokkos::sqrt(squares / T(n) + T(epsilon));
    inverse(t) = r;
    for (Index h = 0; h < n; ++h) y(t, h) = x(t, h) * r * weight(h);
  }
};

/// dx += the pullback of dy.
template <class T, class Space>
struct RmsNormGradient {
  Matrix<T, Space> x, dy;
  Vector<T, Space> weight, inverse;
  Matrix<T, Space> dx;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index n = x.extent(1);
    const T r = inverse(t);
    T dot = 0;
    for (Index h = 0; h < n; ++h) dot += dy(t, h) * weight(h) * x(t, h);
    const T mean = dot * r * r / T(n);
    for (Index h = 0; h < n; ++h) dx(t, h) += r * (dy(t, h) * weight(h) - x(t, h) * mean);
  }
};

/// The weight's gradient; an item is a column.
template <class T, class Space>
struct RmsNormWeightGradient {
  Matrix<T, Space> x, dy;
  Vector<T, Space> inverse, gradient;
  KOKKOS_FUNCTION void operator()(Index h) const {
    T sum = 0;
    for (Index t = 0; t < Index(x.extent(0)); ++t) sum += dy(t, h) * x(t, h) * inverse(t);
    gradient(h) += sum;
  }
};

/// y = a + b, or y += b.
template <class T>
struct Add {
  const T *a, *b;
  T* y;
  KOKKOS_FUNCTION void operator()(Index i) const { y[i] = a[i] + b[i]; }
};

/// losses(t) = -log softmax(logits(t))[target]; logits become their gradient times scale.
template <class T, class Space>
struct CrossEntropy {
  Matrix<T, Space> logits;
  Vector<const std::int32_t, Space> targets;
  Vector<double, Space> losses;
  T scale;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<T> z{logits.data() + t * Index(logits.extent(1)), Index(logits.extent(1))};
    const moe::Team team;
    const T before = z[targets(t)], top = team.max<T>(z.size, [&](Index i) { return z[i]; });
    moe::Softmax{}.apply(team, z);
    // The largest probability is exp(0) over the sum of exponentials, and never vanishes.
    const T largest = team.max<T>(z.size, [&](Index i) { return z[i]; });
    losses(t) = double(top - Kokkos::log(largest) - before);
    for (Index i = 0; i < z.size; ++i) z[i] = scale * (z[i] - (i == targets(t) ? T(1) : T(0)));
  }
};

}  // namespace text
