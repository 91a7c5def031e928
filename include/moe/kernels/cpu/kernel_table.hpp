#pragma once
/// @file
/// All kernels of the instruction set that the including file is compiled for.

#include "moe/kernels/cpu/small_kernel.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu::MOE_INSTRUCTION_SET {

/// A template, so that only files that multiply compile the kernels.
template <class Full = Float, class Short = Half, class Int8 = Whole>
MicroKernels make_table() {
  MicroKernels table{MOE_TEXT(MOE_INSTRUCTION_SET),
                     tile_rows,
                     Short::paired,
                     Int8::offset,
                     {},
                     {},
                     {},
                     {},
                     {},
                     {},
                     small_rows,
                     &small_lines<>,
                     &small_dots<>};
  constexpr auto rows = std::make_integer_sequence<int, MicroKernels::most_rows + 1>{};
  list<Full>(table.f32, rows);
  list<Short>(table.bf16, rows);
  list<Int8>(table.int8, rows);
  table.f32_row = {&multiply<Full, 1, 4>, 4};
  table.bf16_row = {&multiply<Short, 1, 4>, 4};
  table.int8_row = {&multiply<Int8, 1, 4>, 4};
  return table;
}

}  // namespace kernels::cpu::MOE_INSTRUCTION_SET

MOE_NAMESPACE_END
