#pragma once
/// @file
/// RMSNorm (Zhang and Sennrich 2019) of a residual stream, which takes a sum with it: forward and backward.

#include "moe/core/each_row.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// sum = x + added (or x, where nothing is added and no sum kept), y = sum / rms(sum) * weight.
template <class T, class Space>
struct RmsNormRow {
  using Real = RouterReal<T>;
  Matrix<const T, Space> x, added;
  Vector<const T, Space> weight;
  Real epsilon;
  Matrix<T, Space> sum, y;
  Vector<Real, Space> inverse;  // (T) 1 / rms
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index width = x.extent(1);
    const T* from = x.data() + t * width;
    if (added.data() != nullptr) {
      T* to = sum.data() + t * width;
      const T* more = added.data() + t * width;
      team.each_apart(width, [=](Index h) { to[h] = T(Real(from[h]) + Real(more[h])); });
      from = to;
    }
    const Real squares = team.sum<Real>(width, [&](Index h) { return Real(from[h]) * Real(from[h]); });
    const Real factor = Real(1) / Kokkos::sqrt(squares / Real(width) + epsilon);
    team.single([&] { inverse(t) = factor; });
    T* to = y.data() + t * width;
    const T* scale = weight.data();
    team.each_apart(width, [=](Index h) { to[h] = T(Real(from[h]) * factor * Real(scale[h])); });
  }
};

/// dx (+)= the pullback of dy.
template <class T, class Space>
struct RmsNormGradientRow {
  using Real = RouterReal<T>;
  Matrix<const T, Space> x, dy;
  Vector<const T, Space> weight;
  Vector<Real, Space> inverse;
  Matrix<T, Space> dx;
  bool add;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index width = dy.extent(1);
    const T *from = x.data() + t * width, *d = dy.data() + t * width, *scale = weight.data();
    T* to = dx.data() + t * width;
    const Real r = inverse(t);
    const Real dot = team.sum<Real>(width, [&](Index h) { return Real(d[h]) * Real(scale[h]) * Real(from[h]); });
    const Real mean = dot * r * r / Real(width);
    const bool adds = add;
    team.each_apart(width, [=](Index h) {
      const Real result = r * (Real(d[h]) * Real(scale[h]) - Real(from[h]) * mean);
      to[h] = T(adds ? Real(to[h]) + result : result);
    });
  }
};

/// The weight's gradient; an item is some columns, so that no two add to one number.
template <class T, class Space>
struct RmsNormWeightGradient {
  using Real = RouterReal<T>;
  static constexpr Index columns = device_path<Space> ? 1 : 64;
  Matrix<const T, Space> x, dy;
  Vector<Real, Space> inverse;
  Vector<T, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index width = dy.extent(1), begin = item * columns;
    const Index live = width - begin < columns ? width - begin : columns;
    Real sum[columns] = {};
    for (Index t = 0; t < Index(dy.extent(0)); ++t) {
      const T *from = x.data() + t * width + begin, *d = dy.data() + t * width + begin;
      for (Index i = 0; i < live; ++i) sum[i] += Real(from[i]) * inverse(t) * Real(d[i]);
    }
    for (Index i = 0; i < live; ++i) gradient(begin + i) = T(Real(gradient(begin + i)) + sum[i]);
  }
};

/// An empty gradient is that of a frozen weight: none is computed.
template <class T, class Space>
void rms_norm_backward(const Space& space, const Matrix<const T, Space>& x, const Matrix<const T, Space>& dy,
                       const Vector<T, Space>& weight, const Vector<RouterReal<T>, Space>& inverse,
                       const Matrix<T, Space>& dx, bool add, const Vector<T, Space>& gradient) {
  using Weight = RmsNormWeightGradient<T, Space>;
  each_row(space, "moe::rms_norm", Index(x.extent(0)), RmsNormGradientRow<T, Space>{x, dy, weight, inverse, dx, add});
  if (gradient.data() == nullptr) return;
  each(space, "moe::rms_norm", (Index(x.extent(1)) + Weight::columns - 1) / Weight::columns,
       Weight{x, dy, inverse, gradient}, Index(1));
}

}  // namespace detail

MOE_NAMESPACE_END
