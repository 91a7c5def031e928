#pragma once
/// @file
/// One golden against one layer: its tensors are bound to the layer's arrays, whatever their layout, then everything
/// that the golden holds is compared.

#include <map>
#include <moe/moe.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "golden.hpp"

namespace golden {

using moe::Index;
using moe::Matrix;
using moe::Vector;

template <class Router, class... Rest>
using Layer = moe::MoELayer<Router, moe::On<Space>, Rest...>;

/// Where element i of a golden's tensor lies in ours.
using Map = std::vector<Index>;

inline Map plain(Index count, Index offset = 0) {
  Map map(count);
  std::iota(map.begin(), map.end(), offset);
  return map;
}
/// (E, a, b) in the golden is (E, b, a) here. `interleaved`: b is gate, up, gate, up... there, and halves here.
inline Map transposed(Index experts, Index a, Index b, bool interleaved = false) {
  Map map;
  for (Index e = 0; e < experts; ++e) {
    for (Index i = 0; i < a; ++i) {
      for (Index j = 0; j < b; ++j) map.push_back((e * b + (interleaved ? j % 2 * (b / 2) + j / 2 : j)) * a + i);
    }
  }
  return map;
}
/// (E * rows, b), one expert below the other, is the part of (E, all, b) that begins at row `first`.
inline Map stacked(Index experts, Index rows, Index b, Index all, Index first) {
  Map map;
  for (Index e = 0; e < experts; ++e) {
    for (Index i = 0; i < rows * b; ++i) map.push_back((e * all + first) * b + i);
  }
  return map;
}

/// Choices as the host reads them.
inline moe::Assignments<float, HostSpace> on_host(const moe::Assignments<float, Space>& a) {
  return {a.tokens,          a.bound,           a.uniform_k,    on_host(a.token_offsets),
          on_host(a.expert), on_host(a.weight), on_host(a.live)};
}

/// Tokens, the gradient of the output, and side inputs.
struct Inputs {
  Index sequences, length, hidden, tokens;
  Matrix<float, Space> x, g;
  moe::Batch<float, Space> batch;

  explicit Inputs(const Golden& golden) {
    const auto shape = golden.shape("in.x");  // (B, T, D)
    sequences = shape.at(0), length = shape.at(1), hidden = shape.at(2), tokens = sequences * length;
    x = Matrix<float, Space>("x", tokens, hidden);
    g = Matrix<float, Space>("g", tokens, golden.shape("in.g").at(2));
    golden.copy("in.x", x);
    golden.copy("in.g", g);
    Vector<Index, HostSpace> offsets("sequence_offsets", sequences + 1);
    for (Index s = 0; s <= sequences; ++s) offsets(s) = s * length;
    batch.x = x;
    batch.sequence_offsets = on_device(offsets);
    if (golden.has("in.token_ids")) {
      const auto values = golden.integers("in.token_ids");
      Vector<std::int32_t, HostSpace> ids("token_ids", tokens);
      std::copy(values.begin(), values.end(), ids.data());
      batch.token_ids = on_device(ids);
    }
  }
};

/// A layer, its golden, and the pairs of tensors.
template <class L>
class Check {
 public:
  template <class... Values>
  Check(const Golden& golden, Comparison& comparison, const moe::MoEConfig& config, const Values&... values)
      : in(golden), layer(config, values...), gradients(layer.gradients()), golden_(golden), comparison_(comparison) {}

  Inputs in;
  L layer;
  typename L::Gradients gradients;

  /// A tensor's values go into `array`; its gradient is compared with the same elements of `gradient`.
  template <class View>
  void bind(const std::string& name, const View& array, const View& gradient, Map map = {}) {
    const Values values = golden_.read("param." + name);
    if (map.empty()) map = plain(Index(values.size()));
    const auto copy = on_host(array);
    for (std::size_t i = 0; i < map.size(); ++i) {
      moe::detail::require<moe::ShapeError>(map[i] < Index(array.size()), "check_golden: '", name,
                                            "' does not fit the layer's array of ", array.size(), " elements.");
      copy.data()[map[i]] = values[i];
    }
    Kokkos::deep_copy(array, copy);
    bound_.push_back({name, {gradient.data(), gradient.size()}, std::move(map)});
  }

  void router(const std::string& name) { bind(name, layer.parameters.router.weight, gradients.router.weight); }
  /// The balancing bias, wherever the golden keeps it.
  void bias(const std::string& name) {
    const auto& view = layer.buffers.router.balance_bias;
    Kokkos::deep_copy(view, 0);
    golden_.copy(golden_.has("buffer." + name) ? "buffer." + name : "param." + name, view);
  }

  /// (E, 2I, H) and (E, H, I), as here.
  void fused(const std::string& up = "experts.gate_up_proj", const std::string& down = "experts.down_proj") {
    bind(up, experts().up, dexperts().up, plain(Index(experts().up.size())));
    bind(down, experts().down, dexperts().down);
  }
  /// (E, H, 2I) and (E, I, H), with biases or not.
  void transposed_experts(bool interleaved, bool biased) {
    const auto& up = experts().up;
    const Index e = up.extent(0), wide = up.extent(1), h = up.extent(2), i = experts().down.extent(2);
    bind("experts.gate_up_proj", up, dexperts().up, transposed(e, h, wide, interleaved));
    bind("experts.down_proj", experts().down, dexperts().down, transposed(e, i, h));
    if (!biased) return;
    bind("experts.gate_up_proj_bias", experts().up_bias, dexperts().up_bias,
         interleaved ? transposed(e, 1, wide, true) : Map{});
    bind("experts.down_proj_bias", experts().down_bias, dexperts().down_bias);
  }
  /// One shared FFN with gate and up apart, or together.
  void shared(const std::string& prefix = "shared_experts.") {
    auto& ffn = layer.parameters.branches.first.ffn;
    auto& dffn = gradients.branches.first.ffn;
    const Index half = Index(ffn.up.size()) / 2;
    if (golden_.has("param." + prefix + "gate_proj.weight")) {
      bind(prefix + "gate_proj.weight", ffn.up, dffn.up, plain(half));
      bind(prefix + "up_proj.weight", ffn.up, dffn.up, plain(half, half));
    } else if (golden_.has("param." + prefix + "gate_up_proj.weight")) {
      bind(prefix + "gate_up_proj.weight", ffn.up, dffn.up);
    } else {
      bind(prefix + "up_proj.weight", ffn.up, dffn.up);
    }
    bind(prefix + "down_proj.weight", ffn.down, dffn.down);
  }

  /// Forward and backward, and the comparison of all that the golden has.
  void run() {
    moe::Context<Space> ctx;
    ctx.training = golden_.training();
    const auto y = layer.forward(ctx, in.batch, tape_);
    const auto dx = layer.backward(ctx, in.g, tape_, gradients);
    compare_routing(tape_.routing, tape_.routing.logits, tape_.weight, &tape_.plan);
    comparison_.check("out.y", y);
    comparison_.check("grad.x", dx);
    compare_gradients();
  }

  /// The router alone: "out.y" and "in.g" are of the chosen weights, in the golden's order, and "out.logits" are
  /// scores.
  void run_router() {
    moe::Context<Space> ctx;
    ctx.training = golden_.training();
    moe::Routing<float, Space> routing;
    const Index experts = layer.config().experts;
    layer.router().forward(ctx, in.batch, layer.parameters.router, layer.buffers.router, experts, routing);
    compare_routing(routing, routing.scores, routing.assignments.weight, nullptr);
    const auto a = on_host(routing.assignments);
    const auto order = golden_.integers("out.idx");
    moe::RoutingGradients<float, Space> of{Vector<float, Space>("dweight", a.bound),
                                           Matrix<float, Space>("dscores", in.tokens, experts),
                                           Matrix<float, Space>("dlogits", in.tokens, experts),
                                           {},
                                           {}};
    Values y(a.bound);
    const auto g = on_host(in.g);
    const auto dweight = on_host(of.dweight);
    for (Index t = 0; t < in.tokens; ++t) {
      for (Index i = 0; i < a.uniform_k; ++i) {
        for (Index j = a.begin(t); j < a.end(t); ++j) {
          if (a.expert(j) != order[t * a.uniform_k + i]) continue;
          y[t * a.uniform_k + i] = a.weight(j);
          dweight(j) = g(t, i);
        }
      }
    }
    Kokkos::deep_copy(of.dweight, dweight);
    Matrix<float, Space> dx("dx", in.tokens, in.hidden);
    layer.router().backward(ctx, in.batch, layer.parameters.router, routing, of, dx, gradients.router);
    comparison_.check("out.y", y.data(), y.size());
    comparison_.check("grad.x", dx);
    compare_gradients();
  }

  /// A loss alone, behind a router of its own on this layer's router arrays: its value, and its gradient by them.
  template <class Router, class Loss>
  void loss(const Router& router, const Loss& loss, const std::string& name, const std::string& weight_name,
            const std::string& bias_name = "") {
    using Parameters = typename Router::template Parameters<float, Space>;
    const Index experts = layer.config().experts;
    moe::Context<Space> ctx;
    ctx.training = false;
    const Parameters& parameters = layer.parameters.router;
    Parameters gradient = moe::detail::zeros_like(parameters);
    moe::Routing<float, Space> routing;
    router.forward(ctx, in.batch, parameters, {}, experts, routing);
    Vector<double, Space> value("value", 1);
    loss.value(ctx, in.batch, routing, value);
    const float rounded = float(on_host(value)(0));
    comparison_.check("aux." + name, &rounded, 1);
    moe::RoutingGradients<float, Space> of{Vector<float, Space>("dweight", routing.assignments.bound),
                                           Matrix<float, Space>("dscores", in.tokens, experts),
                                           Matrix<float, Space>("dlogits", in.tokens, experts),
                                           {},
                                           {}};
    loss.backward(ctx, in.batch, routing, 1.0, of);
    Matrix<float, Space> dx("dx", in.tokens, in.hidden);
    router.backward(ctx, in.batch, parameters, routing, of, dx, gradient);
    comparison_.check("aux_grad." + name + "." + weight_name, gradient.weight);
    if constexpr (requires { gradient.bias; }) comparison_.check("aux_grad." + name + "." + bias_name, gradient.bias);
  }

  /// transformers' load_balancing_loss_func: softmax and top-k of the raw logits, whatever the router itself does.
  template <class Source = moe::LinearLogits>
  void transformers_balance(int k, const std::string& weight_name, const std::string& bias_name = "") {
    const moe::Router<Source, moe::Softmax, moe::TopK<>> router{moe::TopK<>{k}};
    loss(router, moe::SwitchBalanceLoss(1.0, moe::Count::all), "load_balancing", weight_name, bias_name);
  }

 private:
  struct Bound {
    std::string name;
    Kokkos::View<const float*, Space::memory_space, Kokkos::MemoryUnmanaged> gradient;
    Map map;
  };

  auto& experts() { return layer.parameters.experts; }
  auto& dexperts() { return gradients.experts; }

  /// Logits, choices and combine weights. The golden may hold fewer experts than the layer (shared ones come last).
  void compare_routing(const moe::Routing<float, Space>& routing, const Matrix<float, Space>& values,
                       const Vector<float, Space>& weights, const moe::DispatchPlan<Space>* plan) {
    const auto a = on_host(routing.assignments);
    const auto weight = on_host(weights);
    const auto logit = on_host(values);
    const auto rows = plan != nullptr ? on_host(plan->assignment_row) : Vector<Index, HostSpace>();
    const Index experts = golden_.shape("out.dense_w").at(1), all = routing.logits.extent(1);
    Values dense(a.tokens * experts, 0.0f), logits(a.tokens * experts);
    Index misplaced = 0;
    const Values expected = golden_.read("out.dense_w");
    for (Index t = 0; t < a.tokens; ++t) {
      std::set<Index> chosen, wanted;
      for (Index j = a.begin(t); j < a.end(t); ++j) {
        const Index e = a.expert(j);
        if (e < 0 || e >= experts || (plan != nullptr && rows(j) < 0)) continue;
        dense[t * experts + e] += weight(j);
        if (weight(j) != 0) chosen.insert(e);
      }
      for (Index e = 0; e < experts; ++e) {
        logits[t * experts + e] = logit.data()[t * all + e];
        if (expected[t * experts + e] != 0) wanted.insert(e);
      }
      misplaced += chosen != wanted;
    }
    comparison_.check("out.logits", logits.data(), logits.size());
    comparison_.count("out.idx", misplaced);
    comparison_.check("out.dense_w", dense.data(), dense.size());
  }

  void compare_gradients() {
    for (const Bound& bound : bound_) {
      Values values(golden_.read("param." + bound.name).size(), 0.0f);  // experts without parameters: no gradient
      const auto gradient = on_host(bound.gradient);
      for (std::size_t i = 0; i < bound.map.size(); ++i) values[i] = gradient(bound.map[i]);
      comparison_.check("grad." + bound.name, values.data(), values.size());
    }
  }

  const Golden& golden_;
  Comparison& comparison_;
  typename L::Tape tape_;
  std::vector<Bound> bound_;
};

/// The sizes of a layer, as the golden's tensors say them.
inline moe::MoEConfig sizes(const Golden& golden, const std::string& router, Index intermediate) {
  moe::MoEConfig config;
  config.hidden = golden.shape("in.x").at(2);
  config.experts = golden.shape("param." + router).at(0);
  config.intermediate = intermediate;
  return config;
}

/// Families, by the file that holds them.
using Family = void (*)(const Golden&, Comparison&);
using Families = std::map<std::string, Family>;
Families softmax_families();
Families sigmoid_families();
Families logit_families();
Families other_families();

}  // namespace golden
