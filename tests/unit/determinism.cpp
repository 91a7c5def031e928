// The same bits for any number of threads and whatever batch a token sits in; nothing allocated in the second step.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"
#if defined(KOKKOS_ENABLE_OPENMP)
#  include <omp.h>
#endif

namespace determinism_test {

using namespace moe_test;
using Router = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::GroupLimit<4, 2, moe::BestTwo>, moe::BiasBalancer,
                           moe::NormalizeSum, moe::Scale>;
using Layer = moe::MoELayer<Router, moe::SharedExperts<1>, moe::SequenceBalanceLoss, moe::RouterZLoss>;
using Space = Layer::Space;

constexpr Index tokens = 700, hidden = 37;

Layer make() {
  return Layer(moe::MoEConfig{.hidden = hidden, .intermediate = 21, .experts = 16}, moe::Seed{9});
}

/// Output, gradients of x and of all parameters, and parameters after a step, one behind the other.
std::vector<float> pass(const Space& space) {
  auto layer = make();
  moe::Context<Space> ctx;
  ctx.space = space;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  const auto x = random<moe::Matrix<float, Space>>(1, tokens, hidden);
  std::vector<float> result;
  auto keep = [&](const auto& view) {
    const auto values = host(view);
    result.insert(result.end(), values.data(), values.data() + values.size());
  };
  keep(layer.forward(ctx, x, tape));
  keep(layer.backward(ctx, x, tape, gradients));
  auto each = [&](std::string_view, auto& gradient) { keep(gradient); };
  Layer::Parameters::visit(each, static_cast<Layer::Parameters&>(gradients));
  moe::AdamW optimizer(layer.parameters);
  moe::clip_gradient_norm(ctx, static_cast<Layer::Parameters&>(gradients), 0.5);
  optimizer.step(ctx, layer.parameters, gradients, 1e-2);
  auto after = [&](std::string_view, auto& parameter) { keep(parameter); };
  Layer::Parameters::visit(after, layer.parameters);
  return result;
}

#if defined(KOKKOS_ENABLE_OPENMP)
/// Counts the threads that take part.
struct CountThreads {
  int* count;
  void operator()(Index) const { *count = omp_get_num_threads(); }
};

TEST_CASE("A step has the same bits for 1, 2 and 3 threads") {
  const auto one = pass(Kokkos::OpenMP(1));
  for (int threads : {2, 3}) {
    const Kokkos::OpenMP space(threads);  // a pool of its own: Kokkos does not follow omp_set_num_threads
    int count = 0;
    Kokkos::parallel_for(Kokkos::RangePolicy<Kokkos::OpenMP>(space, 0, 1), CountThreads{&count});
    CHECK(count == threads);
    const auto more = pass(space);
    REQUIRE(more.size() == one.size());
    CHECK(std::memcmp(more.data(), one.data(), one.size() * sizeof(float)) == 0);
  }
}
#endif

TEST_CASE("A token has the same bits alone and in a batch") {
  const auto layer = make();
  moe::Context<Space> ctx;
  const auto x = random<moe::Matrix<float, Space>>(1, tokens, hidden);
  const auto together = host(clone(layer.forward(ctx, x)));
  for (int t : {0, 1, 333, int(tokens) - 1}) {
    moe::Matrix<float, Space> alone("alone", 1, hidden);
    Kokkos::deep_copy(alone, Kokkos::subview(x, Kokkos::pair<int, int>(t, t + 1), Kokkos::ALL));
    const auto y = host(layer.forward(ctx, alone));
    CHECK(std::memcmp(y.data(), together.data() + t * hidden, hidden * sizeof(float)) == 0);
  }
}

int allocations = 0;

TEST_CASE("The second step allocates nothing") {
  auto layer = make();
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW optimizer(layer.parameters);
  moe::LoadStatistics<Space> statistics;
  const auto x = random<moe::Matrix<float, Space>>(1, tokens, hidden);
  auto step = [&] {
    moe::zero(ctx, static_cast<Layer::Parameters&>(gradients));
    layer.forward(ctx, x, tape);
    layer.backward(ctx, x, tape, gradients);
    moe::clip_gradient_norm(ctx, static_cast<Layer::Parameters&>(gradients), 1.0);
    optimizer.step(ctx, layer.parameters, gradients, 1e-3);
    statistics.reset();
    statistics.add(tape);
    layer.update_balance(ctx, statistics);
    layer.forward(ctx, x);
  };
  step();
  Kokkos::Tools::Experimental::set_allocate_data_callback(
      [](Kokkos_Profiling_SpaceHandle, const char*, const void*, uint64_t size) {
        allocations += size > 0;  // Kokkos tells of teams' empty scratch memory, too
      });
  allocations = 0;
  step();
  const int in_second_step = allocations;
  const moe::Matrix<float, Space> one("counts", 3, 3);
  const int seen = allocations - in_second_step;
  Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr);
  CHECK(in_second_step == 0);
  CHECK(seen == 1);  // the counter works
}

}  // namespace determinism_test
