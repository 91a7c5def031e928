#pragma once
/// @file
/// The first half of experts' networks on devices: gate and up in one pass over the rows, and the activation of sums
/// that are still in registers.

#include "moe/core/activation.hpp"
#include "moe/kernels/device/multiply.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// Sums of gate and up, or of up alone, with their biases: kept for backward, and made hidden values.
template <class T, class Activation>
struct Activate {
  static constexpr bool adds = false;
  static constexpr int parts = Activation::gated ? 2 : 1;
  T *hidden, *up;  // (R, I), (R, parts I)
  const T* bias;   // (E, parts I), or null
  Activation activation;

  template <class Sum>
  KOKKOS_FUNCTION void operator()(const Product<T>& p, Index e, Index row, Index column, const Sum* sums) const {
    T* const kept = up + parts * (p.c - hidden + row * p.n) + column;
    T value[parts];
    for (int part = 0; part < parts; ++part) {
      const Sum own = bias == nullptr ? Sum(0) : Sum(bias[(e * parts + part) * p.n + column]);
      // Rounded before the bias too, as where a layer recomputes the product alone.
      kept[part * p.n] = value[part] = T(Sum(T(sums[part])) + own);
    }
    p.c[row * p.n + column] = T(moe::detail::activate(activation, Sum(value[0]), Sum(value[parts - 1])));
  }

  bool in_lines(const Product<T>& p) const {
    return moe::detail::in_blocks(hidden, p.n) && moe::detail::in_blocks(up, p.n);
  }
  /// The same of a line.
  template <int size>
  KOKKOS_FUNCTION void line(const Product<T>& p, Index e, Index row, Index column, const float (&sums)[parts][size],
                            const Line<T>&) const {
    T* const kept = up + parts * (p.c - hidden + row * p.n) + column;
    Line<T> value[parts], made;
    for (int part = 0; part < parts; ++part) {
      for (int i = 0; i < size; ++i) {
        const float own = bias == nullptr ? 0.0f : float(bias[(e * parts + part) * p.n + column + i]);
        value[part].values[i] = T(float(T(sums[part][i])) + own);
      }
      write_line(kept + part * p.n, value[part]);
    }
    for (int i = 0; i < size; ++i) {
      made.values[i] =
          T(moe::detail::activate(activation, float(value[0].values[i]), float(value[parts - 1].values[i])));
    }
    write_line(p.c + row * p.n + column, made);
  }
};

/// up = rows weight^T + bias and hidden = activation(up), for each expert's rows. rows (R, H), weight (E, I or 2I, H),
/// bias (E, I or 2I) or empty, up (R, I or 2I), hidden (R, I). number: row r is rows(number[r]), or zeros where that is
/// negative; null: r itself. What stands behind the last expert stays as it is.
template <class Activation, class T, class Space>
void multiply_and_activate(const Space& space, const Vector<Index, Space>& expert_offsets,
                           const Matrix<const T, Space>& rows, const Tensor3<const T, Space>& weight,
                           const Matrix<const T, Space>& bias, const Activation& activation, const Matrix<T, Space>& up,
                           const Matrix<T, Space>& hidden, const Index* number) {
  using Finish = Activate<T, Activation>;
  const Index n = hidden.extent(1), k = weight.extent(2);
  multiply<Finish::parts>(space,
                          Product<T>::over_rows(expert_offsets.data(), weight.extent(0), hidden.extent(0), n, k,
                                                {rows.data(), k, 1, 0, number},
                                                {weight.data(), k, 1, Finish::parts * n * k}, hidden.data(), false),
                          Finish{hidden.data(), up.data(), bias.data(), activation});
}

}  // namespace kernels::device

MOE_NAMESPACE_END
