#pragma once
/// @file
/// Maxima and square roots of rows on hosts, by GNU's vector types: g++ makes no vectors of a loop that compares
/// floating-point numbers, because of NaN and of signed zeros, or takes roots, because of errno. Devices have no use
/// for this.

#include <cstdint>
#include <type_traits>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Eight floats or four doubles. Vectors go by reference: how they go by value depends on the processor.
template <class Real>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int count = 8;
  typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
  typedef std::int32_t Mask __attribute__((vector_size(32)));
  static constexpr Mask numbers{0, 1, 2, 3, 4, 5, 6, 7};

  /// a = b > a ? b : a, which is AVX's maximum, with NaN too.
  static void raise(Vector& a, const Vector& b) {
#if defined(__AVX__)
    a = __builtin_ia32_maxps256(b, a);
#else
    a = b > a ? b : a;
#endif
  }
  /// The largest lane, in every lane.
  static void spread_largest(Vector& v) {
    raise(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
    raise(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
    raise(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
  }
  /// Bit l says whether lane l of a comparison's result is true.
  static std::uint64_t bits(const Mask& mask) {
#if defined(__AVX__)
    typedef float Floats __attribute__((vector_size(32)));
    return std::uint64_t(__builtin_ia32_movmskps256(reinterpret_cast<const Floats&>(mask)));
#else
    std::uint64_t result = 0;
    for (int l = 0; l < count; ++l) result |= std::uint64_t(mask[l] & 1) << l;
    return result;
#endif
  }
};

template <>
struct Lanes<double> {
  static constexpr int count = 4;
  typedef double Vector __attribute__((vector_size(32), aligned(8), may_alias));
  typedef std::int64_t Mask __attribute__((vector_size(32)));
  static constexpr Mask numbers{0, 1, 2, 3};

  static void raise(Vector& a, const Vector& b) { a = b > a ? b : a; }
  static void spread_largest(Vector& v) {
    raise(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
    raise(v, __builtin_shufflevector(v, v, 1, 0, 3, 2));
  }
  static std::uint64_t bits(const Mask& mask) {
    std::uint64_t result = 0;
    for (int l = 0; l < count; ++l) result |= std::uint64_t(mask[l] & 1) << l;
    return result;
  }
};

template <class Real>
const typename Lanes<Real>::Vector& lanes_at(const Real* row) {
  return *reinterpret_cast<const typename Lanes<Real>::Vector*>(row);
}

/// The largest of `size` numbers; NaN is none of them, and -infinity the result where there is none.
template <class Real>
Real largest(const Real* row, Index size) {
  using L = Lanes<Real>;
  Real best = -Kokkos::Experimental::infinity_v<Real>;
  Index i = 0;
  if (size >= L::count) {
    typename L::Vector a = typename L::Vector{} + best, b = a;
    for (; i + 2 * L::count <= size; i += 2 * L::count) {
      L::raise(a, lanes_at(row + i));
      L::raise(b, lanes_at(row + i + L::count));
    }
    for (; i + L::count <= size; i += L::count) L::raise(a, lanes_at(row + i));
    L::raise(a, b);
    L::spread_largest(a);
    best = a[0];
  }
  for (; i < size; ++i) best = row[i] > best ? row[i] : best;
  return best;
}

/// Puts a number among the two largest so far.
template <class Real>
KOKKOS_FUNCTION void insert_largest_two(Real value, Real& first, Real& second) {
  const Real less = value > first ? first : value;
  first = value > first ? value : first;
  second = less > second ? less : second;
}

/// The two largest, equal ones too, where `first` and `second` are -infinity to begin with.
template <class Real>
void largest_two(const Real* row, Index size, Real& first, Real& second) {
  using L = Lanes<Real>;
  typename L::Vector a = typename L::Vector{} - Kokkos::Experimental::infinity_v<Real>, b = a;
  Index i = 0;
  for (; i + L::count <= size; i += L::count) {
    const typename L::Vector v = lanes_at(row + i), less = v > a ? a : v;
    L::raise(a, v);
    L::raise(b, less);
  }
  if (i > 0) {
    typename L::Vector top = a;
    L::spread_largest(top);
    first = top[0];
    // The second of all is the largest but the first: in its own lane, or at the top of another.
    const std::uint64_t at = L::bits(a == top);
    if ((at & (at - 1)) != 0) {
      second = first;
    } else {
      a = a == top ? b : a;
      L::spread_largest(a);
      second = a[0];
    }
  }
  for (; i < size; ++i) insert_largest_two(row[i], first, second);
}

/// The sum of `size` numbers, in an order that `size` alone decides.
template <class Real>
Real sum(const Real* row, Index size) {
  using L = Lanes<Real>;
  typename L::Vector a{}, b{};
  Index i = 0;
  for (; i + 2 * L::count <= size; i += 2 * L::count) {
    a += lanes_at(row + i);
    b += lanes_at(row + i + L::count);
  }
  a += b;
  Real total = 0;
  for (int l = 0; l < L::count; ++l) total += a[l];
  for (; i < size; ++i) total += row[i];
  return total;
}

/// Each of `count` numbers becomes its square root.
template <int count, class Real>
void take_roots(Real* row) {
  using L = Lanes<Real>;
  constexpr int whole = count / L::count * L::count;
  for (int i = 0; i < whole; i += L::count) {
    auto& v = *reinterpret_cast<typename L::Vector*>(row + i);
#if __has_builtin(__builtin_elementwise_sqrt)
    v = __builtin_elementwise_sqrt(v);
#elif defined(__AVX__)
    if constexpr (std::is_same_v<Real, float>) {
      v = __builtin_ia32_sqrtps256(v);
    } else {
      v = __builtin_ia32_sqrtpd256(v);
    }
#else
    for (int l = 0; l < L::count; ++l) v[l] = Kokkos::sqrt(v[l]);
#endif
  }
  for (int i = whole; i < count; ++i) row[i] = Kokkos::sqrt(row[i]);
}

// The same for policies on rows, wherever they run.

template <class Real>
KOKKOS_FUNCTION std::remove_const_t<Real> row_max(const Team& team, Row<Real> row) {
  KOKKOS_IF_ON_HOST((if (!team.is_shared()) return largest<std::remove_const_t<Real>>(row.data, row.size);))
  return team.max<std::remove_const_t<Real>>(row.size, [&](Index i) { return row[i]; });
}

template <class Real>
KOKKOS_FUNCTION std::remove_const_t<Real> row_sum(const Team& team, Row<Real> row) {
  KOKKOS_IF_ON_HOST((if (!team.is_shared()) return sum<std::remove_const_t<Real>>(row.data, row.size);))
  return team.sum<std::remove_const_t<Real>>(row.size, [&](Index i) { return row[i]; });
}

template <class Real>
KOKKOS_FUNCTION void row_largest_two(const Team& team, Row<const Real> row, Real& first, Real& second) {
  first = second = -Kokkos::Experimental::infinity_v<Real>;
  KOKKOS_IF_ON_HOST((if (!team.is_shared()) {
    largest_two(row.data, row.size, first, second);
    return;
  }))
  for (Index i = team.begin(); i < row.size; i += team.stride()) insert_largest_two(row[i], first, second);
  if (!team.is_shared()) return;
  for (int mask = team.lanes / 2; mask > 0; mask /= 2) {
    const Real one = team.exchange(first, mask), two = team.exchange(second, mask);
    insert_largest_two(one, first, second);
    insert_largest_two(two, first, second);
  }
}

}  // namespace detail

MOE_NAMESPACE_END
