#pragma once
/// @file
/// A packed layer beside the same layer in double: how far they may be apart follows from the roundings on the way. See
/// reference/expert_ffn.hpp for sums and experts.

#include <string>

#include "moe_test/layers.hpp"
#include "moe_test/packed.hpp"

namespace moe_test {

/// y (H) += factor * x, per channel: a branch of one's own, without weights to pack.
struct ScaledInput {
  using policy = moe::kind::branch;
  static constexpr const char* name = "scaled_input.";
  double factor = 1;

  template <class T, class Space>
  struct Parameters {
    moe::Vector<T, Space> scale;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("scale", same.scale...);
    }
  };
  template <class, class>
  struct Saved {};
  template <class T, class Space>
  Parameters<T, Space> parameters(const moe::ExpertShape& shape) const {
    return {moe::Vector<T, Space>("scale", shape.hidden)};
  }
  template <class T, class Space, class S>
  void forward(moe::Context<Space>&, const moe::Batch<T, Space>& batch, const Parameters<T, Space>& p,
               const moe::Matrix<T, Space>& y, S&) const {
    using Real = moe::RouterReal<T>;
    for (Index t = 0; t < batch.tokens(); ++t) {
      if (moe::detail::is_padding<Space>(batch.mask, t)) continue;
      for (Index h = 0; h < batch.hidden(); ++h)
        y(t, h) = T(Real(y(t, h)) + Real(factor) * Real(p.scale(h)) * Real(batch.x(t, h)));
    }
  }
};

/// A value, how far another may be from it, and the unit of the type that it is stored in at each stage (0: f32).
struct Output {
  reference::Bounded y;
  double unit;

  explicit Output(Index hidden, double unit_)
      : y{reference::Column::Zero(hidden), reference::Column::Zero(hidden)}, unit(unit_) {}
  /// y += w * v, where w may be off by dw.
  void add(const reference::Bounded& v, double w, double dw) {
    y.value += w * v.value;
    y.bound += std::abs(w) * v.bound + dw * (v.value.cwiseAbs() + v.bound);
    y.bound += 2 * reference::f32_unit * (size() + std::abs(w) * (v.value.cwiseAbs() + v.bound));
  }
  void store() { y.bound += unit * size(); }
  reference::Column size() const { return y.value.cwiseAbs() + y.bound; }
};

/// Each part of a layer, as the reference sees it.
template <class T, int n, class Activation, class Gate, class P>
void add_branch(const moe::SharedExperts<n, Activation, Gate>&, const P& p, const reference::Column& x, Output& out) {
  const reference::Bounded in{x, reference::Column::Zero(x.size())};
  const auto v = expert_ffn(expert_of(p.ffn, 0, Activation::gated), curve_of<Activation>(), in, kernel_precision<T>());
  double g = 1, dg = 0;
  if constexpr (std::is_same_v<Gate, moe::SigmoidGate>) {  // its slope is at most 1/4
    const auto weight = rows_at(p.gate.data(), 1, x.size());
    const auto logit = affine(weight, {}, in, {});
    g = 1 / (1 + std::exp(-logit.value(0)));
    dg = logit.bound(0) / 4 + 8 * reference::f32_unit * g;
  }
  out.add(v, g, dg);
  out.store();
}
template <class T, class P>
void add_branch(const ScaledInput& branch, const P& p, const reference::Column& x, Output& out) {
  const reference::Column v = x.cwiseProduct(rows_at(p.scale.data(), x.size(), 1).col(0));
  out.add({v, reference::f32_unit * v.cwiseAbs()}, branch.factor, 0);
  out.store();
}
template <class T, class Layer>
void add_branches(moe::detail::List<>, const Layer&, const moe::NoParameters&, const reference::Column&, Output&) {}
template <class T, class First, class... Rest, class Layer, class P>
void add_branches(moe::detail::List<First, Rest...>, const Layer& layer, const P& p, const reference::Column& x,
                  Output& out) {
  add_branch<T>(layer.template value<First>(), p.first, x, out);
  add_branches<T>(moe::detail::List<Rest...>{}, layer, p.rest, x, out);
}

template <bool routed>
void apply(const moe::OutputScale<routed>& scale, const moe::NoParameters&, bool live, Output& out) {
  (void)live;
  out.y.value *= scale.factor;
  out.y.bound *= std::abs(scale.factor);
  out.y.bound += reference::f32_unit * out.size();
  out.store();
}
template <class P>
void apply(const moe::OutputBias&, const P& p, bool live, Output& out) {
  if (!live) return;
  out.add({rows_at(p.bias.data(), out.y.value.size(), 1).col(0), 0 * out.y.value}, 1, 0);
  out.store();
}
template <bool routed, class Layer>
void apply_outputs(moe::detail::List<>, const Layer&, const moe::NoParameters&, bool, Output&) {}
template <bool routed, class First, class... Rest, class Layer, class P>
void apply_outputs(moe::detail::List<First, Rest...>, const Layer& layer, const P& p, bool live, Output& out) {
  if constexpr (First::routed == routed) apply(layer.template value<First>(), p.first, live, out);
  apply_outputs<routed>(moe::detail::List<Rest...>{}, layer, p.rest, live, out);
}

/// How far a combine weight may be off, as a share: logits differ by d, which changes a softmax by 2 d and normalised
/// weights by 4 d; sigmoids change less. Exponentials and sums over E experts round on top.
template <class Layer>
double weight_error(const Layer& layer, const reference::Column& x) {
  double d = 0;
  const auto& parameters = layer.parameters;
  auto look = [&](std::string_view name, const auto& view) {
    if (name.substr(0, 7) != "router.") return;
    const Index experts = view.extent(0);
    if constexpr (std::decay_t<decltype(view)>::rank() == 2) {
      const auto sizes = (rows_at(view.data(), experts, x.size()).cwiseAbs() * x.cwiseAbs()).eval();
      d += double(x.size() + 2) * reference::f32_unit * sizes.maxCoeff();
    } else {
      d += double(x.size() + 2) * reference::f32_unit * largest(view);
    }
  };
  Layer::Parameters::visit(look, parameters);
  return 4 * d + double(2 * layer.config().experts + 40) * reference::f32_unit;
}

/// y (T, H) of a layer in double from its routing, and bounds for the layer packed as T.
template <class T, class Layer>
std::vector<Output> outputs_of(const Layer& layer, const typename Layer::Tape& tape) {
  const Index hidden = layer.config().hidden, tokens = tape.batch.tokens();
  const double unit = std::is_same_v<T, moe::bfloat16> ? reference::bf16_unit : 0;
  const auto precision = kernel_precision<T>();
  std::vector<reference::Column> x;
  std::vector<reference::Bounded> inner;
  std::vector<Output> result;
  Index width = hidden;
  if constexpr (Layer::has_latent) width = layer.parameters.latent.in.extent(0);
  for (Index t = 0; t < tokens; ++t) {
    x.push_back(rows_at(tape.batch.x.data() + t * hidden, hidden, 1));
    inner.push_back({x[t], reference::Column::Zero(hidden)});
    if constexpr (Layer::has_latent) {
      inner[t] = affine(rows_at(layer.parameters.latent.in.data(), width, hidden), {}, inner[t], {});
      inner[t].bound += unit * (inner[t].value.cwiseAbs() + inner[t].bound);
    }
    result.emplace_back(width, unit);
  }
  for (Index e = 0; e < tape.plan.experts; ++e) {
    const auto expert = expert_of(layer.parameters.experts, e, Layer::Experts::gated);
    const auto curve = curve_of<std::decay_t<decltype(layer.template value<typename Layer::Experts>().activation)>>();
    for (Index r = tape.plan.expert_offsets(e); r < tape.plan.expert_offsets(e + 1); ++r) {
      const Index t = tape.plan.row_token(r);
      if (t < 0) continue;
      const double w = tape.weight(tape.plan.row_assignment(r)), dw = std::abs(w) * weight_error(layer, x[t]);
      if constexpr (Layer::weight_on_input) {  // rows, results and each sum so far are stored in T
        reference::Bounded in = inner[t];
        in.value *= w;
        in.bound = std::abs(w) * in.bound + dw * inner[t].value.cwiseAbs();
        in.bound += (unit + reference::f32_unit) * (in.value.cwiseAbs() + in.bound);
        auto v = expert_ffn(expert, curve, in, precision);
        v.bound += unit * (v.value.cwiseAbs() + v.bound);
        result[t].add(v, 1, 0);
        result[t].store();
      } else {
        result[t].add(expert_ffn(expert, curve, inner[t], precision), w, dw);
      }
    }
  }
  for (Index t = 0; t < tokens; ++t) {
    const bool live = !moe::detail::is_padding<typename Layer::Space>(tape.batch.mask, t);
    Output& out = result[t];
    out.store();
    if constexpr (Layer::has_latent) {
      out.y = affine(rows_at(layer.parameters.latent.out.data(), hidden, width), {}, out.y, {});
      out.store();
    }
    apply_outputs<true>(typename Layer::Outputs{}, layer, layer.parameters.outputs, live, out);
    if (live) add_branches<T>(typename Layer::Branches{}, layer, layer.parameters.branches, x[t], out);
    apply_outputs<false>(typename Layer::Outputs{}, layer, layer.parameters.outputs, live, out);
  }
  return result;
}

constexpr Index packed_tokens = 43;
inline const moe::MoEConfig packed_config{.hidden = 37, .intermediate = 21, .experts = 8};

/// Everything that starts at 0 or 1 gets random numbers too; all that is stored in T is rounded to T.
template <class T, class Layer>
void fill_parameters(Layer& layer) {
  unsigned seed = 30;
  auto draw = [&](std::string_view name, auto& view) {
    const bool bias = name.size() >= 4 && name.substr(name.size() - 4) == "bias";
    if (view.size() > 0 && (bias || view.rank() == 1)) randomise(view, ++seed);
    if (name.substr(0, 7) != "router." && name.find("gate.weight") == std::string_view::npos) round_to<T>(view);
  };
  Layer::Parameters::visit(draw, layer.parameters);
  auto fill = [&](std::string_view, auto& view) { randomise(view, ++seed); };
  Layer::Buffers::visit(fill, layer.buffers);
}

template <class From, class To>
void copy_all(From& from, To& to) {
  copy_parameters(from, to);
  auto copy = [](std::string_view, const auto& a, const auto& b) {
    for (std::size_t i = 0; i < a.size(); ++i) b.data()[i] = a.data()[i];
  };
  From::Buffers::visit(copy, from.buffers, to.buffers);
}

/// pack<Weight> of a layer in float against the layer in double with the same weights. Padding is NaN, and must give 0.
template <class Weight, class... Policies, class... Values>
void check_packed(bool masked, const Values&... values) {
  using T = Token<Weight>;
  using Judge = HostLayer<double, Policies...>;
  HostLayer<float, Policies...> layer(packed_config, moe::Seed{5}, values...);
  Judge judge(packed_config, moe::Seed{6}, values...);
  fill_parameters<T>(layer);
  copy_all(layer, judge);
  auto packed = moe::pack<Weight>(layer);
  STATIC_REQUIRE(std::is_same_v<typename decltype(packed)::Scalar, T>);

  const auto x = random<moe::Matrix<float, Host>>(7, packed_tokens, packed_config.hidden);
  const moe::Matrix<T, Host> in("x", packed_tokens, packed_config.hidden);
  const moe::Matrix<double, Host> exact("x", packed_tokens, packed_config.hidden);
  const auto mask = filled<moe::Vector<std::uint8_t, Host>>(1, packed_tokens);
  for (const Index t : {0, 5, 6, 42}) mask(t) = masked ? 0 : 1;
  for (Index t = 0; t < packed_tokens; ++t) {
    for (Index h = 0; h < packed_config.hidden; ++h) {
      in(t, h) = T(mask(t) ? x(t, h) : NAN);
      exact(t, h) = mask(t) ? double(float(in(t, h))) : 0;
    }
  }
  moe::Batch<T, Host> batch;
  moe::Batch<double, Host> judged;
  batch.x = in;
  judged.x = exact;
  if (masked) batch.mask = judged.mask = mask;
  moe::Context<Host> ctx;
  ctx.training = false;
  typename decltype(packed)::Tape tape;
  typename Judge::Tape judge_tape;
  const auto y = packed.forward(ctx, batch, tape);
  const auto expected = judge.forward(ctx, judged, judge_tape);
  REQUIRE(same_bits(tape.plan.expert_offsets, judge_tape.plan.expert_offsets));
  REQUIRE(same_bits(tape.plan.assignment_row, judge_tape.plan.assignment_row));

  const auto outputs = outputs_of<Weight>(judge, judge_tape);
  constexpr bool quantised = std::is_same_v<Weight, std::int8_t>;
  double error = 0, size = 0;
  Worst worst;
  for (Index t = 0; t < packed_tokens; ++t) {
    for (Index h = 0; h < packed_config.hidden; ++h) {
      const double value = expected(t, h), bound = outputs[t].y.bound(h);
      if (!quantised && std::abs(outputs[t].y.value(h) - value) > 1e-12) FAIL("the reference is not this layer's");
      if (mask(t) == 0 && float(y(t, h)) != 0.0f) FAIL_CHECK("padding is not 0: " << t << ", " << h);
      worst.see(std::abs(double(float(y(t, h))) - outputs[t].y.value(h)), bound);
      if (quantised) error += std::pow(outputs[t].y.value(h) - value, 2), size += value * value;
    }
  }
  worst.check(2e-4);  // bounds of many stages multiply
  if (quantised) CHECK(error < 0.05 * 0.05 * size);

  // Without a tape, packed from double, and for one token alone: the same bits.
  CHECK(same_bits(y, packed.forward(ctx, batch)));
  CHECK(same_bits(y, moe::pack<Weight>(judge).forward(ctx, batch)));
  if (decltype(packed)::Capacity::drops) return;
  const Kokkos::pair<Index, Index> rows(9, 10);
  const moe::Matrix<T, Host> alone("alone", 1, packed_config.hidden), one("one", 1, packed_config.hidden);
  Kokkos::deep_copy(one, Kokkos::subview(y, rows, Kokkos::ALL));
  Kokkos::deep_copy(alone, Kokkos::subview(in, rows, Kokkos::ALL));
  CHECK(same_bits(packed.forward(ctx, alone), one));
}

}  // namespace moe_test
