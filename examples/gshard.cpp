// GShard's layer at laptop size: top-2 with groups, capacity, and first choices before second ones.
#include <iostream>
#include <moe/moe.hpp>

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  moe::Matrix<float> x("x", 1024, 64);
  moe::fill_normal(Kokkos::DefaultExecutionSpace{}, x, moe::Seed{1});
  moe::Context ctx;

  for (moe::Priority priority : {moe::Priority::position, moe::Priority::choice, moe::Priority::score}) {
    auto capacity = moe::gshard_capacity(moe::Scope::groups_of(256));
    capacity.priority = priority;
    moe::GShard layer(moe::GShard::Config{.hidden = 64, .intermediate = 128, .experts = 16}, capacity, moe::Seed{5});
    moe::GShard::Tape tape;
    layer.forward(ctx, x, tape);

    // A token without any expert passes by on the residual alone: few should.
    moe::Index none = 0;
    auto offsets = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, tape.plan.token_offsets);
    for (moe::Index t = 0; t < tape.plan.tokens; ++t) none += offsets(t + 1) == offsets(t);
    const char* names[] = {"token order", "first choices first", "largest weight first"};
    const moe::LoadReport report = moe::load_report(tape);
    std::cout << names[int(priority)] << ": " << report.dropped() << " of " << report.assignments()
              << " choices dropped, " << none << " of 1024 tokens without an expert\n";
    if (priority == moe::Priority::choice) std::cout << report;
  }
}
