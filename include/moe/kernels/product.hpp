#pragma once
/// @file
/// One description of all matrix products here: C (+)= A B^T for each expert, over strided operands.

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

/// An operand: element (i, k) of expert e stands at data[e * expert_stride + i * row_stride + k * sum_stride].
template <class T>
struct Operand {
  const T* data;
  Index row_stride, sum_stride, expert_stride;
  /// For devices: what the offsets cut, i or k, is number[i] or number[k] in memory, or zeros where that is negative.
  const Index* number = nullptr;

  KOKKOS_FUNCTION Index stored(Index i) const { return number == nullptr ? i : number[i]; }
  /// From the cut's `begin` on, which lies `stride` apart.
  KOKKOS_FUNCTION void advance(Index begin, Index stride) {
    if (number == nullptr) {
      data += begin * stride;
    } else {
      number += begin;
    }
  }
};

/// C_e (m, n) (+)= A_e (m, sum) B_e (n, sum)^T. The experts' offsets cut either the rows m (forward and the rows'
/// gradient) or the sum (the weights' gradient); where there are none, it is one plain product.
template <class T>
struct Product {
  const Index* offsets;  // (E+1) on the device, or null
  Index experts;
  Index m, n, sum;  // of the operand that offsets do not cut; bounds otherwise
  Operand<T> a, b;
  T* c;  // row-major, n wide
  Index c_expert_stride;
  bool cut_sum, accumulate;
  Index rows_each = -1;  ///< of every expert, where the host knows it

  static Product over_rows(const Index* offsets, Index experts, Index rows, Index n, Index sum, Operand<T> a,
                           Operand<T> b, T* c, bool accumulate) {
    return {offsets, experts, rows, n, sum, a, b, c, 0, false, accumulate};
  }
  static Product over_sum(const Index* offsets, Index experts, Index m, Index n, Operand<T> a, Operand<T> b, T* c) {
    return {offsets, experts, m, n, 0, a, b, c, m * n, true, true};
  }
  static Product dense(Index m, Index n, Index sum, Operand<T> a, Operand<T> b, T* c, bool accumulate) {
    return {nullptr, 1, m, n, sum, a, b, c, 0, false, accumulate};
  }

  /// The product of one expert: pointers moved to its part, extents its own.
  KOKKOS_FUNCTION Product of(Index e) const {
    Product p = *this;
    p.a.data += e * a.expert_stride;
    p.b.data += e * b.expert_stride;
    p.c += e * c_expert_stride;
    if (offsets == nullptr) return p;
    const Index begin = offsets[e], rows = offsets[e + 1] - begin;
    if (cut_sum) {
      p.a.advance(begin, a.sum_stride);
      p.b.advance(begin, b.sum_stride);
      p.sum = rows;
    } else {
      p.a.advance(begin, a.row_stride);
      p.c += begin * n;
      p.m = rows;
    }
    return p;
  }
};

}  // namespace kernels

MOE_NAMESPACE_END
