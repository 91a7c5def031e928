#pragma once
/// @file
/// `TaskClassificationLoss`: teaches a router which expert belongs to a sequence's task.

#include "moe/balance/losses.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * mean over sequences of the mean over their tokens of -log softmax(z)_task: expert e is the domain of
/// task e, named by Batch::task_ids (Feng et al. 2024, "Mixture-of-LoRAs": the loss of its router). A task
/// of -1 is no label: its sequence is left out.
struct TaskClassificationLoss {
  using policy = kind::loss;
  double coefficient = 1;

  explicit TaskClassificationLoss(double c = 1) : coefficient(c) {}

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;
};

namespace detail {

/// A sequence's mean loss and the number of its live tokens, 0 where it has no label.
template <class Real, class Space>
struct TaskLossSequence {
  Matrix<const Real, Space> logits;
  Groups<Space> sequences;
  Vector<const std::int32_t, Space> task;
  Vector<const std::uint8_t, Space> mask;
  Vector<double, Space> loss, live;  // (S)
  Kokkos::View<int, typename Space::memory_space> flag;
  KOKKOS_FUNCTION void operator()(Index s) const {
    const Index label = task(s), experts = logits.extent(1);
    if (label < -1 || label >= experts) Kokkos::atomic_or(&flag(), int(fault_expert_id));
    double sum = 0, count = 0;
    for (Index t = sequences.begin(s); label >= 0 && label < experts && t < sequences.end(s); ++t) {
      if (is_padding<Space>(mask, t)) continue;
      const Row<const Real> z{&logits(t, 0), experts};
      sum += double(log_sum_exp(z)) - double(z[label]);
      count += 1;
    }
    loss(s) = count > 0 ? sum / count : 0.0;
    live(s) = count;
  }
};

/// Adds the mean over labelled sequences; live(s) becomes factor / (labelled sequences * live tokens of s).
template <class Space>
struct TaskLossSum {
  Vector<double, Space> loss, live;
  double factor;
  Vector<double, Space> slot;  // or empty
  KOKKOS_FUNCTION void operator()(Index) const {
    double sum = 0, count = 0;
    for (Index s = 0; s < Index(live.extent(0)); ++s) {
      sum += loss(s);
      count += live(s) > 0 ? 1 : 0;
    }
    for (Index s = 0; s < Index(live.extent(0)); ++s) live(s) = live(s) > 0 ? factor / (count * live(s)) : 0.0;
    if (slot.data() != nullptr && count > 0) slot(0) += factor * sum / count;
  }
};

template <class Real, class Space>
struct TaskLossGradient {
  Matrix<const Real, Space> logits;
  Groups<Space> sequences;
  Vector<const std::int32_t, Space> task;
  Vector<const std::uint8_t, Space> mask;
  Vector<const double, Space> share;  // (S)
  Matrix<Real, Space> dlogits;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index s = sequences.of(t), experts = logits.extent(1);
    const Real factor = Real(share(s));
    if (is_padding<Space>(mask, t) || factor == Real(0)) return;
    const Row<const Real> z{&logits(t, 0), experts};
    const Real total = log_sum_exp(z);
    for (Index e = 0; e < experts; ++e)
      dlogits(t, e) += factor * (Kokkos::exp(z[e] - total) - (e == Index(task(s)) ? Real(1) : Real(0)));
  }
};

}  // namespace detail

template <class T, class Real, class Space>
void TaskClassificationLoss::value(Context<Space>& ctx, const Batch<T, Space>& batch,
                                   const Routing<Real, Space>& routing, const Vector<double, Space>& slot) const {
  if (batch.tokens() == 0) return;
  const auto groups = detail::task_sequences("moe::TaskClassificationLoss", batch);
  typename Context<Space>::Scratch scratch(ctx);
  auto loss = scratch.template vector<double>(groups.count), live = scratch.template vector<double>(groups.count);
  detail::each(ctx.space, "moe::TaskClassificationLoss", groups.count,
               detail::TaskLossSequence<Real, Space>{routing.logits, groups, batch.task_ids, batch.mask, loss, live,
                                                     ctx.flag()});
  detail::each(ctx.space, "moe::TaskClassificationLoss::sum", 1,
               detail::TaskLossSum<Space>{loss, live, coefficient, slot});
}

template <class T, class Real, class Space>
void TaskClassificationLoss::backward(Context<Space>& ctx, const Batch<T, Space>& batch,
                                      const Routing<Real, Space>& routing, double scale,
                                      const RoutingGradients<Real, Space>& to) const {
  if (batch.tokens() == 0) return;
  const auto groups = detail::task_sequences("moe::TaskClassificationLoss", batch);
  typename Context<Space>::Scratch scratch(ctx);
  auto loss = scratch.template vector<double>(groups.count), live = scratch.template vector<double>(groups.count);
  detail::each(ctx.space, "moe::TaskClassificationLoss", groups.count,
               detail::TaskLossSequence<Real, Space>{routing.logits, groups, batch.task_ids, batch.mask, loss, live,
                                                     ctx.flag()});
  detail::each(ctx.space, "moe::TaskClassificationLoss::sum", 1,
               detail::TaskLossSum<Space>{loss, live, scale * coefficient, {}});
  detail::each(
      ctx.space, "moe::TaskClassificationLoss::backward", batch.tokens(),
      detail::TaskLossGradient<Real, Space>{routing.logits, groups, batch.task_ids, batch.mask, live, to.dlogits});
}

MOE_NAMESPACE_END
