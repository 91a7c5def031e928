#pragma once
/// @file
/// A mixture of depths' kernels: the sub-batch of chosen tokens, their way back into the sequence, and its backward.

#include "moe/core/blocks.hpp"
#include "moe/core/each_row.hpp"
#include "moe/dispatch/plan.hpp"
#include "moe/routing/router.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The router of a causal rule: the same policies, but every token is taken at first, and so gets its weight.
template <class R>
struct TokenwiseOf;
template <class... Policies>
struct TokenwiseOf<Router<Policies...>> {
  template <class P>
  using Replaced = std::conditional_t<is_kind<P, kind::selection>, AllExperts, P>;
  using type = Router<Replaced<Policies>...>;
  /// Does a choice over whole groups of one size always take as many as it may?
  static constexpr bool fills = count_kind<kind::choice_key, Policies...> == 0;

  static type make(const Router<Policies...>& router) {
    type result;
    auto copy = [&]<class P>(std::type_identity<P>) {
      if constexpr (!is_kind<P, kind::selection>) result.template get<P>() = router.template get<P>();
    };
    (copy(std::type_identity<Policies>{}), ...);
    return result;
  }
};

/// Takes back the choice of a token whose logit is not positive. NaN raises the context's flag.
template <class Real, class Space>
struct KeepPositive {
  Matrix<const Real, Space> logits;      // (T, 1)
  Assignments<Real, Space> assignments;  // one a token
  Kokkos::View<int, typename Space::memory_space> flag;
  KOKKOS_FUNCTION void operator()(Index t) const {
    if (assignments.expert(t) == no_expert || logits(t, 0) > Real(0)) return;
    if (logits(t, 0) != logits(t, 0)) Kokkos::atomic_or(flag.data(), int(fault_nan));
    assignments.expert(t) = no_expert;
    assignments.weight(t) = 0;
  }
};

template <class Space>
struct MarkChosen {
  Vector<const Index, Space> token_offsets;  // (T+1)
  Vector<std::uint8_t, Space> chosen;        // (T)
  KOKKOS_FUNCTION void operator()(Index t) const { chosen(t) = token_offsets(t + 1) > token_offsets(t) ? 1 : 0; }
};

/// rows(r) = x(row_token(r)), and zeros where r is no token, so that no block meets what memory held before.
template <class T, class Space>
struct TakeRow {
  Matrix<const T, Space> x;
  Vector<const Index, Space> row_token;
  Matrix<T, Space> rows;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index t = row_token(r), hidden = rows.extent(1);
    copy_row<T>(team, rows.data() + r * hidden, t < 0 ? nullptr : x.data() + t * hidden, hidden);
  }
};

/// What else is known of a row's token. Arrays that are not wanted are empty.
template <class Space>
struct TakeFacts {
  Vector<const Index, Space> row_token;
  Groups<Space> sequences;
  Vector<const Index, Space> positions;         // (T); default: the token's place in its sequence
  Vector<const std::int32_t, Space> token_ids;  // (T)
  Vector<Index, Space> row_positions;
  Vector<std::int32_t, Space> row_ids;
  Vector<std::uint8_t, Space> row_mask;
  KOKKOS_FUNCTION void operator()(Index r) const {
    const Index t = row_token(r);
    if (row_mask.data() != nullptr) row_mask(r) = t < 0 ? 0 : 1;
    if (row_ids.data() != nullptr) row_ids(r) = t < 0 ? 0 : token_ids(t);
    row_positions(r) = t < 0 ? 0 : positions.data() != nullptr ? positions(t) : t - sequences.begin(sequences.of(t));
  }
};

/// Where sequences begin among the rows. The last one ends at the last row: rows that are no tokens are its padding.
template <class Space>
struct TakeOffsets {
  Vector<const Index, Space> sequence_offsets, token_offsets;  // (S+1), (T+1)
  Index rows;
  Vector<Index, Space> result;
  KOKKOS_FUNCTION void operator()(Index s) const {
    result(s) = s + 1 == Index(result.extent(0)) ? rows : token_offsets(sequence_offsets(s));
  }
};

/// y(t) = x(t) + w f(x)(t) where t was chosen, x(t) elsewhere.
template <class T, class Real, class Space>
struct AddUpdates {
  Matrix<const T, Space> x, update;  // (T, H), (R, H)
  Vector<const Real, Space> weight;  // (A)
  DispatchPlan<Space> plan;
  Matrix<T, Space> y;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index i = plan.token_offsets(t), hidden = y.extent(1);
    if (i == plan.token_offsets(t + 1)) {
      copy_row<T>(team, y.data() + t * hidden, x.data() + t * hidden, hidden);
      return;
    }
    const Index r = plan.token_rows(i);
    const Real w = weight(plan.row_assignment(r));
    team.each(hidden, [&](Index h) { y(t, h) = T(Real(x(t, h)) + w * Real(update(r, h))); });
  }
};

/// The gradient of a row's update, w dy, and of its weight, dy . f(x). Zeros where r is no token.
template <class T, class Real, class Space>
struct UpdateGradientRow {
  Matrix<const T, Space> dy, update;  // (T, H), (R, H)
  Vector<const Real, Space> weight;   // (A)
  DispatchPlan<Space> plan;
  Matrix<T, Space> dupdate;     // (R, H)
  Vector<Real, Space> dweight;  // (A)
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index t = plan.row_token(r), hidden = dupdate.extent(1);
    if (t < 0) {
      team.each(hidden, [&](Index h) { dupdate(r, h) = T(0); });
      return;
    }
    const Index a = plan.row_assignment(r);
    const Real w = weight(a);
    Real sum = 0;  // of this lane
    team.each(hidden, [&](Index h) {
      const Real g = Real(dy(t, h));
      sum += g * Real(update(r, h));
      dupdate(r, h) = T(w * g);
    });
    sum = team.total_of(sum);
    team.single([&] { dweight(a) = sum; });
  }
};

/// dx(t) = dy(t) + the row's gradient, where there is one.
template <class T, class Space>
struct InputGradientOfDepth {
  Matrix<const T, Space> dy, drows;  // (T, H), (R, H)
  DispatchPlan<Space> plan;
  Matrix<T, Space> dx;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Sum = RouterReal<T>;
    const Index i = plan.token_offsets(t);
    const Index r = i < plan.token_offsets(t + 1) ? plan.token_rows(i) : -1;
    team.each(Index(dx.extent(1)), [&](Index h) { dx(t, h) = r < 0 ? dy(t, h) : T(Sum(dy(t, h)) + Sum(drows(r, h))); });
  }
};

/// The positions of a sequence's new tokens behind those seen before; padding is none and takes none.
template <class Space>
struct CountSeen {
  Groups<Space> sequences;
  Vector<const std::uint8_t, Space> mask;
  Vector<Index, Space> seen;       // (S) tokens of earlier batches
  Vector<Index, Space> positions;  // (T), or empty
  KOKKOS_FUNCTION void operator()(Index s) const {
    Index next = seen(s);
    for (Index t = sequences.begin(s); t < sequences.end(s); ++t) {
      if (positions.data() != nullptr) positions(t) = next;
      next += is_padding<Space>(mask, t) ? 0 : 1;
    }
    seen(s) = next;
  }
};

/// The first `count` rows of an array that grows where it is too short, so that a count that changes with each batch
/// does not allocate each time.
template <class View, class... Width>
View first_of(View& storage, const char* label, Index count, Width... width) {
  const bool fits = storage.is_allocated() && Index(storage.extent(0)) >= count &&
                    (... && (Index(storage.extent(1)) == Index(width)));
  if (!fits) shape(storage, label, count, width...);
  return View(storage.data(), std::size_t(count), std::size_t(width)...);
}

}  // namespace detail

MOE_NAMESPACE_END
