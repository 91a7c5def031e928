// A scoring, a selection and experts of one's own, trained together. Nothing is registered: `policy` names the
// category.
#include <iostream>
#include <moe/moe.hpp>

/// Scores 1 + z / (1 + |z|): bounded like a sigmoid, with heavier tails.
///
/// It steps through its row by the team alone and says so by `takes_team`: a device may then give a warp to a token. A
/// policy with a loop of its own over the row leaves the word out, and gets one thread.
struct SoftSign {
  using policy = moe::kind::scoring;
  static constexpr bool takes_team = true;
  template <class Real>
  KOKKOS_FUNCTION void apply(const moe::Team& team, moe::Row<Real> row) const {
    team.each(row.size, [&](moe::Index e) { row[e] = 1 + row[e] / (1 + Kokkos::abs(row[e])); });
  }
  template <class Real>
  KOKKOS_FUNCTION void pullback(const moe::Team& team, moe::Row<const Real> s, moe::Row<Real> gradient) const {
    team.each(s.size, [&](moe::Index e) { gradient[e] *= (1 - Kokkos::abs(s[e] - 1)) * (1 - Kokkos::abs(s[e] - 1)); });
  }
};

/// Every expert that scores above a threshold, at most two.
struct AboveThreshold {
  using policy = moe::kind::selection;
  static constexpr bool takes_team = true;
  double threshold = 0.8;
  moe::Index choices() const { return 2; }
  template <class Real>
  KOKKOS_FUNCTION void select(const moe::Team& team, moe::Row<Real> key, moe::Row<moe::ExpertId> chosen) const {
    team.each(key.size, [&](moe::Index e) {
      if (key[e] < threshold) key[e] = -Kokkos::Experimental::infinity_v<Real>;
    });
    moe::TopK<2>{}.select(team, key, chosen);
  }
};

/// out = scale_e * row, elementwise.
template <class T, class Space>
struct ScaleRow {
  moe::DispatchPlan<Space> plan;
  moe::Matrix<T, Space> in, scale, out;
  KOKKOS_FUNCTION void operator()(moe::Index e) const {
    for (moe::Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r)
      for (moe::Index h = 0; h < moe::Index(in.extent(1)); ++h) out(r, h) = scale(e, h) * in(r, h);
  }
};
template <class T, class Space>
struct ScaleGradient {
  moe::DispatchPlan<Space> plan;
  moe::Matrix<T, Space> rows, dout, gradient;
  KOKKOS_FUNCTION void operator()(moe::Index e) const {
    for (moe::Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r)
      for (moe::Index h = 0; h < moe::Index(rows.extent(1)); ++h) gradient(e, h) += dout(r, h) * rows(r, h);
  }
};
struct ScaleExperts {
  using policy = moe::kind::experts;
  template <class T, class Space>
  struct Parameters {
    moe::Matrix<T, Space> scale;  // (E, H)
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("scale", same.scale...);
    }
  };
  template <class T, class Space>
  struct Saved {};
  template <class T, class Space>
  Parameters<T, Space> parameters(moe::ExpertShape shape) const {
    return {{"scale", std::size_t(shape.experts), std::size_t(shape.hidden)}};
  }
  template <class T, class Space>
  void forward(moe::Context<Space>& ctx, const moe::Matrix<T, Space>& rows, const moe::DispatchPlan<Space>& plan,
               const Parameters<T, Space>& p, const moe::Matrix<T, Space>& out, Saved<T, Space>&) const {
    Kokkos::parallel_for(Kokkos::RangePolicy<Space>(ctx.space, 0, plan.experts),
                         ScaleRow<T, Space>{plan, rows, p.scale, out});
  }
  template <class T, class Space>
  void backward(moe::Context<Space>& ctx, const moe::Matrix<T, Space>& dout, const moe::DispatchPlan<Space>& plan,
                const Parameters<T, Space>& p, const moe::Matrix<T, Space>& rows, const Saved<T, Space>&,
                const moe::Matrix<T, Space>& drows, Parameters<T, Space>& gradients) const {
    const Kokkos::RangePolicy<Space> experts(ctx.space, 0, plan.experts);
    Kokkos::parallel_for(experts, ScaleRow<T, Space>{plan, dout, p.scale, drows});
    Kokkos::parallel_for(experts, ScaleGradient<T, Space>{plan, rows, dout, gradients.scale});
  }
};

using Block =
    moe::MoELayer<moe::Router<SoftSign, AboveThreshold, moe::NormalizeSum>, ScaleExperts, moe::SwitchBalanceLoss>;

/// dy = y - 3 x, the gradient of |y - 3 x|^2 / 2; the threads' results stay apart.
struct Residual {
  moe::Matrix<float> x, y, dy;
  KOKKOS_FUNCTION void operator()(moe::Index i) const {
    dy.data()[i] = (y.data()[i] - 3 * x.data()[i]) / float(x.size());
  }
};

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  Block block(Block::Config{.hidden = 32, .intermediate = 1, .experts = 8}, moe::Seed{7});
  moe::Matrix<float> x("x", 512, 32), dy("dy", 512, 32);
  moe::fill_normal(Kokkos::DefaultExecutionSpace{}, x, moe::Seed{1});
  moe::Context ctx;
  Block::Tape tape;
  auto gradients = block.gradients();
  moe::AdamW optimizer(block.parameters);
  for (int step = 0; step <= 200; ++step, ++ctx.step) {
    auto y = block.forward(ctx, x, tape);
    Kokkos::parallel_for(Kokkos::RangePolicy<>(ctx.space, 0, moe::Index(x.size())), Residual{x, y, dy});
    moe::zero(ctx, gradients);
    block.backward(ctx, dy, tape, gradients);
    const double norm = moe::clip_gradient_norm(ctx, gradients, 1.0);
    optimizer.step(ctx, block.parameters, gradients, 3e-2);
    if (step % 50 == 0)
      std::cout << "step " << step << "  gradient norm " << norm << "  balance loss " << tape.loss() << '\n';
  }
  std::cout << moe::load_report(tape);
}
