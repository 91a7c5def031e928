#pragma once
/// @file
/// Memory of others as a token matrix, without a copy: std::span with sizes, and row-major Eigen::Map.

#include <Eigen/Core>
#include <span>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// A (rows, columns) matrix over host memory of rows * columns elements, row-major. Throws ShapeError for another size.
template <class Space = Kokkos::DefaultExecutionSpace, class T>
Matrix<T, Space> as_matrix(std::span<T> data, Index rows, Index columns) {
  static_assert(on_host<Space>, "moe::as_matrix: this space cannot reach host memory. Copy with Kokkos::deep_copy.");
  detail::require<ShapeError>(rows >= 0 && columns >= 0 && Index(data.size()) == rows * columns,
                              "moe::as_matrix: ", data.size(), " elements are not (", rows, ", ", columns, ").");
  return Matrix<T, Space>(data.data(), rows, columns);
}

/// The same over an Eigen matrix or map. It must be row-major and without gaps between rows.
template <class Space = Kokkos::DefaultExecutionSpace, class Derived>
auto as_matrix(Eigen::PlainObjectBase<Derived>& eigen) {
  static_assert(Derived::IsRowMajor,
                "moe::as_matrix: Eigen matrices are column-major by default; use Eigen::RowMajor.");
  return Matrix<typename Derived::Scalar, Space>(eigen.data(), eigen.rows(), eigen.cols());
}
template <class Space = Kokkos::DefaultExecutionSpace, class Plain>
auto as_matrix(const Eigen::Map<Plain>& map) {
  static_assert(Plain::IsRowMajor, "moe::as_matrix: Eigen matrices are column-major by default; use Eigen::RowMajor.");
  return Matrix<typename Plain::Scalar, Space>(const_cast<typename Plain::Scalar*>(map.data()), map.rows(), map.cols());
}

/// A host matrix as a row-major Eigen::Map.
template <class View>
auto as_eigen(const View& matrix) {
  using T = typename View::non_const_value_type;
  static_assert(View::rank() == 2, "moe::as_eigen: a matrix has rank 2.");
  using Plain = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Held = std::conditional_t<std::is_const_v<typename View::value_type>, const Plain, Plain>;
  return Eigen::Map<Held>(matrix.data(), matrix.extent(0), matrix.extent(1));
}

MOE_NAMESPACE_END
