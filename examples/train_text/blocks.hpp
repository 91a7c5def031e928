#pragma once
/// @file
/// Blocks of the transformer, and what reports ask of any of them: its routings and its work.

#include <moe/moe.hpp>

#include "options.hpp"

namespace text {

using moe::Index;

/// A feed-forward layer behind dense attention, with its residual.
template <class FeedForward, class Attention = moe::SelfAttention<moe::Precision<typename FeedForward::Scalar, float>>>
using BlockOf = moe::Residual<moe::TransformerBlock<Attention, FeedForward>>;

/// A dense FFN: a mixture of one expert.
using DenseFeedForward = moe::MoELayer<moe::Router<moe::Softmax, moe::TopK<1>>, moe::ExpertFFN<moe::SwiGLU>>;

inline DenseFeedForward dense_feed_forward(const Options& options, Index number) {
  return DenseFeedForward(
      {.hidden = options.hidden, .intermediate = 4 * options.hidden, .experts = 1, .layer = std::uint32_t(number)},
      moe::Seed{options.seed});
}

inline moe::AttentionConfig attention_config(const Options& options, Index number) {
  moe::detail::require<moe::ConfigError>(options.heads > 0 && options.hidden % (2 * options.heads) == 0,
                                         "train_text: hidden ", options.hidden, " does not divide into ", options.heads,
                                         " heads of even width.");
  return {.hidden = options.hidden, .heads = options.heads, .layer = std::uint32_t(number)};
}

/// A block of two layers.
template <class Attention, class FeedForward>
moe::Residual<moe::TransformerBlock<Attention, FeedForward>> block_of(Attention attention, FeedForward feed_forward) {
  return moe::Residual<moe::TransformerBlock<Attention, FeedForward>>(std::move(attention), std::move(feed_forward));
}
/// A feed-forward layer in its block, behind dense attention.
template <class FeedForward>
BlockOf<FeedForward> block_of(const Options& options, Index number, FeedForward feed_forward) {
  using Attention = typename BlockOf<FeedForward>::Attention;
  return block_of(Attention(attention_config(options, number), moe::Seed{options.seed}), std::move(feed_forward));
}

/// A routing as reports read it.
template <class T, class Space>
struct Decision {
  moe::Routing<moe::RouterReal<T>, Space> routing;
  moe::DispatchPlan<Space> plan;
  moe::Batch<T, Space> batch;
  std::optional<Space> space;

  /// Choices a token over experts: the part of the experts' arrays that acts on a token.
  double share() const {
    const auto& a = routing.assignments;
    const double k = a.uniform_k != 0 ? double(a.uniform_k)
                     : a.tokens == 0  ? 0.0
                                      : double(moe::load_report(*this).assignments()) / double(a.tokens);
    return k / double(std::max<Index>(1, plan.experts));
  }
};
template <class T, class Space, class Routing, class Tape>
Decision<T, Space> decision(const Routing& of, const Tape& tape) {
  return {of.routing, of.plan, tape.batch, tape.batch.x.is_allocated() ? std::optional<Space>(Space{}) : std::nullopt};
}

/// Parameters that act on a token, and the products of queries and keys a token and byte of length.
struct Work {
  double active = 0, attention = 0;
};

/// What holds the routing of a feed-forward layer: its tape, or that of the gate where each projection has its own.
template <class Tape>
const auto& routed(const Tape& tape) {
  if constexpr (requires { tape.routing; }) {
    return tape;
  } else {
    return tape.gate;
  }
}

template <class Attention>
inline constexpr bool routes_heads = !std::is_same_v<typename Attention::Config, moe::AttentionConfig>;

/// How reports read a kind of block.
template <class Block>
struct Reader;

template <class Attention, class FeedForward>
struct Reader<moe::TransformerBlock<Attention, FeedForward>> {
  using T = typename Attention::Scalar;
  using Space = typename Attention::Space;
  static constexpr Index routings = 1;

  /// Calls f(layer, decision, the layer's tape) for each routing: of heads where attention is a mixture (in SwitchHead
  /// of outputs), else of the feed-forward layer.
  template <class Block, class Tape, class F>
  static void each(Block& block, const Tape& tape, const F& f) {
    if constexpr (!routes_heads<Attention>) {
      f(block.feed_forward(), decision<T, Space>(routed(tape.feed_forward), tape.feed_forward), tape.feed_forward);
    } else if constexpr (requires { tape.attention.routing; }) {
      f(block.attention(), decision<T, Space>(tape.attention, tape.attention), tape.attention);
    } else {
      f(block.attention(), decision<T, Space>(tape.attention.destination, tape.attention), tape.attention);
    }
  }

  template <class Block, class Tape>
  static Work work(const Block& block, const Tape& tape) {
    Work work;
    double heads = 1, experts = 1;  // parts of the arrays of experts that one token uses
    each(block, tape, [&](const auto&, const auto& decision, const auto&) {
      (routes_heads<Attention> ? heads : experts) = decision.share();
    });
    auto add = [&](std::string_view name, const auto& view) {
      const bool of_experts = view.rank() == 3 && name.find("shared_experts") == std::string_view::npos;
      work.active += double(view.size()) * (!of_experts ? 1 : name.substr(0, 9) == "attention" ? heads : experts);
    };
    Block::Parameters::visit(add, block.parameters);
    work.attention = double(tape.attention.mixed.extent(1));
    return work;
  }
};

template <class Block>
struct Reader<moe::Residual<Block>> {
  static constexpr Index routings = Reader<Block>::routings;
  template <class Outer, class Tape, class F>
  static void each(Outer& outer, const Tape& tape, const F& f) {
    Reader<Block>::each(outer, tape.block, f);
  }
  template <class Outer, class Tape>
  static Work work(const Outer& outer, const Tape& tape) {
    return Reader<Block>::work(outer, tape.block);
  }
};

template <class Block, class... Policies>
struct Reader<moe::MixtureOfDepths<Block, Policies...>> {
  using T = typename Block::Scalar;
  using Space = typename Block::Space;
  static constexpr Index routings = 1;
  template <class Outer, class Tape, class F>
  static void each(Outer& outer, const Tape& tape, const F& f) {
    f(outer, decision<T, Space>(tape, tape), tape);
  }
  /// Of n tokens c n go through the block, and see c n each; router and predictor see all of them.
  template <class Outer, class Tape>
  static Work work(const Outer& outer, const Tape& tape) {
    const Work inner = Reader<Block>::work(outer.block(), tape.block);
    const double part = outer.config().capacity;
    double own = 0;
    auto add = [&](std::string_view name, const auto& view) {
      if (name.substr(0, 6) != "block.") own += double(view.size());
    };
    Outer::Parameters::visit(add, outer.parameters);
    return {part * inner.active + own, part * part * inner.attention};
  }
};

template <class First, class Second>
struct Reader<moe::Sequential<First, Second>> {
  static constexpr Index routings = Reader<First>::routings + Reader<Second>::routings;
  template <class Outer, class Tape, class F>
  static void each(Outer& outer, const Tape& tape, const F& f) {
    Reader<First>::each(outer.first(), tape.first, f);
    Reader<Second>::each(outer.second(), tape.second, f);
  }
  template <class Outer, class Tape>
  static Work work(const Outer& outer, const Tape& tape) {
    const Work first = Reader<First>::work(outer.first(), tape.first),
               second = Reader<Second>::work(outer.second(), tape.second);
    return {first.active + second.active, first.attention + second.attention};
  }
};

}  // namespace text
