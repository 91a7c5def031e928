# CUDA 13 changed two functions that Kokkos 4.7.0 calls; later Kokkos versions know that.

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
endfunction()

function(_moe_replace variable old new)
  string(FIND "${${variable}}" "${old}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "The CUDA 13 patch does not fit this Kokkos")
  endif()
  string(REPLACE "${old}" "${new}" result "${${variable}}")
  set(${variable} "${result}" PARENT_SCOPE)
endfunction()
