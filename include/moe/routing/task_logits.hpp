#pragma once
/// @file
/// `TaskLogits`: logits by a learned embedding of a sequence's task, the same for all of its tokens.

#include "moe/routing/sequence_logits.hpp"

MOE_NAMESPACE_BEGIN

/// z = W c(task), with an embedding c of each of `tasks` tasks or clusters, named by Batch::task_ids (Liu et al. 2023,
/// "MOELoRA"; MoCLE's clusters of instructions). It looks at no token.
struct TaskLogits {
  using policy = kind::logits;
  Index tasks = 2;
  Index width = 64;  ///< of an embedding

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> embedding;  ///< (tasks, width)
    Matrix<Real, Space> weight;     ///< (E, width)
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("task_embedding", same.embedding...);
      f("weight", same.weight...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    detail::require<ConfigError>(tasks > 0 && width > 0, "moe::TaskLogits: ", tasks, " tasks with embeddings of width ",
                                 width, "; both must be positive.");
    return {Matrix<Real, Space>("moe::router.task_embedding", tasks, width),
            Matrix<Real, Space>("moe::router.weight", shape.experts, width)};
  }

  template <class T, class Real, class Space, class P>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
               const Matrix<const Real, Space>& x, const P& p, Routing<Real, Space>& routing) const;
  template <class T, class Real, class Space, class P>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
                const Routing<Real, Space>& routing, const RoutingGradients<Real, Space>& of,
                const Matrix<const Real, Space>& x, const P& p, const Matrix<Real, Space>& dx, P& gradients) const;
};

namespace detail {

/// to(s) = embedding(task of s); an unknown task is a fault, and gives zeros.
template <class Real, class Space>
struct EmbedTasks {
  Vector<const std::int32_t, Space> task;
  Matrix<const Real, Space> embedding;
  Matrix<Real, Space> to;
  Kokkos::View<int, typename Space::memory_space> flag;
  KOKKOS_FUNCTION void operator()(Index s) const {
    const Index row = task(s);
    const bool known = row >= 0 && row < Index(embedding.extent(0));
    if (!known) Kokkos::atomic_or(&flag(), int(fault_expert_id));
    for (Index i = 0; i < Index(to.extent(1)); ++i) to(s, i) = known ? embedding(row, i) : Real(0);
  }
};
/// gradient(task, i) += the sum of its sequences'; item = task * width + i.
template <class Real, class Space>
struct EmbeddingGradient {
  Vector<const std::int32_t, Space> task;
  Matrix<const Real, Space> from;
  Matrix<Real, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index width = gradient.extent(1), row = item / width, i = item % width;
    Real sum = 0;
    for (Index s = 0; s < Index(from.extent(0)); ++s) sum += task(s) == row ? from(s, i) : Real(0);
    gradient(row, i) += sum;
  }
};

}  // namespace detail

template <class T, class Real, class Space, class P>
void TaskLogits::forward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>&,
                         const Matrix<const Real, Space>&, const P& p, Routing<Real, Space>& routing) const {
  using M = Matrix<const Real, Space>;
  if (batch.tokens() == 0) return;
  const auto groups = detail::task_sequences("moe::TaskLogits", batch);
  typename Context<Space>::Scratch scratch(ctx);
  auto embedded = scratch.template matrix<Real>(groups.count, width),
       logits = scratch.template matrix<Real>(groups.count, routing.logits.extent(1));
  detail::each(ctx.space, "moe::TaskLogits::embed", groups.count,
               detail::EmbedTasks<Real, Space>{batch.task_ids, p.embedding, embedded, ctx.flag()});
  kernels::dense_forward<Real, Space>(ctx.space, M(embedded), M(p.weight), logits);
  Kokkos::parallel_for("moe::TaskLogits::spread", detail::Range<Space>(ctx.space, 0, batch.tokens()),
                       detail::SpreadSequence<Real, Space>{groups, batch.mask, logits, routing.logits, false});
}

template <class T, class Real, class Space, class P>
void TaskLogits::backward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>&,
                          const Routing<Real, Space>&, const RoutingGradients<Real, Space>& of,
                          const Matrix<const Real, Space>&, const P& p, const Matrix<Real, Space>& dx,
                          P& gradients) const {
  using M = Matrix<const Real, Space>;
  if (batch.tokens() == 0) return;
  const auto groups = detail::task_sequences("moe::TaskLogits", batch);
  typename Context<Space>::Scratch scratch(ctx);
  auto embedded = scratch.template matrix<Real>(groups.count, width),
       dembedded = scratch.template matrix<Real>(groups.count, width),
       dlogits = scratch.template matrix<Real>(groups.count, of.dlogits.extent(1));
  detail::fill(ctx.space, dx, Real(0));
  detail::each(ctx.space, "moe::TaskLogits::embed", groups.count,
               detail::EmbedTasks<Real, Space>{batch.task_ids, p.embedding, embedded, ctx.flag()});
  Kokkos::parallel_for("moe::TaskLogits::sum", detail::Range<Space>(ctx.space, 0, Index(dlogits.size())),
                       detail::ReduceSequence<Real, Space>{groups, batch.mask, of.dlogits, dlogits, false});
  kernels::dense_backward_rows<Real, Space>(ctx.space, M(dlogits), M(p.weight), dembedded, false);
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(dlogits), M(embedded), gradients.weight);
  detail::each(ctx.space, "moe::TaskLogits::embedding_gradient", Index(p.embedding.size()),
               detail::EmbeddingGradient<Real, Space>{batch.task_ids, dembedded, gradients.embedding});
}

MOE_NAMESPACE_END
