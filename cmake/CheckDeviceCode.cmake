# cmake -DCUOBJDUMP= -DPROGRAM= -DARCHITECTURE= -P: stops where the program holds no kernels of ours.

execute_process(COMMAND ${CUOBJDUMP} --dump-elf-symbols ${PROGRAM} OUTPUT_VARIABLE symbols
                COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "STT_FUNC[^\n]*STO_ENTRY[^\n]*3moe[^\n]*" kernels "${symbols}")
list(LENGTH kernels count)
if(count EQUAL 0 OR NOT symbols MATCHES "arch = sm_${ARCHITECTURE}")
  message(FATAL_ERROR "${PROGRAM} holds no kernels of moe for sm_${ARCHITECTURE}")
endif()
get_filename_component(name ${PROGRAM} NAME)
message("${name}: ${count} kernels of moe for sm_${ARCHITECTURE}")
