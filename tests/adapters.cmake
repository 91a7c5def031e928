# adapters as a user runs it, on a tiny base that train_text makes.

find_package(Python3 COMPONENTS Interpreter QUIET)
if(TARGET adapters AND Python3_FOUND)
  add_test(NAME adapters
           COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/adapters/check.py
                   $<TARGET_FILE:train_text> $<TARGET_FILE:adapters> ${CMAKE_CURRENT_BINARY_DIR}/adapters)
  set_tests_properties(adapters PROPERTIES TIMEOUT 600
    ENVIRONMENT "OMP_NUM_THREADS=2;OMP_PROC_BIND=false;OMP_WAIT_POLICY=passive")
endif()
