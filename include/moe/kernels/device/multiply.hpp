#pragma once
/// @file
/// Chooses the engine of a product on a device: matrix units for 16-bit numbers, and for float where TF32 is allowed;
/// else plain threads.

#include "moe/core/bfloat16.hpp"
#include "moe/core/float16.hpp"
#include "moe/kernels/cuda/batched.hpp"
#include "moe/kernels/cuda/warp_tile.hpp"
#include "moe/kernels/cuda/warpgroup_tile.hpp"
#include "moe/kernels/device/launch.hpp"
#include "moe/kernels/hip/wave_tile.hpp"
#include "moe/kernels/portable/thread_tile.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// May float products of experts on NVIDIA's devices use TF32, whose factors have 10 bits of fraction instead of 23?
/// Not unless you say so: `moe::kernels::device::allow_tf32() = true;`. Routers never do.
inline bool& allow_tf32() {
  static bool allowed = false;
  return allowed;
}

/// Teams on hosts are one thread each: their threads run other teams.
template <class Space>
inline constexpr int team_size = on_host<Space> ? 1 : 128;

/// The engines of a space for numbers T: `large` tiles, and `few` rows.
template <class Space, class T, int parts>
struct Engines {
  using large = portable::ThreadTile<T, team_size<Space>, parts>;
  using few = large;
};

/// FP8 by plain threads.
template <class Space, int parts>
struct Engines<Space, float8_e4m3, parts> {
  using large = portable::ThreadTile<float8_e4m3, team_size<Space>, parts, 32>;
  using few = large;
};

#if defined(KOKKOS_ENABLE_CUDA) && defined(__CUDACC__)
template <class T, int parts>
requires(sizeof(T) == 2) struct Engines<Kokkos::Cuda, T, parts> {
  using large = cuda::WarpTile<T, 128, 128 / parts, 32, 2, 4, parts, 3>;
  using few = cuda::WarpTile<T, 16, 64 / parts, 64, 1, 4, parts, 4>;
};
/// By warpgroups, where a 9.0 device has code of sm_90a.
template <class T, int parts>
struct WarpgroupEngines {
  using large = cuda::WarpgroupTile<T, 256 / parts, parts, 4>;
  using few = typename Engines<Kokkos::Cuda, T, parts>::few;
};
inline bool has_warpgroups(const Kokkos::Cuda& space) {
  static const bool compiled = cuda::is_sm90a_code();
  return compiled && space.cuda_device_prop().major == 9;
}
/// TF32: the products of a float's upper 19 bits.
template <int parts>
struct TF32Engines {
  using large = cuda::WarpTile<float, 128, 128 / parts, 16, 2, 4, parts, 3>;
  using few = cuda::WarpTile<float, 16, 64 / parts, 32, 1, 4, parts, 4>;
};
#endif
#if defined(KOKKOS_ENABLE_CUDA) && defined(__CUDACC__)
template <int parts>
struct FP8Engines {  // twice the sums: of a block, and of all
  using large = cuda::WarpTile<float8_e4m3, 128, 64 / parts, 64, 4, 2, parts, 4>;
  using few = cuda::WarpTile<float8_e4m3, 16, 64 / parts, 128, 1, 4, parts, 4>;
};
inline bool multiplies_fp8(const Kokkos::Cuda& space) {
  const auto& device = space.cuda_device_prop();
  return device.major * 10 + device.minor >= 89;
}
#endif
#if defined(KOKKOS_ENABLE_HIP)
template <class T, int parts>
requires(sizeof(T) == 2) struct Engines<Kokkos::HIP, T, parts> {
  using large = hip::WaveTile<T, 128, 128 / parts, 32, 2, 2, parts>;
  using few = hip::WaveTile<T, 16, 128 / parts, 64, 1, 4, parts>;
};
#endif

template <class Engine, bool a_along, bool b_along, class Space, class T, class Finish>
void multiply_laid_out(const Space& space, const Product<T>& product, const Finish& finish) {
  // Which engine decides for nothing but speed. An average of 12 rows an expert leaves few with more than 16, whose
  // weights are then read twice.
  const bool averages = !product.cut_sum && product.offsets != nullptr;
  const Index rows = averages ? product.m / product.experts : product.m;
  if (rows <= (averages ? Engine::few::rows * 3 / 4 : Engine::few::rows)) {
    launch(space, TileProduct<T, typename Engine::few, a_along, b_along, Finish>(product, finish));
  } else {
    launch(space, TileProduct<T, typename Engine::large, a_along, b_along, Finish>(product, finish));
  }
}

template <class Engine, int parts, class Space, class T, class Finish>
void multiply_by(const Space& space, const Product<T>& product, const Finish& finish) {
  const bool a = product.a.sum_stride == 1, b = product.b.sum_stride == 1;
  if (a && b) {
    multiply_laid_out<Engine, true, true>(space, product, finish);
  } else if constexpr (parts == 1 && sizeof(T) > 1) {
    if (a) {
      multiply_laid_out<Engine, true, false>(space, product, finish);
    } else {
      multiply_laid_out<Engine, false, false>(space, product, finish);
    }
  }
}

/// Runs a product, and `finish` on its sums. Two parts: both operands lie along the sum. exact: never in TF32.
template <int parts = 1, bool exact = false, class Space, class T, class Finish = Store<T>>
void multiply(const Space& space, const Product<T>& product, const Finish& finish = {}) {
  if (product.n == 0) return;
#if defined(MOE_CUBLAS)
  if constexpr (std::is_same_v<Space, Kokkos::Cuda> && std::is_same_v<Finish, Store<T>>) {
    if (product.rows_each >= 0 && product.a.number == nullptr && product.b.number == nullptr)
      return cuda::multiply_batched(space, product);
  }
#endif
#if defined(KOKKOS_ENABLE_CUDA) && defined(__CUDACC__)
  if constexpr (std::is_same_v<Space, Kokkos::Cuda> && std::is_same_v<T, float> && !exact) {
    if (allow_tf32()) return multiply_by<TF32Engines<parts>, parts>(space, product, finish);
  } else if constexpr (std::is_same_v<Space, Kokkos::Cuda> && std::is_same_v<T, float8_e4m3>) {
    if (multiplies_fp8(space)) return multiply_by<FP8Engines<parts>, parts>(space, product, finish);
  } else if constexpr (std::is_same_v<Space, Kokkos::Cuda> && sizeof(T) == 2) {
    if (has_warpgroups(space)) return multiply_by<WarpgroupEngines<T, parts>, parts>(space, product, finish);
  }
#endif
  multiply_by<Engines<Space, T, parts>, parts>(space, product, finish);
}

}  // namespace kernels::device

MOE_NAMESPACE_END
