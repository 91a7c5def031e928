#pragma once
/// Engines of GPUs' matrix units on a host: instructions as their manuals describe them, for one lane at a time. What
/// other lanes hold follows from where they read.
#include <barrier>
#include <thread>
#include <vector>

#include "moe/kernels/cuda/warp_tile.hpp"
#include "moe/kernels/cuda/warpgroup_tile.hpp"
#include "moe/kernels/device/tile_product.hpp"
#include "moe/kernels/hip/wave_tile.hpp"

namespace moe_test {

using moe::Index;

/// NVIDIA's (PTX ISA, sections on ldmatrix and on fragments of mma.m16n8k16, m16n8k8 and m16n8k32).
template <class T, int rows, int columns, int depth, int down, int across, int parts_, int stages>
struct EmulatedWarpTile : moe::kernels::cuda::WarpTile<T, rows, columns, depth, down, across, parts_, stages> {
  using Tile = moe::kernels::cuda::WarpTile<T, rows, columns, depth, down, across, parts_, stages>;
  using Sums = typename Tile::Sums;

  static constexpr int in_register = 4 / int(sizeof(T));

  /// ldmatrix: number n of register `matrix` of a lane. `line(lane)`: where the lane's line starts.
  template <bool transposed, class Line>
  static float loaded(const T* tile, int lane, int matrix, int n, const Line& line) {
    const int number = lane % 4 * in_register + n;
    return float(transposed ? tile[line(matrix * 8 + number) + lane / 4] : tile[line(matrix * 8 + lane / 4) + number]);
  }
  /// A(i, k) of a piece, from the lane and register that hold it.
  template <class A>
  static float a_factor(const T* tile, int i, int k, int row, int first_k) {
    const int four = 4 * in_register, lane = i % 8 * 4 + k % four / in_register, r = i / 8 + k / four * 2;
    if constexpr (sizeof(T) == 4) {
      return tile[Tile::template a_word<A>(lane, r, row, first_k)];
    } else {
      return loaded<!A::along>(tile, lane, r, k % in_register,
                               [&](int from) { return Tile::template a_line<A>(from, row, first_k); });
    }
  }
  template <class B>
  static float b_factor(const T* tile, int j, int k, int column, int first_k) {
    const int four = 4 * in_register, lane = j * 4 + k % four / in_register, r = k / four;
    if constexpr (sizeof(T) == 4) {
      return tile[Tile::template b_word<B>(lane, r, column, first_k)];
    } else {
      return loaded<!B::along>(tile, lane, r, k % in_register,
                               [&](int from) { return Tile::template b_line<B>(from, column, first_k); });
    }
  }

  template <class A, class B>
  static void add(int thread, const T* a, const T* b, Sums& sums) {
    const int lane = thread % 32;
    for (int k = 0; k < depth; k += Tile::step) {
      for (int part = 0; part < parts_; ++part) {
        for (int i = 0; i < Tile::down; ++i) {
          for (int j = 0; j < Tile::across; ++j) {
            for (int r = 0; r < 4; ++r) {
              // c0, c1: row lane / 4, columns 2 (lane % 4) and the next; c2, c3: eight rows below.
              const int row = lane / 4 + (r < 2 ? 0 : 8), column = lane % 4 * 2 + r % 2;
              float& sum = sums.value[part][i][j][r];
              for (int l = 0; l < Tile::step; ++l) {
                sum += a_factor<A>(a, row, l, Tile::first_row(thread) + i * 16, k) *
                       b_factor<B>(b + part * B::size, column, l, Tile::first_column(thread) + j * 8, k);
              }
            }
          }
        }
      }
    }
  }
};

/// NVIDIA's warpgroups (PTX ISA, sections on wgmma's matrix descriptors, swizzling modes and register fragments).
template <class T, int columns, int parts_, int stages>
struct EmulatedWarpgroupTile : moe::kernels::cuda::WarpgroupTile<T, columns, parts_, stages> {
  using Tile = moe::kernels::cuda::WarpgroupTile<T, columns, parts_, stages>;
  using Sums = typename Tile::Sums;

  /// Number k of the sum of row (or column) i, where an operand begins at `start`: 8 lines of 128 bytes follow each
  /// other, then the next 8; of the address, bits 7 to 9 are added to bits 4 to 6 without carrying.
  template <class L>
  static float factor(const T* tile, int start, int i, int k) {
    const int line = L::along ? i : k, number = L::along ? k : i;
    const int apart = Tile::depth * 128;  // 64 numbers of operands that do not lie along the sum
    int bytes = start * int(sizeof(T)) + line * 128 + number / 64 * apart + number % 64 * int(sizeof(T));
    bytes ^= (bytes >> 7 & 7) << 4;
    return float(tile[bytes / int(sizeof(T))]);
  }

  template <class A, class B>
  static void add(int thread, const T* a, const T* b, Sums& sums) {
    const int lane = thread % 32, group = thread / 128;
    for (int part = 0; part < parts_; ++part) {
      for (int j = 0; j < columns / 8; ++j) {
        for (int r = 0; r < 4; ++r) {
          const int row = thread % 128 / 32 * 16 + lane / 4 + (r < 2 ? 0 : 8);
          const int column = part * columns + j * 8 + lane % 4 * 2 + r % 2;
          for (int k = 0; k < Tile::depth; k += Tile::step) {
            const int left = Tile::template start<A>(group * 64, k), right = Tile::template start<B>(0, k);
            for (int l = 0; l < Tile::step; ++l)
              sums.value[part][0][j][r] += factor<A>(a, left, row, l) * factor<B>(b, right, column, l);
          }
        }
      }
    }
  }
};

/// AMD's (matrix instruction calculator: v_mfma_f32_16x16x16_bf16_1k and _f16).
template <class T, int rows, int columns, int depth, int down, int across, int parts_>
struct EmulatedWaveTile : moe::kernels::hip::WaveTile<T, rows, columns, depth, down, across, parts_> {
  using Tile = moe::kernels::hip::WaveTile<T, rows, columns, depth, down, across, parts_>;
  using Sums = typename Tile::Sums;

  /// Row (or column) i of a factor at k is number k % 4 of lane 16 (k / 4) + i.
  template <class L>
  static float factor(const T* tile, int i, int k, int first, int first_k) {
    return float(tile[Tile::template factor<L>(k / 4 * 16 + i, k % 4, first, first_k)]);
  }

  template <class A, class B>
  static void add(int thread, const T* a, const T* b, Sums& sums) {
    const int lane = thread % 64;
    for (int k = 0; k < depth; k += Tile::step) {
      for (int part = 0; part < parts_; ++part) {
        for (int i = 0; i < Tile::down; ++i) {
          for (int j = 0; j < Tile::across; ++j) {
            for (int r = 0; r < 4; ++r) {
              const int row = lane / 16 * 4 + r, column = lane % 16;
              float& sum = sums.value[part][i][j][r];
              for (int l = 0; l < Tile::step; ++l) {
                sum += factor<A>(a, row, l, Tile::first_row(thread) + i * 16, k) *
                       factor<B>(b + part * B::size, column, l, Tile::first_column(thread) + j * 16, k);
              }
            }
          }
        }
      }
    }
  }
};

/// Runs a kernel's body on `teams` teams of as many threads of the host as it wants.
template <class Kernel>
void run_teams(const Kernel& kernel, Index teams) {
  for (Index team = 0; team < teams; ++team) {
    constexpr int line = Kernel::alignment;
    std::vector<std::byte> memory(kernel.bytes_of(kernel.product.experts) + line, std::byte(0xff));
    std::byte* scratch = memory.data() + (line - reinterpret_cast<std::uintptr_t>(memory.data()) % line);
    std::barrier<> meeting(Kernel::threads);
    const auto wait = [&] { meeting.arrive_and_wait(); };
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < Kernel::threads; ++thread) {
      threads.emplace_back([&, thread] {
        kernel(moe::kernels::device::Place<decltype(wait)>{thread, team, teams, scratch, wait});
      });
    }
  }
}

}  // namespace moe_test
