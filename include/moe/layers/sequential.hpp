#pragma once
/// @file
/// `Sequential`: one layer behind another, as a layer.

#include "moe/layers/block.hpp"

MOE_NAMESPACE_BEGIN

/// y = second(first(x)). A stack in which kinds of layers alternate is a stack of pairs: every other block a mixture of
/// depths, say:
///
///     using Pair = moe::Sequential<moe::Residual<Block>, moe::MixtureOfDepths<Block>>;
///
/// One seed serves both: give them different numbers of `layer`, or they begin with the same weights.
template <class FirstLayer, class SecondLayer>
class Sequential {
  static_assert(sizeof(detail::CheckBlock<FirstLayer>) + sizeof(detail::CheckBlock<SecondLayer>) > 0);

 public:
  using First = FirstLayer;
  using Second = SecondLayer;
  using Scalar = typename First::Scalar;
  using Space = typename First::Space;
  static_assert(std::is_same_v<Scalar, typename Second::Scalar> && std::is_same_v<Space, typename Second::Space>,
                "moe::Sequential: both layers need the same Precision<T> and On<Space>.");

  struct Config {
    typename First::Config first{};
    typename Second::Config second{};
    Index hidden = 0;  ///< H: the first layer's, filled in
  };
  /// "first.*", "second.*".
  struct Parameters {
    typename First::Parameters first;
    typename Second::Parameters second;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(first)::visit(detail::Prefixed{f, "first."}, same.first...);
      decltype(second)::visit(detail::Prefixed{f, "second."}, same.second...);
    }
  };
  struct Buffers {
    typename First::Buffers first;
    typename Second::Buffers second;
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      decltype(first)::visit(detail::Prefixed{f, "first."}, same.first...);
      decltype(second)::visit(detail::Prefixed{f, "second."}, same.second...);
    }
  };
  struct Gradients : Parameters {
    typename First::Gradients of_first;    ///< the same arrays, as the layer wants them
    typename Second::Gradients of_second;  ///< likewise
  };
  struct Tape {
    typename First::Tape first;
    typename Second::Tape second;
    /// The sum of both layers' losses. Waits for the device.
    double loss() const { return detail::loss_of(first) + detail::loss_of(second); }
  };
  struct Cache {
    typename detail::CacheOf<First>::type first;
    typename detail::CacheOf<Second>::type second;
  };

  Parameters parameters;  ///< the layers' arrays
  Buffers buffers;

  explicit Sequential(const Config& config, Seed seed = {})
      : Sequential(First(config.first, seed), Second(config.second, seed)) {
    detail::require<ConfigError>(config.hidden == 0 || config.hidden == config_.hidden, "moe::Sequential: hidden ",
                                 config.hidden, " around layers of hidden ", config_.hidden,
                                 ". Leave it out, or give the same number.");
  }
  /// Of layers made elsewhere. Throws ConfigError where their widths differ.
  Sequential(First first, Second second)
      : parameters{first.parameters, second.parameters},
        buffers{first.buffers, second.buffers},
        config_{first.config(), second.config(), first.config().hidden},
        first_(std::move(first)),
        second_(std::move(second)) {
    detail::require<ConfigError>(config_.hidden == second_.config().hidden, "moe::Sequential: a layer of hidden ",
                                 config_.hidden, " before one of hidden ", second_.config().hidden, ".");
  }
  Sequential(const Sequential&) = delete;
  Sequential& operator=(const Sequential&) = delete;
  Sequential(Sequential&&) = default;
  Sequential& operator=(Sequential&&) = default;

  const Config& config() const { return config_; }
  First& first() { return first_; }
  const First& first() const { return first_; }
  Second& second() { return second_; }
  const Second& second() const { return second_; }

  Gradients gradients() const {
    Gradients result{{}, first_.gradients(), second_.gradients()};
    result.first = result.of_first;
    result.second = result.of_second;
    return result;
  }
  Cache cache(Index sequences, Index capacity) const {
    return {detail::cache_of(first_, sequences, capacity), detail::cache_of(second_, sequences, capacity)};
  }

  /// y (T, H) for the tokens of a batch; y is the second tape's.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
    return second_.forward(ctx, behind(batch, first_.forward(ctx, batch, tape.first)), tape.second);
  }
  /// The same behind the tokens that the caches hold, which then hold these, too.
  Matrix<Scalar, Space> forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Cache& cache) const {
    Tape& tape = ctx.template kept<Tape>(id_);
    const auto middle = detail::forward_cached(first_, ctx, batch, cache.first, tape.first);
    return detail::forward_cached(second_, ctx, behind(batch, middle), cache.second, tape.second);
  }

  /// dx (T, H) for dy (T, H); adds into gradients.
  Matrix<Scalar, Space> backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale = 1) const {
    const auto dmiddle = second_.backward(ctx, dy, tape.second, gradients.of_second, loss_scale);
    return first_.backward(ctx, Matrix<const Scalar, Space>(dmiddle), tape.first, gradients.of_first, loss_scale);
  }

  /// Calls f(ParameterInfo, view) for every trained array.
  template <class F>
  void visit(F&& f) const {
    auto named = [&](std::string_view name, const auto& view) { f(parameter_info(name, view), view); };
    Parameters::visit(named, parameters);
  }

 private:
  static Batch<Scalar, Space> behind(Batch<Scalar, Space> batch, const Matrix<Scalar, Space>& x) {
    batch.x = x;
    return batch;
  }

  Config config_;
  First first_;
  Second second_;
  std::uint64_t id_ = detail::next_layer_id();
};

MOE_NAMESPACE_END
