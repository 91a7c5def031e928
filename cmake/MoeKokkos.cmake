# Kokkos is built once for each compiler and set of backends, and shared by all presets.

include(MoeChecksum)

set(MOE_KOKKOS_SDIST_VERSION 4.7.0)
set(MOE_KOKKOS_SDIST pygenten==0.1.5) # this source distribution carries the whole of Kokkos 4.7.0
set(MOE_KOKKOS_SDIST_FILE pygenten-0.1.5.tar.gz)
set(MOE_KOKKOS_SDIST_SHA256 e620f05c742905e2db705d875f1cac92ef0ed453f9e6734e9beda26cc0f9cce7)
set(MOE_KOKKOS_PATCHES 2) # raised with MoeKokkosCuda13.cmake, so that what an earlier one built is left
set(MOE_KOKKOS_UPSTREAM https://github.com/kokkos/kokkos.git 4.7.00) # the same

function(_moe_kokkos_options out_name out_options)
  set(name ${CMAKE_CXX_COMPILER_ID}-${CMAKE_CXX_COMPILER_VERSION})
  set(options -DKokkos_ENABLE_SERIAL=ON)
  if(MOE_CUDA)
    # Kokkos knows GPUs by name, cannot ask a machine that has none, and takes one: the others are flags to it.
    list(GET CMAKE_CUDA_ARCHITECTURES 0 first)
    string(REGEX MATCH "^[0-9]+" first ${first})
    set(names 70 VOLTA70 75 TURING75 80 AMPERE80 86 AMPERE86 89 ADA89 90 HOPPER90 100 BLACKWELL100 120 BLACKWELL120)
    list(FIND names ${first} at)
    if(at EQUAL -1)
      message(FATAL_ERROR "Kokkos has no name for CUDA's architecture ${first}, the first of CMAKE_CUDA_ARCHITECTURES")
    endif()
    math(EXPR at "${at} + 1")
    list(GET names ${at} gpu)
    set(others ${CMAKE_CUDA_ARCHITECTURES})
    list(POP_FRONT others)
    list(TRANSFORM others REPLACE "^([0-9]+[a-z]?).*$" "-gencode=arch=compute_\\1,code=sm_\\1")
    list(JOIN others " " flags)
    list(JOIN CMAKE_CUDA_ARCHITECTURES + architectures)
    string(APPEND name -cuda-${CMAKE_CUDA_COMPILER_VERSION}-sm${architectures}-patched-${MOE_KOKKOS_PATCHES})
    list(APPEND options -DKokkos_ENABLE_CUDA=ON -DKokkos_ENABLE_COMPILE_AS_CMAKE_LANGUAGE=ON
         -DKokkos_ARCH_${gpu}=ON -DCMAKE_CUDA_FLAGS=${flags}
         -DCMAKE_CUDA_COMPILER=${CMAKE_CUDA_COMPILER} -DCMAKE_CUDA_STANDARD=20
         -DCMAKE_CUDA_ARCHITECTURES=${first}
         -DCMAKE_CUDA20_STANDARD_COMPILE_OPTION=-std=c++20
         -DCMAKE_CUDA20_EXTENSION_COMPILE_OPTION=-std=c++20)
  elseif(MOE_HIP)
    list(GET MOE_HIP_ARCHITECTURES 0 first)
    string(TOUPPER ${first} gpu)
    list(JOIN MOE_HIP_ARCHITECTURES + architectures)
    get_filename_component(rocm ${MOE_ROCM_PATH} NAME)
    string(APPEND name -hip-${rocm}-${architectures})
    # Without rocThrust, sorting would go through the host; nothing of ours sorts by Kokkos.
    list(APPEND options -DKokkos_ENABLE_HIP=ON -DKokkos_ARCH_AMD_${gpu}=ON -DKokkos_ENABLE_ROCTHRUST=OFF
         "-DCMAKE_CXX_FLAGS=${MOE_HIP_FLAGS}")
  else()
    find_package(OpenMP QUIET COMPONENTS CXX)
    if(OpenMP_CXX_FOUND)
      string(APPEND name -openmp)
      list(APPEND options -DKokkos_ENABLE_OPENMP=ON)
    endif()
  endif()
  string(TOLOWER ${name} name)
  set(${out_name} ${name} PARENT_SCOPE)
  set(${out_options} ${options} PARENT_SCOPE)
endfunction()

# Leaves Kokkos' sources in `unpacked`, or an empty string where PyPI is out of reach.
function(_moe_kokkos_from_pypi unpacked)
  set(${unpacked} "" PARENT_SCOPE)
  set(archives ${MOE_DEPS_DIR}/archives)
  set(archive ${archives}/${MOE_KOKKOS_SDIST_FILE})
  if(NOT EXISTS ${archive})
    message(STATUS "moe: downloading Kokkos ${MOE_KOKKOS_SDIST_VERSION} (17 MB)")
    find_program(MOE_PYTHON NAMES python3 python)
    if(NOT MOE_PYTHON)
      message(STATUS "moe: Python is missing; install it with: sudo apt-get install python3-pip")
      return()
    endif()
    # pip checks the hash before it looks into the archive. What it builds metadata with may be binary.
    string(REGEX MATCH "^[^=]+" package ${MOE_KOKKOS_SDIST})
    file(WRITE ${archives}/requirements.txt "${MOE_KOKKOS_SDIST} --hash=sha256:${MOE_KOKKOS_SDIST_SHA256}\n")
    execute_process(COMMAND ${MOE_PYTHON} -m pip download -q --disable-pip-version-check --no-deps
                            --no-binary ${package} --require-hashes -r requirements.txt
                    WORKING_DIRECTORY ${archives} RESULT_VARIABLE failed OUTPUT_FILE pip.log ERROR_FILE pip.log)
    if(failed)
      message(STATUS "moe: pip cannot download ${MOE_KOKKOS_SDIST} (see ${archives}/pip.log); "
                     "a missing pip is installed with: sudo apt-get install python3-pip")
      return()
    endif()
  endif()
  moe_check_sha256(${archive} ${MOE_KOKKOS_SDIST_SHA256})
  string(REPLACE .tar.gz "" inside ${MOE_KOKKOS_SDIST_FILE})
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${MOE_DEPS_DIR}/unpacked PATTERNS ${inside}/tpls/kokkos/*)
  set(${unpacked} ${MOE_DEPS_DIR}/unpacked/${inside}/tpls/kokkos PARENT_SCOPE)
endfunction()

# Leaves the patched source tree in `source`.
function(_moe_kokkos_source source)
  set(tree ${MOE_DEPS_DIR}/src/kokkos-${MOE_KOKKOS_SDIST_VERSION}-patched-${MOE_KOKKOS_PATCHES})
  if(NOT EXISTS ${tree}/CMakeLists.txt)
    _moe_kokkos_from_pypi(unpacked)
    if(NOT unpacked)
      moe_clone(kokkos-unpatched ${MOE_KOKKOS_UPSTREAM})
      set(unpacked ${MOE_DEPS_DIR}/src/kokkos-unpatched)
    endif()
    include(MoeKokkosCuda13)
    moe_patch_kokkos_for_cuda13(${unpacked})
    file(MAKE_DIRECTORY ${MOE_DEPS_DIR}/src)
    file(RENAME ${unpacked} ${tree})
    file(REMOVE_RECURSE ${MOE_DEPS_DIR}/unpacked)
  endif()
  set(${source} ${tree} PARENT_SCOPE)
endfunction()

macro(moe_kokkos)
  if(NOT TARGET Kokkos::kokkos)
    _moe_kokkos_options(_kokkos_name _kokkos_options)
    set(_kokkos_prefix ${MOE_DEPS_DIR}/kokkos-${_kokkos_name})
    list(PREPEND CMAKE_PREFIX_PATH ${_kokkos_prefix})
    _moe_find(Kokkos 4.5)
    if(NOT Kokkos_FOUND AND MOE_FETCH)
      _moe_kokkos_source(_kokkos_source)
      message(STATUS "moe: building Kokkos for ${_kokkos_name} (once; under two minutes)")
      moe_install_source(kokkos-${_kokkos_name} ${_kokkos_source} ${_kokkos_prefix} ${_kokkos_options})
      _moe_find(Kokkos 4.5)
    endif()
    if(NOT Kokkos_FOUND)
      message(FATAL_ERROR "Kokkos 4.5 or newer was not found and could not be fetched; "
                          "install it and pass -DKokkos_ROOT=<its prefix>")
    endif()
  endif()
  foreach(_device CUDA HIP)
    if(MOE_${_device} AND NOT ${_device} IN_LIST Kokkos_DEVICES)
      message(FATAL_ERROR "The Kokkos in ${Kokkos_DIR} is built without ${_device}; "
                          "hide it with -DCMAKE_DISABLE_FIND_PACKAGE_Kokkos=OFF -DKokkos_ROOT=<another>")
    endif()
  endforeach()
endmacro()
