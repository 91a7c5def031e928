# cmake -DCUOBJDUMP= -DREADELF= -DPROGRAM= -DARCHITECTURE= -P: stops where the program holds no kernels of ours; without
# cuobjdump, where it holds no device code at all.

get_filename_component(name ${PROGRAM} NAME)
if(NOT CUOBJDUMP)
  execute_process(COMMAND ${READELF} --wide --sections ${PROGRAM} OUTPUT_VARIABLE sections COMMAND_ERROR_IS_FATAL ANY)
  if(NOT sections MATCHES "[.]nv_fatbin +PROGBITS +[0-9a-f]+ +[0-9a-f]+ +([0-9a-f]+)")
    message(FATAL_ERROR "${PROGRAM} holds no device code")
  endif()
  message("${name}: device code of 0x${CMAKE_MATCH_1} bytes (its kernels cannot be listed without cuobjdump)")
  return()
endif()
execute_process(COMMAND ${CUOBJDUMP} --dump-elf-symbols ${PROGRAM} OUTPUT_VARIABLE symbols
                COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "STT_FUNC[^\n]*STO_ENTRY[^\n]*3moe[^\n]*" kernels "${symbols}")
list(LENGTH kernels count)
if(count EQUAL 0 OR NOT symbols MATCHES "arch = sm_${ARCHITECTURE}")
  message(FATAL_ERROR "${PROGRAM} holds no kernels of moe for sm_${ARCHITECTURE}")
endif()
message("${name}: ${count} kernels of moe for sm_${ARCHITECTURE}")
