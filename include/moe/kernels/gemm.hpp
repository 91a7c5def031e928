#pragma once
/// @file
/// The interface of the arithmetic: grouped and dense matrix products. Nothing above this room names a backend.
///
/// A grouped product runs once for each expert on that expert's rows, [expert_offsets(e), expert_offsets(e + 1)),
/// which are read on the device. Every sum runs in a fixed order that depends on
/// neither threads nor other rows.

#include "moe/kernels/cpu/product.hpp"
#include "moe/kernels/cpu/product_double.hpp"
#include "moe/kernels/device/activated.hpp"
#include "moe/kernels/device/dots.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

/// What a grouped product may know beside its arrays.
struct GroupedOptions {
  Index rows_each = -1;  ///< of every expert, where the host knows it (padded capacities); vendors' libraries use it
  const Index* number = nullptr;  ///< for devices: row r is rows(number[r]), or zeros where that is negative
  bool accumulate = false;        ///< of products whose rows the offsets cut: add to what is there
};

namespace detail {

/// exact: factors are never shortened, as routers need it.
template <bool exact = false, class Space, class T>
void run(const Space& space, const Product<T>& product) {
  if constexpr (moe::detail::device_path<Space>) {
    device::multiply<1, exact>(space, product);
  } else {
    cpu::multiply(space, product);
  }
}

}  // namespace detail

/// out_e = rows_e weight_e^T. rows (R, K), weight (E, N, K), out (R, N) overwritten, or added to, in the experts' rows.
template <class T, class Space>
void grouped_forward(const Space& space, const Vector<Index, Space>& expert_offsets, const Matrix<const T, Space>& rows,
                     const Tensor3<const T, Space>& weight, const Matrix<T, Space>& out,
                     const GroupedOptions& options = {}) {
  const Index n = weight.extent(1), k = weight.extent(2);
  auto product = Product<T>::over_rows(expert_offsets.data(), weight.extent(0), out.extent(0), n, k,
                                       {rows.data(), k, 1, 0, options.number}, {weight.data(), k, 1, n * k}, out.data(),
                                       options.accumulate);
  product.rows_each = options.rows_each;
  detail::run(space, product);
}

/// drows_e = dout_e weight_e. dout (R, N), weight (E, N, K), drows (R, K) overwritten, or added to, in the experts'
/// rows.
template <class T, class Space>
void grouped_backward_rows(const Space& space, const Vector<Index, Space>& expert_offsets,
                           const Matrix<const T, Space>& dout, const Tensor3<const T, Space>& weight,
                           const Matrix<T, Space>& drows, const GroupedOptions& options = {}) {
  const Index n = weight.extent(1), k = weight.extent(2);
  auto product =
      Product<T>::over_rows(expert_offsets.data(), weight.extent(0), dout.extent(0), k, n, {dout.data(), n, 1, 0},
                            {weight.data(), 1, k, n * k}, drows.data(), options.accumulate);
  product.rows_each = options.rows_each;
  detail::run(space, product);
}

/// dweight_e += dout_e^T rows_e. dout (R, N), rows (R, K), dweight (E, N, K); experts without rows add nothing. An
/// empty dweight is that of frozen weights: nothing is computed.
template <class T, class Space>
void grouped_backward_weight(const Space& space, const Vector<Index, Space>& expert_offsets,
                             const Matrix<const T, Space>& dout, const Matrix<const T, Space>& rows,
                             const Tensor3<T, Space>& dweight, const GroupedOptions& options = {}) {
  if (dweight.data() == nullptr) return;
  const Index n = dweight.extent(1), k = dweight.extent(2);
  auto product = Product<T>::over_sum(expert_offsets.data(), dweight.extent(0), n, k, {dout.data(), 1, n, 0},
                                      {rows.data(), 1, k, 0, options.number}, dweight.data());
  product.rows_each = options.rows_each;
  detail::run(space, product);
}

// Dense products. `exact`, as routers need it: devices never shorten factors, and sum in an order that the number of
// rows does not change.

/// out = x w^T. x (T, K), w (N, K), out (T, N) overwritten.
template <class T, class Space, bool exact = true>
void dense_forward(const Space& space, const Matrix<const T, Space>& x, const Matrix<const T, Space>& w,
                   const Matrix<T, Space>& out) {
  const Index n = w.extent(0), k = w.extent(1);
  const auto product =
      Product<T>::dense(x.extent(0), n, k, {x.data(), k, 1, 0}, {w.data(), k, 1, 0}, out.data(), false);
  if constexpr (moe::detail::device_path<Space> && exact) {
    device::dots(space, product);
  } else {
    detail::run<exact>(space, product);
  }
}

/// dx = dout w, or dx += dout w. dout (T, N), w (N, K), dx (T, K).
template <class T, class Space, bool exact = true>
void dense_backward_rows(const Space& space, const Matrix<const T, Space>& dout, const Matrix<const T, Space>& w,
                         const Matrix<T, Space>& dx, bool accumulate) {
  const Index n = w.extent(0), k = w.extent(1);
  detail::run<exact>(space, Product<T>::dense(dout.extent(0), k, n, {dout.data(), n, 1, 0}, {w.data(), 1, k, 0},
                                              dx.data(), accumulate));
}

/// dw += dout^T x. dout (T, N), x (T, K), dw (N, K); an empty dw is that of a frozen array: nothing is computed.
template <class T, class Space, bool exact = true>
void dense_backward_weight(const Space& space, const Matrix<const T, Space>& dout, const Matrix<const T, Space>& x,
                           const Matrix<T, Space>& dw) {
  if (dw.data() == nullptr) return;
  const Index n = dw.extent(0), k = dw.extent(1);
  detail::run<exact>(
      space, Product<T>::dense(n, k, dout.extent(0), {dout.data(), 1, n, 0}, {x.data(), 1, k, 0}, dw.data(), true));
}

}  // namespace kernels

MOE_NAMESPACE_END
