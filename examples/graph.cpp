// A training step captured into a CUDA graph once and launched again and again. Elsewhere the step runs as it is.
#include <iostream>
#include <moe/moe.hpp>

using Space = Kokkos::DefaultExecutionSpace;
using Block = moe::DeepSeekV3Layer<>;

int main(int argc, char** argv) {
  const Kokkos::ScopeGuard kokkos(argc, argv);
  Block block(Block::Config{.hidden = 64, .intermediate = 32, .experts = 16}, moe::Seed{42});
  moe::Context<Space> ctx;
  ctx.space = Kokkos::Experimental::partition_space(Space{}, 1)[0];  // CUDA's default stream cannot be captured
  Block::Tape tape;
  Block::Gradients gradients = block.gradients();
  moe::LoadStatistics<Space> statistics;
  moe::AdamW<Block::Parameters> optimizer(block.parameters);
  const moe::CosineSchedule schedule{.peak = 1e-2, .warmup = 2, .steps = 11};
  moe::Matrix<float, Space> x("x", 128, 64), dy("dy", 128, 64);
  moe::fill_normal(ctx.space, x, moe::Seed{1});
  moe::fill_normal(ctx.space, dy, moe::Seed{2}, 0.01);

  const auto step = [&] {
    moe::zero(ctx, gradients);
    block.forward(ctx, x, tape);
    block.backward(ctx, dy, tape, gradients);
    moe::clip_by_global_norm(ctx, gradients, 1.0);
    statistics.reset();
    statistics.add(tape);
    block.update_balance(ctx, statistics);
    optimizer.apply(ctx, block.parameters, gradients);
  };
  optimizer.prepare(ctx, schedule(0));
  step();  // allocates: a graph can only hold what has been run once in these shapes
#if defined(KOKKOS_ENABLE_CUDA)
  const cudaStream_t stream = ctx.space.cuda_stream();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t program = nullptr;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  step();  // recorded, not run
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&program, graph, 0);
  for (int i = 1; i < 11; ++i) {  // x and dy may be filled anew in between
    optimizer.prepare(ctx, schedule(i));
    cudaGraphLaunch(program, stream);
  }
  cudaStreamSynchronize(stream);
  cudaGraphExecDestroy(program);
  cudaGraphDestroy(graph);
#else
  for (int i = 1; i < 11; ++i) {
    optimizer.prepare(ctx, schedule(i));
    step();
  }
#endif
  ctx.check();  // NaN, wrong ids or infinite gradients in any of the steps?
  std::cout << "balance loss after 11 steps: " << tape.loss() << '\n' << moe::load_report(tape);
}
