#pragma once
/// @file
/// `WarpTile`: a tile's sums on NVIDIA's matrix units (sm_80 and newer), by `mma.sync` of 16 x 8 x 16 bfloat16 or
/// float16, 16 x 8 x 8 TF32, or 16 x 8 x 32 FP8 (sm_89 and newer). Sums are f32.
///
/// Where numbers stand in a warp's registers is said by plain functions, which a test on hosts goes through.

#include "moe/core/bfloat16.hpp"
#include "moe/core/float16.hpp"
#include "moe/core/float8.hpp"
#include "moe/kernels/device/matrix_tile.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cuda {

/// Place of a lane's sum r in a piece.
struct WarpPlace {
  KOKKOS_FUNCTION static int row_of(int lane, int r) { return lane / 4 + r / 2 * 8; }
  KOKKOS_FUNCTION static int column_of(int lane, int r) { return lane % 4 * 2 + r % 2; }
};

/// A tile of rows x columns by `warps_down` x `warps_across` warps, each with a part of it in pieces of 16 x 8.
template <class T, int rows, int columns, int depth_, int warps_down, int warps_across, int parts_, int stages_>
struct WarpTile : device::MatrixTile<rows, columns, depth_, warps_down, warps_across, parts_, 32, 8, WarpPlace> {
  using Tile = device::MatrixTile<rows, columns, depth_, warps_down, warps_across, parts_, 32, 8, WarpPlace>;
  using Tile::across, Tile::depth, Tile::down, Tile::first_column, Tile::first_row, Tile::parts;
  using typename Tile::Sums;
  static constexpr int stages = stages_, step = 32 / int(sizeof(T));  // step: of k, of one instruction
  static constexpr bool scratch_by_itself = true;
  static_assert(depth % step == 0);

  /// `ldmatrix` reads 8 x 8 numbers of 16 bits from 8 lines of 16 bytes, given by 8 lanes each; lane l gets numbers
  /// 2 (l % 4) and the next of line l / 4, or transposed, of column l / 4 the lines 2 (l % 4) and the next. (Of FP8,
  /// four numbers for two, and never transposed.) Where the line starts that `lane` gives for a piece of A from (row,
  /// k): four matrices, rows before k.
  template <class A>
  KOKKOS_FUNCTION static int a_line(int lane, int row, int k) {
    const int matrix = lane / 8, line = lane % 8, right = matrix % 2 * 8, deep = matrix / 2 * (16 / int(sizeof(T)));
    return A::along ? A::at(row + right + line, k + deep) : A::at(row + right, k + deep + line);
  }
  /// The same for B from (column, k): two matrices, k and k + 8.
  template <class B>
  KOKKOS_FUNCTION static int b_line(int lane, int column, int k) {
    const int line = lane % 8, deep = lane / 8 % 2 * (16 / int(sizeof(T)));
    return B::along ? B::at(column + line, k + deep) : B::at(column, k + deep + line);
  }
  /// TF32: where register r of A and of B comes from.
  template <class A>
  KOKKOS_FUNCTION static int a_word(int lane, int r, int row, int k) {
    return A::at(row + lane / 4 + r % 2 * 8, k + lane % 4 + r / 2 * 4);
  }
  template <class B>
  KOKKOS_FUNCTION static int b_word(int lane, int r, int column, int k) {
    return B::at(column + lane / 4, k + lane % 4 + r * 4);
  }

  /// sums += the product of a stage's tiles.
  template <class A, class B>
  KOKKOS_FUNCTION static void add([[maybe_unused]] int thread, [[maybe_unused]] const T* a, [[maybe_unused]] const T* b,
                                  [[maybe_unused]] Sums& sums) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const int lane = thread % 32, row = first_row(thread), column = first_column(thread);
    MOE_UNROLL_ON_DEVICE
    for (int k = 0; k < depth; k += step) {
      unsigned left[down][4], right[parts][across][2];
      MOE_UNROLL_ON_DEVICE
      for (int i = 0; i < down; ++i) load_a<A>(left[i], a, lane, row + i * 16, k);
      MOE_UNROLL_ON_DEVICE
      for (int part = 0; part < parts; ++part) {
        MOE_UNROLL_ON_DEVICE
        for (int j = 0; j < across; ++j) load_b<B>(right[part][j], b + part * B::size, lane, column + j * 8, k);
      }
      MOE_UNROLL_ON_DEVICE
      for (int part = 0; part < parts; ++part) {
        MOE_UNROLL_ON_DEVICE
        for (int i = 0; i < down; ++i) {
          MOE_UNROLL_ON_DEVICE
          for (int j = 0; j < across; ++j) multiply(left[i], right[part][j], sums.value[part][i][j]);
        }
      }
    }
#endif
  }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
 private:
  template <class A>
  __device__ static void load_a(unsigned (&to)[4], const T* a, int lane, int row, int k) {
    if constexpr (sizeof(T) == 4) {
      for (int r = 0; r < 4; ++r) to[r] = tf32(a[a_word<A>(lane, r, row, k)]);
    } else {
      const unsigned address = unsigned(__cvta_generic_to_shared(a + a_line<A>(lane, row, k)));
      if constexpr (A::along) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
      } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
      }
    }
  }

  template <class B>
  __device__ static void load_b(unsigned (&to)[2], const T* b, int lane, int column, int k) {
    if constexpr (sizeof(T) == 4) {
      for (int r = 0; r < 2; ++r) to[r] = tf32(b[b_word<B>(lane, r, column, k)]);
    } else {
      const unsigned address = unsigned(__cvta_generic_to_shared(b + b_line<B>(lane, column, k)));
      if constexpr (B::along) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
      } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
      }
    }
  }

  __device__ static unsigned tf32(float x) {
    unsigned result;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(result) : "f"(x));
    return result;
  }

#  define MOE_MMA(shape, type)                                                  \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type        \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n" \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  __device__ static void multiply(const unsigned (&a)[4], const unsigned (&b)[2], float (&sum)[4]) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      MOE_MMA("m16n8k16", "bf16");
    } else if constexpr (std::is_same_v<T, float16>) {
      MOE_MMA("m16n8k16", "f16");
    } else if constexpr (std::is_same_v<T, float8_e4m3>) {
#  if __CUDA_ARCH__ >= 890
      MOE_MMA("m16n8k32", "e4m3");
#  endif
    } else {
      MOE_MMA("m16n8k8", "tf32");
    }
  }
#  undef MOE_MMA
#endif
};

}  // namespace kernels::cuda

MOE_NAMESPACE_END
