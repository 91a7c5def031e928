#pragma once
/// @file
/// Starting teams that stay: by Kokkos on any space; on GPUs straight on the space's stream where a kernel's stages
/// take more scratch memory than Kokkos gives a team there (48 KiB).

#include <algorithm>

#include "moe/core/error.hpp"
#include "moe/kernels/device/tile_product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

template <class Member>
struct TeamBarrier {
  const Member& team;
  KOKKOS_FUNCTION void operator()() const { team.team_barrier(); }
};

/// A kernel's body as Kokkos calls it.
template <class Kernel>
struct KokkosKernel {
  Kernel kernel;
  Index bytes;
  template <class Member>
  KOKKOS_FUNCTION void operator()(const Member& team) const {
    auto* scratch = static_cast<std::byte*>(team.team_scratch(0).get_shmem_aligned(std::size_t(bytes), line_bytes));
    kernel(Place<TeamBarrier<Member>>{
        int(team.team_rank()), Index(team.league_rank()), Index(team.league_size()), scratch, {team}});
  }
};

/// Functors of more than 512 bytes would go through constant memory, and wait for the launch before.
template <class Space, int threads>
using Teams = Kokkos::TeamPolicy<Space, Kokkos::LaunchBounds<threads, 1>, moe::detail::LightWeight>;

#if defined(KOKKOS_ENABLE_CUDA) && defined(__CUDACC__)
struct BlockBarrier {
  __device__ void operator()() const { __syncthreads(); }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::teams_each) cuda_kernel(const Kernel kernel) {
  extern __shared__ __align__(1024) unsigned char moe_scratch[];
  [[maybe_unused]] const Place<BlockBarrier> place{
      int(threadIdx.x), Index(blockIdx.x), Index(gridDim.x), reinterpret_cast<std::byte*>(moe_scratch), {}};
#  if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  kernel(place);
#  else
  if constexpr (!Kernel::swizzled) kernel(place);  // others are for sm_90a alone
#  endif
}

inline void require_success(cudaError_t error, const char* what) {
  moe::detail::require<Error>(error == cudaSuccess, "moe: CUDA refused ", what, ": ", cudaGetErrorString(error), ".");
}

/// As many blocks as the device holds at once stay until all tiles are done.
template <class Kernel>
void launch_blocks(const Kokkos::Cuda& space, const Kernel& kernel, Index tiles) {
  const int bytes = int(kernel.bytes_of(kernel.product.experts)), device = space.cuda_device();
  auto* const function = &cuda_kernel<Kernel>;
  require_success(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                  "shared memory for a product of matrices");
  int each = 0, units = 0;
  require_success(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, function, Kernel::threads, bytes),
                  "the occupancy of a product of matrices");
  require_success(cudaDeviceGetAttribute(&units, cudaDevAttrMultiProcessorCount, device), "the number of its units");
  const Index blocks = std::min<Index>(tiles, std::max(1, each * units));
  function<<<unsigned(blocks), Kernel::threads, std::size_t(bytes), space.cuda_stream()>>>(kernel);
  require_success(cudaGetLastError(), "to start a product of matrices");
}
#endif

/// Are a kernel's teams started without Kokkos?
template <class Space, class Kernel>
inline constexpr bool starts_by_itself =
#if defined(KOKKOS_ENABLE_CUDA) && defined(__CUDACC__)
    (std::is_same_v<Space, Kokkos::Cuda> && Kernel::scratch_by_itself);
#else
    false;
#endif

/// Runs a kernel on all of its tiles.
template <class Space, class Kernel>
void launch(const Space& space, const Kernel& kernel) {
  const Index tiles = kernel.most_tiles(), bytes = kernel.bytes_of(kernel.product.experts);
  if (tiles == 0) return;
  if constexpr (starts_by_itself<Space, Kernel>) {
    launch_blocks(space, kernel, tiles);
  } else {
    const Index teams = std::min<Index>(tiles, std::max<Index>(1, space.concurrency() / Kernel::threads));
    auto policy = Teams<Space, Kernel::threads>(space, int(teams), Kernel::threads)
                      .set_scratch_size(0, Kokkos::PerTeam(int(bytes) + line_bytes));
    Kokkos::parallel_for("moe::device::multiply", policy, KokkosKernel<Kernel>{kernel, bytes});
  }
}

}  // namespace kernels::device

MOE_NAMESPACE_END
