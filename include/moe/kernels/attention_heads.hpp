#pragma once
/// @file
/// How attention's arrays lie: heads side by side in the rows of tokens.

#include "moe/kernels/attention_plan.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

inline constexpr Index most_head_width = 256;

/// Head h of row t begins at data + t * stride + h * width: columns of a wider array, too.
template <class T>
struct HeadRows {
  T* data = nullptr;
  Index stride = 0, heads = 0;
  KOKKOS_FUNCTION T* at(Index row, Index head, Index width) const { return data + row * stride + head * width; }
};

/// Queries, keys and values. Of n query heads and m key heads, n / m share a key head: neighbours as in grouped-query
/// attention (Ainslie et al. 2023), or in turn, every m-th one, as in mixtures of attention heads.
template <class T>
struct AttentionHeads {
  Index width = 0;   ///< of one head, of queries, keys and values alike
  double scale = 1;  ///< of q . k
  bool in_turn = false;
  HeadRows<const T> q, k, v;

  KOKKOS_FUNCTION Index sharing() const { return q.heads / k.heads; }
  KOKKOS_FUNCTION Index query_head(Index key_head, Index i) const {
    return in_turn ? i * k.heads + key_head : key_head * sharing() + i;
  }
  KOKKOS_FUNCTION Index key_head(Index query_head) const {
    return in_turn ? query_head % k.heads : query_head / sharing();
  }
};

namespace detail {

template <class T, class Real, class Space>
struct AttentionGradients {
  Matrix<Real, Space> log_sum, delta;  // (queries, heads); delta = dout . out
  HeadRows<const T> dout;
  HeadRows<T> dq, dk, dv;
};

template <class T, class Real, class Space>
struct OutputTimesGradient {
  HeadRows<const T> out, dout;
  Index width;
  Matrix<Real, Space> delta;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index t = item / out.heads, h = item % out.heads;
    const T *a = out.at(t, h, width), *b = dout.at(t, h, width);
    Real sum = 0;
    for (Index i = 0; i < width; ++i) sum += Real(a[i]) * Real(b[i]);
    delta(t, h) = sum;
  }
};

}  // namespace detail

}  // namespace kernels

MOE_NAMESPACE_END
