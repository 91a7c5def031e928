# train_text as a user runs it: resuming, killing at any moment, 16 bits, the drill of a corrupted batch.

find_package(Python3 COMPONENTS Interpreter QUIET)
if(TARGET train_text AND Python3_FOUND)
  foreach(_case resume precision kill spike misuse compare)
    add_test(NAME train_text.${_case}
             COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/train_text/check.py ${_case}
                     $<TARGET_FILE:train_text> $<TARGET_FILE:analyse_routing> ${CMAKE_CURRENT_BINARY_DIR}/train_text/${_case})
    set_tests_properties(train_text.${_case} PROPERTIES TIMEOUT 600
      ENVIRONMENT "OMP_NUM_THREADS=2;OMP_PROC_BIND=false;OMP_WAIT_POLICY=passive")
  endforeach()
endif()
