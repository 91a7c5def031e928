#pragma once
/// @file
/// `LowRankAdapters`: adapters W x + sum_e w_e scaling B_e A_e x (Hu et al. 2021, "LoRA", section 4.1).

#include "moe/adapters/detail/low_rank_passes.hpp"

MOE_NAMESPACE_BEGIN

/// Every adapter has an A of its own, or all share one (Tian et al. 2024, "HydraLoRA").
struct OwnDown {};
struct SharedDown {};

/// alpha / r (LoRA); alpha / sqrt(r) (Kalajdzievski 2023, "rsLoRA"); alpha / (E r), where r is one
/// adapter's (MOELoRA, whose r is that of all adapters together).
struct AlphaOverRank {
  static double of(double alpha, Index rank, Index) { return alpha / double(rank); }
};
struct AlphaOverRootRank {
  static double of(double alpha, Index rank, Index) { return alpha / std::sqrt(double(rank)); }
};
struct AlphaOverTotalRank {
  static double of(double alpha, Index rank, Index experts) { return alpha / double(rank * experts); }
};

/// B starts at zero, so that adapters start as none; or random as A does, where another factor starts at zero.
struct ZeroStart {};
struct RandomStart {};

namespace detail {

/// to(r) (+)= from(r), entries kept with probability 1 - p and divided by it; rows of one token lose the same ones.
template <class T, class Space>
struct DropInput {
  Matrix<const T, Space> from;
  Matrix<T, Space> to;
  Vector<const Index, Space> row_token;  // (R), or empty: rows are tokens
  RandomKey key;
  Index first_token;
  std::uint32_t map;
  RouterReal<T> probability;
  bool add;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    using Real = RouterReal<T>;
    const Index token = row_token.data() == nullptr ? r : row_token(r);
    if (token < 0) return;
    team.each(Index(to.extent(1)), [&](Index i) {
      const Real draw = random_uniform<Real>(key, std::uint64_t(first_token + token), std::uint32_t(i) ^ (map << 28));
      const Real kept = draw < probability ? Real(0) : Real(from(r, i)) / (Real(1) - probability);
      to(r, i) = T(add ? Real(to(r, i)) + kept : kept);
    });
  }
};

/// Dropout of what the adapters of map number `map` read, drawn as the routing's forward pass was.
template <class T, class Space>
void drop_input(Context<Space>& ctx, const Routing<RouterReal<T>, Space>& routing, std::uint32_t map,
                double probability, const Matrix<const T, Space>& from, const Vector<const Index, Space>& row_token,
                const Matrix<T, Space>& to, bool add) {
  RandomKey key = routing.random;
  key.purpose = Purpose::adapter;
  each_wide_row(
      ctx.space, "moe::adapter_dropout", Index(to.extent(0)), Index(to.extent(1)),
      DropInput<T, Space>{from, to, row_token, key, routing.first_token, map, RouterReal<T>(probability), add});
}

}  // namespace detail

/// Low-rank adapters of a linear map. `dropout`: probability with which an entry of x is left out before A, while
/// training; the same entries for all adapters of a map.
///
/// Where all tokens take all adapters, two dense products over the ranks side by side compute the sum; else rows are
/// sorted by adapter, and grouped products compute each adapter's.
template <class Down = OwnDown, class Scaling = AlphaOverRank, class Start = ZeroStart>
struct LowRankAdapters {
  using policy = kind::adapters;
  static constexpr bool shared = std::is_same_v<Down, SharedDown>;
  double dropout = 0;

  template <class T, class Space>
  using Parameters = LowRank<T, Space>;
  template <class T, class Space>
  struct Saved {
    Matrix<T, Space> down;  ///< A x: (T, E r), or (T, r) where A is shared, or (R, r) of rows
  };

  static double scaling(double alpha, const LowRankShape& shape) {
    return Scaling::of(alpha, shape.rank, shape.adapters);
  }

  void check(const LowRankShape& shape) const {
    detail::require<ConfigError>(shape.adapters > 0 && shape.rank > 0 && shape.in > 0 && shape.out > 0,
                                 "moe::LowRankAdapters: ", shape.adapters, " adapters of rank ", shape.rank,
                                 " for a map of ", shape.in, " to ", shape.out, "; all must be positive.");
    detail::require<ConfigError>(dropout >= 0 && dropout < 1, "moe::LowRankAdapters: dropout ", dropout,
                                 "; it must be at least 0 and below 1.");
  }

  template <class T, class Space>
  Parameters<T, Space> parameters(const LowRankShape& shape) const {
    check(shape);
    return {detail::allocate_zeros<Tensor3<T, Space>>("moe::lora_A", shared ? 1 : shape.adapters, shape.rank, shape.in),
            detail::allocate_zeros<Tensor3<T, Space>>("moe::lora_B", shape.adapters, shape.out, shape.rank)};
  }
  template <class T, class Space>
  void start(const Space& space, const Parameters<T, Space>& p) const {
    if constexpr (std::is_same_v<Start, ZeroStart>) detail::fill(space, p.b, T(0));
  }

  template <class T, class Space, bool all>
  void forward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const LowRank<T, Space>& p,
               const Matrix<T, Space>& y, Saved<T, Space>& saved) const {
    using M = Matrix<const T, Space>;
    detail::check_low_rank("moe::LowRankAdapters", p, shared,
                           {in.experts(), Index(in.x.extent(1)), Index(y.extent(1)), p.rank()});
    typename Context<Space>::Scratch scratch(ctx);
    const auto x = input(ctx, scratch, in);
    if constexpr (all) {
      detail::shape(saved.down, "moe::lora_down", in.tokens(), Index(p.a.extent(0)) * p.rank());
      detail::low_rank_mixture<T, Space>(ctx, x, p, weights(in), factor(in, p), saved.down, y);
    } else {
      const auto& plan = in.mixture.plan;
      auto rows = scratch.template matrix<T>(plan.rows, p.in()), out = scratch.template matrix<T>(plan.rows, p.out());
      detail::shape(saved.down, "moe::lora_down", plan.rows, p.rank());
      gather(ctx, x, plan, rows);
      detail::low_rank_rows<T, Space>(ctx, plan, M(rows), p, in.mixture.weight, factor(in, p), saved.down, out, false);
      detail::add_token_rows<T, Space>(ctx.space, plan, M(out), y);
    }
  }

  template <class T, class Space, bool all>
  void backward(Context<Space>& ctx, const AdapterInput<T, Space, all>& in, const Matrix<T, Space>& dy,
                const LowRank<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                const Vector<RouterReal<T>, Space>& dweight, LowRank<T, Space>& gradients) const {
    using M = Matrix<const T, Space>;
    typename Context<Space>::Scratch scratch(ctx);
    const auto x = input(ctx, scratch, in);
    auto own = dx;  // of what the adapters read
    if (drops(in)) {
      own = scratch.template matrix<T>(in.tokens(), p.in());
      detail::fill(ctx.space, own, T(0));
    }
    if constexpr (all) {
      detail::low_rank_mixture_backward<T, Space>(ctx, x, p, weights(in), factor(in, p), M(saved.down), M(dy), own,
                                                  dweight, gradients);
    } else {
      const auto& plan = in.mixture.plan;
      auto rows = scratch.template matrix<T>(plan.rows, p.in()), drows = scratch.template matrix<T>(plan.rows, p.in()),
           dout = scratch.template matrix<T>(plan.rows, p.out());
      gather(ctx, x, plan, rows);
      gather(ctx, M(dy), plan, dout);
      detail::fill(ctx.space, dweight, RouterReal<T>(0));
      detail::low_rank_rows_backward<T, Space>(ctx, plan, M(rows), p, in.mixture.weight, factor(in, p), M(saved.down),
                                               M(dout), drows, false, dweight, gradients);
      detail::add_token_rows<T, Space>(ctx.space, plan, M(drows), own);
    }
    if (drops(in)) detail::drop_input<T, Space>(ctx, in.mixture.routing, in.map, dropout, M(own), {}, dx, true);
  }

 private:
  template <class T, class Space, bool all>
  static double factor(const AdapterInput<T, Space, all>& in, const LowRank<T, Space>& p) {
    return Scaling::of(in.alpha, p.rank(), p.adapters());
  }
  template <class T, class Space, bool all>
  static detail::MixingWeights<RouterReal<T>, Space> weights(const AdapterInput<T, Space, all>& in) {
    return {in.mixture.weight, in.mixture.routing.assignments.live, in.experts()};
  }
  template <class T, class Space, bool all>
  bool drops(const AdapterInput<T, Space, all>& in) const {
    return dropout > 0 && in.mixture.routing.noisy;
  }
  /// What the adapters read: x, or x behind dropout.
  template <class T, class Space, bool all>
  Matrix<const T, Space> input(Context<Space>& ctx, typename Context<Space>::Scratch& scratch,
                               const AdapterInput<T, Space, all>& in) const {
    if (!drops(in)) return in.x;
    auto dropped = scratch.template matrix<T>(in.tokens(), in.x.extent(1));
    detail::drop_input<T, Space>(ctx, in.mixture.routing, in.map, dropout, in.x, {}, dropped, false);
    return dropped;
  }
};

MOE_NAMESPACE_END
