# A look at what the compiler made: programs for a GPU do not start on a machine without one, but their device code can
# be listed.

set(MOE_CUOBJDUMP_WHEEL nvidia-cuda-cuobjdump==13.5.37)
set(MOE_CUOBJDUMP_SHA256 38780fee50863252a0b8926357faa91615ca1c8346490563f33a06100cd73f58) # of the one for x86-64

# cuobjdump from PyPI, for a toolkit that comes without it. Where it cannot be had, the check is a weaker one.
function(_moe_fetch_cuobjdump)
  set(folder ${MOE_DEPS_DIR}/cuobjdump)
  find_program(MOE_PYTHON NAMES python3 python)
  if(NOT MOE_PYTHON OR NOT CMAKE_HOST_SYSTEM_PROCESSOR STREQUAL "x86_64")
    return()
  endif()
  file(LOCK ${MOE_DEPS_DIR}/lock TIMEOUT 1800)
  if(NOT EXISTS ${folder}/nvidia)
    file(WRITE ${folder}/requirements.txt "${MOE_CUOBJDUMP_WHEEL} --hash=sha256:${MOE_CUOBJDUMP_SHA256}\n")
    execute_process(COMMAND ${MOE_PYTHON} -m pip download -q --disable-pip-version-check --no-deps --only-binary :all:
                            --require-hashes -r requirements.txt
                    WORKING_DIRECTORY ${folder} RESULT_VARIABLE failed OUTPUT_FILE pip.log ERROR_FILE pip.log)
    file(GLOB wheel ${folder}/*.whl)
    if(failed OR NOT wheel)
      message(STATUS "moe: pip cannot download ${MOE_CUOBJDUMP_WHEEL} (see ${folder}/pip.log)")
    else()
      file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${folder})
      file(GLOB_RECURSE program ${folder}/nvidia/cuobjdump)
      file(CHMOD ${program} FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
    endif()
  endif()
  file(LOCK ${MOE_DEPS_DIR}/lock RELEASE)
endfunction()

if(MOE_CUDA)
  get_filename_component(_cuda_bin ${CMAKE_CUDA_COMPILER} DIRECTORY)
  find_program(MOE_CUOBJDUMP cuobjdump HINTS ${_cuda_bin})
  if(NOT MOE_CUOBJDUMP AND MOE_FETCH)
    _moe_fetch_cuobjdump()
    file(GLOB_RECURSE _fetched ${MOE_DEPS_DIR}/cuobjdump/nvidia/cuobjdump)
    if(_fetched)
      set(MOE_CUOBJDUMP ${_fetched} CACHE FILEPATH "" FORCE)
    endif()
  endif()
  set(_architectures ${CMAKE_CUDA_ARCHITECTURES})
  list(TRANSFORM _architectures REPLACE "^([0-9]+[a-z]?).*$" "sm_\\1")
  set(_tools -DREADELF=${CMAKE_READELF})
  if(MOE_CUOBJDUMP)
    list(APPEND _tools -DCUOBJDUMP=${MOE_CUOBJDUMP})
  endif()
else()
  set(_architectures ${MOE_HIP_ARCHITECTURES})
  set(_tools -DLLVM=${MOE_HIP_LLVM} -DFOLDER=${CMAKE_CURRENT_BINARY_DIR})
endif()
list(JOIN _architectures "," _architectures)
set(MOE_CHECK_DEVICE_CODE ${CMAKE_COMMAND} ${_tools} -DARCHITECTURES=${_architectures})

# moe_check_device_code(program): building it fails where it has no kernels of moe for each architecture.
function(moe_check_device_code program)
  add_custom_command(TARGET ${program} POST_BUILD VERBATIM
    COMMAND ${MOE_CHECK_DEVICE_CODE} -DPROGRAM=$<TARGET_FILE:${program}>
            -P ${PROJECT_SOURCE_DIR}/cmake/CheckDeviceCode.cmake)
endfunction()
