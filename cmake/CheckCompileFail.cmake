# cmake -DCOMPILER= -DFLAGS=<response file> -DSOURCE= -P: see tests/compile_fail.cmake.

file(STRINGS ${SOURCE} first LIMIT_COUNT 1)
if(NOT first MATCHES "^// expect: (.+)$")
  message(FATAL_ERROR "The first line of ${SOURCE} is not `// expect: phrase`")
endif()
set(phrase "${CMAKE_MATCH_1}")

execute_process(COMMAND ${COMPILER} @${FLAGS} ${SOURCE} RESULT_VARIABLE failed
                OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT failed)
  message(FATAL_ERROR "It compiles, and should not")
endif()
string(REPLACE ";" "," output "${output}") # CMake would take it for the end of an item
string(REGEX MATCHALL "[^\n]*error: [^\n]*" errors "${output}")
list(LENGTH errors count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "Expected one error, got ${count}:\n${output}")
endif()
string(REPLACE ";" "," phrase "${phrase}")
string(FIND "${errors}" "${phrase}" at)
if(at EQUAL -1)
  message(FATAL_ERROR "The error does not say \"${phrase}\":\n${errors}")
endif()
message("${errors}")

execute_process(COMMAND ${COMPILER} @${FLAGS} -DMOE_COMPILE_FAIL_FIXED ${SOURCE} RESULT_VARIABLE failed
                OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(failed)
  message(FATAL_ERROR "With MOE_COMPILE_FAIL_FIXED it should compile:\n${output}")
endif()
