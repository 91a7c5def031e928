#pragma once
/// @file
/// cuBLAS for grouped products whose experts all have the same number of rows, known on the host: padded capacities.
/// Only where MOE_CUBLAS is defined (the CMake option of that name links cuBLAS too).

#if defined(MOE_CUBLAS)

#  include <cublas_v2.h>

#  include <map>

#  include "moe/core/bfloat16.hpp"
#  include "moe/core/float16.hpp"
#  include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cuda {

inline void require_cublas(cublasStatus_t status, const char* what) {
  moe::detail::require<Error>(status == CUBLAS_STATUS_SUCCESS, "moe: cuBLAS refused ", what, ": ",
                              cublasGetStatusString(status), ".");
}

/// One handle for each thread and device, since a handle belongs to one stream at a time. Made on first use: run a step
/// once before you capture one.
inline cublasHandle_t cublas_handle(const Kokkos::Cuda& space) {
  struct Handle {
    cublasHandle_t handle{};
    Handle() { require_cublas(cublasCreate(&handle), "to start"); }
    ~Handle() { cublasDestroy(handle); }
  };
  thread_local std::map<int, Handle> handles;
  const cublasHandle_t handle = handles[space.cuda_device()].handle;
  require_cublas(cublasSetStream(handle, space.cuda_stream()), "the stream");
  return handle;
}

template <class T>
constexpr cudaDataType_t cublas_type() {
  if constexpr (std::is_same_v<T, bfloat16>) return CUDA_R_16BF;
  if constexpr (std::is_same_v<T, float16>) return CUDA_R_16F;
  return std::is_same_v<T, double> ? CUDA_R_64F : CUDA_R_32F;
}

/// C_e (+)= A_e B_e^T for all e at once, `rows_each` rows an expert. cuBLAS counts columns first, so it is asked for
/// C^T = B A^T, and what lies along the sum is transposed there or not.
template <class T>
void multiply_batched(const Kokkos::Cuda& space, const Product<T>& product) {
  const Index each = product.rows_each;
  const bool a_along = product.a.sum_stride == 1, b_along = product.b.sum_stride == 1;
  const Index m = product.cut_sum ? product.m : each, sum = product.cut_sum ? each : product.sum;
  if (m == 0 || product.n == 0 || (sum == 0 && product.accumulate)) return;
  const auto leading = [](const Operand<T>& x, bool along) { return int(along ? x.row_stride : x.sum_stride); };
  const Index a_stride = each * (product.cut_sum ? product.a.sum_stride : product.a.row_stride);
  const Index b_stride = product.cut_sum ? each * product.b.sum_stride : product.b.expert_stride;
  const Index c_stride = product.cut_sum ? product.c_expert_stride : each * product.n;
  using Sum = RouterReal<T>;
  const Sum one = 1, old = product.accumulate ? 1 : 0;
  require_cublas(
      cublasGemmStridedBatchedEx(
          cublas_handle(space), b_along ? CUBLAS_OP_T : CUBLAS_OP_N, a_along ? CUBLAS_OP_N : CUBLAS_OP_T,
          int(product.n), int(m), int(sum), &one, product.b.data, cublas_type<T>(), leading(product.b, b_along),
          b_stride, product.a.data, cublas_type<T>(), leading(product.a, a_along), a_stride, &old, product.c,
          cublas_type<T>(), int(product.n), c_stride, int(product.experts),
          std::is_same_v<Sum, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "a batch of products");
}

}  // namespace kernels::cuda

MOE_NAMESPACE_END

#endif
