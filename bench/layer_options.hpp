#pragma once
/// @file
/// What bench_layer measures: shapes, types of weights, and the choices of its command line.

#include <map>
#include <moe/moe.hpp>
#include <string>
#include <vector>

#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
#  include "device_limits.hpp"
#else
#  include "limits.hpp"
#endif

namespace bench {

using moe::Index;

/// Where layers run: the device, where Kokkos has one.
using Space = Kokkos::DefaultExecutionSpace;
inline constexpr bool on_device = !moe::on_host<Space>;

/// What the numbers are of: the processor's instructions, or the device.
inline std::string machine() {
#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
  return device_name();
#else
  return moe::instruction_set();
#endif
}

/// Sizes as the papers' models have them; those named -s are divided so that a laptop holds them.
struct Shape {
  std::string router;  // mixtral, deepseek-v2, deepseek-v3 or switch
  Index hidden, intermediate, experts, top_k, shared, groups, kept_groups;

  Index matrices() const { return router == "switch" ? 2 : 3; }
  /// Of a forward pass; routing is not counted.
  double flops(Index tokens) const {
    return 2.0 * double(matrices() * hidden * intermediate * (top_k + shared) * tokens);
  }
  double expert_numbers() const { return double(matrices() * hidden * intermediate); }
  double router_bytes() const { return 4.0 * double(hidden * experts); }
};

inline const std::map<std::string, Shape> shapes{{"mixtral-s", {"mixtral", 1024, 3584, 8, 2, 0, 1, 1}},
                                                 {"dsmoe-s", {"deepseek-v2", 1024, 704, 64, 6, 2, 1, 1}},
                                                 {"dsv3-s", {"deepseek-v3", 1792, 512, 256, 8, 1, 8, 4}},
                                                 {"switch", {"switch", 768, 3072, 8, 1, 0, 1, 1}},
                                                 // whole, for devices
                                                 {"deepseek-v3", {"deepseek-v3", 7168, 2048, 256, 8, 1, 8, 4}},
                                                 {"mixtral-8x7b", {"mixtral", 4096, 14336, 8, 2, 0, 1, 1}},
                                                 {"qwen3-235b", {"mixtral", 4096, 1536, 128, 8, 0, 1, 1}}};

struct Dtype {
  double bytes;            // of a weight
  double Limits::*gflops;  // what bounds its products
};

/// Types of weights.
inline const std::map<std::string, Dtype> dtypes{
    {"f32", {4, &Limits::gflops}}, {"bf16", {2, &Limits::bf16_gflops}}, {"int8", {1, &Limits::int8_gflops}}};

/// Calls f with a value of the type that moe::pack makes weights of.
template <class F>
void with_packed_type(const std::string& dtype, const F& f) {
  if (dtype == "bf16") return f(moe::bfloat16{});
  if (dtype == "int8") return f(std::int8_t{});
  f(float{});
}

struct Options {
  std::string mode = "forward", name = "dsmoe-s", dtype = "f32", layout;
  std::vector<Index> tokens;
  double skew = 0;
  int repeats = 7, threads = 0;
  bool json = false;

  double weight_bytes() const { return dtypes.at(dtype).bytes; }
  double peak(const Limits& limits) const { return limits.*dtypes.at(dtype).gflops; }
};

}  // namespace bench
