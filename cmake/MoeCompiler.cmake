# What our own tests and examples are compiled with; nothing of it reaches a user of moe::moe.

if((CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12)
   OR (CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14))
  message(FATAL_ERROR "moe needs g++ 12 or clang 14 or newer, not ${CMAKE_CXX_COMPILER_ID} "
                      "${CMAKE_CXX_COMPILER_VERSION}; install one with: sudo apt-get install g++-12")
endif()

if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release)
  endif()
  set(CMAKE_CXX_EXTENSIONS OFF)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  # Ninja starts two jobs more than there are cores; our translation units are too big for that.
  cmake_host_system_information(RESULT _cores QUERY NUMBER_OF_LOGICAL_CORES)
  set_property(GLOBAL PROPERTY JOB_POOLS compile=${_cores})
  set(CMAKE_JOB_POOL_COMPILE compile)
endif()

include(CheckCXXCompilerFlag)
add_library(moe_dev INTERFACE)
target_compile_options(moe_dev INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC bugs 105329 and, inside its own vector headers, 105593.
  target_compile_options(moe_dev INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict;-Wno-maybe-uninitialized>)
endif()
if(MOE_WERROR)
  target_compile_options(moe_dev INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(MOE_NATIVE)
  check_cxx_compiler_flag(-march=native MOE_HAS_MARCH_NATIVE)
  if(MOE_HAS_MARCH_NATIVE)
    target_compile_options(moe_dev INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
  endif()
endif()
if(MOE_CUDA)
  # A host-only function called on the device is a warning by default, and wrong at run time.
  target_compile_options(moe_dev INTERFACE
                         "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror cross-execution-space-call>")
endif()

if(MOE_HIP)
  # clang's wrapper of <algorithm> is no system header to it, and what libstdc++ deprecates is then reported.
  target_compile_options(moe_dev INTERFACE "SHELL:${MOE_HIP_FLAGS}" -Wno-deprecated-declarations)
endif()

# moe_program(name sources...): a program of ours, compiled as CUDA in a CUDA build. moe_add_test registers it.
function(moe_program name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE moe::moe moe_dev)
  moe_set_language(${ARGN})
endfunction()

function(moe_set_language)
  if(MOE_CUDA)
    set(sources ${ARGN})
    list(FILTER sources INCLUDE REGEX "\\.cpp$")
    set_source_files_properties(${sources} PROPERTIES LANGUAGE CUDA)
  endif()
endfunction()
