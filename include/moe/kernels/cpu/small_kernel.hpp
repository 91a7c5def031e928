#pragma once
/// @file
/// Products of small float matrices, read where they lie: cutting them into tiles and panels would take longer. For the
/// instruction set that the including file is compiled for, as micro_kernel.hpp.

#include "moe/kernels/cpu/micro_kernel.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Factors a[i row_stride + k sum_stride], and lines of 16 numbers a panel at b + k line_stride; sums (rows, 32).
struct SmallLines {
  const float* a;
  std::int64_t row_stride, sum_stride;
  const float* b;
  std::int64_t panel_stride, line_stride, lines;
  float* sums;
};

/// c (+)= a b^T, where rows of both lie along the sum.
struct SmallDots {
  const float *a, *b;
  float* c;
  std::int64_t a_stride, b_stride, c_stride, rows, columns, length;
  bool add;
};

namespace MOE_INSTRUCTION_SET {

typedef float Loose __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

/// A single sum is pinned after each step: tuned for some processors, g++ fuses products and additions of many sums,
/// but not of one, and a row's bits must not depend on how many rows are beside it.
template <int rows, int panels>
void multiply_lines(const SmallLines& of) {
  constexpr int width = panels * vectors;
  constexpr int slice = lanes == 4 ? 2 : width;
  MOE_UNROLL(2)
  for (int first = 0; first < width; first += slice) {
    const float* a[rows];
    MOE_UNROLL(8)
    for (int i = 0; i < rows; ++i) a[i] = of.a + i * of.row_stride;
    const float* b = of.b + first / vectors * of.panel_stride + lanes * (first % vectors);
    Vector sum[rows][slice] = {};
    for (std::int64_t k = 0, at = 0; k < of.lines; ++k, at += of.sum_stride, b += of.line_stride) {
      Vector line[slice];
      MOE_UNROLL(8)
      for (int v = 0; v < slice; ++v) {
        line[v] = *reinterpret_cast<const Loose*>(b + v / vectors * of.panel_stride + lanes * (v % vectors));
        pin(line[v]);
      }
      MOE_UNROLL(8)
      for (int i = 0; i < rows; ++i) {
        const float factor = a[i][at];
        MOE_UNROLL(8)
        for (int v = 0; v < slice; ++v) {
          sum[i][v] += factor * line[v];
          if constexpr (rows * slice == 1) pin(sum[i][v]);
        }
      }
    }
    MOE_UNROLL(8)
    for (int i = 0; i < rows; ++i) {
      MOE_UNROLL(8)
      for (int v = 0; v < slice; ++v) *reinterpret_cast<Vector*>(of.sums + 32 * i + lanes * (first + v)) = sum[i][v];
    }
  }
}

/// So many rows hide the latency of additions, and leave a pointer to each in a register.
inline constexpr int small_rows = lanes == 16 ? 8 : lanes == 8 ? 6 : 5;

template <int... rows>
void choose_lines(int count, int panels, const SmallLines& of, std::integer_sequence<int, rows...>) {
  using Run = void (*)(const SmallLines&);
  static constexpr Run one[] = {&multiply_lines<rows + 1, 1>...};
  if constexpr (lanes == 16) {
    static constexpr Run two[] = {&multiply_lines<rows + 1, 2>...};
    if (panels == 2) return two[count - 1](of);
  }
  one[count - 1](of);
  if (panels == 2) {
    SmallLines second = of;
    second.b += of.panel_stride;
    second.sums += 16;
    one[count - 1](second);
  }
}
template <class = void>
void small_lines(int rows, int panels, const SmallLines& of) {
  choose_lines(rows, panels, of, std::make_integer_sequence<int, small_rows>{});
}

/// The sum of a vector's numbers: neighbours at half the distance again and again.
[[gnu::always_inline]] inline float total(const Vector& vector) {
  float number[lanes];
  *reinterpret_cast<Loose*>(number) = vector;
  MOE_UNROLL(4)
  for (int half = lanes / 2; half > 0; half /= 2) {
    MOE_UNROLL(8)
    for (int l = 0; l < half; ++l) number[l] += number[l + half];
  }
  return number[0];
}

template <int rows, int columns>
[[gnu::always_inline]] inline void add_dots(const float* const* a, const float* const* b, std::int64_t k,
                                            Vector (&sum)[rows][columns]) {
  Vector right[columns];
  MOE_UNROLL(4)
  for (int j = 0; j < columns; ++j) {
    right[j] = *reinterpret_cast<const Loose*>(b[j] + k);
    pin(right[j]);
  }
  MOE_UNROLL(4)
  for (int i = 0; i < rows; ++i) {
    const Vector left = *reinterpret_cast<const Loose*>(a[i] + k);
    MOE_UNROLL(4)
    for (int j = 0; j < columns; ++j) {
      sum[i][j] += left * right[j];
      if constexpr (rows * columns == 1) pin(sum[i][j]);  // as above
    }
  }
}

template <int rows, int columns>
void multiply_dots(const SmallDots& of, const float* a, const float* b, float* c) {
  const float *left[rows], *right[columns];
  for (int i = 0; i < rows; ++i) left[i] = a + i * of.a_stride;
  for (int j = 0; j < columns; ++j) right[j] = b + j * of.b_stride;
  Vector sum[rows][columns] = {};
  std::int64_t k = 0;
  for (; k + lanes <= of.length; k += lanes) add_dots<rows, columns>(left, right, k, sum);
  if (k < of.length) {  // once more, with zeros behind the end
    float rest[rows + columns][lanes] = {};
    for (int i = 0; i < rows + columns; ++i) {
      const float*& from = i < rows ? left[i] : right[i - rows];
      for (int l = 0; l < of.length - k; ++l) rest[i][l] = from[k + l];
      from = rest[i];
    }
    add_dots<rows, columns>(left, right, 0, sum);
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      const float result = total(sum[i][j]);
      float& to = c[i * of.c_stride + j];
      to = of.add ? to + result : result;
    }
  }
}

template <int columns>
void dots_of_columns(const SmallDots& of, const float* b, float* c) {
  std::int64_t i = 0;
  for (; i + 4 <= of.rows; i += 4) multiply_dots<4, columns>(of, of.a + i * of.a_stride, b, c + i * of.c_stride);
  for (; i < of.rows; ++i) multiply_dots<1, columns>(of, of.a + i * of.a_stride, b, c + i * of.c_stride);
}
template <class = void>
void small_dots(const SmallDots& of) {
  constexpr int together = lanes == 16 ? 4 : 2;
  std::int64_t j = 0;
  for (; j + together <= of.columns; j += together) dots_of_columns<together>(of, of.b + j * of.b_stride, of.c + j);
  for (; j < of.columns; ++j) dots_of_columns<1>(of, of.b + j * of.b_stride, of.c + j);
}

}  // namespace MOE_INSTRUCTION_SET

}  // namespace kernels::cpu

MOE_NAMESPACE_END
