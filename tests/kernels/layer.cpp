// Usage: kernels_layer NAME. Runs small packed layers on the instruction set that moe::kernels chooses, compares them
// with plain loops in double, and exits with 1 unless numbers agree and the instruction set is NAME ("any": any).
// The program itself is compiled for the least processor there is.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <moe/moe.hpp>
#include <vector>

namespace {

using moe::Index;
using Space = Kokkos::DefaultHostExecutionSpace;
using Layer = moe::MoELayer<moe::Router<moe::Softmax, moe::TopK<2>>, moe::ExpertFFN<moe::SwiGLU>, moe::On<Space>>;

// Odd sizes: padding in every direction. One expert has more rows than any tile.
constexpr Index tokens = 45, hidden = 41, intermediate = 37, experts = 3;

template <class T>
double value(const T& stored) {
  return double(float(stored));
}

// y (T, H) of the layer whose weights are rounded to T.
template <class T>
std::vector<double> expected(const Layer& layer, const moe::Matrix<T, Space>& x) {
  const auto weight = [](const auto& w, auto... at) { return value(T(w(at...))); };
  const auto& up = layer.parameters.experts.up;      // (E, 2I, H): the gate's rows first
  const auto& down = layer.parameters.experts.down;  // (E, H, I)
  std::vector<double> y(tokens * hidden);
  for (Index t = 0; t < tokens; ++t) {
    double score[experts], sum = 0;
    for (Index e = 0; e < experts; ++e) {
      double logit = 0;
      for (Index h = 0; h < hidden; ++h) logit += value(x(t, h)) * double(layer.parameters.router.weight(e, h));
      sum += score[e] = std::exp(logit);
    }
    Index least = 0;
    for (Index e = 1; e < experts; ++e) least = score[e] < score[least] ? e : least;
    for (Index e = 0; e < experts; ++e) {
      if (e == least) continue;
      double inner[intermediate] = {};
      for (Index i = 0; i < intermediate; ++i) {
        double gate = 0, raised = 0;
        for (Index h = 0; h < hidden; ++h) {
          gate += weight(up, e, i, h) * value(x(t, h));
          raised += weight(up, e, intermediate + i, h) * value(x(t, h));
        }
        inner[i] = gate / (1 + std::exp(-gate)) * raised;
      }
      for (Index h = 0; h < hidden; ++h) {
        double out = 0;
        for (Index i = 0; i < intermediate; ++i) out += weight(down, e, h, i) * inner[i];
        y[t * hidden + h] += score[e] / sum * out;
      }
    }
  }
  return y;
}

template <class Weight>
bool agrees(const char* name, const Layer& layer, double tolerance) {
  using T = typename moe::Packed<Layer, Weight>::Scalar;
  moe::Matrix<T, Space> x("x", tokens, hidden);
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < hidden; ++h) x(t, h) = T(float(std::sin(double(1 + t) * double(3 + 7 * h))));
  }
  const std::vector<double> y = expected<T>(layer, x);
  const auto packed = moe::pack<Weight>(layer);
  moe::Context<Space> ctx;
  const auto got = packed.forward(ctx, x);
  double error = 0, largest = 0;
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < hidden; ++h) {
      const double difference = std::abs(value(got(t, h)) - y[t * hidden + h]);
      if (!(difference <= error)) error = difference;
      largest = std::max(largest, std::abs(y[t * hidden + h]));
    }
  }
  std::printf("%s: error %.2g of %.2g\n", name, error, largest);
  return largest > 0.01 && error <= tolerance * largest;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const Kokkos::ScopeGuard kokkos;
  try {
    std::printf("%s\n", moe::instruction_set());
    const bool named = std::strcmp(argv[1], "any") == 0 || std::strcmp(argv[1], moe::instruction_set()) == 0;
    const Layer layer({.hidden = hidden, .intermediate = intermediate, .experts = experts}, moe::Seed{1});
    for (std::size_t i = 0; i < layer.parameters.experts.up.size(); ++i) layer.parameters.experts.up.data()[i] *= 10;
    const bool full = agrees<float>("f32", layer, 1e-5), half = agrees<moe::bfloat16>("bf16", layer, 2e-2);
    const bool quarter = agrees<std::int8_t>("int8", layer, 4e-2);
    return named && full && half && quarter ? 0 : 1;
  } catch (const moe::Error& error) {
    std::printf("%s\n", error.what());
    return 3;
  }
}
