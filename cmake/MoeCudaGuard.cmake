# A program with the umbrella header alone, and a look at what nvcc made: programs for a GPU do not
# start on a machine without one, but their device code can be listed.

if(EXISTS ${PROJECT_SOURCE_DIR}/include/moe/moe.hpp)
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/umbrella.cpp
       CONTENT "#include <moe/moe.hpp>\nint main() {}\n")
  moe_program(umbrella ${CMAKE_CURRENT_BINARY_DIR}/umbrella.cpp)
endif()

get_filename_component(_cuda_bin ${CMAKE_CUDA_COMPILER} DIRECTORY)
find_program(MOE_CUOBJDUMP cuobjdump HINTS ${_cuda_bin})
foreach(_program quickstart custom_router)
  if(TARGET ${_program} AND (MOE_CUOBJDUMP OR CMAKE_READELF))
    add_custom_command(TARGET ${_program} POST_BUILD VERBATIM
      COMMAND ${CMAKE_COMMAND} -DCUOBJDUMP=${MOE_CUOBJDUMP} -DREADELF=${CMAKE_READELF} -DPROGRAM=$<TARGET_FILE:${_program}>
              -DARCHITECTURE=${CMAKE_CUDA_ARCHITECTURES}
              -P ${CMAKE_CURRENT_LIST_DIR}/CheckDeviceCode.cmake)
  endif()
endforeach()
