#pragma once
/// @file
/// `Residual`: a block with its input added, the dense counterpart of a mixture of depths.

#include "moe/layers/block.hpp"

MOE_NAMESPACE_BEGIN

/// y = x + f(x), where the block gives the update f(x). Everything else is the block's: config, parameters and their
/// names, gradients, buffers, cache. Masked tokens, to which a block adds nothing, are left as they are.
///
///     moe::Residual<moe::MoELayer<Router>> layer(config, moe::Seed{1});
template <class Block>
class Residual : public detail::ValidBlock<Block> {
  static_assert(sizeof(detail::CheckBlock<Block>) > 0);
  using Base = detail::ValidBlock<Block>;

 public:
  using Base::Base;
  using typename Base::Gradients;
  using typename Base::Scalar;
  using typename Base::Space;

  /// What one forward pass leaves for its backward.
  struct Tape {
    std::uint64_t owner = 0;
    std::optional<Space> space;  ///< the stream of its last forward
    Batch<Scalar, Space> batch;
    typename Base::Tape block;
    Matrix<Scalar, Space> y, dx;
    /// The sum of the block's losses, where it has some. Waits for the device.
    double loss() const { return detail::loss_of(block); }
  };

  /// What the block remembers; empty for blocks that remember nothing.
  struct Cache {
    typename detail::CacheOf<Base>::type block;
  };
  Cache cache(Index sequences, Index capacity) const { return {detail::cache_of<Base>(*this, sequences, capacity)}; }

  /// y (T, H) for x (T, H); y is the tape's.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    detail::check_tokens("moe::Residual", batch, Base::config().hidden);
    return add(ctx, batch, Base::forward(ctx, batch, tape.block), tape);
  }
  /// Inference: leaves no tape. y is the context's.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch) const {
    return forward(ctx, batch, ctx.template kept<Tape>(id_));
  }
  /// Generation: the new tokens of each sequence of the cache.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Cache& cache) const {
    detail::check_tokens("moe::Residual", batch, Base::config().hidden);
    Tape& tape = ctx.template kept<Tape>(id_);
    return add(ctx, batch, detail::forward_cached<Base>(*this, ctx, batch, cache.block, tape.block), tape);
  }
  /// The same for tokens alone, of one sequence.
  template <class X, class... State>
  requires Kokkos::is_view_v<X> Matrix<Scalar, Space> forward(Context<Space>& ctx, const X& x, State&... state)
  const {
    if constexpr (detail::is_token_matrix<X, Scalar, Space>) {
      Batch<Scalar, Space> batch;
      batch.x = x;
      return forward(ctx, batch, state...);
    } else {
      detail::CheckMatrix<X, Scalar, Space>{};
      return {};
    }
  }

  /// dx (T, H) for dy (T, H); adds into gradients, the block's losses times loss_scale included. dx is the tape's.
  template <class DY>
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const DY& dy, Tape& tape, Gradients& gradients,
                                 double loss_scale = 1) const {
    const Index tokens = tape.batch.tokens(), hidden = tape.batch.hidden();
    // Whose gradients these are the block knows.
    detail::check_backward("moe::Residual", id_, tape.owner, id_, dy, tokens, hidden);
    const auto dupdate = Base::backward(ctx, dy, tape.block, gradients, loss_scale);
    detail::shape(tape.dx, "moe::dx", tokens, hidden);
    detail::add_rows<Scalar>(ctx.space, "moe::Residual", M(dy), M(dupdate), tape.dx);
    return tape.dx;
  }

 private:
  using M = Matrix<const Scalar, Space>;

  Matrix<Scalar, Space> add(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Matrix<Scalar, Space>& update,
                            Tape& tape) const {
    tape.owner = id_;
    tape.space = ctx.space;
    tape.batch = batch;
    detail::shape(tape.y, "moe::y", batch.tokens(), batch.hidden());
    detail::add_rows<Scalar>(ctx.space, "moe::Residual", batch.x, M(update), tape.y);
    return tape.y;
  }

  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END
