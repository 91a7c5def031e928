#pragma once
/// @file
/// `LayerBlock`: what layers around a block, such as `Residual` and `MixtureOfDepths`, ask of it. It is the interface
/// of `MoELayer`:
///
///     Scalar, Space, Config (with `hidden`), Parameters, Gradients (a Parameters that knows its layer), Buffers, Tape
///     Block(config, Seed)
///     parameters, buffers, config(), gradients()
///     forward(ctx, batch, tape) const                           // the block's update f(x) (T, H), without x itself
///     backward(ctx, dy, tape, gradients, loss_scale) const      // dx (T, H); adds into gradients
///
/// A batch of no tokens gives none. Masked tokens get 0, and give no gradient. (Layers that add x themselves fit the
/// interface, too, so that they nest; what stands around them adds to that.)
/// `forward(ctx, batch, tape)` is also the inference of blocks that know nothing of earlier tokens. Others have a
/// cache:
///
///     Cache
///     cache(Index sequences, Index capacity) const              // room for that many tokens of each sequence
///     forward(ctx, batch, Cache&) const                         // f(x) of new tokens; appends those that live
///
/// Sequence s of each such batch goes on with sequence s of the cache.

#include <concepts>

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

/// A block that other layers can stand around.
template <class B>
concept LayerBlock = requires {
  typename B::Scalar;
  typename B::Space;
  typename B::Config;
  typename B::Parameters;
  typename B::Gradients;
  typename B::Buffers;
  typename B::Tape;
}
&&std::derived_from<typename B::Gradients, typename B::Parameters>&&
    std::constructible_from<B, const typename B::Config&, const Seed&>&& requires(
        B b, const B c, Context<typename B::Space>& ctx, const Batch<typename B::Scalar, typename B::Space>& batch,
        const Matrix<typename B::Scalar, typename B::Space>& rows, typename B::Tape& tape,
        typename B::Gradients& gradients) {
  { b.parameters } -> std::convertible_to<typename B::Parameters&>;
  { b.buffers } -> std::convertible_to<typename B::Buffers&>;
  { c.config().hidden } -> std::convertible_to<Index>;
  { c.gradients() } -> std::same_as<typename B::Gradients>;
  { c.forward(ctx, batch, tape) } -> std::convertible_to<Matrix<typename B::Scalar, typename B::Space>>;
  { c.backward(ctx, rows, tape, gradients, 1.0) } -> std::convertible_to<Matrix<typename B::Scalar, typename B::Space>>;
};

/// A block that remembers the tokens it has seen.
template <class B>
concept CachedBlock = LayerBlock<B> &&
    requires(const B c, Context<typename B::Space>& ctx, const Batch<typename B::Scalar, typename B::Space>& batch,
             typename B::Cache& cache) {
  { c.cache(Index(), Index()) } -> std::same_as<typename B::Cache>;
  { c.forward(ctx, batch, cache) } -> std::convertible_to<Matrix<typename B::Scalar, typename B::Space>>;
};

namespace detail {

/// One constant, so that a failing assertion prints no concept's innards.
template <class B>
inline constexpr bool is_layer_block = LayerBlock<B>;

/// Says what is wrong with the block inside another layer.
template <class B>
struct CheckBlock {
  static_assert(is_layer_block<B>,
                "moe: this block lacks a member. It needs the interface of moe::MoELayer: types Scalar, Space, Config "
                "(with `hidden`), Parameters, Gradients (derived from them), Buffers and Tape, a constructor (config, "
                "Seed), `parameters`, `buffers`, `config() const`, `gradients() const`, `forward(ctx, batch, tape) "
                "const` and `backward(ctx, dy, tape, gradients, loss_scale) const`; see moe/layers/block.hpp.");
};

/// The block, or a valid one in its place, so that nothing follows the first error.
template <class B>
using ValidBlock = std::conditional_t<is_layer_block<B>, B, MoELayer<>>;

/// The cache of a block that has none.
struct NoCache {};
template <class B>
struct CacheOf {
  using type = NoCache;
};
template <CachedBlock B>
struct CacheOf<B> {
  using type = typename B::Cache;
};

template <class B>
typename CacheOf<B>::type cache_of([[maybe_unused]] const B& block, [[maybe_unused]] Index sequences,
                                   [[maybe_unused]] Index capacity) {
  if constexpr (CachedBlock<B>) {
    return block.cache(sequences, capacity);
  } else {
    return {};
  }
}

/// f(x) of new tokens: by the block's cache where it has one.
template <class B, class Tape>
Matrix<typename B::Scalar, typename B::Space> forward_cached(const B& block, Context<typename B::Space>& ctx,
                                                             const Batch<typename B::Scalar, typename B::Space>& batch,
                                                             [[maybe_unused]] typename CacheOf<B>::type& cache,
                                                             [[maybe_unused]] Tape& tape) {
  if constexpr (CachedBlock<B>) {
    return block.forward(ctx, batch, cache);
  } else {
    return block.forward(ctx, batch, tape);
  }
}

/// The losses of a block's tape, where it has some. Waits for the device.
template <class Tape>
double loss_of([[maybe_unused]] const Tape& tape) {
  if constexpr (requires { tape.loss(); }) {
    return tape.loss();
  } else {
    return 0;
  }
}

/// y(t) = x(t) + change(t).
template <class T, class Space>
struct AddRows {
  Matrix<const T, Space> x, change;
  Matrix<T, Space> y;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Sum = RouterReal<T>;
    team.each(Index(y.extent(1)), [&](Index h) { y(t, h) = T(Sum(x(t, h)) + Sum(change(t, h))); });
  }
};
template <class T, class Space>
void add_rows(const Space& space, const char* name, const Matrix<const T, Space>& x,
              const Matrix<const T, Space>& change, const Matrix<T, Space>& y) {
  each_wide_row(space, name, Index(y.extent(0)), Index(y.extent(1)), AddRows<T, Space>{x, change, y});
}

}  // namespace detail

MOE_NAMESPACE_END
