#pragma once
/// @file
/// What compilers are told in their own words.

/// 1 while code for a GPU is compiled: nvcc and clang read a source once for the host and once for each device, and
/// only the host's pass may use the host's instructions.
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
#  define MOE_DEVICE_PASS 1
#else
#  define MOE_DEVICE_PASS 0
#endif

#define MOE_PRAGMA(text) _Pragma(#text)

/// MOE_UNROLL(n) unrolls the loop that follows n times. MOE_INDEPENDENT says that none of its rounds reads what another
/// one writes, where compilers would give up proving it. (nvcc's front end would warn of pragmas that it does not
/// know.)
#if defined(__NVCC__)
#  define MOE_UNROLL(n)
#  define MOE_INDEPENDENT
#elif defined(__clang__)
#  define MOE_UNROLL(n) MOE_PRAGMA(GCC unroll n)
#  define MOE_INDEPENDENT  // it looks at run time
#else
#  define MOE_UNROLL(n) MOE_PRAGMA(GCC unroll n)
#  define MOE_INDEPENDENT MOE_PRAGMA(GCC ivdep)
#endif

/// Unrolls the loop that follows wholly where device code is compiled: arrays that it indexes then live in registers.
/// The other does so n times; by 1 it stays a loop, as one that is seldom run should.
#if MOE_DEVICE_PASS
#  define MOE_UNROLL_ON_DEVICE MOE_PRAGMA(unroll)
#  define MOE_UNROLL_BY_ON_DEVICE(n) MOE_PRAGMA(unroll n)
#else
#  define MOE_UNROLL_ON_DEVICE
#  define MOE_UNROLL_BY_ON_DEVICE(n)
#endif
