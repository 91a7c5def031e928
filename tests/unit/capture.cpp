// What a graph cannot hold is refused before anything is launched. On hosts every stream is made to say it is captured.
#include "moe_test/step.hpp"

namespace capture_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using Space = Kokkos::DefaultHostExecutionSpace;
using Mixtral = moe::MixtralLayer<moe::On<Space>, moe::SwitchBalanceLoss>;

constexpr Index tokens = 40;

int launches = 0;

/// While it lives, streams are captured and launches are counted.
struct Capture {
  Capture() {
    launches = 0;
    const auto count = [](const char*, std::uint32_t, std::uint64_t*) { ++launches; };
    Kokkos::Tools::Experimental::set_begin_parallel_for_callback(count);
    Kokkos::Tools::Experimental::set_begin_parallel_scan_callback(count);
    moe::detail::pretend_capture = true;
  }
  ~Capture() {
    moe::detail::pretend_capture = false;
    Kokkos::Tools::Experimental::set_begin_parallel_for_callback(nullptr);
    Kokkos::Tools::Experimental::set_begin_parallel_scan_callback(nullptr);
  }
};

/// Expects f to be refused by a sentence with these words, with nothing launched.
template <class F>
void refused(const F& f, const std::string& words) {
  const Capture capture;
  CHECK_THROWS_WITH(f(), Contains("captured in a graph") && Contains(words));
  CHECK(launches == 0);
}

TEST_CASE("Nothing is captured by itself") {
  CHECK(!moe::capturing(Space{}));
}

TEST_CASE("What allocates is refused") {
  Step<Mixtral> step(Mixtral(step_config, moe::Seed{1}), tokens, Space{});
  refused([&] { step.layer.forward(step.ctx, step.x, step.tape); }, "on 40 tokens, so it has to allocate");
  step.layer.forward(step.ctx, step.x, step.tape);
  refused([&] { step.layer.backward(step.ctx, step.dy, step.tape, step.gradients); }, "moe::MoELayer::backward");
  refused([&] { step.statistics.add(step.tape); }, "Add once before capturing");
  const auto fewer = random<moe::Matrix<float, Space>>(1, tokens / 2, step_config.hidden);
  refused([&] { step.layer.forward(step.ctx, fewer, step.tape); }, "on 20 tokens, so it has to allocate");
  moe::Context<Space> other;
  refused([&] { moe::Context<Space>::Scratch(other).vector<float>(10); }, "workspace that has to grow");
}

template <class Layer>
void check_layer_allocations(Layer layer, Index in, Index out, const std::string& name) {
  INFO(name);
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::Batch<float, Space> batch;
  batch.x = random<moe::Matrix<float, Space>>(1, tokens, in);
  const auto dy = random<moe::Matrix<float, Space>>(2, tokens, out);
  const auto forward = [&] { layer.forward(ctx, batch, tape); };
  const auto backward = [&] { layer.backward(ctx, dy, tape, gradients); };
  refused(forward, name + "::forward");
  forward();
  refused(backward, "::backward");
  backward();
  batch.x = random<moe::Matrix<float, Space>>(1, tokens / 2, in);
  refused(forward, "on 20 tokens, so it has to allocate");
  if (!moe::detail::device_path<Space>) return;  // hosts look at their flag
  batch.x = random<moe::Matrix<float, Space>>(1, tokens, in);
  const Capture capture;
  CHECK_NOTHROW(forward());
  CHECK_NOTHROW(backward());
}

TEST_CASE("What allocates is refused in attention and adapters, too") {
  using On = moe::On<Space>;
  check_layer_allocations(moe::SelfAttention<On>({.hidden = 24, .heads = 2}), 24, 24, "moe::SelfAttention");
  check_layer_allocations(moe::SwitchHead<2, On>({.hidden = 24, .heads = 2, .experts = 3}), 24, 24, "moe::SwitchHead");
  check_layer_allocations(moe::MixtureOfAttentionHeads<On>({.hidden = 24, .experts = 5, .key_heads = 3}), 24, 24,
                          "moe::MixtureOfAttentionHeads");
  moe::AdaptedLinear<On> linear({.in = 24, .out = 10, .experts = 3, .rank = 2});
  linear.base.weight = random<moe::Matrix<float, Space>>(3, 10, 24);
  check_layer_allocations(std::move(linear), 24, 10, "moe::AdaptedLinear");
  moe::AdaptedFFN<moe::SwiGLU, On> ffn({.hidden = 24, .intermediate = 20, .experts = 3, .rank = 2});
  ffn.base = {random<moe::Tensor3<float, Space>>(3, 1, 40, 24), random<moe::Tensor3<float, Space>>(4, 1, 24, 20)};
  check_layer_allocations(std::move(ffn), 24, 24, "moe::AdaptedFFN");
  check_layer_allocations(moe::RoutedAttention<On>({.hidden = 24, .heads = 2}), 24, 24, "moe::RoutedAttention");
  using Block = moe::TransformerBlock<moe::SelfAttention<On>, Mixtral>;
  check_layer_allocations(Block(typename Block::Config{{.hidden = 24, .heads = 2}, step_config}), 24, 24,
                          "moe::TransformerBlock");
}

TEST_CASE("What returns a number is refused") {
  Step<Mixtral> step(Mixtral(step_config, moe::Seed{1}), tokens, Space{});
  step.train();
  auto& gradients = static_cast<Mixtral::Parameters&>(step.gradients);
  refused([&] { step.tape.loss(); }, "Reading a tape's loss");
  refused([&] { step.ctx.check(); }, "moe::Context::check");
  refused([&] { moe::gradient_norm(step.ctx, gradients); }, "moe::gradient_norm");
  refused([&] { moe::clip_gradient_norm(step.ctx, gradients, 1.0); }, "moe::gradient_norm");
  refused([&] { moe::load_report(step.tape); }, "moe::load_report");
  refused([&] { step.layer.update_balance(step.statistics); }, "update_balance(ctx, statistics)");
}

template <template <class> class Optimizer>
void check_optimizer(const std::string& name) {
  Step<Mixtral, Optimizer> step(Mixtral(step_config, moe::Seed{1}), tokens, Space{});
  auto& optimizer = step.optimizer;
  const auto apply = [&] { optimizer.apply(step.ctx, step.layer.parameters, step.gradients); };
  CHECK_THROWS_WITH(apply(), Contains(name + "::apply") && Contains("Call prepare"));
  optimizer.prepare(step.ctx, 1e-2);
  refused(apply, "Take one step before");
  apply();
  CHECK_THROWS_WITH(apply(), Contains("Call prepare"));
  refused([&] { optimizer.step(step.ctx, step.layer.parameters, step.gradients, 1e-2); }, name + "'s step");
  refused([&] { optimizer.prepare(step.ctx, 1e-2); }, "Capture apply");
  CHECK(optimizer.step_count == 1);
  const Capture capture;
  CHECK_NOTHROW(apply());
  CHECK(launches > 0);
}

TEST_CASE("Optimisers' numbers change with each step and are refused, what they do with them is not") {
  check_optimizer<moe::AdamW>("moe::AdamW");
  check_optimizer<moe::SGD>("moe::SGD");
}

template <class Selection>
using Choosing = moe::MoELayer<moe::On<Space>, moe::Router<moe::Softmax, Selection>, moe::ExpertFFN<moe::ReLU>>;

TEST_CASE("Selections that need the host are refused while training") {
  using Base = Choosing<moe::BalancedAssignment>;
  Step<Base> base(Base(step_config, moe::Seed{1}), tokens, Space{});
  base.train();
  refused([&] { base.layer.forward(base.ctx, base.x, base.tape); }, "moe::BalancedAssignment");
  using Sinkhorn = Choosing<moe::Sinkhorn<1>>;
  Step<Sinkhorn> sinkhorn(Sinkhorn(step_config, moe::Seed{1}), tokens, Space{});
  sinkhorn.train();
  if (!moe::detail::device_path<Space>)
    refused([&] { sinkhorn.layer.forward(sinkhorn.ctx, sinkhorn.x, sinkhorn.tape); }, "moe::Sinkhorn");
}

// Hosts look at their flag after each forward, which is refused; devices get through a whole step.
TEST_CASE("A second step is not refused on devices") {
  if (!moe::detail::device_path<Space>) return;
  each_kind_of_layer<Space>([&](const auto& make) {
    Step<decltype(make())> step(make(), tokens, Space{});
    step.forward();
    step.train();
    step.prepare();
    const Capture capture;
    CHECK_NOTHROW(step.forward());
    CHECK_NOTHROW(step.work());
  });
}

}  // namespace capture_test
