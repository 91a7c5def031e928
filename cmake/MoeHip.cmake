# The compiler and the runtime of a HIP build, found before project(): an installed ROCm, or else clang and the HIP
# packages of Debian, which are fetched where they are not installed. Kokkos adds the flags (-x hip --offload-arch=...).
#
# MOE_ROCM_PATH: a folder laid out as ROCm's: include/hip, lib, amdgcn/bitcode.

include(MoeDebian)

set(MOE_HIP_ARCHITECTURES gfx90a CACHE STRING "AMD GPUs to compile for; Kokkos is told the first")
set(MOE_HIP_CLANG_MINIMUM 17) # clang 15, which Debian's hipcc calls, crashes on concepts

# Leaves in `out` a clang++ that is new enough and starts, or an empty string.
function(_moe_find_hip_clang out)
  set(${out} "" PARENT_SCOPE)
  foreach(version RANGE 23 ${MOE_HIP_CLANG_MINIMUM} -1)
    list(APPEND names clang++-${version})
    list(APPEND hints ${MOE_DEPS_DIR}/debian/usr/lib/llvm-${version}/bin)
  endforeach()
  find_program(MOE_HIP_CLANG NAMES ${names} clang++ HINTS ${hints})
  mark_as_advanced(MOE_HIP_CLANG)
  if(NOT MOE_HIP_CLANG)
    return()
  endif()
  execute_process(COMMAND ${MOE_HIP_CLANG} --version OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed)
  if(NOT failed AND output MATCHES "clang version ([0-9]+)" AND NOT CMAKE_MATCH_1 LESS MOE_HIP_CLANG_MINIMUM)
    get_filename_component(real ${MOE_HIP_CLANG} REALPATH) # its lld and its bundler stand beside it
    get_filename_component(folder ${real} DIRECTORY)
    if(EXISTS ${folder}/ld.lld AND EXISTS ${folder}/clang-offload-bundler)
      set(${out} ${folder}/clang++ PARENT_SCOPE)
      return()
    endif()
    set(output "${folder} has no ld.lld or no clang-offload-bundler")
  endif()
  string(REGEX REPLACE "\n.*" "" output "${output}")
  message(STATUS "moe: ${MOE_HIP_CLANG} is of no use for HIP: ${output}")
  unset(MOE_HIP_CLANG CACHE)
endfunction()

# Debian's headers name intrinsics that newer clangs lack, and its device library knows no gfx942. This makes a folder
# like ROCm's from them, with both mended.
function(_moe_make_rocm usr tree clang)
  get_filename_component(bin ${clang} DIRECTORY)
  set(made ${tree}.made)
  file(REMOVE_RECURSE ${made} ${tree})
  file(COPY ${usr}/include/hip ${usr}/include/hsa DESTINATION ${made}/include)
  file(COPY ${usr}/share/hip DESTINATION ${made}/share) # without its version clang takes it for an old one
  file(GLOB libraries ${usr}/lib/x86_64-linux-gnu/libamdhip64.so* ${usr}/lib/x86_64-linux-gnu/libhsa-runtime64.so*)
  file(COPY ${libraries} DESTINATION ${made}/lib)
  file(COPY ${usr}/lib/x86_64-linux-gnu/amdgcn DESTINATION ${made})

  set(header ${made}/include/hip/amd_detail/amd_hip_atomic.h)
  file(READ ${header} text)
  foreach(step inc dec)
    string(REPLACE "return __builtin_amdgcn_atomic_${step}(
        address, val, __ATOMIC_RELAXED, 1 /* Device scope */, false)"
"return __builtin_amdgcn_atomic_${step}32(address, val, __ATOMIC_RELAXED, \"agent\")" text "${text}")
  endforeach()
  file(WRITE ${header} "${text}")

  # The generation is a number in a file of its own; gfx940 is the same machine to the library.
  set(codes ${made}/amdgcn/bitcode)
  if(EXISTS ${codes}/oclc_isa_version_940.bc AND NOT EXISTS ${codes}/oclc_isa_version_942.bc)
    execute_process(COMMAND ${bin}/llvm-dis ${codes}/oclc_isa_version_940.bc -o ${made}/942.ll COMMAND_ERROR_IS_FATAL ANY)
    file(READ ${made}/942.ll text)
    if(NOT text MATCHES "i32 9400")
      message(FATAL_ERROR "oclc_isa_version_940.bc does not look as expected; see ${made}/942.ll")
    endif()
    string(REPLACE "i32 9400" "i32 9402" text "${text}")
    file(WRITE ${made}/942.ll "${text}")
    execute_process(COMMAND ${bin}/llvm-as ${made}/942.ll -o ${codes}/oclc_isa_version_942.bc COMMAND_ERROR_IS_FATAL ANY)
  endif()
  file(RENAME ${made} ${tree})
endfunction()

function(_moe_hip_from_rocm)
  foreach(root $ENV{ROCM_PATH} $ENV{HIP_PATH} /opt/rocm)
    if(EXISTS ${root}/include/hip/hip_runtime.h AND EXISTS ${root}/lib/libamdhip64.so)
      find_program(MOE_ROCM_CXX NAMES amdclang++ hipcc PATHS ${root}/bin ${root}/llvm/bin NO_DEFAULT_PATH)
      mark_as_advanced(MOE_ROCM_CXX)
      if(MOE_ROCM_CXX)
        set(MOE_ROCM_PATH ${root} CACHE PATH "The ROCm that HIP builds use")
        if(NOT CMAKE_CXX_COMPILER)
          set(CMAKE_CXX_COMPILER ${MOE_ROCM_CXX} PARENT_SCOPE)
        endif()
        return()
      endif()
    endif()
  endforeach()
endfunction()

function(_moe_hip_from_debian)
  set(fetched ${MOE_DEPS_DIR}/debian/usr)
  _moe_find_hip_clang(clang)
  if(NOT clang AND MOE_FETCH)
    moe_debian_packages(libllvm19 libclang-cpp19 libclang-common-19-dev libclang-rt-19-dev clang-19 clang-tools-19 lld-19 llvm-19)
    if(EXISTS ${fetched}/lib/x86_64-linux-gnu/libLLVM.so.19.1)
      # clang looks for it here, or else where packages are installed.
      file(CREATE_LINK ../../x86_64-linux-gnu/libLLVM.so.19.1 ${fetched}/lib/llvm-19/lib/libLLVM.so.19.1 SYMBOLIC)
    endif()
    _moe_find_hip_clang(clang)
  endif()
  if(NOT clang)
    message(FATAL_ERROR "clang ${MOE_HIP_CLANG_MINIMUM} or newer is missing, which a HIP build needs; install ROCm, or: "
                        "sudo apt-get install clang-19 clang-tools-19 lld-19 llvm-19 libclang-rt-19-dev")
  endif()

  set(usr /usr)
  if(NOT EXISTS /usr/include/hip/hip_runtime.h OR NOT EXISTS /usr/lib/x86_64-linux-gnu/libamdhip64.so)
    # A folder of its own: the others' include folder comes before the mended headers.
    set(usr ${MOE_DEPS_DIR}/debian-hip/usr)
    if(NOT EXISTS ${usr}/include/hip/hip_runtime.h AND MOE_FETCH)
      moe_debian_packages(INTO ${MOE_DEPS_DIR}/debian-hip
                          libamdhip64-dev libamdhip64-5 libhsa-runtime-dev libhsa-runtime64-1 rocm-device-libs)
    endif()
  endif()
  if(NOT EXISTS ${usr}/include/hip/hip_version.h OR NOT EXISTS ${usr}/lib/x86_64-linux-gnu/amdgcn/bitcode/ocml.bc)
    message(FATAL_ERROR "HIP's headers or its device library are missing, which a HIP build needs; install ROCm, or: "
                        "sudo apt-get install libamdhip64-dev rocm-device-libs")
  endif()
  file(STRINGS ${usr}/include/hip/hip_version.h lines REGEX "#define HIP_VERSION_(MAJOR|MINOR) ")
  string(REGEX REPLACE "[^0-9]+([0-9]+)" "-\\1" version "${lines}")
  set(tree ${MOE_DEPS_DIR}/rocm${version})
  if(NOT EXISTS ${tree})
    _moe_make_rocm(${usr} ${tree} ${clang})
  endif()
  set(MOE_ROCM_PATH ${tree} CACHE PATH "The ROCm that HIP builds use")
  if(NOT CMAKE_CXX_COMPILER)
    set(CMAKE_CXX_COMPILER ${clang} PARENT_SCOPE)
    # The runtime's own libraries need not be here for linking.
    set(CMAKE_EXE_LINKER_FLAGS_INIT -fuse-ld=lld PARENT_SCOPE)
  endif()
endfunction()

if(NOT MOE_ROCM_PATH)
  _moe_hip_from_rocm()
endif()
if(NOT MOE_ROCM_PATH OR MOE_ROCM_PATH MATCHES "^${MOE_DEPS_DIR}/")
  file(MAKE_DIRECTORY ${MOE_DEPS_DIR})
  file(LOCK ${MOE_DEPS_DIR}/lock TIMEOUT 1800)
  _moe_hip_from_debian()
  file(LOCK ${MOE_DEPS_DIR}/lock RELEASE)
endif()
set(ENV{ROCM_PATH} ${MOE_ROCM_PATH}) # Kokkos reads it

get_filename_component(MOE_HIP_LLVM ${CMAKE_CXX_COMPILER} DIRECTORY)
if(NOT EXISTS ${MOE_HIP_LLVM}/clang-offload-bundler)
  set(MOE_HIP_LLVM ${MOE_ROCM_PATH}/llvm/bin)
endif()

# Kokkos names the first architecture; a program may hold code for more.
set(_others ${MOE_HIP_ARCHITECTURES})
list(POP_FRONT _others)
list(TRANSFORM _others PREPEND "--offload-arch=")
list(JOIN _others " " MOE_HIP_FLAGS)
