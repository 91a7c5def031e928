// The second call of a shape allocates nothing: no Kokkos array, and no block of memory beyond the strings that name
// Kokkos' regions.
#include <cstdlib>
#include <new>

#include "moe_test/layers.hpp"

namespace packed_allocations_test {

int arrays = 0, blocks = 0;
std::size_t bytes = 0;                 // of blocks
constexpr std::size_t smallest = 512;  // bytes of a block that counts

void note(std::size_t size) {
  if (size < smallest) return;
  ++blocks;
  bytes += size;
}

}  // namespace packed_allocations_test

// The sanitizers bring their own; there blocks are not counted. Ours take from malloc, so the usual delete fits.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#  define MOE_COUNTS_BLOCKS
void* operator new(std::size_t size) {
  packed_allocations_test::note(size);
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  packed_allocations_test::note(size);
  void* memory = nullptr;
  return posix_memalign(&memory, std::max(alignment, sizeof(void*)), size) == 0 ? memory : nullptr;
}
#endif

namespace packed_allocations_test {

using namespace moe_test;
using Host = Kokkos::DefaultHostExecutionSpace;

struct Counts {
  Counts() {
    Kokkos::Tools::Experimental::set_allocate_data_callback(
        [](Kokkos_Profiling_SpaceHandle, const char*, const void*, uint64_t) { ++arrays; });
    arrays = blocks = 0;
    bytes = 0;
  }
  ~Counts() { Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr); }
};

template <class Weight, class Layer>
void check(Layer& layer) {
  const auto packed = moe::pack<Weight>(layer);
  using T = typename std::decay_t<decltype(packed)>::Scalar;
  moe::Context<Host> ctx;
  const Index width = layer.config().hidden;
  moe::Batch<T, Host> batch;
  const moe::Matrix<T, Host> x("x", 90, width);
  for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] = T(float(i * 37 % 101) / 101 - 0.5f);
  const auto mask = filled<moe::Vector<std::uint8_t, Host>>(1, 90);
  mask(3) = 0;
  batch.x = x;
  batch.mask = mask;
  packed.forward(ctx, batch);
  {
    const Counts counts;
    packed.forward(ctx, batch);
    CHECK(arrays == 0);
    CHECK(blocks == 0);
  }
  typename std::decay_t<decltype(packed)>::Tape tape;
  packed.forward(ctx, batch, tape);
  const Counts counts;
  packed.forward(ctx, batch, tape);
  CHECK(arrays == 0);
  CHECK(blocks == 0);
}

TEMPLATE_TEST_CASE("The second call of a packed layer allocates nothing", "", float, moe::bfloat16, std::int8_t) {
  const moe::MoEConfig config{.hidden = 70, .intermediate = 45, .experts = 8};
  using Shared = moe::SharedExperts<2, moe::SwiGLU, moe::SigmoidGate>;
  HostLayer<float, moe::MixtralRouter, Shared> layer(config, moe::Seed{5});
  check<TestType>(layer);
  using Capacity = moe::CapacityPolicy<moe::Drop>;
  HostLayer<float, moe::MixtralRouter, moe::ExpertFFN<moe::ReLU, moe::Bias>, Capacity, moe::Latent<>> latent(
      config, moe::Seed{5}, moe::Latent<>{.width = 33});
  check<TestType>(latent);
}

#if defined(MOE_COUNTS_BLOCKS)
template <class T, class Layer>
double packed_bytes(const Layer& layer) {
  const Counts counts;
  const auto packed = moe::pack<T>(layer);
  return double(bytes);
}

TEST_CASE("A layer packed in int8 takes a quarter of the memory, and 4 bytes a row of weights") {
  // Below 2 MiB an array, from where on they are rounded up to pages.
  const moe::MoEConfig config{.hidden = 256, .intermediate = 192, .experts = 4};
  const HostLayer<float, moe::MixtralRouter, moe::SharedExperts<1>> layer(config, moe::Seed{5});
  const double numbers = 5 * 3 * 256 * 192, rows = 5 * (2 * 192 + 256), f32 = packed_bytes<float>(layer);
  CHECK(f32 >= 4 * numbers);
  const double other = f32 - 4 * numbers;  // router and strings
  CHECK(packed_bytes<moe::bfloat16>(layer) <= 2 * numbers + 1.5 * other);
  CHECK(packed_bytes<std::int8_t>(layer) <= numbers + 4 * rows + 1.5 * other);
  CHECK(other < 0.05 * numbers);
}
#endif

TEST_CASE("The counters of allocations work") {
  const Counts counts;
  const moe::Matrix<float, Host> one("counts", 30, 30);
  CHECK(arrays == 1);
#if defined(MOE_COUNTS_BLOCKS)
  const int before = blocks;
  const std::vector<char> two(smallest);
  CHECK(blocks == before + 1);
  const moe::kernels::cpu::PageBuffer<float> three(1000);
  CHECK(blocks == before + 2);
#endif
}

}  // namespace packed_allocations_test
