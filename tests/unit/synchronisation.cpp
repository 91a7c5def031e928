// A step waits for nothing and launches on its own stream alone; on CUDA it can be captured into a graph.
#include <string>

#include "moe_test/step.hpp"

namespace synchronisation_test {

using namespace moe_test;
using Space = Kokkos::DefaultExecutionSpace;

constexpr bool quiet = moe::detail::device_path<Space>;  // hosts check their flag by themselves

/// Notes what waits, what is copied between memories or to a number, what is allocated (which waits on devices), and
/// what runs elsewhere than on `stream`.
struct Watch {
  inline static std::vector<std::string> fences, copies, elsewhere, allocations;
  inline static std::uint32_t stream = 0;

  explicit Watch(const Space& space) {
    fences.clear();
    copies.clear();
    elsewhere.clear();
    allocations.clear();
    stream = Kokkos::Tools::Experimental::device_id(space);
    namespace Tools = Kokkos::Tools::Experimental;
    Tools::set_begin_fence_callback([](const char* name, std::uint32_t, std::uint64_t*) {
      if (std::string_view(name).substr(0, 13) != "Kokkos::Tools") fences.emplace_back(name);  // it waits to tell us
    });
    Tools::set_begin_deep_copy_callback([](Kokkos_Profiling_SpaceHandle to_memory, const char* to, const void*,
                                           Kokkos_Profiling_SpaceHandle from_memory, const char* from, const void*,
                                           std::uint64_t) {
      const std::string_view source = from, target = to;
      const bool fill = source == "(none)" || source == "Scalar";
      const bool near = target != "(none)" && std::string_view(to_memory.name) == from_memory.name;
      if (!fill && !near) copies.emplace_back(std::string(to) + " from " + from);
    });
    Tools::set_allocate_data_callback(
        [](Kokkos_Profiling_SpaceHandle, const char* label, const void*, std::uint64_t size) {
          if (size > 0) allocations.emplace_back(label);  // Kokkos tells of teams' empty scratch memory, too
        });
    const auto launch = [](const char* name, std::uint32_t device, std::uint64_t*) {
      if (device != stream) elsewhere.emplace_back(name);
    };
    Tools::set_begin_parallel_for_callback(launch);
    Tools::set_begin_parallel_scan_callback(launch);
    Tools::set_begin_parallel_reduce_callback(launch);
  }
  ~Watch() {
    namespace Tools = Kokkos::Tools::Experimental;
    Tools::set_begin_fence_callback(nullptr);
    Tools::set_begin_deep_copy_callback(nullptr);
    Tools::set_allocate_data_callback(nullptr);
    Tools::set_begin_parallel_for_callback(nullptr);
    Tools::set_begin_parallel_scan_callback(nullptr);
    Tools::set_begin_parallel_reduce_callback(nullptr);
  }
};

/// Calls f, and expects what a step may do: on hosts one look at the flag for each forward, on devices nothing.
template <class F>
void expect_no_wait(const Space& space, const F& f) {
  std::vector<std::string> fences, copies, elsewhere, allocations;
  {
    const Watch watch(space);
    f();
    fences = Watch::fences, copies = Watch::copies, elsewhere = Watch::elsewhere, allocations = Watch::allocations;
  }
  const std::size_t checks = quiet ? 0 : 1;
  CHECK(fences == std::vector<std::string>(checks, "moe::Context::check"));
  CHECK(copies == std::vector<std::string>(checks, "(none) from moe::flag"));
  CHECK(elsewhere == std::vector<std::string>{});
  CHECK(allocations == std::vector<std::string>{});
}

TEST_CASE("A second step waits for nothing and stays on its stream") {
  const Space space = other_instance<Space>();
  each_kind_of_layer<Space>([&](const auto& make) {
    Step<decltype(make())> step(make(), 50, space);
    step.forward();
    step.train();
    expect_no_wait(space, [&] { step.forward(); });
    expect_no_wait(space, [&] { step.train(); });
  });
}

/// Forward, backward, statistics and optimiser of a mixture of depths around a mixture of experts.
struct DepthStep {
  using MoE = moe::MoELayer<moe::On<Space>, moe::Router<moe::Softmax, moe::TopK<2>>, moe::SwitchBalanceLoss>;
  using Layer = moe::MixtureOfDepths<MoE, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  using Matrix = moe::Matrix<float, Space>;
  Layer layer{{.block = step_config, .capacity = 0.25}, moe::Seed{1}};
  moe::Context<Space> ctx;
  Layer::Tape tape, inference;
  Layer::Gradients gradients = layer.gradients();
  Layer::Cache cache = layer.cache(3, 1000);
  moe::SGD<Layer::Parameters> optimizer{layer.parameters};
  moe::DepthStatistics<Space> statistics;
  Matrix x = random<Matrix>(1, 50, 24), dy = random<Matrix>(2, 50, 24);
  moe::Batch<float, Space> batch;

  explicit DepthStep(const Space& space) {
    ctx.space = space;
    batch.x = x;
    batch.sequence_offsets = indices<Space>({0, 20, 21, 50});
    Kokkos::fence();
  }
  void run() {
    ctx.training = false;
    for (auto rule : {moe::DepthChoice::top_k, moe::DepthChoice::router, moe::DepthChoice::predictor}) {
      layer.inference = rule;
      layer.forward(ctx, batch, inference);
    }
    layer.forward(ctx, batch, cache);
    ctx.training = true;
    moe::zero(ctx, static_cast<Layer::Parameters&>(gradients));
    layer.forward(ctx, batch, tape);
    layer.backward(ctx, dy, tape, gradients);
    statistics.add(tape);
    optimizer.step(ctx, layer.parameters, gradients, 1e-2);
  }
  std::vector<double> everything() const {
    std::vector<double> result;
    auto keep = [&](std::string_view, const auto& view) {
      const auto values = host(view);
      for (std::size_t i = 0; i < values.size(); ++i) result.push_back(double(values.data()[i]));
    };
    for (const auto* each : {&inference, &tape}) keep("", each->y);
    keep("", tape.dx);
    keep("", cache.seen);
    Layer::Parameters::visit(keep, layer.parameters);
    return result;
  }
};

TEST_CASE("A second step of a mixture of depths waits for nothing on devices and stays on its stream") {
  if (!quiet) return;  // on hosts it looks how many tokens there are, and both layers at their flag
  const Space space = other_instance<Space>();
  DepthStep step(space);
  step.run();
  step.run();
  expect_no_wait(space, [&] {
    step.ctx.training = true;
    step.layer.forward(step.ctx, step.batch, step.tape);
    step.layer.backward(step.ctx, step.dy, step.tape, step.gradients);
    step.statistics.add(step.tape);
    step.ctx.training = false;
    step.layer.forward(step.ctx, step.batch, step.cache);
  });
  CHECK(step.statistics.report().chosen == 2 * (5 + 1 + 7) + 13);
}

template <class Layer>
void check_attention(const typename Layer::Config& config) {
  using Matrix = moe::Matrix<float, Space>;
  const Space space = other_instance<Space>();
  Layer layer(config, moe::Seed{1});
  moe::Context<Space> ctx;
  ctx.space = space;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  const auto x = random<Matrix>(1, 50, 24), dy = random<Matrix>(2, 50, 24);
  moe::Batch<float, Space> batch;
  batch.x = x;
  batch.sequence_offsets = indices<Space>({0, 20, 21, 50});
  Kokkos::fence();
  const auto step = [&] {
    layer.forward(ctx, batch, tape);
    layer.backward(ctx, dy, tape, gradients);
  };
  step();
  step();
  expect_no_wait(space, step);
  if (!quiet) return;  // on hosts the cache looks at the flag, too
  auto cache = layer.cache(3, 100);
  const auto next = [&] { layer.forward(ctx, batch, cache); };
  next();
  expect_no_wait(space, next);
}

TEST_CASE("A second step of mixtures of attention heads waits for nothing and stays on its stream") {
  check_attention<moe::MixtureOfAttentionHeads<moe::On<Space>, moe::OutputBias, moe::SwitchBalanceLoss>>(
      {.hidden = 24, .experts = 5, .key_heads = 3});
  check_attention<moe::SwitchHead<2, moe::On<Space>, moe::EntropyLoss>>({.hidden = 24, .heads = 2, .experts = 3});
}

TEST_CASE("The watch sees what waits, copies and runs elsewhere") {
  const Space space = other_instance<Space>();
  moe::MixtralLayer<moe::On<Space>, moe::SwitchBalanceLoss> layer(step_config, moe::Seed{1});
  Step<decltype(layer)> step(std::move(layer), 50, space);
  step.train();
  const Watch watch(space);
  CHECK(step.tape.loss() > 0);
  CHECK(Watch::fences == std::vector<std::string>{"moe::MoELayer::Tape::loss_values"});
  CHECK(Watch::copies.size() == (moe::on_host<Space> ? 0 : 1));  // a host's arrays are all in one memory
  const moe::Vector<float, Space> other("other", 4000);
  CHECK(Watch::allocations == std::vector<std::string>{"other"});
  if (Watch::stream == Kokkos::Tools::Experimental::device_id(Space{})) return;  // hosts number no instances
  moe::fill_normal(Space{}, other, moe::Seed{1});
  CHECK(std::count(Watch::elsewhere.begin(), Watch::elsewhere.end(), "moe::fill_normal") == 1);
}

// Statistics and losses follow the stream of the forward pass.
TEST_CASE("Statistics are added on the stream of the forward pass") {
  const Space space = other_instance<Space>();
  moe::DeepSeekV3Layer<moe::On<Space>> layer(step_config, moe::Seed{1});
  Step<decltype(layer)> step(std::move(layer), 50, space);
  step.train();
  CHECK(step.statistics.space() == space);
  const auto counts = host(step.statistics.counts());
  Index sum = 0;
  for (std::size_t e = 0; e < counts.size(); ++e) sum += counts(e);
  CHECK(sum == 50 * 8);
}

#if defined(KOKKOS_ENABLE_CUDA)

/// Records what f launches on a stream, and runs it as often as asked, each time after `before`.
template <class Before, class F>
void replay(const Space& space, int times, const Before& before, const F& f) {
  const cudaStream_t stream = space.cuda_stream();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t program = nullptr;
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(moe::capturing(space));
  f();
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(!moe::capturing(space));
  REQUIRE(cudaGraphInstantiate(&program, graph, 0) == cudaSuccess);
  for (int i = 0; i < times; ++i) {
    before();
    CHECK(cudaGraphLaunch(program, stream) == cudaSuccess);
  }
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(cudaGraphExecDestroy(program) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
}

TEST_CASE("A captured step, launched twice, is two steps") {
  each_kind_of_layer<Space>([&](const auto& make) {
    const Space space = other_instance<Space>();
    const auto steps = [&](bool captured) {
      Step<decltype(make())> step(make(), 50, space);
      step.forward();
      step.train();
      const auto before = [&] { step.prepare(); };
      const auto both = [&] {
        step.forward();
        step.work();
      };
      if (captured) {
        replay(space, 2, before, both);
      } else {
        for (int i = 0; i < 2; ++i) before(), both();
        space.fence();
      }
      return step.everything();
    };
    CHECK(steps(true) == steps(false));
  });
}

TEST_CASE("A captured step of a mixture of depths, launched twice, is two steps") {
  const Space space = other_instance<Space>();
  const auto steps = [&](bool captured) {
    DepthStep step(space);
    step.run();
    step.layer.inference = moe::DepthChoice::predictor;
    const auto both = [&] {
      step.ctx.training = false;
      step.layer.forward(step.ctx, step.batch, step.inference);
      step.layer.forward(step.ctx, step.batch, step.cache);
      step.ctx.training = true;
      moe::zero(step.ctx, static_cast<DepthStep::Layer::Parameters&>(step.gradients));
      step.layer.forward(step.ctx, step.batch, step.tape);
      step.layer.backward(step.ctx, step.dy, step.tape, step.gradients);
      step.optimizer.apply(step.ctx, step.layer.parameters, step.gradients);
    };
    const auto before = [&] { step.optimizer.prepare(step.ctx, 1e-2); };
    if (captured) {
      replay(space, 2, before, both);
    } else {
      for (int i = 0; i < 2; ++i) before(), both();
      space.fence();
    }
    return step.everything();
  };
  CHECK(steps(true) == steps(false));
}

#endif

}  // namespace synchronisation_test
