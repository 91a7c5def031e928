#pragma once
/// @file
/// `truncate`: the best approximation of an update at a rank, by the singular value decomposition. Runs on the host in
/// double, with Eigen.

// GCC 12's own AVX-512 headers look uninitialised to it where Eigen takes them in (GCC bug 105593).
#if defined(__GNUC__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <Eigen/QR>
#include <Eigen/SVD>
#if defined(__GNUC__)
#  pragma GCC diagnostic pop
#endif
#include <vector>

#include "moe/adapters/low_rank.hpp"
#include "moe/adapters/weighted_update.hpp"

MOE_NAMESPACE_BEGIN

/// An update of a lower rank, and what was lost on the way.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct Truncation {
  LowRank<T, Space> update;             ///< one, of the rank asked for: B = U sqrt(S), A = sqrt(S) V^T; scaling 1
  std::vector<double> singular_values;  ///< of the full update, largest first
  double relative_error = 0;            ///< |update - truncation| / |update|, Frobenius norms, before rounding to T
};

/// |update - truncation| / |update| for each rank from 0 to all: the square root of the share of the squared singular
/// values that are left out (Eckart and Young 1936); 0 for an update of zeros.
inline std::vector<double> truncation_errors(const std::vector<double>& singular_values) {
  std::vector<double> errors(singular_values.size() + 1, 0.0);
  double left_out = 0;
  for (std::size_t i = singular_values.size(); i-- > 0;)
    errors[i] = left_out += singular_values[i] * singular_values[i];
  const double all = left_out;
  for (double& error : errors) error = all > 0 ? std::sqrt(error / all) : 0.0;
  return errors;
}

/// The smallest rank, at least 1, whose relative error is at most `error`.
inline Index rank_within(const std::vector<double>& singular_values, double error) {
  const auto errors = truncation_errors(singular_values);
  Index rank = 1;
  while (rank < Index(singular_values.size()) && errors[std::size_t(rank)] > error) ++rank;
  return rank;
}

namespace detail {

/// Any (rows, columns) array as doubles on the host.
template <class View>
Eigen::MatrixXd host_matrix(const View& view) {
  const auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
  Eigen::MatrixXd result(view.extent(0), view.extent(1));
  for (Index i = 0; i < result.rows(); ++i)
    for (Index j = 0; j < result.cols(); ++j) result(i, j) = double(host(i, j));
  return result;
}

/// The first `rank` of u (out, n), s (n), v (in, n) as factors.
template <class T, class Space>
Truncation<T, Space> truncation_of(const Eigen::MatrixXd& u, const Eigen::VectorXd& s, const Eigen::MatrixXd& v,
                                   Index rank) {
  require<ConfigError>(rank >= 1 && rank <= Index(s.size()), "moe::truncate: rank ", rank, " of an update with ",
                       s.size(), " singular values.");
  Truncation<T, Space> result;
  result.singular_values.assign(s.data(), s.data() + s.size());
  result.relative_error = truncation_errors(result.singular_values)[std::size_t(rank)];
  auto& to = result.update;
  to.a = Tensor3<T, Space>("moe::truncate::a", 1, std::size_t(rank), std::size_t(v.rows()));
  to.b = Tensor3<T, Space>("moe::truncate::b", 1, std::size_t(u.rows()), std::size_t(rank));
  const auto a = Kokkos::create_mirror_view(Kokkos::HostSpace{}, to.a);
  const auto b = Kokkos::create_mirror_view(Kokkos::HostSpace{}, to.b);
  for (Index k = 0; k < rank; ++k) {
    const double root = std::sqrt(s(k));
    for (Index i = 0; i < Index(v.rows()); ++i) a(0, k, i) = T(root * v(i, k));
    for (Index o = 0; o < Index(u.rows()); ++o) b(0, o, k) = T(u(o, k) * root);
  }
  Kokkos::deep_copy(to.a, a);
  Kokkos::deep_copy(to.b, b);
  return result;
}

}  // namespace detail

/// A dense update (out, in), such as fine-tuned minus base weights, as one of rank `rank`. Of all updates of that rank
/// it is nearest in the Frobenius and the spectral norm (Eckart and Young 1936). Throws ConfigError for a rank that is
/// not 1 to min(out, in), DataError for NaN and infinity. O(out in min(out, in)).
template <class T, class Space>
Truncation<std::remove_const_t<T>, Space> truncate(Context<Space>& ctx, const Matrix<T, Space>& delta, Index rank) {
  ctx.space.fence("moe::truncate");  // whatever fills it
  const auto dense = detail::host_matrix(delta);
  detail::require<DataError>(dense.allFinite(), "moe::truncate: the update holds NaN or infinity.");
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(dense, Eigen::ComputeThinU | Eigen::ComputeThinV);
  return detail::truncation_of<std::remove_const_t<T>, Space>(svd.matrixU(), svd.singularValues(), svd.matrixV(), rank);
}

/// A weighted sum of low-rank updates as one of rank `rank`, as near as any. The dense sum is never formed: with the
/// stacked factors B = Q_B R_B and A^T = Q_A R_A, the decomposition of the small R_B R_A^T = U S V^T gives that of
/// B A = (Q_B U) S (Q_A V)^T. O((out + in) r^2 + r^3) for a sum of ranks r, at which nothing is lost. Throws
/// ConfigError for a rank that is not 1 to min(r, out, in), and for an update that is not there; DataError for NaN and
/// infinity.
template <class T, class Space>
Truncation<T, Space> truncate(Context<Space>& ctx, const LowRank<T, Space>& update,
                              const std::vector<WeightedUpdate>& of, Index rank) {
  detail::check_updates("moe::truncate", update, of);
  const Index width = update.rank() * Index(of.size());
  const Matrix<double, Space> b("moe::truncate::b", update.out(), width), a("moe::truncate::a", width, update.in());
  detail::stack_updates(ctx.space, update, of, b, a);
  ctx.space.fence("moe::truncate");
  const Eigen::MatrixXd left = detail::host_matrix(b), right = detail::host_matrix(a).transpose();
  detail::require<DataError>(left.allFinite() && right.allFinite(), "moe::truncate: the update holds NaN or infinity.");
  const auto factor = [](const Eigen::MatrixXd& matrix, Eigen::MatrixXd& q, Eigen::MatrixXd& r) {
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(matrix);
    const Eigen::Index n = std::min(matrix.rows(), matrix.cols());
    q = qr.householderQ() * Eigen::MatrixXd::Identity(matrix.rows(), n);
    r = qr.matrixQR().topRows(n).template triangularView<Eigen::Upper>();
  };
  Eigen::MatrixXd q_left, r_left, q_right, r_right;
  factor(left, q_left, r_left);
  factor(right, q_right, r_right);
  const Eigen::MatrixXd core = r_left * r_right.transpose();
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(core, Eigen::ComputeThinU | Eigen::ComputeThinV);
  return detail::truncation_of<T, Space>(q_left * svd.matrixU(), svd.singularValues(), q_right * svd.matrixV(), rank);
}

MOE_NAMESPACE_END
