#pragma once
/// @file
/// `Routing`: a router's decision as a value. It can be kept, sent to another layer, or made elsewhere; it carries the
/// random draws' key and its own backward's needs.

#include "moe/core/assignments.hpp"
#include "moe/core/context.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes a router is built for.
struct RouterShape {
  Index experts = 0;  ///< E
  Index hidden = 0;   ///< H', the width of the router's input
};

/// The decision for one batch, and what its backward needs.
template <class Real, class Space = Kokkos::DefaultExecutionSpace>
struct Routing {
  Matrix<Real, Space> logits;            ///< (T, E) after maps on logits
  Matrix<Real, Space> scores;            ///< (T, E)
  Assignments<Real, Space> assignments;  ///< choices and their combine weights
  RandomKey random;                      ///< of this pass: backward replays the draws
  bool noisy = false;                    ///< did noise act?
  bool logit_scores = false;             ///< are the scores the logits (Identity)?
  Index first_token = 0;                 ///< Context::first_token of this pass, for the same purpose
  Matrix<Real, Space> raw_logits{};      ///< (T, E) before the maps, where more than one map acts
  Matrix<Real, Space> clean_logits{};    ///< (T, E) before trainable noise, where the source has some
  Matrix<Real, Space> deviation{};       ///< (T, E) standard deviation of that noise
};

/// Gradients of a routing: what losses add to, and what the router's backward uses up.
template <class Real, class Space = Kokkos::DefaultExecutionSpace>
struct RoutingGradients {
  Vector<Real, Space> dweight;     ///< (A) of the combine weights
  Matrix<Real, Space> dscores;     ///< (T, E)
  Matrix<Real, Space> dlogits;     ///< (T, E)
  Matrix<Real, Space> dclean;      ///< (T, E) of the clean logits, where the source has trainable noise
  Matrix<Real, Space> ddeviation;  ///< (T, E) of the noise's deviation, likewise
};

/// The draws of one token for one purpose, for policies on rows.
struct RowRandom {
  RandomKey key;
  Index token = 0;
  bool active = false;           ///< noise acts only while training
  const float* given = nullptr;  ///< draws from Batch::draws instead

  /// The i-th draw, uniform in [0, 1).
  template <class Real>
  KOKKOS_FUNCTION Real uniform(Index i) const {
    return given != nullptr ? Real(given[i]) : random_uniform<Real>(key, std::uint64_t(token), std::uint32_t(i));
  }
  /// The i-th draw, standard normal.
  template <class Real>
  KOKKOS_FUNCTION Real normal(Index i) const {
    return given != nullptr ? Real(given[i]) : random_normal<Real>(key, std::uint64_t(token), std::uint32_t(i));
  }
  /// The i-th draw of the standard Gumbel distribution: argmax(z + these) samples from softmax(z).
  template <class Real>
  KOKKOS_FUNCTION Real gumbel(Index i) const {
    const Real u = uniform<Real>(i);
    return -Kokkos::log(-Kokkos::log(u > Real(0) ? u : Real(0x1p-25)));
  }
  KOKKOS_FUNCTION RowRandom of(Purpose purpose) const {
    RowRandom result = *this;
    result.key.purpose = purpose;
    return result;
  }
};

/// What a policy on rows may ask about its token, beside the row. Policies that need none of it leave it out of their
/// signature.
struct TokenFacts {
  RowRandom random;
  std::int32_t id = -1;         ///< its vocabulary id, or -1: not given
  std::int32_t task = -1;       ///< its sequence's task, or -1: not given
  Row<const ExpertId> table{};  ///< all of the selection's table, where it has one
};

namespace detail {

/// Random draws and side inputs of a batch; row(t) and facts(t) give those of one token.
template <class Space>
struct RowDraws {
  RandomKey key;
  Index first_token = 0;
  bool active = false;
  Matrix<const float, Space> given;
  Vector<const std::int32_t, Space> ids, tasks;
  Groups<Space> sequences;
  Matrix<const ExpertId, Space> table;

  KOKKOS_FUNCTION RowRandom row(Index t, Purpose purpose) const {
    RandomKey own = key;
    own.purpose = purpose;
    return {own, first_token + t, active,
            given.data() == nullptr ? nullptr : given.data() + t * Index(given.extent(1))};
  }
  KOKKOS_FUNCTION TokenFacts facts(Index t, Purpose purpose) const {
    TokenFacts result{row(t, purpose)};
    if (ids.data() != nullptr) result.id = ids(t);
    if (tasks.data() != nullptr) result.task = tasks(sequences.of(t));
    result.table = {table.data(), Index(table.size())};
    return result;
  }
};

template <class Real, class T, class Space>
RowDraws<Space> row_draws(const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                          const Matrix<const ExpertId, Space>& table = {}) {
  RowDraws<Space> draws{
      routing.random, routing.first_token, routing.noisy, batch.draws, batch.token_ids, batch.task_ids, {}, table};
  if (batch.task_ids.is_allocated()) draws.sequences = groups(Scope::sequence(), batch);
  return draws;
}

}  // namespace detail

MOE_NAMESPACE_END
