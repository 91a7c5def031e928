# moe::kernels: the micro-kernels compiled for each instruction set, one of them chosen when the
# program runs.

set(_baseline_flags "")
set(_sets baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  list(APPEND _sets avx2 avx512 avx512_bf16)
  # CMAKE_CXX_FLAGS may name a processor: the last word is ours.
  set(_baseline_flags -march=x86-64 -mno-avx)
  set(_avx2_flags -march=x86-64 -mavx2 -mfma -mno-avx512f)
  set(_avx512_flags -march=x86-64 -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set(_avx512_bf16_flags ${_avx512_flags} -mavx512bf16 -mavx512vnni)
  list(APPEND _avx512_flags -mno-avx512bf16)
endif()

set(_folder ${CMAKE_CURRENT_SOURCE_DIR}/src/kernels)
add_library(moe_kernels STATIC ${_folder}/choose.cpp)
add_library(moe::kernels ALIAS moe_kernels)
set_source_files_properties(${_folder}/choose.cpp PROPERTIES COMPILE_OPTIONS "${_baseline_flags}")
foreach(_set IN LISTS _sets)
  target_sources(moe_kernels PRIVATE ${_folder}/${_set}.cpp)
  set_source_files_properties(${_folder}/${_set}.cpp PROPERTIES COMPILE_OPTIONS "${_${_set}_flags}")
endforeach()
set_target_properties(moe_kernels PROPERTIES EXPORT_NAME kernels POSITION_INDEPENDENT_CODE ON
                      UNITY_BUILD OFF MOE_INSTRUCTION_SETS "${_sets}")
# moe is for users only: Kokkos might bring flags for one processor.
target_link_libraries(moe_kernels INTERFACE moe)
target_include_directories(moe_kernels PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/include)
target_compile_features(moe_kernels PUBLIC cxx_std_20)
target_compile_definitions(moe_kernels PUBLIC MOE_COMPILED_KERNELS=1)
target_compile_options(moe_kernels PRIVATE $<TARGET_PROPERTY:moe_dev,INTERFACE_COMPILE_OPTIONS>)
