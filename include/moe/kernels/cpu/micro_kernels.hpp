#pragma once
/// @file
/// `MicroKernels`: the innermost products of one instruction set, as a table of functions.
///
/// Weights lie in panels: 16 columns, lines of 64 bytes, a line for each k (float), pair of k (bfloat16) or two pairs
/// (int8). Rows lie in tiles: [block of the sum][row][64 bytes], 16 floats, 32 bfloat16 or, for int8, 32 int16 or 64
/// int8 a line. A kernel multiplies one tile by one or two panels (a row by four) over the whole sum, in registers;
/// sums (row, 32) go to the nearest cache, where the caller finishes them. A sum runs over k in order, whatever the
/// number of rows: a row's result depends on nothing else.

#include <cstdio>

#include "moe/core/error.hpp"
#include "moe/kernels/cpu/kernel_table.hpp"
#include "moe/kernels/cpu/processor.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

#if defined(MOE_COMPILED_KERNELS)
/// The best table that this processor can run, of those compiled into moe::kernels. The environment's
/// MOE_INSTRUCTION_SET names a lesser one. Throws ConfigError where that is no name, or too much for the processor.
const MicroKernels& compiled_micro_kernels();
template <class = void>
const MicroKernels& micro_kernels() {
  return compiled_micro_kernels();
}
#else
namespace MOE_INSTRUCTION_SET {
/// Uses literals only, since strings put together here might take instructions that the processor lacks.
[[gnu::noinline]] inline void require_processor() {
  if (processor_runs(MOE_TEXT(MOE_INSTRUCTION_SET))) return;
  constexpr char sentence[] = "moe: this program was compiled for " MOE_TEXT(MOE_INSTRUCTION_SET)  //
      ", which this processor lacks. Compile it for this processor, or link moe::kernels, which chooses at run time.";
#  if defined(__x86_64__)
  // Without AVX, vzeroupper kills the program as soon as destructors run or something catches.
  if (!__builtin_cpu_supports("avx")) std::fprintf(stderr, "%s\n", sentence);
#  endif
  throw ConfigError(sentence);
}
}  // namespace MOE_INSTRUCTION_SET

/// The table for the instruction set that this file is compiled for. Throws ConfigError where the processor lacks it.
template <class = void>
const MicroKernels& micro_kernels() {
  MOE_INSTRUCTION_SET::require_processor();
  static const MicroKernels table = MOE_INSTRUCTION_SET::make_table<>();
  return table;
}
#endif

}  // namespace kernels::cpu

/// The instruction set of the kernels that packed layers run on: "avx512_bf16", "avx512", "avx2" or "baseline". Chosen
/// when the program runs where it links moe::kernels, else when it is compiled; throws ConfigError as its first use
/// would.
template <class = void>
const char* instruction_set() {
  return kernels::cpu::micro_kernels().name;
}

MOE_NAMESPACE_END
