# balance_zoo as a user runs it: every method, stopping and going on, the report, misuse.

find_package(Python3 COMPONENTS Interpreter QUIET)
if(TARGET balance_zoo AND Python3_FOUND)
  add_test(NAME balance_zoo
           COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/balance_zoo/check.py $<TARGET_FILE:balance_zoo>
                   ${CMAKE_CURRENT_BINARY_DIR}/balance_zoo)
  set_tests_properties(balance_zoo PROPERTIES TIMEOUT 300
    ENVIRONMENT "OMP_NUM_THREADS=2;OMP_PROC_BIND=false;OMP_WAIT_POLICY=passive")
endif()
