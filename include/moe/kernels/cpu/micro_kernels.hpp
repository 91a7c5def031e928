#pragma once
/// @file
/// `MicroKernels`: the innermost products of one instruction set, as a table of functions.
///
/// Weights lie in panels: 16 columns, lines of 64 bytes, a line for each k (float) or each pair of k (bfloat16). Rows
/// lie in tiles: [block of the sum][row][64 bytes], 16 floats or 32 bfloat16 a line. A kernel multiplies one tile by
/// one or two panels over the whole sum, in registers; sums (row, 32) go to the nearest cache, where the caller
/// finishes them. A sum runs over k in order, whatever the number of rows: a row's result depends on nothing else.

#include "moe/kernels/cpu/micro_kernel.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

#if defined(MOE_COMPILED_KERNELS)
/// The best table that this processor can run, of those compiled into moe::kernels.
const MicroKernels& compiled_micro_kernels();
template <class = void>
const MicroKernels& micro_kernels() {
  return compiled_micro_kernels();
}
#else
/// The table for the instruction set that this file is compiled for.
template <class = void>
const MicroKernels& micro_kernels() {
  static const MicroKernels table = MOE_INSTRUCTION_SET::make_table<>();
  return table;
}
#endif

}  // namespace kernels::cpu

MOE_NAMESPACE_END
