#pragma once
/// @file
/// Blocks for layers around them, written by hand for the host: tanh(x W), and a causal mean that remembers.

#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace moe_test {

/// f(x) = tanh(x W), W (H, H). Keeps the batch that it saw in its tape.
template <class T>
class TanhBlock {
 public:
  using Scalar = T;
  using Space = Kokkos::DefaultHostExecutionSpace;
  using M = moe::Matrix<T, Space>;
  struct Config {
    Index hidden = 0;
  };
  struct Parameters {
    M weight;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("weight", same.weight...);
    }
  };
  struct Gradients : Parameters {};
  using Buffers = moe::NoParameters;
  struct Tape {
    moe::Batch<T, Space> batch;
    M y, dx;
  };

  Parameters parameters;
  Buffers buffers;

  explicit TanhBlock(const Config& config, moe::Seed seed = {}) : config_(config) {
    parameters.weight = random<M>(unsigned(seed.value) + 77, config.hidden, config.hidden);
  }
  const Config& config() const { return config_; }
  Gradients gradients() const { return {moe::detail::zeros_like(parameters)}; }

  M forward(moe::Context<Space>&, const moe::Batch<T, Space>& batch, Tape& tape) const {
    const Index tokens = batch.tokens(), hidden = config_.hidden;
    tape.batch = batch;
    tape.y = M("y", tokens, hidden);
    for (Index t = 0; t < tokens; ++t) {
      if (moe::detail::is_padding<Space>(batch.mask, t)) continue;
      for (Index j = 0; j < hidden; ++j) {
        T sum = 0;
        for (Index i = 0; i < hidden; ++i) sum += batch.x(t, i) * parameters.weight(i, j);
        tape.y(t, j) = std::tanh(sum);
      }
    }
    return tape.y;
  }
  M backward(moe::Context<Space>&, const moe::Matrix<const T, Space>& dy, Tape& tape, Gradients& gradients,
             double) const {
    const Index tokens = tape.batch.tokens(), hidden = config_.hidden;
    tape.dx = M("dx", tokens, hidden);
    for (Index t = 0; t < tokens; ++t) {
      if (moe::detail::is_padding<Space>(tape.batch.mask, t)) continue;
      for (Index j = 0; j < hidden; ++j) {
        const T g = dy(t, j) * (1 - tape.y(t, j) * tape.y(t, j));
        for (Index i = 0; i < hidden; ++i) {
          tape.dx(t, i) += g * parameters.weight(i, j);
          gradients.weight(i, j) += g * tape.batch.x(t, i);
        }
      }
    }
    return tape.dx;
  }

 private:
  Config config_;
};

/// f(x)(t) = (1 + position / 10) * the mean of the sequence's live tokens up to t. For inference alone.
template <class T>
class MeanBlock : public TanhBlock<T> {
 public:
  using TanhBlock<T>::TanhBlock;
  using Space = typename TanhBlock<T>::Space;
  using M = typename TanhBlock<T>::M;

  struct Cache {
    M sums;                             ///< (S, H)
    moe::Vector<Index, Space> lengths;  ///< (S) tokens that it holds
  };
  Cache cache(Index sequences, Index) const {
    return {M("sums", sequences, this->config().hidden), moe::Vector<Index, Space>("lengths", sequences)};
  }

  M forward(moe::Context<Space>& ctx, const moe::Batch<T, Space>& batch, Cache& cache) const {
    (void)ctx;
    M y("y", batch.tokens(), batch.hidden());
    const auto sequences = moe::detail::groups(moe::Scope::sequence(), batch);
    for (Index s = 0; s < (batch.tokens() == 0 ? 0 : sequences.count); ++s) {
      for (Index t = sequences.begin(s); t < sequences.end(s); ++t) {
        if (moe::detail::is_padding<Space>(batch.mask, t)) continue;
        ++cache.lengths(s);
        for (Index h = 0; h < batch.hidden(); ++h) {
          cache.sums(s, h) += batch.x(t, h);
          y(t, h) = (1 + T(batch.positions(t)) / 10) * cache.sums(s, h) / T(cache.lengths(s));
        }
      }
    }
    return y;
  }
  M forward(moe::Context<Space>& ctx, const moe::Batch<T, Space>& batch, typename TanhBlock<T>::Tape& tape) const {
    const auto sequences = moe::detail::groups(moe::Scope::sequence(), batch);
    Cache fresh = cache(sequences.count, batch.tokens());
    tape.batch = batch;
    tape.y = forward(ctx, batch, fresh);
    return tape.y;
  }
};

}  // namespace moe_test
