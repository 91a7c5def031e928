#pragma once
/// @file
/// A layer with all that a training step needs, on a stream of its own, and layers of several kinds to step with.

#include <moe/moe.hpp>
#include <vector>

#include "moe_test/cases.hpp"

namespace moe_test {

/// A stream beside the default one.
template <class Space>
Space other_instance() {
  return Kokkos::Experimental::partition_space(Space{}, std::vector<int>{1})[0];
}

/// Forward, backward, clipping, statistics, balance and optimiser of one layer; no number of it goes to the host.
template <class Layer, template <class> class Optimizer = moe::AdamW>
struct Step {
  using Space = typename Layer::Space;
  using Matrix = moe::Matrix<typename Layer::Scalar, Space>;
  using Parameters = typename Layer::Parameters;

  Layer layer;
  moe::Context<Space> ctx;
  typename Layer::Tape tape, inference;
  typename Layer::Gradients gradients;
  Optimizer<Parameters> optimizer;
  moe::LoadStatistics<Space> statistics;
  Matrix x, dy;

  Step(Layer made, Index tokens, const Space& space)
      : layer(std::move(made)),
        gradients(layer.gradients()),
        optimizer(layer.parameters),
        x(random<Matrix>(1, tokens, layer.config().hidden)),
        dy(random<Matrix>(2, tokens, layer.config().hidden)) {
    ctx.space = space;
    Kokkos::fence();  // what was made above was made on the default stream
  }

  void forward() {
    ctx.training = false;
    layer.forward(ctx, x, inference);
  }
  void train() {
    prepare();
    work();
  }
  /// Before each `work`: another learning rate.
  void prepare() { optimizer.prepare(ctx, 1e-2 / double(optimizer.step_count + 1)); }
  /// What a graph can hold.
  void work() {
    ctx.training = true;
    moe::zero(ctx, static_cast<Parameters&>(gradients));
    layer.forward(ctx, x, tape);
    layer.backward(ctx, dy, tape, gradients);
    moe::clip_by_global_norm(ctx, static_cast<Parameters&>(gradients), 0.5);
    if (statistics.counts().is_allocated()) statistics.reset();
    statistics.add(tape);
    layer.update_balance(ctx, statistics);
    optimizer.apply(ctx, layer.parameters, gradients);
  }
  /// Outputs, gradients, parameters and buffers, one behind the other.
  std::vector<double> everything() const {
    std::vector<double> result;
    auto keep = [&](const auto& view) {
      const auto values = host(view);
      for (std::size_t i = 0; i < values.size(); ++i) result.push_back(double(values.data()[i]));
    };
    auto named = [&](std::string_view, const auto& view) { keep(view); };
    for (const auto* each : {&inference, &tape}) {
      if (each->y.is_allocated()) keep(each->y);
      if (each->dx.is_allocated()) keep(each->dx);
    }
    Parameters::visit(named, layer.parameters);
    Parameters::visit(named, static_cast<const Parameters&>(gradients));
    Layer::Buffers::visit(named, layer.buffers);
    return result;
  }
};

inline constexpr moe::MoEConfig step_config{.hidden = 24, .intermediate = 20, .experts = 16};

/// Calls f with a function that makes a layer, for each kind of layer.
template <class Space, class F>
void each_kind_of_layer(const F& f) {
  const auto kind = [&](const char* name, const auto& make) {
    INFO(name);
    f(make);
  };
  using On = moe::On<Space>;
  using Half = moe::Precision<moe::bfloat16, float>;
  kind("Mixtral", [] { return moe::MixtralLayer<On, moe::SwitchBalanceLoss>(step_config, moe::Seed{1}); });
  kind("Mixtral, bf16", [] { return moe::MixtralLayer<On, Half, moe::RouterZLoss>(step_config, moe::Seed{2}); });
  kind("DeepSeek-V3", [] { return moe::DeepSeekV3Layer<On>(step_config, moe::Seed{3}); });
  kind("GShard", [] { return moe::GShardLayer<On>(step_config, moe::gshard_capacity(), moe::Seed{4}); });
  kind("Switch, jitter", [] { return moe::SwitchLayer<On>(step_config, moe::Seed{5}); });
  kind("expert choice, biases", [] {
    using Router = moe::Router<moe::Softmax, moe::ExpertChoice>;
    return moe::MoELayer<On, Router, moe::ExpertFFN<moe::ReLU, moe::Bias>>(step_config, moe::Seed{6});
  });
  kind("latent, weight on input, scaled output", [] {
    using Layer = moe::MoELayer<On, moe::MixtralRouter, moe::Latent<>, moe::WeightOnInput, moe::OutputScale<>>;
    return Layer(step_config, moe::Latent<>{12}, moe::Seed{7});
  });
}

}  // namespace moe_test
