# Each tests/compile_fail/*.cpp must fail with one error that contains the phrase on its first line,
# `// expect: phrase`, and must compile once MOE_COMPILE_FAIL_FIXED is defined.

set(_flags ${CMAKE_CURRENT_BINARY_DIR}/compile_fail.rsp)
set(_directories $<TARGET_PROPERTY:moe_headers,INCLUDE_DIRECTORIES>)
file(GENERATE OUTPUT ${_flags} CONTENT
"-std=c++20 -fsyntax-only ${OpenMP_CXX_FLAGS}
-I$<JOIN:${_directories}, -I>
")

file(GLOB _compile_fail CONFIGURE_DEPENDS compile_fail/*.cpp)
foreach(_source IN LISTS _compile_fail)
  get_filename_component(_name ${_source} NAME_WE)
  add_test(NAME compile_fail.${_name}
           COMMAND ${CMAKE_COMMAND} -DCOMPILER=${CMAKE_CXX_COMPILER} -DFLAGS=${_flags}
                   -DSOURCE=${_source} -P ${PROJECT_SOURCE_DIR}/cmake/CheckCompileFail.cmake)
endforeach()
