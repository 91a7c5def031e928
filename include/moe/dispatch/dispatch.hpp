#pragma once
/// @file
/// From assignments to a `DispatchPlan`, and gathering rows by it.
///
/// Count, exclusive scan, stable placement in token order: O(A + E), no sort of keys, no (T, E, C) mask. Devices take
/// two launches for it: see detail/device_plan.hpp.

#include "moe/core/blocks.hpp"
#include "moe/core/stream_copy.hpp"
#include "moe/dispatch/capacity.hpp"
#include "moe/dispatch/detail/device_plan.hpp"
#include "moe/dispatch/detail/keep.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

/// Fills `plan` from a routing's assignments under a capacity. Counts and comparisons only: the same plan for any
/// number of threads. `layer` tells the draws of Priority::random from those of other layers.
template <class T, class Real, class Space, class Mode>
void dispatch(Context<Space>& ctx, const Assignments<Real, Space>& assignments, const Batch<T, Space>& batch,
              Index experts, const CapacityPolicy<Mode>& capacity, DispatchPlan<Space>& plan, std::uint32_t layer = 0);

/// rows(r) = x(row_token(r)); zeros in padding rows. x (T, H), rows (R, H). Rows behind the last expert stay as they
/// are.
template <class T, class Space>
void gather(Context<Space>& ctx, const Matrix<const T, Space>& x, const DispatchPlan<Space>& plan,
            const Matrix<T, Space>& rows);

/// For teaching and tests: GShard's (T, E, C) mask of one group, 1 where token t sits at place c of expert e.
template <class Space>
Tensor3<float, Space> dispatch_mask(Context<Space>& ctx, const DispatchPlan<Space>& plan, Index capacity);

namespace detail {

inline constexpr Index dispatch_chunk = 512;  // tokens; fixed, so that chunks do not depend on threads

/// How many live and routed assignments of each expert a chunk of tokens holds.
template <class Real, class Space>
struct CountChunk {
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> kept;  // (A), or empty: all
  Matrix<Index, Space> live, routed;       // (chunks, E)

  KOKKOS_FUNCTION void operator()(Index chunk) const {
    const Index experts = live.extent(1);
    for (Index e = 0; e < experts; ++e) live(chunk, e) = routed(chunk, e) = 0;
    const Index first = chunk * dispatch_chunk, next = first + dispatch_chunk;
    const Index last = next < assignments.tokens ? next : assignments.tokens;
    for (Index a = assignments.begin(first); a < assignments.end(last - 1); ++a) {
      const ExpertId e = assignments.expert(a);
      if (e == no_expert) continue;
      ++routed(chunk, e);
      if (kept.data() == nullptr || kept(a)) ++live(chunk, e);
    }
  }
};

/// Totals of each expert; live(chunk, e) becomes the number of earlier rows of e.
template <class Space>
struct ScanChunks {
  Matrix<Index, Space> live, routed;
  DispatchPlan<Space> plan;
  KOKKOS_FUNCTION void operator()(Index e) const {
    Index before = 0, asked = 0;
    for (Index chunk = 0; chunk < Index(live.extent(0)); ++chunk) {
      const Index here = live(chunk, e);
      live(chunk, e) = before;
      before += here;
      asked += routed(chunk, e);
    }
    plan.kept(e) = before;
    plan.routed(e) = asked;
  }
};

/// Exclusive offsets of experts: of their live rows, or of fixed extents.
template <class Space>
struct ExpertOffsets {
  DispatchPlan<Space> plan;
  Index fixed;  // rows an expert, or -1
  KOKKOS_FUNCTION void operator()(Index e, Index& sum, bool final) const {
    sum += fixed < 0 ? plan.kept(e) : fixed;
    if (!final) return;
    plan.expert_offsets(e + 1) = sum;
    if (e == 0) plan.expert_offsets(0) = 0;
  }
};

/// Gives each live assignment of a chunk its row.
template <class Real, class Space>
struct PlaceChunk {
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> kept;
  Matrix<Index, Space> next;  // (chunks, E) rows already placed
  DispatchPlan<Space> plan;

  KOKKOS_FUNCTION void operator()(Index chunk) const {
    const Index first = chunk * dispatch_chunk, after = first + dispatch_chunk;
    const Index last = after < assignments.tokens ? after : assignments.tokens;
    for (Index t = first; t < last; ++t) {
      for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
        const ExpertId e = assignments.expert(a);
        if (e == no_expert || (kept.data() != nullptr && !kept(a))) continue;
        const Index row = plan.expert_offsets(e) + next(chunk, e)++;
        plan.row_token(row) = t;
        plan.row_assignment(row) = a;
        plan.assignment_row(a) = row;
      }
    }
  }
};

/// Offsets of each token's live rows.
template <class Real, class Space>
struct TokenOffsets {
  Assignments<Real, Space> assignments;
  DispatchPlan<Space> plan;
  KOKKOS_FUNCTION void operator()(Index t, Index& sum, bool final) const {
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) sum += plan.assignment_row(a) >= 0 ? 1 : 0;
    if (!final) return;
    plan.token_offsets(t + 1) = sum;
    if (t == 0) plan.token_offsets(0) = 0;
  }
};

template <class Real, class Space>
struct TokenRows {
  Assignments<Real, Space> assignments;
  DispatchPlan<Space> plan;
  KOKKOS_FUNCTION void operator()(Index t) const {
    Index next = plan.token_offsets(t);
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
      if (plan.assignment_row(a) >= 0) plan.token_rows(next++) = plan.assignment_row(a);
    }
  }
};

/// For hosts: a token is read once for all of its rows.
template <class T, class Space>
struct GatherToken {
  Matrix<const T, Space> x;
  DispatchPlan<Space> plan;
  Matrix<T, Space> rows;
  bool past_caches;
  KOKKOS_FUNCTION void operator()([[maybe_unused]] Index t) const {
    KOKKOS_IF_ON_HOST(
        (const Index hidden = rows.extent(1); for (Index i = plan.token_offsets(t); i < plan.token_offsets(t + 1); ++i)
             stream_copy(rows.data() + plan.token_rows(i) * hidden, x.data() + t * hidden, hidden, past_caches);))
  }
};

/// What GatherToken leaves: zeros in padding rows.
template <class T, class Space>
struct ClearPadding {
  DispatchPlan<Space> plan;
  Matrix<T, Space> rows;
  KOKKOS_FUNCTION void operator()(Index r) const {
    if (r >= plan.expert_offsets(plan.experts) || plan.row_token(r) >= 0) return;
    const Row<T> row = row_of(rows, r);
    for (Index h = 0; h < row.size; ++h) row[h] = T(0);
  }
};

/// For devices: all rows side by side.
template <class T, class Space>
struct GatherRow {
  Matrix<const T, Space> x;
  DispatchPlan<Space> plan;
  Matrix<T, Space> rows;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) return;
    const Index t = plan.row_token(r), hidden = rows.extent(1);
    copy_row<T>(team, rows.data() + r * hidden, t < 0 ? nullptr : x.data() + t * hidden, hidden);
  }
};

template <class Space>
struct MaskRow {
  DispatchPlan<Space> plan;
  Tensor3<float, Space> mask;
  KOKKOS_FUNCTION void operator()(Index e) const {
    for (Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r) {
      const Index place = r - plan.expert_offsets(e);
      if (plan.row_token(r) >= 0 && place < Index(mask.extent(2))) mask(plan.row_token(r), e, place) = 1;
    }
  }
};

template <class Real, class Space>
void shape_plan(const Assignments<Real, Space>& assignments, Index experts, Index rows, DispatchPlan<Space>& plan) {
  plan.tokens = assignments.tokens;
  plan.experts = experts;
  plan.rows = rows;
  shape(plan.expert_offsets, "moe::expert_offsets", experts + 1);
  shape(plan.row_token, "moe::row_token", rows);
  shape(plan.row_assignment, "moe::row_assignment", rows);
  shape(plan.assignment_row, "moe::assignment_row", assignments.bound);
  shape(plan.token_offsets, "moe::token_offsets", assignments.tokens + 1);
  shape(plan.token_rows, "moe::token_rows", rows);
  shape(plan.routed, "moe::routed", experts);
  shape(plan.kept, "moe::kept", experts);
}

/// Fills a plan of the right shape by a thread a chunk, an expert or a token: for hosts, and for what teams cannot do.
template <class Real, class Space>
void plan_by_steps(Context<Space>& ctx, const Assignments<Real, Space>& assignments,
                   const Vector<const std::uint8_t, Space>& kept, Index fixed, const DispatchPlan<Space>& plan) {
  const Index tokens = assignments.tokens;
  const Index chunks = (tokens + dispatch_chunk - 1) / dispatch_chunk;
  typename Context<Space>::Scratch scratch(ctx);
  auto live = scratch.template matrix<Index>(chunks, plan.experts);
  auto routed = scratch.template matrix<Index>(chunks, plan.experts);
  fill(ctx.space, plan.assignment_row, Index(-1));
  fill(ctx.space, plan.row_token, Index(-1));
  fill(ctx.space, plan.row_assignment, Index(-1));
  fill(ctx.space, plan.token_offsets, Index(0));
  each(ctx.space, "moe::dispatch::count", chunks, CountChunk<Real, Space>{assignments, kept, live, routed}, 1);
  each(ctx.space, "moe::dispatch::totals", plan.experts, ScanChunks<Space>{live, routed, plan});
  scan(ctx.space, "moe::dispatch::offsets", plan.experts, ExpertOffsets<Space>{plan, fixed});
  each(ctx.space, "moe::dispatch::place", chunks, PlaceChunk<Real, Space>{assignments, kept, live, plan}, 1);
  scan(ctx.space, "moe::dispatch::token_offsets", tokens, TokenOffsets<Real, Space>{assignments, plan});
  each(ctx.space, "moe::dispatch::token_rows", tokens, TokenRows<Real, Space>{assignments, plan});
}

}  // namespace detail

template <class T, class Real, class Space, class Mode>
void dispatch(Context<Space>& ctx, const Assignments<Real, Space>& assignments, const Batch<T, Space>& batch,
              Index experts, const CapacityPolicy<Mode>& capacity, DispatchPlan<Space>& plan, std::uint32_t layer) {
  using Policy = CapacityPolicy<Mode>;
  const Index tokens = assignments.tokens;
  capacity.check(experts);
  const Index marks = assignments.live.is_allocated() ? Index(assignments.live.extent(0)) : assignments.bound;
  detail::require<ShapeError>(marks >= assignments.bound, "moe::dispatch: assignments.live has ", marks,
                              " entries for ", assignments.bound, " assignments. Give it one an assignment.");
  const double k = assignments.uniform_k != 0 ? double(assignments.uniform_k)
                                              : double(assignments.bound) / double(tokens == 0 ? 1 : tokens);
  Index fixed = -1, rows = assignments.bound;
  if constexpr (Policy::pads) {
    const auto groups = detail::groups(capacity.scope, batch);
    const Index widest = groups.stride != 0 ? groups.stride : tokens;
    fixed = tokens == 0 ? 0 : groups.count * capacity.limit(widest, k, experts);
    rows = fixed * experts;
  }
  detail::shape_plan(assignments, experts, rows, plan);
  plan.rows_each = fixed;

  typename Context<Space>::Scratch scratch(ctx);
  Vector<std::uint8_t, Space> kept = assignments.live;
  if constexpr (Policy::drops) {
    kept = scratch.template vector<std::uint8_t>(assignments.bound);
    detail::keep(ctx, capacity, assignments, batch, experts, k, layer, kept);
  }
  if constexpr (detail::device_path<Space>) {
    if (detail::fits_teams(assignments, plan))
      return detail::plan_by_teams<Real, Space>(ctx, assignments, kept, fixed, plan);
  }
  detail::plan_by_steps<Real, Space>(ctx, assignments, kept, fixed, plan);
}

template <class T, class Space>
void gather(Context<Space>& ctx, const Matrix<const T, Space>& x, const DispatchPlan<Space>& plan,
            const Matrix<T, Space>& rows) {
  if constexpr (!detail::device_path<Space>) {
    using Range = detail::Range<Space>;
    const bool past_caches = Index(rows.size() * sizeof(T)) > detail::streamed_bytes;
    Kokkos::parallel_for("moe::gather", Range(ctx.space, 0, plan.tokens),
                         detail::GatherToken<T, Space>{x, plan, rows, past_caches});
    Kokkos::parallel_for("moe::gather::padding", Range(ctx.space, 0, plan.rows),
                         detail::ClearPadding<T, Space>{plan, rows});
  } else {
    detail::each_wide_row(ctx.space, "moe::gather", plan.rows, Index(rows.extent(1)),
                          detail::GatherRow<T, Space>{x, plan, rows});
  }
}

template <class Space>
Tensor3<float, Space> dispatch_mask(Context<Space>& ctx, const DispatchPlan<Space>& plan, Index capacity) {
  Tensor3<float, Space> mask("moe::dispatch_mask", plan.tokens, plan.experts, capacity);
  Kokkos::parallel_for("moe::dispatch_mask", detail::Range<Space>(ctx.space, 0, plan.experts),
                       detail::MaskRow<Space>{plan, mask});
  return mask;
}

MOE_NAMESPACE_END
