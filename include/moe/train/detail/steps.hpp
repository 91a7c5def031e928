#pragma once
/// @file
/// Optimisers' steps on a run of elements, and the numbers of a step.

#include <memory>
#include <utility>

#include "moe/core/context.hpp"
#include "moe/core/convert.hpp"
#include "moe/core/lanes.hpp"
#include "moe/train/detail/wide_arrays.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <template <class> class Numbers>
struct BothPrecisions {
  Numbers<float> single;
  Numbers<double> wide;
};

template <class Value>
struct WriteValue {
  Value* to;
  Value from;
  KOKKOS_FUNCTION void operator()(Index) const { *to = from; }
};

/// What changes from step to step, as Numbers<float> and Numbers<double>. It lies where kernels run, so that a captured
/// step reads what was written there last.
template <template <class> class Numbers>
class StepNumbers {
  using Both = BothPrecisions<Numbers>;

 public:
  explicit StepNumbers(const char* optimizer) : optimizer_(optimizer) {}

  /// Behind what the stream holds already; for the step that follows so many. The first call allocates.
  template <class Space>
  void write(const Space& space, Index step_count, const Numbers<double>& numbers) {
    if (capturing(space))  // only then is there a sentence to make
      refuse_capture(
          space, sentence(optimizer_, "'s step and prepare, whose numbers change with each step,").c_str(),
          "Capture apply(ctx, parameters, gradients), and call prepare(ctx, learning_rate) before each launch.");
    using View = Kokkos::View<Both, typename Space::memory_space>;
    if (both_ == nullptr) {
      const auto view = std::make_shared<View>(Kokkos::view_alloc(Kokkos::WithoutInitializing, "moe::step_numbers"));
      both_ = std::shared_ptr<Both>(view, view->data());
    }
    Kokkos::parallel_for("moe::step_numbers", detail::Range<Space>(space, 0, 1),
                         WriteValue<Both>{both_.get(), {numbers.template as<float>(), numbers}});
    // The first step stays the first where it was prepared again, as after a forward pass that threw.
    first_ = step_count == 0 || (first_ && step_count == step_count_ + 1);
    step_count_ = step_count;
    prepared_ = true;
  }

  /// Before a step is applied: is it the first of all? Throws where it cannot be applied.
  template <class Space>
  bool begin(const Space& space) {
    const bool captured = capturing(space);
    require<ConfigError>(both_ != nullptr && (prepared_ || captured), optimizer_,
                         "::apply: there is no step to apply. Call prepare(ctx, learning_rate) before each, or step, "
                         "which is both.");
    if (first_)
      refuse_capture(space, sentence(optimizer_, "'s first step, which starts what it keeps,").c_str(),
                     "Take one step before capturing.");
    if (!captured) prepared_ = false;
    return std::exchange(first_, false);
  }

  template <class Real>
  const Numbers<Real>* data() const {
    if constexpr (std::is_same_v<Real, float>) {
      return &both_->single;
    } else {
      return &both_->wide;
    }
  }

 private:
  const char* optimizer_;
  std::shared_ptr<Both> both_;
  Index step_count_ = 0;
  bool first_ = false, prepared_ = false;
};

/// A rule has `numbers` and `update<count>(i, *numbers)` for elements i to i + count - 1: many at once on hosts, in
/// loops of a known length that compilers make vectors of, one on devices. Chunks are fixed, so that bits do not depend
/// on threads.
template <class Rule, bool host>
struct StepChunk {
  static constexpr int block = 64;
  static constexpr Index chunk = host ? 4096 : 1;
  Rule rule;
  Index size;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Rule local = rule;  // where no store can reach it
    const auto numbers = *rule.numbers;
    const Index next = (item + 1) * chunk, last = next < size ? next : size;
    Index i = item * chunk;
    if constexpr (host) {
      for (; i + block <= last; i += block) local.template update<block>(i, numbers);
    }
    for (; i < last; ++i) local.template update<1>(i, numbers);
  }
};

template <class Space, class Rule>
void run_step(Context<Space>& ctx, const char* name, Index size, const Rule& rule) {
  using Chunk = StepChunk<Rule, !device_path<Space>>;
  Kokkos::parallel_for(name, detail::Range<Space>(ctx.space, 0, (size + Chunk::chunk - 1) / Chunk::chunk),
                       Chunk{rule, size});
}

/// Where a step's numbers lie: the master copy is the value itself where that is wide.
template <class T>
struct StepArrays {
  using Real = RouterReal<T>;
  T* value;
  const T* gradient;
  Real* master;
  KOKKOS_FUNCTION Real* trained() const {
    if constexpr (is_narrow<T>) {
      return master;
    } else {
      return value;
    }
  }
  /// After masters changed.
  template <int count>
  KOKKOS_FUNCTION void round(Index i) const {
    if constexpr (is_narrow<T>) convert<count>(master + i, value + i);
  }
};

template <class T>
struct StartMaster {
  const T* value;
  RouterReal<T>* master;
  KOKKOS_FUNCTION void operator()(Index i) const { master[i] = RouterReal<T>(value[i]); }
};

/// Bias corrections are in rate and root_scale; keep is of arrays that decay.
template <class Real>
struct AdamWNumbers {
  Real gradient_scale, keep, rate, root_scale;
  template <class Other>
  AdamWNumbers<Other> as() const {
    return {Other(gradient_scale), Other(keep), Other(rate), Other(root_scale)};
  }
};

template <class T>
struct AdamWStep {
  using Real = RouterReal<T>;
  StepArrays<T> at;
  const AdamWNumbers<Real>* numbers;
  Real *first, *second;
  Real beta1, rest1, beta2, rest2, epsilon;  // rest = 1 - beta
  bool decays;

  template <int count>
  KOKKOS_FUNCTION void update(Index i, const AdamWNumbers<Real>& now) const {
    const Real gradient_scale = now.gradient_scale, keep = decays ? now.keep : Real(1), rate = now.rate,
               root_scale = now.root_scale;
    Real gradient[count];
    alignas(32) Real root[count];  // GCC 12 without optimisation roots it by aligned loads
    Real *w = at.trained() + i, *m = first + i, *v = second + i;
    convert<count>(at.gradient + i, gradient);
    MOE_INDEPENDENT
    for (int j = 0; j < count; ++j) {
      const Real g = gradient_scale * gradient[j];
      m[j] = beta1 * m[j] + rest1 * g;
      root[j] = v[j] = beta2 * v[j] + rest2 * g * g;
    }
    KOKKOS_IF_ON_HOST((take_roots<count>(root);))
    KOKKOS_IF_ON_DEVICE((for (int j = 0; j < count; ++j) root[j] = Kokkos::sqrt(root[j]);))
    MOE_INDEPENDENT
    for (int j = 0; j < count; ++j) w[j] = w[j] * keep - rate * m[j] / (root[j] * root_scale + epsilon);
    at.template round<count>(i);
  }
};

template <class Real>
struct SGDNumbers {
  Real gradient_scale, rate;
  template <class Other>
  SGDNumbers<Other> as() const {
    return {Other(gradient_scale), Other(rate)};
  }
};

template <class T>
struct SGDStep {
  using Real = RouterReal<T>;
  StepArrays<T> at;
  const SGDNumbers<Real>* numbers;
  Real* velocity;  // or null
  Real decay, momentum;
  bool nesterov, first_step;

  template <int count>
  KOKKOS_FUNCTION void update(Index i, const SGDNumbers<Real>& now) const {
    const Real gradient_scale = now.gradient_scale, rate = now.rate;
    Real change[count];
    Real* w = at.trained() + i;
    convert<count>(at.gradient + i, change);
    MOE_INDEPENDENT
    for (int j = 0; j < count; ++j) change[j] = gradient_scale * change[j] + decay * w[j];
    if (velocity != nullptr) {
      const Real before = first_step ? Real(0) : momentum;
      const Real still = nesterov ? Real(1) : Real(0), moving = nesterov ? momentum : Real(1);
      Real* u = velocity + i;
      MOE_INDEPENDENT
      for (int j = 0; j < count; ++j) {
        u[j] = before * u[j] + change[j];
        change[j] = still * change[j] + moving * u[j];
      }
    }
    MOE_INDEPENDENT
    for (int j = 0; j < count; ++j) w[j] -= rate * change[j];
    at.template round<count>(i);
  }
};

}  // namespace detail

MOE_NAMESPACE_END
