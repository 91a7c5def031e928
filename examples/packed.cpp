// Inference on a host: the weights of a trained layer packed for the kernels, in float, bfloat16 and int8.
#include <cmath>
#include <cstdio>
#include <moe/moe.hpp>

namespace {

using Space = Kokkos::DefaultHostExecutionSpace;
using Router = moe::Router<moe::Softmax, moe::TopK<4>>;
using Block = moe::MoELayer<moe::On<Space>, Router, moe::ExpertFFN<moe::SwiGLU>, moe::SharedExperts<1>>;

/// Milliseconds of the best of a few passes.
template <class Layer, class X>
double milliseconds(const Layer& layer, moe::Context<Space>& ctx, const X& x) {
  double best = 1e30;
  for (int i = 0; i < 5; ++i) {
    Kokkos::Timer timer;
    layer.forward(ctx, x);
    best = std::min(best, timer.seconds() * 1e3);
  }
  return best;
}

/// The largest difference between two outputs.
template <class A, class B>
double difference(const A& a, const B& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::abs(double(float(a.data()[i])) - double(float(b.data()[i]))));
  return largest;
}

/// ||b - a|| / ||a||.
template <class A, class B>
double relative_error(const A& a, const B& b) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += std::pow(double(b.data()[i]) - double(a.data()[i]), 2);
    size += std::pow(double(a.data()[i]), 2);
  }
  return std::sqrt(error / size);
}

}  // namespace

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  constexpr moe::Index tokens = 512, hidden = 512;
  const Block block(Block::Config{.hidden = hidden, .intermediate = 352, .experts = 32}, moe::Seed{1});
  const auto packed = moe::pack(block);                // float
  const auto small = moe::pack<moe::bfloat16>(block);  // half the memory
  const auto least = moe::pack<std::int8_t>(block);    // a quarter; tokens are float

  moe::Matrix<float, Space> x("x", tokens, hidden);  // (T, H)
  moe::fill_normal(Space{}, x, moe::Seed{2});
  moe::Matrix<moe::bfloat16, Space> short_x("x", tokens, hidden);
  for (std::size_t i = 0; i < x.size(); ++i) short_x.data()[i] = moe::bfloat16(x.data()[i]);

  moe::Context<Space> ctx;
  ctx.training = false;
  const auto y = block.forward(ctx, x);
  std::printf("%-24s %8.2f ms\n", "as trained", milliseconds(block, ctx, x));
  std::printf("%-24s %8.2f ms, differs by %.1e at most\n", "packed, float", milliseconds(packed, ctx, x),
              difference(y, packed.forward(ctx, x)));
  // bfloat16 holds 8 bits of a number, and a token near a tie may choose another expert.
  std::printf("%-24s %8.2f ms, differs by %.1e at most\n", "packed, bfloat16", milliseconds(small, ctx, short_x),
              difference(y, small.forward(ctx, short_x)));
  // int8 rounds by 1/254 of the largest number of each row of weights, tokens and hidden values; choices stay.
  const auto z = least.forward(ctx, x);
  std::printf("%-24s %8.2f ms, differs by %.1e at most, by %.1f%% on the whole\n", "packed, int8",
              milliseconds(least, ctx, x), difference(y, z), 100 * relative_error(y, z));
}
