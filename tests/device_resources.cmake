# bench/device_resources.py on what ptxas prints. At 256 threads 40 registers leave 6 blocks of 8 warps out of 64; 128
# registers leave 2, and 96 KB of shared memory 2 as well. A product's stages are 63,504 bytes with its table, as
# tests/unit/device_products.cpp finds, too.

find_package(Python3 COMPONENTS Interpreter QUIET)
if(Python3_FOUND)
  add_test(NAME device_resources
           COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/bench/device_resources.py --all
                   ${CMAKE_CURRENT_SOURCE_DIR}/data/device_resources/ptxas.txt)
  set_tests_properties(device_resources PROPERTIES PASS_REGULAR_EXPRESSION
    "sm_90: 3 kernels.*other\\(\\) +128 +0 +98304 +0 +0 +0 +25 %.*TileProduct.* +124 +0 +0 +63504 +0 +0 +25 %.*Element<float> +40 +0 +0 +0 +16 +2 +75 %")
endif()
