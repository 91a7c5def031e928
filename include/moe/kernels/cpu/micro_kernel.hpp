#pragma once
/// @file
/// Tile times panel in registers, for the instruction set that the including file is compiled for. All of it stands in
/// a namespace named after the set, and uses no shared templates: several sets can live in one program.

#include <cstdint>
#include <utility>

#include "moe/core/compiler.hpp"
#include "moe/version.hpp"

#if defined(__x86_64__)
#  include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#  define MOE_REGISTER_BYTES 64
#  if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#    define MOE_INSTRUCTION_SET avx512_bf16
#    define MOE_PAIRED_INSTRUCTIONS
#  else
#    define MOE_INSTRUCTION_SET avx512
#  endif
#elif defined(__AVX2__) && defined(__FMA__)
#  define MOE_INSTRUCTION_SET avx2
#  define MOE_REGISTER_BYTES 32
#else
#  define MOE_INSTRUCTION_SET baseline
#  define MOE_REGISTER_BYTES 16
#endif
#if MOE_REGISTER_BYTES == 16
#  define MOE_LINES_AT_ONCE 1  // else g++ 12 loads factors of several lines together, and runs out of registers
#else
#  define MOE_LINES_AT_ONCE 16
#endif
#define MOE_TEXT(name) MOE_TEXT_OF(name)
#define MOE_TEXT_OF(name) #name

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// What a kernel asks for meanwhile: `lines` lines of memory, `step` bytes apart, every 16 lines of its panel.
struct Prefetch {
  const char* next;
  std::int64_t step, lines;
};

/// One kernel: `panels` (1, 2 or 4) at once, `stride` bytes apart, `lines` long. Sums
/// of int8 are int32, in the floats' place.
struct MicroKernel {
  void (*run)(const void* tile, const void* panel, std::int64_t stride, std::int64_t lines, const Prefetch& coming,
              float* sums);
  int panels;
};

struct SmallLines;
struct SmallDots;

struct MicroKernels {
  static constexpr int most_rows = 14;
  const char* name;  ///< the instruction set
  int rows;          ///< the most rows of a tile
  bool pairs;        ///< tiles for bfloat16 panels hold bfloat16 too, and not float
  bool bytes;        ///< tiles for int8 panels hold int8 too, and not int16; behind its blocks, a row has one more
                     ///< line, whose first int32 is added to its sums: -128 times the sum of the row
  MicroKernel f32[most_rows + 1], bf16[most_rows + 1], int8[most_rows + 1];  ///< by rows, from 1
  MicroKernel f32_row, bf16_row, int8_row;  ///< one row and four panels, whose sums (64) stand in a row
  int small_rows;                           ///< the most rows of small_lines
  void (*small_lines)(int rows, int panels, const SmallLines& of);
  void (*small_dots)(const SmallDots& of);
};

namespace MOE_INSTRUCTION_SET {

/// GNU's vectors, which g++ and clang map to registers. Tiles, panels and sums are aligned to 64 bytes.
typedef float Vector __attribute__((vector_size(MOE_REGISTER_BYTES), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(MOE_REGISTER_BYTES), may_alias));
typedef std::int32_t Integers __attribute__((vector_size(MOE_REGISTER_BYTES), may_alias));
typedef std::int16_t Shorts __attribute__((vector_size(MOE_REGISTER_BYTES), may_alias));
inline constexpr int lanes = MOE_REGISTER_BYTES / 4, registers = lanes == 16 ? 32 : 16;
inline constexpr int prefetch_hint = lanes == 16 ? 3 : 2;  // measured: to the nearest cache on Zen 5, not on Zen 3
inline constexpr int vectors = 16 / lanes;                 // of a panel's line
typedef std::int32_t Pair __attribute__((may_alias));      // two int16, or four int8

/// Keeps a vector in its register: g++ 12 would load a line again for each row, and put off adding integers until no
/// register is left.
template <class V>
[[gnu::always_inline]] inline void pin([[maybe_unused]] V& vector) {
#if defined(__x86_64__)
  asm("" : "+v"(vector));
#endif
}

struct Float {
  using Sum = Vector;
  static constexpr bool offset = false;  // does the tile have a last line, which is added to the sums?
  static constexpr bool paired = false;
  static constexpr int tile_lines = 1;   // of the tile, a row, for 16 lines of the panel
  static constexpr int temporaries = 1;  // lines of the panel in registers, beside the accumulators and one factor
  static constexpr int bytes = MOE_REGISTER_BYTES;  // of the panel, in a vector

  template <int rows, int width>
  [[gnu::always_inline]] static inline void block(const void* tile, const char* const* panel, int lines,
                                                  Vector (&sum)[rows][width]) {
    const auto* factors = static_cast<const float*>(tile);
    MOE_UNROLL(MOE_LINES_AT_ONCE)
    for (int k = 0; k < lines; ++k) {
      Vector line[width];
      MOE_UNROLL(8)
      for (int v = 0; v < width; ++v) {
        line[v] = *reinterpret_cast<const Vector*>(panel[v / vectors] + 64 * k + MOE_REGISTER_BYTES * (v % vectors));
        pin(line[v]);
      }
      MOE_UNROLL(16)
      for (int i = 0; i < rows; ++i) {
        const float factor = factors[16 * i + k];
        MOE_UNROLL(8)
        for (int v = 0; v < width; ++v) sum[i][v] += factor * line[v];
      }
    }
  }
};

/// bfloat16 panels and float tiles: the halves of a word become floats by a shift and a mask.
struct Widened {
  using Sum = Vector;
  static constexpr bool paired = false, offset = false;
  static constexpr int tile_lines = 2, temporaries = 2, bytes = MOE_REGISTER_BYTES;

  template <int rows, int width>
  [[gnu::always_inline]] static inline void block(const void* tile, const char* const* panel, int lines,
                                                  Vector (&sum)[rows][width]) {
    const auto* factors = static_cast<const float*>(tile);
    const Words upper = Words{} + 0xffff0000u;
    MOE_UNROLL(MOE_LINES_AT_ONCE)
    for (int pair = 0; pair < lines; ++pair) {
      const float* at = factors + pair / 8 * rows * 16 + pair % 8 * 2;
      Words line[width];
      MOE_UNROLL(8)
      for (int v = 0; v < width; ++v) {
        line[v] = *reinterpret_cast<const Words*>(panel[v / vectors] + 64 * pair + MOE_REGISTER_BYTES * (v % vectors));
        if constexpr ((rows + 2) * width + 2 < registers) pin(line[v]);
      }
      MOE_UNROLL(2)
      for (int half = 0; half < 2; ++half) {
        Vector wide[width];
        MOE_UNROLL(8)
        for (int v = 0; v < width; ++v) wide[v] = half == 0 ? Vector(line[v] << 16) : Vector(line[v] & upper);
        MOE_UNROLL(16)
        for (int i = 0; i < rows; ++i) {
          const float factor = at[16 * i + half];
          MOE_UNROLL(8)
          for (int v = 0; v < width; ++v) sum[i][v] += factor * wide[v];
        }
      }
    }
  }
};

#if defined(MOE_PAIRED_INSTRUCTIONS)
/// bfloat16 panels and tiles: one instruction adds the products of a pair.
struct Paired {
  using Sum = Vector;
  static constexpr bool paired = true, offset = false;
  static constexpr int tile_lines = 1, temporaries = 1, bytes = MOE_REGISTER_BYTES;

  template <int rows, int width>
  [[gnu::always_inline]] static inline void block(const void* tile, const char* const* panel, int lines,
                                                  Vector (&sum)[rows][width]) {
    const auto* factors = static_cast<const std::int32_t*>(tile);
    MOE_UNROLL(16)
    for (int k = 0; k < lines; ++k) {
      __m512i line[width];
      MOE_UNROLL(4)
      for (int v = 0; v < width; ++v) line[v] = _mm512_load_si512(panel[v] + 64 * k);
      MOE_UNROLL(16)
      for (int i = 0; i < rows; ++i) {
        const __m512bh factor = (__m512bh)_mm512_set1_epi32(factors[16 * i + k]);
        MOE_UNROLL(4)
        for (int v = 0; v < width; ++v)
          sum[i][v] = (Vector)_mm512_dpbf16_ps((__m512)sum[i][v], factor, (__m512bh)line[v]);
      }
    }
  }
};
using Half = Paired;
#else
using Half = Widened;
#endif

#if defined(MOE_PAIRED_INSTRUCTIONS)
/// int8 panels and tiles: one instruction adds four products. It takes one factor without a sign: 128 is added to the
/// panel's numbers, and taken off the sums by the tile's last line.
struct Bytes {
  using Sum = Integers;
  static constexpr bool offset = true;
  static constexpr int tile_lines = 1, temporaries = 1, bytes = MOE_REGISTER_BYTES;

  template <int rows, int width>
  [[gnu::always_inline]] static inline void block(const void* tile, const char* const* panel, int lines,
                                                  Integers (&sum)[rows][width]) {
    const auto* factors = static_cast<const Pair*>(tile);
    alignas(64) static constexpr std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i quads = _mm512_load_si512(order);  // [pair][column] becomes [column][pair]
    MOE_UNROLL(16)
    for (int k = 0; k < lines; ++k) {
      __m512i line[width];
      MOE_UNROLL(4)
      for (int v = 0; v < width; ++v)
        line[v] = _mm512_xor_si512(_mm512_permutexvar_epi16(quads, _mm512_load_si512(panel[v] + 64 * k)),
                                   _mm512_set1_epi32(int(0x80808080u)));
      MOE_UNROLL(16)
      for (int i = 0; i < rows; ++i) {
        const __m512i factor = _mm512_set1_epi32(factors[16 * i + k]);
        MOE_UNROLL(4)
        for (int v = 0; v < width; ++v) sum[i][v] = (Integers)_mm512_dpbusd_epi32((__m512i)sum[i][v], line[v], factor);
      }
    }
  }
};
using Whole = Bytes;
#else
/// int8 numbers of memory as int16, and sum += a b, where both products of a word are added to one sum.
#  if MOE_REGISTER_BYTES == 64
[[gnu::always_inline]] inline Shorts widen(const char* from) {
  return (Shorts)_mm512_cvtepi8_epi16(*reinterpret_cast<const __m256i*>(from));
}
[[gnu::always_inline]] inline void add_products(Integers& sum, const Shorts& a, const Shorts& b) {
  sum += (Integers)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#  elif MOE_REGISTER_BYTES == 32
[[gnu::always_inline]] inline Shorts widen(const char* from) {
  return (Shorts)_mm256_cvtepi8_epi16(*reinterpret_cast<const __m128i*>(from));
}
[[gnu::always_inline]] inline void add_products(Integers& sum, const Shorts& a, const Shorts& b) {
  sum += (Integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#  elif defined(__SSE2__)
[[gnu::always_inline]] inline Shorts widen(const char* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return (Shorts)_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
}
[[gnu::always_inline]] inline void add_products(Integers& sum, const Shorts& a, const Shorts& b) {
  sum += (Integers)_mm_madd_epi16((__m128i)a, (__m128i)b);
}
#  else
[[gnu::always_inline]] inline Shorts widen(const char* from) {
  typedef std::int8_t Bytes __attribute__((vector_size(MOE_REGISTER_BYTES / 2), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Shorts);
}
[[gnu::always_inline]] inline void add_products(Integers& sum, const Shorts& a, const Shorts& b) {
  const Integers c = (Integers)a, d = (Integers)b;  // an upper half, and a lower half moved up and down
  sum += (c >> 16) * (d >> 16) + ((Integers)((Words)c << 16) >> 16) * ((Integers)((Words)d << 16) >> 16);
}
#  endif

/// int8 panels and int16 tiles. All is exact: no product or sum of two leaves its type.
struct Integer {
  using Sum = Integers;
  static constexpr bool offset = false;
  static constexpr int tile_lines = 2, temporaries = 1, bytes = MOE_REGISTER_BYTES / 2;

  template <int rows, int width>
  [[gnu::always_inline]] static inline void block(const void* tile, const char* const* panel, int lines,
                                                  Integers (&sum)[rows][width]) {
    const auto* factors = static_cast<const Pair*>(tile);
    for (int half = 0; half < 2; ++half) {
      const int left = 2 * lines - 16 * half, pairs = left < 16 ? left : 16;
      MOE_UNROLL(16)
      for (int pair = 0; pair < pairs; ++pair) {
        const int at = 512 * half + 32 * pair;  // of the panel
        Shorts line[width];
        MOE_UNROLL(8)
        for (int v = 0; v < width; ++v) {
          line[v] = widen(panel[v / vectors] + at + MOE_REGISTER_BYTES / 2 * (v % vectors));
          pin(line[v]);
        }
        MOE_UNROLL(16)
        for (int i = 0; i < rows; ++i) {
          const Shorts factor = (Shorts)(Integers{} + factors[16 * (half * rows + i) + pair]);
          MOE_UNROLL(8)
          for (int v = 0; v < width; ++v) {
            add_products(sum[i][v], factor, line[v]);
            pin(sum[i][v]);
          }
        }
      }
    }
  }
};
using Whole = Integer;
#endif

/// Do two panels' accumulators of so many rows fit the registers, beside a line, temporaries and a factor?
template <class Kind, int rows>
inline constexpr int panels_at_once = (rows + Kind::temporaries) * 2 * vectors + 1 <= registers ? 2 : 1;

template <class Kind, int rows, int panels>
void multiply(const void* tile, const void* panel, std::int64_t stride, std::int64_t lines, const Prefetch& coming,
              float* sums) {
  constexpr int width = panels * vectors;
  constexpr int slice = lanes == 4 ? 2 : width;  // vectors at once: few registers hold half a line
  const char* next = coming.next;
  MOE_UNROLL(2)
  for (int first = 0; first < width; first += slice) {
    const char* from = static_cast<const char*>(tile);
    const char* at[panels];
    MOE_UNROLL(4)
    for (int p = 0; p < panels; ++p)
      at[p] = static_cast<const char*>(panel) + (first / vectors + p) * stride + Kind::bytes * (first % vectors);
    using Sum = typename Kind::Sum;
    Sum sum[rows][slice];
    MOE_UNROLL(16)
    for (int i = 0; i < rows; ++i) {
      MOE_UNROLL(8)
      for (int v = 0; v < slice; ++v) sum[i][v] = Sum{};
    }
    for (std::int64_t line = 16; line <= lines; line += 16) {
      for (std::int64_t i = first == 0 ? 0 : coming.lines; i < coming.lines; ++i, next += coming.step)
        __builtin_prefetch(next, 0, prefetch_hint);
      Kind::template block<rows, slice>(from, at, 16, sum);
      from += 64 * rows * Kind::tile_lines;
      MOE_UNROLL(4)
      for (int p = 0; p < panels; ++p) at[p] += 64 * 16;
    }
    if (lines % 16 != 0) Kind::template block<rows, slice>(from, at, int(lines % 16), sum);
    if constexpr (Kind::offset) {
      if (lines % 16 != 0) from += 64 * rows;
      MOE_UNROLL(16)
      for (int i = 0; i < rows; ++i) {
        MOE_UNROLL(8)
        for (int v = 0; v < slice; ++v)  // as words, since sums with the offset may have passed int32's end
          sum[i][v] = (Sum)((Words)sum[i][v] + std::uint32_t(reinterpret_cast<const Pair*>(from)[16 * i]));
      }
    }
    MOE_UNROLL(16)
    for (int i = 0; i < rows; ++i) {
      MOE_UNROLL(8)
      for (int v = 0; v < slice; ++v) *reinterpret_cast<Sum*>(sums + 32 * i + lanes * (first + v)) = sum[i][v];
    }
  }
}

/// The most rows whose accumulators of one panel (of two, where a line is one register) fit.
inline constexpr int tile_rows = lanes == 16 ? MicroKernels::most_rows : lanes == 8 ? 6 : 5;

template <class Kind, int rows>
constexpr MicroKernel kernel() {
  if constexpr (rows == 0 || rows > tile_rows) {
    return {nullptr, 0};
  } else {
    return {&multiply<Kind, rows, panels_at_once<Kind, rows>>, panels_at_once<Kind, rows>};
  }
}

template <class Kind, int... rows>
constexpr void list(MicroKernel* to, std::integer_sequence<int, rows...>) {
  ((to[rows] = kernel<Kind, rows>()), ...);
}

}  // namespace MOE_INSTRUCTION_SET

}  // namespace kernels::cpu

#undef MOE_REGISTER_BYTES
#undef MOE_LINES_AT_ONCE
#undef MOE_PAIRED_INSTRUCTIONS

MOE_NAMESPACE_END
