#pragma once
/// @file
/// Optimisers' steps on a run of elements.

#include "moe/core/context.hpp"
#include "moe/core/convert.hpp"
#include "moe/core/lanes.hpp"
#include "moe/train/detail/wide_arrays.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// A rule has `update<count>(i)` for elements i to i + count - 1: many at once on hosts, in loops of a known length
/// that compilers make vectors of, one on devices. Chunks are fixed, so that bits do not depend on threads.
template <class Rule, bool host>
struct StepChunk {
  static constexpr int block = 64;
  static constexpr Index chunk = host ? 4096 : 1;
  Rule rule;
  Index size;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Rule local = rule;  // where no store can reach it
    const Index next = (item + 1) * chunk, last = next < size ? next : size;
    Index i = item * chunk;
    if constexpr (host) {
      for (; i + block <= last; i += block) local.template update<block>(i);
    }
    for (; i < last; ++i) local.template update<1>(i);
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

template <class T>
struct AdamWStep {
  using Real = RouterReal<T>;
  StepArrays<T> at;
  Real *first, *second;
  Real gradient_scale, beta1, rest1, beta2, rest2;  // rest = 1 - beta
  Real keep, rate, root_scale, epsilon;             // bias corrections are in rate and root_scale

  template <int count>
  KOKKOS_FUNCTION void update(Index i) const {
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

template <class T>
struct SGDStep {
  using Real = RouterReal<T>;
  StepArrays<T> at;
  Real* velocity;  // or null
  Real gradient_scale, decay, momentum, rate;
  bool nesterov, first_step;

  template <int count>
  KOKKOS_FUNCTION void update(Index i) const {
    Real change[count];
    Real* w = at.trained() + i;
    convert<count>(at.gradient + i, change);
    MOE_INDEPENDENT
    for (int j = 0; j < count; ++j) change[j] = gradient_scale * change[j] + decay * w[j];
    if (velocity != nullptr) {
      const Real before = first_step ? Real(0) : momentum;
      const Real now = nesterov ? Real(1) : Real(0), moving = nesterov ? momentum : Real(1);
      Real* u = velocity + i;
      MOE_INDEPENDENT
      for (int j = 0; j < count; ++j) {
        u[j] = before * u[j] + change[j];
        change[j] = now * change[j] + moving * u[j];
      }
    }
    MOE_INDEPENDENT
    for (int j = 0; j < count; ++j) w[j] -= rate * change[j];
    at.template round<count>(i);
  }
};

}  // namespace detail

MOE_NAMESPACE_END
