#pragma once
/// @file
/// How bench_layer times a layer: a forward pass, a forward pass on a few tokens with weights from memory, or a forward
/// and a backward pass.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "layer_options.hpp"
#include "stages.hpp"

namespace bench {

/// One number of tokens.
struct Measured {
  Index tokens = 0;
  double least = 0, median = 0;  // seconds of a pass
  double flops = 0;
  double bytes = 0;            // of weights that a pass has to move at least
  double gflops = 0, gbs = 0;  // the limits meanwhile
  double violation = 0;        // of the even load, by the busiest expert
  std::map<std::string, double> stages{};
  std::optional<double> experts{}, read_share{};  // decode: experts touched; the median of the shares of the bandwidth
  std::optional<double> kept{};                   // train: bytes a token

  /// How near to what the machine could do: by arithmetic or by reading, whichever takes longer.
  double bound_share() const {
    const double arithmetic = gflops > 0 ? flops / gflops : 0;  // unknown on devices
    if (read_share) return std::max(*read_share, arithmetic * 1e-9 / median);
    return std::max(arithmetic, bytes / gbs) * 1e-9 / least;
  }
};

inline void print_head(const Options& options) {
  fmt::print("{:>6} {:>9} {:>9} {:>9} {:>7} {:>9}", "tokens", "min ms", "median", "GFLOP/s", "GB/s", "of bound");
  if (options.mode == "decode") fmt::print(" {:>10} {:>8}", "of reading", "experts");
  if (options.mode == "train") fmt::print(" {:>13}", "kept kB/token");
  fmt::print("  time by stage\n");
}

/// Rates are of the least time; in decode, where each pass has its own share of the bandwidth, of the median.
inline void print(const Options& options, const Measured& m) {
  const double seconds = m.read_share ? m.median : m.least;
  if (options.json) {
    nlohmann::json line{{"impl", "moe"},
                        {"mode", options.mode},
                        {"shape", options.name},
                        {"dtype", options.dtype},
                        {"layout", options.layout},
                        {on_device ? "device" : "instruction_set", machine()},
                        {"threads", Space().concurrency()},
                        {"T", m.tokens},
                        {"min_s", m.least},
                        {"med_s", m.median},
                        {"flops", m.flops},
                        {"gflops", m.flops / seconds * 1e-9},
                        {"gbs", m.bytes / seconds * 1e-9},
                        {"bytes", m.bytes},
                        {"bound_share", m.bound_share()},
                        {"peak_gflops", m.gflops},
                        {"peak_gbs", m.gbs},
                        {"maximum_violation", m.violation},
                        {"stages", m.stages}};
    if (m.read_share) line.update({{"read_share", *m.read_share}, {"experts", *m.experts}});
    if (m.kept) line["kept_bytes_per_token"] = *m.kept;
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{:>6} {:>9.3f} {:>9.3f} {:>9.1f} {:>7.1f} {:>8.1f}%", m.tokens, m.least * 1e3, m.median * 1e3,
               m.flops / seconds * 1e-9, m.bytes / seconds * 1e-9, 100 * m.bound_share());
    if (m.read_share) fmt::print(" {:>9.1f}% {:>8.1f}", 100 * *m.read_share, *m.experts);
    if (m.kept) fmt::print(" {:>13.1f}", *m.kept * 1e-3);
    fmt::print(" ");
    for (const auto& [stage, share] : m.stages) {
      if (share >= 0.005) fmt::print(" {} {:.0f}%", stage, 100 * share);
    }
    fmt::print("\n");
  }
  std::fflush(stdout);
}

template <class T>
struct FirstIsOne {
  moe::Matrix<T, Space> x;
  KOKKOS_FUNCTION void operator()(Index t) const { x(t, 0) = T(1); }
};

/// Random tokens. The first of a token's numbers is 1, so that the router's first column is a bias.
template <class T>
moe::Matrix<T, Space> draw_tokens(Index tokens, Index hidden, std::uint64_t seed) {
  moe::Matrix<T, Space> x("x", tokens, hidden);
  moe::fill_normal(Space{}, x, moe::Seed{seed});
  moe::detail::each(Space{}, "bench::first_is_one", tokens, FirstIsOne<T>{x});
  Space{}.fence();
  return x;
}

inline double touched_experts(const moe::LoadReport& load) {
  return double(std::count_if(load.kept.begin(), load.kept.end(), [](Index n) { return n > 0; }));
}

/// Bytes of so many experts' weights and the shared ones'.
inline double expert_bytes(const Shape& shape, const Options& options, double experts) {
  return (experts + double(shape.shared)) * shape.expert_numbers() * options.weight_bytes();
}

inline double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Seconds until all of a pass is done.
template <class Pass>
double seconds_of(const Pass& pass) {
  const double start = now();
  pass();
  Space{}.fence("bench::seconds_of");
  return now() - start;
}

/// Times `pass` between two measurements of the limits, and notes the stages. On devices those are of passes of their
/// own, since Kokkos waits at each end of a stage that is watched.
template <class Pass>
void time_passes(const Options& options, const Pass& pass, Measured& m) {
  const Limits before = Limits::measure();
  text::Stages::reset();
  std::vector<double> times;
  for (int r = 0; r < options.repeats; ++r) times.push_back(seconds_of(pass));
  if (on_device) {
    const text::Stages::Regions watched;
    text::Stages::reset();
    for (int r = 0; r < 3; ++r) seconds_of(pass);
    m.stages = text::Stages::shares();
  } else {
    m.stages = text::Stages::shares();
  }
  const Limits after = Limits::measure();
  m.least = *std::min_element(times.begin(), times.end());
  m.median = median_of(times);
  m.gflops = std::max(options.peak(before), options.peak(after));
  m.gbs = std::max(before.gbs, after.gbs);
}

/// The same tokens again and again: what the caches hold of the weights may be read there.
template <class Layer>
Measured forward(const Shape& shape, const Options& options, const Layer& layer, Index tokens) {
  const auto x = draw_tokens<typename Layer::Scalar>(tokens, shape.hidden, 1);
  moe::Context<Space> ctx;
  ctx.training = false;
  typename Layer::Tape tape;
  layer.forward(ctx, x, tape);
  const moe::LoadReport load = moe::load_report(tape);
  Measured m{.tokens = tokens, .flops = shape.flops(tokens), .violation = load.maximum_violation()};
  m.bytes = expert_bytes(shape, options, touched_experts(load));
  time_passes(
      options, [&] { layer.forward(ctx, x, tape); }, m);
  return m;
}

/// Other tokens at each pass, and before each the read probe, which empties the caches of weights and tells the
/// bandwidth of that moment: the larger of the probes before and behind a pass is what its share is of.
template <class Layer>
Measured decode(const Shape& shape, const Options& options, const Layer& layer, Index tokens) {
  const std::size_t inputs = tokens <= 4 ? 12 : 6;  // as in bench/peers/measure.py
  moe::Context<Space> ctx;
  ctx.training = false;
  typename Layer::Tape tape;
  std::vector<moe::Matrix<typename Layer::Scalar, Space>> xs;
  std::vector<double> bytes, shares, reads;
  Measured m{.tokens = tokens, .flops = shape.flops(tokens), .experts = 0.0};
  for (std::size_t i = 0; i < inputs; ++i) {
    xs.push_back(draw_tokens<typename Layer::Scalar>(tokens, shape.hidden, i + 1));
    layer.forward(ctx, xs[i], tape);
    const moe::LoadReport load = moe::load_report(tape);
    bytes.push_back(expert_bytes(shape, options, touched_experts(load)) + shape.router_bytes());
    m.bytes += bytes[i] / double(inputs);
    *m.experts += touched_experts(load) / double(inputs);
    m.violation = std::max(m.violation, load.maximum_violation());
  }
  std::vector<std::vector<double>> times(inputs);
  const Limits limits = Limits::measure();
  text::Stages::reset();
  double before = read_bandwidth(1);
  for (int r = 0; r < options.repeats; ++r) {
    for (std::size_t i = 0; i < inputs; ++i) {
      times[i].push_back(seconds_of([&] { layer.forward(ctx, xs[i], tape); }));
      const double after = read_bandwidth(1);
      shares.push_back(bytes[i] * 1e-9 / times[i].back() / std::max(before, after));
      reads.push_back(before = after);
    }
  }
  if (on_device) {
    const text::Stages::Regions watched;
    text::Stages::reset();
    for (const auto& x : xs) seconds_of([&] { layer.forward(ctx, x, tape); });
  }
  m.stages = text::Stages::shares();
  const double outside = m.stages.extract("other").mapped();  // the probes
  for (auto& [stage, share] : m.stages) share /= 1 - outside;
  for (const auto& each : times) {
    m.least += *std::min_element(each.begin(), each.end()) / double(inputs);
    m.median += median_of(each) / double(inputs);
  }
  m.gflops = std::max(options.peak(limits), options.peak(Limits::measure()));
  m.gbs = median_of(reads);
  m.read_share = median_of(shares);
  return m;
}

/// Forward and backward: three times the arithmetic of a forward pass. Gradients of the tokens are written, those of
/// the router and of all experts added in place; no optimiser. Weights are read twice, gradients read and written.
template <class Layer>
Measured train(const Shape& shape, const Options& options, const Layer& layer, Index tokens) {
  using T = typename Layer::Scalar;
  const auto x = draw_tokens<T>(tokens, shape.hidden, 1), dy = draw_tokens<T>(tokens, shape.hidden, 2);
  moe::Context<Space> ctx;
  auto gradients = layer.gradients();
  const auto pass = [&](typename Layer::Tape& tape) {
    layer.forward(ctx, x, tape);
    layer.backward(ctx, dy, tape, gradients);
  };
  {
    typename Layer::Tape first;  // makes the context's workspace
    pass(first);
  }
  const double before = double(text::Stages::held_bytes());
  typename Layer::Tape tape;
  layer.forward(ctx, x, tape);
  Measured m{.tokens = tokens, .flops = 3 * shape.flops(tokens)};
  m.kept = (double(text::Stages::held_bytes()) - before) / double(tokens);
  const moe::LoadReport load = moe::load_report(tape);
  m.violation = load.maximum_violation();
  m.bytes = 4 * expert_bytes(shape, options, touched_experts(load));
  time_passes(
      options, [&] { pass(tape); }, m);
  return m;
}

}  // namespace bench
