#pragma once
/// @file
/// What compilers are told in their own words.

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
