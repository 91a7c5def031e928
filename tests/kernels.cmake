# moe::kernels: its symbols, its choices, and both under emulated processors.

set(_folder ${CMAKE_CURRENT_SOURCE_DIR}/kernels)
get_target_property(_sets moe_kernels MOE_INSTRUCTION_SETS)
get_source_file_property(_baseline ${PROJECT_SOURCE_DIR}/src/kernels/baseline.cpp TARGET_DIRECTORY moe_kernels
                         COMPILE_OPTIONS)

# _test(name [PRINTS phrase] [ENVIRONMENT variable=value...] COMMAND ...)
function(_test name)
  cmake_parse_arguments(_arg "" "PRINTS" "ENVIRONMENT;COMMAND" ${ARGN})
  add_test(NAME kernels.${name} COMMAND ${_arg_COMMAND})
  set_tests_properties(kernels.${name} PROPERTIES TIMEOUT 120
    ENVIRONMENT "OMP_NUM_THREADS=2;OMP_PROC_BIND=false;OMP_WAIT_POLICY=passive;${_arg_ENVIRONMENT}")
  if(_arg_PRINTS)
    set_tests_properties(kernels.${name} PROPERTIES PASS_REGULAR_EXPRESSION "${_arg_PRINTS}")
  endif()
endfunction()

if(CMAKE_NM AND NOT APPLE)
  set(_check ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DARCHIVE=$<TARGET_FILE:moe_kernels>)
  set(_script -P ${PROJECT_SOURCE_DIR}/cmake/CheckKernelSymbols.cmake)
  string(REPLACE ";" "," _names "${_sets}")
  _test(symbols COMMAND ${_check} -DSETS=${_names} ${_script})
  _test(symbols_finds_a_breach PRINTS "choose defines _ZN3moe.*" COMMAND ${_check} -DSETS=choose ${_script})
endif()

# The program is compiled for the least processor, whatever moe_dev says.
moe_program(kernels_layer ${_folder}/layer.cpp)
target_link_libraries(kernels_layer PRIVATE moe::kernels)
set_source_files_properties(${_folder}/layer.cpp PROPERTIES COMPILE_OPTIONS "${_baseline}")
_test(chosen COMMAND kernels_layer any)
_test(forced COMMAND kernels_layer baseline ENVIRONMENT MOE_INSTRUCTION_SET=baseline)
_test(unknown COMMAND kernels_layer any ENVIRONMENT MOE_INSTRUCTION_SET=sse9
      PRINTS "MOE_INSTRUCTION_SET=sse9 names no instruction set of moe::kernels. It has .*baseline[.]")

if(NOT avx2 IN_LIST _sets)
  return()
endif()

add_executable(kernels_header_only ${_folder}/header_only.cpp ${_folder}/avx512.cpp)
target_include_directories(kernels_header_only PRIVATE ${PROJECT_SOURCE_DIR}/include)
target_compile_features(kernels_header_only PRIVATE cxx_std_20)
get_source_file_property(_avx512 ${PROJECT_SOURCE_DIR}/src/kernels/avx512.cpp TARGET_DIRECTORY moe_kernels
                         COMPILE_OPTIONS)
set_source_files_properties(${_folder}/avx512.cpp PROPERTIES COMPILE_OPTIONS "${_avx512}")

include(MoeQemu)
if(MOE_QEMU AND NOT Kokkos_ARCH) # a Kokkos for this machine alone dies on a lesser one
  _test(on_nehalem COMMAND ${MOE_QEMU} -cpu Nehalem $<TARGET_FILE:kernels_layer> baseline)
  _test(on_haswell COMMAND ${MOE_QEMU} -cpu Haswell $<TARGET_FILE:kernels_layer> avx2)
  _test(lacking COMMAND ${MOE_QEMU} -cpu Nehalem $<TARGET_FILE:kernels_layer> any
        ENVIRONMENT MOE_INSTRUCTION_SET=avx2
        PRINTS "MOE_INSTRUCTION_SET=avx2, which this processor lacks. It runs baseline[.]")
  # Without AVX the sentence comes, but no exception survives.
  set(_sentence "compiled for avx512, which this processor lacks[.] .*link moe::kernels")
  _test(header_only_on_nehalem PRINTS "${_sentence}"
        COMMAND ${MOE_QEMU} -cpu Nehalem $<TARGET_FILE:kernels_header_only>)
  _test(header_only_on_haswell PRINTS "caught: moe: this program was ${_sentence}"
        COMMAND ${MOE_QEMU} -cpu Haswell $<TARGET_FILE:kernels_header_only>)
else()
  _test(emulated COMMAND ${CMAKE_COMMAND} -E echo
        "Skipped: no qemu-x86_64 here, or Kokkos is built for one processor. Install it with: sudo apt-get install qemu-user")
  set_tests_properties(kernels.emulated PROPERTIES SKIP_REGULAR_EXPRESSION "Skipped")
endif()
