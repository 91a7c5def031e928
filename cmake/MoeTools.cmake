# Tools that CMake itself would miss only with a long message. Read before project().

if(DEFINED ENV{MOE_DEPS_DIR})
  set(_deps_default $ENV{MOE_DEPS_DIR})
else()
  set(_deps_default ${CMAKE_CURRENT_SOURCE_DIR}/.deps)
endif()
set(MOE_DEPS_DIR ${_deps_default} CACHE PATH "Where fetched dependencies are kept")

if(MOE_CUDA AND MOE_HIP)
  message(FATAL_ERROR "MOE_CUDA and MOE_HIP exclude each other: Kokkos has one kind of device in a program")
endif()

if(CMAKE_GENERATOR MATCHES "Ninja" AND NOT CMAKE_MAKE_PROGRAM)
  find_program(MOE_NINJA NAMES ninja ninja-build samu)
  if(NOT MOE_NINJA)
    message(FATAL_ERROR "Ninja is missing; install it with: sudo apt-get install ninja-build")
  endif()
endif()

if(MOE_HIP)
  include(MoeHip) # chooses the compiler
endif()

if(NOT CMAKE_CXX_COMPILER AND NOT DEFINED ENV{CXX} AND NOT CMAKE_TOOLCHAIN_FILE)
  find_program(MOE_ANY_CXX NAMES c++ g++ clang++ icpx)
  if(NOT MOE_ANY_CXX)
    message(FATAL_ERROR "A C++20 compiler is missing; install one with: sudo apt-get install g++")
  endif()
endif()

if(MOE_CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(MOE_NVCC NAMES nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
    if(NOT MOE_NVCC)
      message(FATAL_ERROR "nvcc is missing; install the CUDA toolkit (12 or newer) or set CUDA_PATH")
    endif()
    set(CMAKE_CUDA_COMPILER ${MOE_NVCC})
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a) # its wgmma is not in sm_90
  endif()
  # CMake 3.25.1 and older know no C++20 flag for nvcc.
  if(CMAKE_VERSION VERSION_LESS 3.25.2)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
endif()
