# Combinations of router policies against the reference router, and the pairs that the library must refuse; both are written
# from combinations/table.json when CMake runs.

find_package(Python3 COMPONENTS Interpreter QUIET)
if(Python3_FOUND)
  set(_from ${CMAKE_CURRENT_SOURCE_DIR}/combinations)
  set(_made ${CMAKE_CURRENT_BINARY_DIR}/combinations)
  set(_files 8)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${_from}/table.json ${_from}/generate.py)
  execute_process(COMMAND ${Python3_EXECUTABLE} ${_from}/generate.py ${_from}/table.json ${_made} --files ${_files}
                  COMMAND_ERROR_IS_FATAL ANY)
  set(_sources ${_from}/combination.cpp)
  foreach(_number RANGE 1 ${_files})
    list(APPEND _sources ${_made}/combinations_${_number}.cpp)
  endforeach()
  moe_program(combinations ${_sources})
  target_include_directories(combinations PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${_from})
  target_link_libraries(combinations PRIVATE moe_catch2_main)
  # Hundreds of routers, each run once on ten tokens: the compiler need not make them fast.
  if(NOT MOE_DEVICE)
    target_compile_options(combinations PRIVATE $<$<CXX_COMPILER_ID:GNU,Clang>:-O0>)
  endif()
  if(NOT MOE_DEVICE)
    target_precompile_headers(combinations PRIVATE <Kokkos_Core.hpp> <moe_test/catch.hpp>)
  endif()
  add_test(NAME combinations COMMAND combinations ${MOE_CATCH2_NO_TESTS_FAIL})
  set_tests_properties(combinations PROPERTIES TIMEOUT 600
    ENVIRONMENT "OMP_NUM_THREADS=1;OMP_PROC_BIND=false;OMP_WAIT_POLICY=passive")
  if(NOT MOE_DEVICE)
    add_test(NAME combinations.refused
             COMMAND ${Python3_EXECUTABLE} ${_from}/check_refused.py ${CMAKE_CXX_COMPILER}
                     ${CMAKE_CURRENT_BINARY_DIR}/compile_fail.rsp ${_made})
  endif()
endif()
