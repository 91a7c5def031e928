include(CMakePackageConfigHelpers)

set(_package_dir lib/cmake/moe)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/moeConfig.cmake.in
                              ${CMAKE_CURRENT_BINARY_DIR}/moeConfig.cmake
                              INSTALL_DESTINATION ${_package_dir})
set(_targets moe)
set(_any_machine ARCH_INDEPENDENT)
if(MOE_KERNELS)
  list(APPEND _targets moe_kernels)
  set(_any_machine "")
endif()
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/moeConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion ${_any_machine})

install(TARGETS ${_targets} EXPORT moeTargets ARCHIVE DESTINATION lib)
install(EXPORT moeTargets NAMESPACE moe:: DESTINATION ${_package_dir})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moeConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/moeConfigVersion.cmake DESTINATION ${_package_dir})
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/include/moe DESTINATION include)
