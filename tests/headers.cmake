# Every header compiles alone and twice, and includes only what lies below it.

set(_include ${PROJECT_SOURCE_DIR}/include)
file(GLOB_RECURSE _headers RELATIVE ${_include} CONFIGURE_DEPENDS ${_include}/moe/*.hpp)
if(MOE_DEVICE AND NOT MOE_DEVICE_SET STREQUAL "full")
  set(_headers moe/moe.hpp) # a compiler for two machines takes twice as long for each
endif()
set(_sources)
foreach(_header IN LISTS _headers)
  string(REPLACE .hpp .cpp _source ${CMAKE_CURRENT_BINARY_DIR}/headers/${_header})
  file(CONFIGURE OUTPUT ${_source} CONTENT "#include <${_header}>\n#include <${_header}>\n")
  list(APPEND _sources ${_source})
endforeach()
add_library(moe_headers OBJECT ${_sources})
moe_set_language(${_sources})
target_link_libraries(moe_headers PRIVATE moe::moe moe_dev)
if(NOT MOE_CUDA)
  target_compile_options(moe_headers PRIVATE -O0) # no code is wanted from them
endif()

add_test(NAME include_order
         COMMAND ${CMAKE_COMMAND} -DINCLUDE=${_include} -P ${CMAKE_CURRENT_SOURCE_DIR}/include_order.cmake)
add_test(NAME include_order.finds_a_breach
         COMMAND ${CMAKE_COMMAND} -DINCLUDE=${CMAKE_CURRENT_SOURCE_DIR}/include_order
                 -P ${CMAKE_CURRENT_SOURCE_DIR}/include_order.cmake)
set_tests_properties(include_order.finds_a_breach PROPERTIES
                     PASS_REGULAR_EXPRESSION "moe/core/breach.hpp includes moe/layers/")
