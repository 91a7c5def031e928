#pragma once
/// @file
/// `WaveTile`: a tile's sums on AMD's matrix units (gfx90a, gfx942), by MFMA instructions of 16 x 16 x 16 bfloat16 or
/// float16. Sums are f32.
///
/// Where numbers stand in a wavefront's registers is said by plain functions, which a test on hosts goes through.

#include "moe/core/bfloat16.hpp"
#include "moe/core/float16.hpp"
#include "moe/kernels/device/matrix_tile.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::hip {

/// Place of a lane's sum r in a piece.
struct WavePlace {
  KOKKOS_FUNCTION static int row_of(int lane, int r) { return lane / 16 * 4 + r; }
  KOKKOS_FUNCTION static int column_of(int lane, int) { return lane % 16; }
};

/// A tile of rows x columns by `waves_down` x `waves_across` wavefronts, each with a part of it in pieces of 16 x 16.
template <class T, int rows, int columns, int depth_, int waves_down, int waves_across, int parts_>
struct WaveTile : device::MatrixTile<rows, columns, depth_, waves_down, waves_across, parts_, 64, 16, WavePlace> {
  using Tile = device::MatrixTile<rows, columns, depth_, waves_down, waves_across, parts_, 64, 16, WavePlace>;
  using Tile::across, Tile::depth, Tile::down, Tile::first_column, Tile::first_row, Tile::parts;
  using typename Tile::Sums;
  static constexpr int stages = 2, step = 16;  // step: of k, of one instruction
  static constexpr bool scratch_by_itself = false;
  static_assert(sizeof(T) == 2 && depth % step == 0);

  /// Where number i of a lane's four comes from in a tile laid out as L says, A's rows or B's columns from `first`.
  template <class L>
  KOKKOS_FUNCTION static int factor(int lane, int i, int first, int k) {
    return L::at(first + lane % 16, k + lane / 16 * 4 + i);
  }

  /// sums += the product of a stage's tiles.
  template <class A, class B>
  KOKKOS_FUNCTION static void add([[maybe_unused]] int thread, [[maybe_unused]] const T* a, [[maybe_unused]] const T* b,
                                  [[maybe_unused]] Sums& sums) {
#if defined(__HIP_DEVICE_COMPILE__)
    const int lane = thread % 64, row = first_row(thread), column = first_column(thread);
    MOE_UNROLL_ON_DEVICE
    for (int k = 0; k < depth; k += step) {
      Factors left[down], right[parts][across];
      MOE_UNROLL_ON_DEVICE
      for (int i = 0; i < down; ++i) left[i] = load<A>(a, lane, row + i * 16, k);
      MOE_UNROLL_ON_DEVICE
      for (int part = 0; part < parts; ++part) {
        MOE_UNROLL_ON_DEVICE
        for (int j = 0; j < across; ++j) right[part][j] = load<B>(b + part * B::size, lane, column + j * 16, k);
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

#if defined(__HIP_DEVICE_COMPILE__)
 private:
  typedef short Factors __attribute__((ext_vector_type(4)));
  typedef _Float16 Halves __attribute__((ext_vector_type(4)));
  typedef float Four __attribute__((ext_vector_type(4)));

  template <class L>
  __device__ static Factors load(const T* tile, int lane, int first, int k) {
    if constexpr (L::along) return *reinterpret_cast<const Factors*>(tile + factor<L>(lane, 0, first, k));
    Factors result;
    for (int i = 0; i < 4; ++i) result[i] = short(tile[factor<L>(lane, i, first, k)].bits);
    return result;
  }

  __device__ static void multiply(const Factors& a, const Factors& b, float (&sum)[4]) {
    Four total{sum[0], sum[1], sum[2], sum[3]};
    if constexpr (std::is_same_v<T, bfloat16>) {
      total = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, total, 0, 0, 0);
    } else {
      total = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(Halves, a), __builtin_bit_cast(Halves, b), total,
                                                    0, 0, 0);
    }
    for (int r = 0; r < 4; ++r) sum[r] = total[r];
  }
#endif
};

}  // namespace kernels::hip

MOE_NAMESPACE_END
