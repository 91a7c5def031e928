#pragma once
/// @file
/// Is a stream being captured into a graph? What needs the host in the middle of a step says so instead.
///
/// A captured step runs nothing: its launches are recorded, and each launch of the graph repeats them with the same
/// addresses and the same numbers. What waits for the device, allocates, or changes a number on the host with each step
/// cannot be part of it. docs/devices.md says how to capture.

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// For tests on hosts, which have no streams: makes every instance say that it is captured.
inline bool pretend_capture = false;

}  // namespace detail

/// Is work on this instance recorded into a graph at the moment? Never on hosts.
template <class Space>
bool capturing([[maybe_unused]] const Space& space) {
#if defined(KOKKOS_ENABLE_CUDA)
  if constexpr (std::is_same_v<Space, Kokkos::Cuda>) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(space.cuda_stream(), &status) == cudaSuccess)
      return status != cudaStreamCaptureStatusNone;
    (void)cudaGetLastError();  // the legacy stream says so while another stream is captured: it itself is not
    return false;
  }
#endif
#if defined(KOKKOS_ENABLE_HIP)
  if constexpr (std::is_same_v<Space, Kokkos::HIP>) {
    hipStreamCaptureStatus status = hipStreamCaptureStatusNone;
    if (hipStreamIsCapturing(space.hip_stream(), &status) == hipSuccess) return status != hipStreamCaptureStatusNone;
    (void)hipGetLastError();
    return false;
  }
#endif
  return detail::pretend_capture;
}

namespace detail {

/// Throws where `space` is captured: `what` cannot be, and `instead` is what to do.
template <class Space>
void refuse_capture(const Space& space, const char* what, const char* instead) {
  if (capturing(space)) throw Error(sentence(what, " cannot be captured in a graph. ", instead));
}

}  // namespace detail

MOE_NAMESPACE_END
