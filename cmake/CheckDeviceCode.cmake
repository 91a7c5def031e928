# cmake -DPROGRAM= -DARCHITECTURES=<name,...> -D<tool>=... -P: stops where the program lacks kernels of moe for one of
# the architectures. For CUDA (sm_...) with CUOBJDUMP; without it READELF can only tell that there is device code at
# all. For HIP (gfx...) with LLVM, the folder of LLVM's tools, and FOLDER to write to.

cmake_policy(VERSION 3.25)
get_filename_component(name ${PROGRAM} NAME)
string(REPLACE "," ";" architectures ${ARCHITECTURES})

# report(architecture text pattern): counts the kernels of moe.
function(report architecture text pattern)
  string(REGEX MATCHALL "${pattern}" kernels "${text}")
  list(LENGTH kernels count)
  if(count EQUAL 0)
    message(FATAL_ERROR "${PROGRAM} holds no kernels of moe for ${architecture}")
  endif()
  message("${name}: ${count} kernels of moe for ${architecture}")
endfunction()

if(LLVM)
  set(bundle ${FOLDER}/${name}.hip_fatbin)
  execute_process(COMMAND ${LLVM}/llvm-objcopy --dump-section .hip_fatbin=${bundle} ${PROGRAM} ${bundle}.discard
                  COMMAND_ERROR_IS_FATAL ANY)
  file(REMOVE ${bundle}.discard)
  execute_process(COMMAND ${LLVM}/clang-offload-bundler --type=o --list --input=${bundle}
                  OUTPUT_VARIABLE targets COMMAND_ERROR_IS_FATAL ANY)
  foreach(architecture IN LISTS architectures)
    if(NOT targets MATCHES "(hip[^\n]*--${architecture})\n")
      message(FATAL_ERROR "${PROGRAM} holds no code for ${architecture}, only for:\n${targets}")
    endif()
    execute_process(COMMAND ${LLVM}/clang-offload-bundler --type=o --unbundle --input=${bundle}
                            --targets=${CMAKE_MATCH_1} --output=${bundle}.${architecture} COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${LLVM}/llvm-readelf --dyn-symbols --wide ${bundle}.${architecture}
                    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
    file(REMOVE ${bundle}.${architecture})
    report(${architecture} "${symbols}" "FUNC [^\n]*3moe[^\n]*")
  endforeach()
  file(REMOVE ${bundle})
elseif(CUOBJDUMP)
  foreach(architecture IN LISTS architectures)
    execute_process(COMMAND ${CUOBJDUMP} --gpu-architecture ${architecture} --dump-elf-symbols ${PROGRAM}
                    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
    report(${architecture} "${symbols}" "FUNC[^\n]*ENTRY[^\n]*3moe[^\n]*")
  endforeach()
else()
  execute_process(COMMAND ${READELF} --wide --sections ${PROGRAM} OUTPUT_VARIABLE sections COMMAND_ERROR_IS_FATAL ANY)
  if(NOT sections MATCHES "[.]nv_fatbin +PROGBITS +[0-9a-f]+ +[0-9a-f]+ +([0-9a-f]+)")
    message(FATAL_ERROR "${PROGRAM} holds no device code")
  endif()
  message("${name}: device code of 0x${CMAKE_MATCH_1} bytes (its kernels cannot be listed without cuobjdump)")
endif()

# Kokkos puts large functors into constant memory, and waits for the launch before; detail::Range avoids that.
if(READELF AND NOT LLVM)
  execute_process(COMMAND ${READELF} --wide --symbols ${PROGRAM} OUTPUT_VARIABLE names COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "cuda_parallel_launch_(constant|global)_memory[^\n]*3moe[^\n]*" waiting "${names}")
  if(waiting)
    list(JOIN waiting "\n" waiting)
    message(FATAL_ERROR "Launch these by detail::Range or detail::each, and keep functors under 4 KB:\n${waiting}")
  endif()
endif()
