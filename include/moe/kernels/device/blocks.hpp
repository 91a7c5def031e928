#pragma once
/// @file
/// FP8 with a scale for each 128 numbers of a token and each 128 x 128 of a weight (DeepSeek-AI 2024, "DeepSeek-V3",
/// section 3.3.2): x = scale * q, scale = the block's largest magnitude / 448.

#include "moe/core/activation.hpp"
#include "moe/core/float8.hpp"
#include "moe/kernels/device/dots.hpp"
#include "moe/kernels/device/multiply.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

KOKKOS_INLINE_FUNCTION constexpr Index blocks_of(Index size) {
  return (size + scale_block - 1) / scale_block;
}

/// Blocks of `high` x 128 numbers of (matrices, rows, size), a warp each, as float8 and a scale (matrices, blocks down,
/// blocks across).
template <class T, int lanes>
struct ScaleBlocks {
  static constexpr int warps = lanes == 1 ? 1 : 4;
  const T* from;
  float8_e4m3* to;
  float* scale;
  Index matrices, rows, size, high;
  const Index* live;  // the number of rows that hold anything, on the device, or null: all

  KOKKOS_FUNCTION Index down() const { return (rows + high - 1) / high; }
  KOKKOS_FUNCTION Index count() const { return matrices * down() * blocks_of(size); }

  template <class Member>
  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Index block = Index(team.league_rank()) * warps + team.team_rank() / lanes;
    if (block < count()) convert(block, team.team_rank() % lanes);
  }

  KOKKOS_FUNCTION void convert(Index block, int lane) const {
    const Index across = blocks_of(size), matrix = block / (down() * across);
    const Index row = block / across % down() * high, column = block % across * scale_block;
    const Index end_row = row + high < rows ? row + high : rows;
    const Index end = column + scale_block < size ? column + scale_block : size;
    if (live != nullptr && row >= *live) return;
    std::uint32_t largest = 0;  // magnitudes compare as their bits do
    for (Index r = row; r < end_row; ++r) {
      const T* line = from + (matrix * rows + r) * size;
      for (Index i = column + lane; i < end; i += lanes) {
        const std::uint32_t bits = Kokkos::bit_cast<std::uint32_t>(float(line[i])) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
      }
    }
    const Team team{lane, lanes, lanes};
    for (int mask = lanes / 2; mask > 0; mask /= 2) {  // NaN is the largest of all
      const std::uint32_t other = team.exchange(largest, mask);
      largest = other > largest ? other : largest;
    }
    const float magnitude = Kokkos::bit_cast<float>(largest);
    const float step = magnitude / float8_e4m3::largest;
    if (lane == 0) scale[block] = step;
    // Where the step is no normal number, division would not give 448 for the largest: then all are zeros, or all NaN.
    const bool zero = step < 0x1p-126f, usable = step < Kokkos::Experimental::infinity_v<float>;
    for (Index r = row; r < end_row; ++r) {
      const Index at = (matrix * rows + r) * size;
      for (Index i = column + lane; i < end; i += lanes)
        to[at + i] = zero ? float8_e4m3() : float8_e4m3(usable ? float(from[at + i]) / step : step - step);
    }
  }
};

/// from (matrices, rows, size) to float8 and scales of blocks of `high` (1 or 128) x 128; rows behind `*live` are left
/// alone.
template <class Space, class T>
void scale_blocks(const Space& space, const T* from, Index matrices, Index rows, Index size, Index high,
                  float8_e4m3* to, float* scale, const Index* live = nullptr) {
  constexpr int lanes = on_host<Space> ? 1 : 32;
  using Kernel = ScaleBlocks<T, lanes>;
  const Kernel kernel{from, to, scale, matrices, rows, size, high, live};
  const Index teams = (kernel.count() + Kernel::warps - 1) / Kernel::warps;
  if (teams == 0) return;
  Kokkos::parallel_for("moe::device::scale_blocks",
                       Teams<Space, lanes * Kernel::warps>(space, int(teams), lanes * Kernel::warps), kernel);
}

/// What multiplies the sum of one block, for rows scaled 1 x 128 and weights 128 x 128.
struct BlockScales {
  const float *row, *weight;  // (R, blocks of the sum), (E, blocks down, blocks of the sum)
  Index weight_rows;          // of an expert: n times the parts

  KOKKOS_FUNCTION float operator()(Index e, Index r, Index weight_row, Index block, Index blocks) const {
    return row[r * blocks + block] * weight[(e * blocks_of(weight_rows) + weight_row / scale_block) * blocks + block];
  }
};

/// out(R, n) = the sums, or with gate and up beside each other (n each) the activation of both.
template <class To, class Activation>
struct StoreScaled {
  BlockScales scales;
  To* out;
  Activation activation;

  KOKKOS_FUNCTION void operator()(const Product<float8_e4m3>& p, Index e, Index row, Index column,
                                  const float* sums) const {
    const float value = moe::detail::activate(activation, sums[0], sums[Activation::gated ? 1 : 0]);
    out[(p.offsets[e] + row) * p.n + column] = To(value);
  }
};

/// Rows (R, K) of tokens or hidden values, and weights (E, N, K): numbers and scales of their blocks.
struct Scaled8 {
  const float8_e4m3* number;
  const float* scale;
};

/// out (R, n) = activation(rows weight^T) for each expert's rows; gated: weight has 2n rows, the gate's first.
template <class Space, class To, class Activation>
void multiply_scaled(const Space& space, const Vector<Index, Space>& expert_offsets, Index bound, const Scaled8& rows,
                     const Scaled8& weight, Index n, Index k, const Activation& activation, To* out) {
  constexpr int parts = Activation::gated ? 2 : 1;
  const auto product =
      Product<float8_e4m3>::over_rows(expert_offsets.data(), expert_offsets.extent(0) - 1, bound, n, k,
                                      {rows.number, k, 1, 0}, {weight.number, k, 1, parts * n * k}, nullptr, false);
  multiply<parts>(space, product, StoreScaled<To, Activation>{{rows.scale, weight.scale, parts * n}, out, activation});
}

}  // namespace kernels::device

MOE_NAMESPACE_END
