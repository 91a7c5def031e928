# What Kokkos 4.7.0 lacks for CUDA 13: two functions have other parameters, and nvcc lays members that are marked
# [[no_unique_address]] out otherwise in a kernel than on the host, so that Kokkos' views are read at wrong offsets (its
# upstream mended that in kokkos/mdspan#434). Later Kokkos versions know both.

function(moe_patch_kokkos_for_cuda13 tree)
  set(file ${tree}/core/src/Cuda/Kokkos_Cuda_Instance.hpp)
  file(READ ${file} text)
  _moe_replace(text "    return cudaGraphAddDependencies(graph, from, to, numDependencies);"
"#if CUDART_VERSION >= 13000
    return cudaGraphAddDependencies(graph, from, to, nullptr, numDependencies);
#else
    return cudaGraphAddDependencies(graph, from, to, numDependencies);
#endif")
  _moe_replace(text "    return cudaMemPrefetchAsync(devPtr, count, dstDevice, m_stream);"
"#if CUDART_VERSION >= 13000
    cudaMemLocation location{};
    location.type = cudaMemLocationTypeDevice;
    location.id = dstDevice;
    return cudaMemPrefetchAsync(devPtr, count, location, 0, m_stream);
#else
    return cudaMemPrefetchAsync(devPtr, count, dstDevice, m_stream);
#endif")
  file(WRITE ${file} "${text}")

  set(file ${tree}/tpls/mdspan/include/experimental/__p0009_bits/config.hpp)
  file(READ ${file} text)
  _moe_replace(text "(!defined(__NVCC__) || MDSPAN_HAS_CXX_20)" "!defined(__NVCC__)")
  file(WRITE ${file} "${text}")
endfunction()

function(_moe_replace variable old new)
  string(FIND "${${variable}}" "${old}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "The CUDA 13 patch does not fit this Kokkos")
  endif()
  string(REPLACE "${old}" "${new}" result "${${variable}}")
  set(${variable} "${result}" PARENT_SCOPE)
endfunction()
