# check_golden compares a layer of ours with the outputs of an independent implementation.

file(GLOB _check_golden CONFIGURE_DEPENDS check_golden/*.cpp)
file(GLOB _goldens CONFIGURE_DEPENDS data/goldens/*.safetensors)
if(_check_golden)
  moe_program(check_golden ${_check_golden})
  target_include_directories(check_golden PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(check_golden PRIVATE nlohmann_json::nlohmann_json CLI11::CLI11)
  # Dozens of layers, each run once on ten tokens: the compiler need not make them fast.
  target_compile_options(check_golden PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang>:-O1>)
  foreach(_golden IN LISTS _goldens)
    get_filename_component(_name ${_golden} NAME_WE)
    add_test(NAME golden.${_name} COMMAND check_golden ${_golden})
  endforeach()
endif()
