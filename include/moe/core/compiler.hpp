#pragma once
/// @file
/// What compilers are told in their own words.

#define MOE_PRAGMA(text) _Pragma(#text)

/// Unrolls the loop that follows n times. (nvcc's front end would warn of a pragma that it does not know.)
#if defined(__NVCC__)
#  define MOE_UNROLL(n)
#else
#  define MOE_UNROLL(n) MOE_PRAGMA(GCC unroll n)
#endif
