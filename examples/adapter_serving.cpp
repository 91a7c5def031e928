// One frozen layer, a batch in which each row names its adapter: three adapters learn at once, each from rows of its
// own, what three others know; then they serve, and one leaves its slot to another.
#include <iomanip>
#include <iostream>
#include <moe/moe.hpp>

using moe::Index;
constexpr Index rows = 384, in = 32, out = 24, rank = 4, adapters = 3;

/// dy = y - wanted, the gradient of half the squared distance, over the rows.
struct Difference {
  moe::Matrix<float> y, wanted, dy;
  KOKKOS_FUNCTION void operator()(Index i) const {
    dy.data()[i] = (y.data()[i] - wanted.data()[i]) / float(rows / adapters);
  }
};

/// Half the squared distance, of the rows of each adapter.
void print(const char* when, const moe::Matrix<float>& dy) {
  const auto copy = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, dy);
  std::cout << std::setw(18) << when << std::scientific << std::setprecision(1);
  for (Index n = 0; n < adapters; ++n) {
    double sum = 0;
    for (Index t = n; t < rows; t += adapters)
      for (Index o = 0; o < out; ++o) sum += double(copy(t, o)) * double(copy(t, o)) * double(rows / adapters) / 2;
    std::cout << std::setw(12) << sum;
  }
  std::cout << '\n';
}

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  moe::Context ctx;
  moe::Matrix<float> base("base", out, in), x("x", rows, in), dy("dy", rows, out);
  moe::fill_normal(ctx.space, base, moe::Seed{1}, 0.2);
  moe::fill_normal(ctx.space, x, moe::Seed{2});
  moe::Batch<float> batch;
  batch.x = x;
  moe::Vector<std::int32_t> ids("ids", rows);  // rows of all adapters, mixed; -1 would be the base alone
  const auto names = Kokkos::create_mirror_view(ids);
  for (Index t = 0; t < rows; ++t) names(t) = std::int32_t(t % adapters);
  Kokkos::deep_copy(ids, names);

  using Bank = moe::AdapterBank<>;
  const Bank::Config config{.in = in, .out = out, .rank = rank, .adapters = adapters};
  Bank teacher(config, base), bank(config, base);
  for (Index n = 0; n < adapters; ++n) {
    const Index r = rank - n;  // of any rank up to the bank's
    moe::Matrix<float> a("a", r, in), b("b", out, r);
    moe::fill_normal(ctx.space, a, moe::Seed{std::uint64_t(10 + n)}, 0.2);
    moe::fill_normal(ctx.space, b, moe::Seed{std::uint64_t(20 + n)}, 0.5);
    teacher.add(ctx, a, b, 1.0);
    bank.add(ctx, r, 2.0, moe::Seed{std::uint64_t(n)});  // fresh, to be trained
  }

  Bank::Tape tape, wanted;
  auto gradients = bank.gradients();
  moe::AdamW optimizer(bank.parameters);
  teacher.forward(ctx, batch, ids, wanted);
  const auto compare = [&](const moe::Matrix<float>& y) {
    Kokkos::parallel_for(Kokkos::RangePolicy<>(ctx.space, 0, rows * out), Difference{y, wanted.y, dy});
  };
  std::cout << "half the squared distance of rows of each adapter\n";
  for (; ctx.step < 600; ++ctx.step) {
    compare(bank.forward(ctx, batch, ids, tape));
    if (ctx.step == 0) print("fresh", dy);
    moe::zero(ctx, gradients);
    bank.backward(ctx, dy, tape, gradients);
    optimizer.step(ctx, bank.parameters, gradients, 1e-2);
  }
  compare(bank.forward(ctx, batch, ids));  // to serve: no tape
  print("trained", dy);

  bank.evict(ctx, 1);
  const Index slot = bank.add(ctx, rank, 2.0, moe::Seed{99});
  compare(bank.forward(ctx, batch, ids));
  print("slot 1 anew", dy);
  std::cout << "the new adapter took slot " << slot << "; " << bank.resident() << " are resident\n";
}
