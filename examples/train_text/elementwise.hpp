#pragma once
/// @file
/// The transformer's small parts: embedding and cross-entropy. Forward and backward. Arrays are of
/// type T, which may have 16 bits; sums and statistics are moe::RouterReal<T>.

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

inline constexpr Index longest_row = 256;  // of logits

/// Calls f on a row in the precision of sums: on the row itself, or on a copy, which goes back rounded.
template <class T, class F>
KOKKOS_FUNCTION void with_wide_row(T* data, Index size, const F& f) {
  using Real = moe::RouterReal<T>;
  if constexpr (std::is_same_v<T, Real>) {
    f(Row<Real>{data, size});
  } else {
    Real wide[longest_row];
    for (Index i = 0; i < size; ++i) wide[i] = Real(data[i]);
    f(Row<Real>{wide, size});
    for (Index i = 0; i < size; ++i) data[i] = T(wide[i]);
  }
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

/// gradient(token(t)) += dx(t); an item is a column, so that no two add to one element. sums (256, H) are zero before.
template <class T, class Space>
struct EmbedGradient {
  Vector<const std::int32_t, Space> tokens;
  Matrix<T, Space> dx, gradient;
  Matrix<moe::RouterReal<T>, Space> sums;
  KOKKOS_FUNCTION void operator()(Index h) const {
    using Real = moe::RouterReal<T>;
    for (Index t = 0; t < Index(dx.extent(0)); ++t) sums(tokens(t), h) += Real(dx(t, h));
    for (Index v = 0; v < Index(sums.extent(0)); ++v) gradient(v, h) = T(Real(gradient(v, h)) + sums(v, h));
  }
};

/// losses(t) = -log softmax(logits(t))[target]; logits become their gradient times scale.
template <class T, class Space>
struct CrossEntropy {
  using Real = moe::RouterReal<T>;
  Matrix<T, Space> logits;
  Vector<const std::int32_t, Space> targets;
  Vector<double, Space> losses;
  Real scale;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Real before = Real(logits(t, targets(t)));
    with_wide_row(logits.data() + t * Index(logits.extent(1)), Index(logits.extent(1)), [&](Row<Real> z) {
      const moe::Team team;
      const Real top = team.max<Real>(z.size, [&](Index i) { return z[i]; });
      moe::Softmax{}.apply(team, z);
      // The largest probability is exp(0) over the sum of exponentials, and never vanishes.
      const Real largest = team.max<Real>(z.size, [&](Index i) { return z[i]; });
      losses(t) = double(top - Kokkos::log(largest) - before);
      for (Index i = 0; i < z.size; ++i) z[i] = scale * (z[i] - (i == targets(t) ? Real(1) : Real(0)));
    });
  }
};

}  // namespace text
