# Teams of 32 lanes, simulated on the host: a program of its own, since its Team is another.
if(MOE_DEVICE)
  return()
endif()

set(_lane_tests teams balance_statistics device_plan layer_parts mixture_of_depths routed_attention)
moe_program(moe_lane_tests lanes/simulation.cpp lanes/teams.cpp unit/balance_statistics.cpp
            unit/device_plan.cpp unit/layer_parts.cpp unit/mixture_of_depths.cpp unit/routed_attention.cpp)
target_compile_options(moe_lane_tests PRIVATE $<$<CXX_COMPILER_ID:GNU,Clang>:-O1>) # as the devices' paths
target_include_directories(moe_lane_tests PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_definitions(moe_lane_tests PRIVATE MOE_DEVICE_PATHS MOE_SIMULATED_LANES
  MOE_TEST_DATA="${CMAKE_CURRENT_SOURCE_DIR}/data")
target_link_libraries(moe_lane_tests PRIVATE moe_catch2_main nlohmann_json::nlohmann_json)
foreach(_name IN LISTS _lane_tests)
  add_test(NAME lanes.${_name} COMMAND moe_lane_tests -\# [\#${_name}] ${MOE_CATCH2_NO_TESTS_FAIL})
  set_tests_properties(lanes.${_name} PROPERTIES TIMEOUT 600
    ENVIRONMENT "OMP_NUM_THREADS=2;OMP_PROC_BIND=false;OMP_WAIT_POLICY=passive")
endforeach()
