# Installs moe into the build tree, then configures, builds and runs two small projects that use it.

set(_prefix ${CMAKE_CURRENT_BINARY_DIR}/consumers/prefix)
add_test(NAME consumer.install COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${_prefix})
set_tests_properties(consumer.install PROPERTIES LABELS consumer FIXTURES_SETUP moe_installed)

foreach(_way find_package add_subdirectory)
  set(_folder ${CMAKE_CURRENT_BINARY_DIR}/consumers/${_way})
  add_test(NAME consumer.${_way} COMMAND
    ${CMAKE_CTEST_COMMAND} --build-and-test ${CMAKE_CURRENT_SOURCE_DIR}/consumers/${_way} ${_folder}
    --build-generator ${CMAKE_GENERATOR} --build-options
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
    -DKokkos_DIR=${Kokkos_DIR} -DEigen3_DIR=${Eigen3_DIR} -Dmoe_ROOT=${_prefix}
    --test-command ${_folder}/consumer)
  set_tests_properties(consumer.${_way} PROPERTIES LABELS consumer FIXTURES_REQUIRED moe_installed
                       TIMEOUT 900)
endforeach()
