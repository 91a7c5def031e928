# Tests include <moe_test/catch.hpp>, which is Catch2's header of version 2 or 3, whichever is found.

if(Catch2_VERSION VERSION_LESS 3)
  set(MOE_CATCH2_HEADER catch2/catch.hpp)
  set(MOE_CATCH2_NO_TESTS_FAIL --warn NoTests)
else()
  set(MOE_CATCH2_HEADER catch2/catch_all.hpp)
  set(MOE_CATCH2_NO_TESTS_FAIL "") # the default there
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/catch.hpp.in ${CMAKE_CURRENT_BINARY_DIR}/include/moe_test/catch.hpp @ONLY)

add_library(moe_catch2 INTERFACE)
target_include_directories(moe_catch2 SYSTEM INTERFACE ${CMAKE_CURRENT_BINARY_DIR}/include)
target_link_libraries(moe_catch2 INTERFACE Catch2::Catch2)

# The main program takes long to compile with Catch2 2, so it stands alone.
set(_main ${CMAKE_CURRENT_SOURCE_DIR}/main.cpp)
add_library(moe_catch2_main STATIC ${_main})
moe_set_language(${_main})
target_link_libraries(moe_catch2_main PUBLIC moe_catch2 PRIVATE Kokkos::kokkos)
target_compile_features(moe_catch2_main PUBLIC cxx_std_20)
