#pragma once
/// @file
/// `MutualInformationLoss`: experts that are used alike by all, and each by tokens or tasks of its own.

#include "moe/balance/losses.hpp"

MOE_NAMESPACE_BEGIN

/// -coefficient * I(token; expert) = -coefficient * (H(mean p) - mean H(p)), p = softmax(logits) of a token (Krause et
/// al. 2010, "Discriminative clustering by regularized information maximization"). With `tasks` M > 0 it is
/// -coefficient * I(task; expert), which has the mean of each task's tokens for p, tasks weighted by their tokens (Chen
/// et al. 2023, Mod-Squad, eq. 3 to 5, for tasks as frequent as one another). A sequence's task is its Batch::task_ids,
/// 0 to M - 1; tokens of other ids are in no sum. -log E where tokens (tasks) are sure and spread evenly; 0 where all
/// have the same p: at collapse, and also where all experts are as likely for every token.
struct MutualInformationLoss {
  using policy = kind::loss;
  double coefficient = 1e-3;
  Index tasks = 0;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;

 private:
  template <class T, class Space>
  void check(const Batch<T, Space>& batch) const {
    if (tasks != 0) detail::task_sequences("moe::MutualInformationLoss", batch);
  }
};

namespace detail {

/// The task of each token that is in the sums; where tokens are told apart all have task 0.
template <class Space>
struct TokenTasks {
  Groups<Space> sequences;
  Vector<const std::int32_t, Space> ids;
  Vector<const std::uint8_t, Space> mask;
  Index tasks;  // 0: tokens are told apart
  KOKKOS_FUNCTION Index of(Index t) const {
    if (is_padding<Space>(mask, t)) return -1;
    if (tasks == 0) return 0;
    const Index task = ids(sequences.of(t));
    return task < tasks ? task : -1;
  }
};

KOKKOS_INLINE_FUNCTION double times_log(double p) {
  return p > 0 ? p * Kokkos::log(p) : 0.0;
}

/// sums(m, e) of p over m's tokens, and in column E how many they are; item = m (E + 1) + e.
template <class Real, class Space>
struct TaskSums {
  TokenTasks<Space> task;
  Matrix<Real, Space> p;
  Matrix<double, Space> sums;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index columns = sums.extent(1), m = item / columns, e = item % columns;
    double sum = 0;
    for (Index t = 0; t < Index(p.extent(0)); ++t) {
      if (task.of(t) == m) sum += e + 1 < columns ? double(p(t, e)) : 1.0;
    }
    sums(m, e) = sum;
  }
};

/// parts(chunk): the sum of p log p over a chunk of tokens and all experts.
template <class Real, class Space>
struct NegativeEntropyChunk {
  Matrix<Real, Space> p;
  Vector<const std::uint8_t, Space> mask;
  Vector<double, Space> parts;
  KOKKOS_FUNCTION void operator()(Index c) const {
    const Index tokens = p.extent(0), last = (c + 1) * loss_chunk < tokens ? (c + 1) * loss_chunk : tokens;
    double sum = 0;
    for (Index t = c * loss_chunk; t < last; ++t) {
      if (is_padding<Space>(mask, t)) continue;
      for (Index e = 0; e < Index(p.extent(1)); ++e) sum += times_log(double(p(t, e)));
    }
    parts(c) = sum;
  }
};

/// mean(e) = mean p, in column E how many tokens; sums become means of tasks. One work item.
template <class Space>
struct TaskMeans {
  Matrix<double, Space> sums;
  Vector<double, Space> mean;
  Vector<double, Space> parts;  // of NegativeEntropyChunk, where tokens are told apart
  double factor;
  Vector<double, Space> slot;  // may be empty
  KOKKOS_FUNCTION void operator()(Index) const {
    const Index experts = Index(mean.extent(0)) - 1, tasks = sums.extent(0);
    double all = 0, information = 0;
    for (Index m = 0; m < tasks; ++m) all += sums(m, experts);
    mean(experts) = all;
    for (Index e = 0; e < experts; ++e) {
      mean(e) = 0;
      for (Index m = 0; m < tasks; ++m) mean(e) += all > 0 ? sums(m, e) / all : 0.0;
      information -= times_log(mean(e));
    }
    for (Index m = 0; m < tasks; ++m) {
      const double n = sums(m, experts);
      for (Index e = 0; e < experts; ++e) {
        sums(m, e) = n > 0 ? sums(m, e) / n : 0.0;
        if (parts.extent(0) == 0 && n > 0) information += n / all * times_log(sums(m, e));
      }
    }
    for (Index c = 0; c < Index(parts.extent(0)); ++c) information += all > 0 ? parts(c) / all : 0.0;
    if (slot.data() != nullptr) slot(0) -= factor * information;
  }
};

template <class Real, class Space>
struct MutualInformationGradient {
  TokenTasks<Space> task;
  Matrix<Real, Space> p;
  Matrix<double, Space> means;
  Vector<double, Space> mean;
  double factor;
  Matrix<Real, Space> dlogits;

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index m = task.of(t), experts = p.extent(1);
    if (m < 0) return;
    double inner = 0;
    for (Index e = 0; e < experts; ++e) inner += double(p(t, e)) * slope(t, m, e);
    for (Index e = 0; e < experts; ++e) dlogits(t, e) += Real(double(p(t, e)) * (slope(t, m, e) - inner));
  }
  /// d value / d p(t, e), up to a constant that softmax takes out.
  KOKKOS_FUNCTION double slope(Index t, Index m, Index e) const {
    const double own = task.tasks == 0 ? double(p(t, e)) : means(m, e);
    return own > 0 ? factor / mean(Index(mean.extent(0)) - 1) * Kokkos::log(mean(e) / own) : 0.0;
  }
};

/// What value and backward share.
template <class Real, class Space>
struct MutualInformationTerms {
  TokenTasks<Space> task;
  Matrix<Real, Space> p;
  Matrix<double, Space> means;
  Vector<double, Space> mean;

  template <class T>
  MutualInformationTerms(Context<Space>& ctx, typename Context<Space>::Scratch& scratch, const Batch<T, Space>& batch,
                         const Routing<Real, Space>& routing, Index tasks, double factor,
                         const Vector<double, Space>& slot)
      : task{groups(Scope::sequence(), batch), batch.task_ids, batch.mask, tasks},
        p(scratch.template matrix<Real>(batch.tokens(), routing.logits.extent(1))),
        means(scratch.template matrix<double>(tasks > 0 ? tasks : 1, routing.logits.extent(1) + 1)),
        mean(scratch.template vector<double>(routing.logits.extent(1) + 1)) {
    Kokkos::parallel_for(
        "moe::MutualInformationLoss::probability", Range<Space>(ctx.space, 0, batch.tokens()),
        ProbabilityRow<Real, Space>{routing.logits, routing.scores, p, batch.mask, Probability::softmax});
    Kokkos::parallel_for("moe::MutualInformationLoss::sums", Range<Space>(ctx.space, 0, Index(means.size())),
                         TaskSums<Real, Space>{task, p, means});
    auto parts = scratch.template vector<double>(tasks > 0 ? 0 : chunks_of(batch.tokens()));
    Kokkos::parallel_for("moe::MutualInformationLoss::entropy", Range<Space>(ctx.space, 0, Index(parts.extent(0))),
                         NegativeEntropyChunk<Real, Space>{p, batch.mask, parts});
    Kokkos::parallel_for("moe::MutualInformationLoss", Range<Space>(ctx.space, 0, 1),
                         TaskMeans<Space>{means, mean, parts, factor, slot});
  }
};

}  // namespace detail

template <class T, class Real, class Space>
void MutualInformationLoss::value(Context<Space>& ctx, const Batch<T, Space>& batch,
                                  const Routing<Real, Space>& routing, const Vector<double, Space>& slot) const {
  check(batch);
  if (batch.tokens() == 0) return;
  typename Context<Space>::Scratch scratch(ctx);
  const detail::MutualInformationTerms<Real, Space> terms(ctx, scratch, batch, routing, tasks, coefficient, slot);
}

template <class T, class Real, class Space>
void MutualInformationLoss::backward(Context<Space>& ctx, const Batch<T, Space>& batch,
                                     const Routing<Real, Space>& routing, double scale,
                                     const RoutingGradients<Real, Space>& to) const {
  check(batch);
  if (batch.tokens() == 0) return;
  typename Context<Space>::Scratch scratch(ctx);
  const detail::MutualInformationTerms<Real, Space> terms(ctx, scratch, batch, routing, tasks, coefficient, {});
  Kokkos::parallel_for("moe::MutualInformationLoss::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
                       detail::MutualInformationGradient<Real, Space>{terms.task, terms.p, terms.means, terms.mean,
                                                                      scale * coefficient, to.dlogits});
}

MOE_NAMESPACE_END
