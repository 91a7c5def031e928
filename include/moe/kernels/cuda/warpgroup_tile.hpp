#pragma once
/// @file
/// `WarpgroupTile`: a tile's sums on Hopper's matrix units (sm_90a), by `wgmma` of 64 x 256 x 16 bfloat16 or float16:
/// 128 threads multiply together, and read both operands from shared memory by themselves. Sums are f32.

#include "moe/kernels/cuda/warp_tile.hpp"
#include "moe/kernels/device/lines.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cuda {

#if defined(__CUDACC__)
#  if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#    define MOE_PROBE_THREADS 64
#  else
#    define MOE_PROBE_THREADS 32
#  endif
/// Its bound tells which code this is: hosts do not see the architectures that they are compiled with.
template <class = void>
__global__ void __launch_bounds__(MOE_PROBE_THREADS) sm90a_probe() {}
#  undef MOE_PROBE_THREADS

/// Did the device take code of sm_90a from this program? (With code of sm_90 alone it has no `wgmma`.)
inline bool is_sm90a_code() {
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, &sm90a_probe<>) == cudaSuccess && attributes.maxThreadsPerBlock == 64;
}
#endif

/// A tile of 128 rows by two warpgroups, 64 rows each; parts * columns are the 256 columns of an instruction.
template <class T, int columns, int parts_, int stages_>
struct WarpgroupTile : device::MatrixTile<128, columns, 64, 8, 1, parts_, 32, 8, WarpPlace> {
  using Tile = device::MatrixTile<128, columns, 64, 8, 1, parts_, 32, 8, WarpPlace>;
  using Tile::across, Tile::depth, Tile::first_row, Tile::parts;
  using typename Tile::Sums;
  static constexpr int stages = stages_, step = 16;  // step: of k, of one instruction
  static constexpr int behind = 1;                   // products may still run when add() returns
  static constexpr bool scratch_by_itself = true;
  static_assert(sizeof(T) == 2 && parts * columns == 256);

  /// Where the numbers of 64 rows from `row` on begin, from k on, in a layout's tile.
  template <class Layout>
  KOKKOS_FUNCTION static constexpr int start(int row, int k) {
    return Layout::along ? row * Layout::together + k : row / 64 * (depth * Layout::together) + k * Layout::together;
  }

  /// sums += the product of a stage's tiles.
  template <class A, class B>
  KOKKOS_FUNCTION static void add([[maybe_unused]] int thread, [[maybe_unused]] const T* a, [[maybe_unused]] const T* b,
                                  [[maybe_unused]] Sums& sums) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    const std::uint64_t left = descriptor<A>(a + start<A>(thread / 128 * 64, 0)), right = descriptor<B>(b);
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
    MOE_UNROLL_ON_DEVICE
    for (int k = 0; k < depth; k += step) {
      multiply<!A::along, !B::along>(left + start<A>(0, k) * sizeof(T) / 16, right + start<B>(0, k) * sizeof(T) / 16,
                                     reinterpret_cast<float(&)[128]>(sums.value));
    }
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
    await<behind>();
#endif
  }

  /// Waits until all but the last `pending` products are there.
  template <int pending>
  KOKKOS_FUNCTION static void await() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
#endif
  }
  /// Waits for all products. The compiler must not read sums before.
  KOKKOS_FUNCTION static void await_all([[maybe_unused]] Sums& sums) {
    await<0>();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    MOE_UNROLL_ON_DEVICE
    for (float& sum : reinterpret_cast<float(&)[128]>(sums.value)) asm volatile("" : "+f"(sum)::"memory");
#endif
  }

  /// A thread's lines of 8 neighbours in a row: lanes that hold a row's pieces exchange them, so that memory is read
  /// and written by lines.
  static constexpr int lines = across / 2;
  KOKKOS_FUNCTION static int line_row(int thread, int number) {
    return first_row(thread) + thread % 32 / 4 + number % 2 * 8;
  }
  KOKKOS_FUNCTION static int line_column(int thread, int number) {
    return (number / 2 * 4 + thread % 4) * 8;
  }
  KOKKOS_FUNCTION static void get_line(int thread, int number, const Sums& sums, float (&values)[parts][8]) {
    MOE_UNROLL_ON_DEVICE
    for (int part = 0; part < parts; ++part) {
      MOE_UNROLL_ON_DEVICE
      for (int i = 0; i < 8; ++i) values[part][i] = sums.value[part][0][number / 2 * 4 + i / 2][number % 2 * 2 + i % 2];
      exchange<1>(thread % 4, values[part]);
      exchange<2>(thread % 4, values[part]);
    }
  }

  /// One step of transposing 4 x 4 pairs over 4 lanes.
  template <int mask>
  KOKKOS_FUNCTION static void exchange([[maybe_unused]] int quarter, [[maybe_unused]] float (&value)[8]) {
#if defined(__CUDA_ARCH__)
    MOE_UNROLL_ON_DEVICE
    for (int pair = 0; pair < 4; ++pair) {
      if (pair & mask) continue;
      MOE_UNROLL_ON_DEVICE
      for (int i = 0; i < 2; ++i) {
        float &low = value[2 * pair + i], &high = value[2 * (pair | mask) + i];
        const float got = __shfl_xor_sync(~0u, quarter & mask ? low : high, mask);
        (quarter & mask ? low : high) = got;
      }
    }
#endif
  }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
 private:
  /// A tile as the instruction is told of it: its address, how far 64 rows lie apart (which only tiles not along the
  /// sum need) and 8 of the others, all in 16 bytes, and that lines of 128 bytes are swizzled.
  template <class Layout>
  __device__ static std::uint64_t descriptor(const T* tile) {
    constexpr std::uint64_t apart = Layout::along ? 1 : Layout::outer * 128 / 16, eight = 8 * 128 / 16;
    const std::uint64_t address = std::uint64_t(__cvta_generic_to_shared(tile)) & 0x3ffff;
    return address / 16 | apart << 16 | eight << 32 | std::uint64_t(1) << 62;
  }

#  define MOE_SUMS4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#  define MOE_SUMS16(i) MOE_SUMS4(i), MOE_SUMS4(i + 4), MOE_SUMS4(i + 8), MOE_SUMS4(i + 12)
#  define MOE_SUMS64(i) MOE_SUMS16(i), MOE_SUMS16(i + 16), MOE_SUMS16(i + 32), MOE_SUMS16(i + 48)
#  define MOE_WGMMA(type)                                                                    \
    asm volatile(                                                                            \
        "{.reg .pred add;\nsetp.eq.u32 add, 1, 1;\n"                                         \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                         \
        " {"                                                                                 \
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                             \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                   \
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                   \
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                   \
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                   \
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                   \
        "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"       \
        "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, " \
        "%128, %129, add, 1, 1, %130, %131;}\n"                                              \
        : MOE_SUMS64(0), MOE_SUMS64(64)                                                      \
        : "l"(a), "l"(b), "n"(int(a_across)), "n"(int(b_across)))
  /// across: an operand does not lie along the sum.
  template <bool a_across, bool b_across>
  __device__ static void multiply(std::uint64_t a, std::uint64_t b, float (&sum)[128]) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      MOE_WGMMA("bf16");
    } else {
      MOE_WGMMA("f16");
    }
  }
#  undef MOE_WGMMA
#  undef MOE_SUMS64
#  undef MOE_SUMS16
#  undef MOE_SUMS4
#endif
};

}  // namespace kernels::cuda

MOE_NAMESPACE_END
