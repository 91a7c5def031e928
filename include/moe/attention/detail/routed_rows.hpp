#pragma once
/// @file
/// RoutedAttention's kernels: which rows see which, and how rows of one choice find those of another.

#include "moe/core/batch.hpp"
#include "moe/core/each_row.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The tokens that a router of one expert chose: a row each, in token order, so that a token's row is the number of
/// those chosen before it.
template <class Real, class Space>
struct ChosenTokens {
  Vector<const Index, Space> row_token;       // (R) -1 = no token
  Vector<const Index, Space> row_assignment;  // (R)
  Vector<const Index, Space> token_offsets;   // (T+1)
  Vector<const Real, Space> weight;           // (A)

  /// -1 where the token, or none, was not chosen.
  KOKKOS_FUNCTION Index row(Index token) const {
    return token < 0 || token_offsets(token) == token_offsets(token + 1) ? -1 : token_offsets(token);
  }
};

/// Where sequences begin among the queries and among the keys.
template <class Space>
struct SequenceRows {
  Groups<Space> sequences;
  Index tokens;
  Vector<const Index, Space> query_offsets, key_offsets;  // (T+1) of tokens
  Vector<Index, Space> queries, keys;                     // (S+1)
  KOKKOS_FUNCTION void operator()(Index s) const {
    const Index first = sequences.begin(s), t = first < tokens ? first : tokens;
    queries(s) = query_offsets(t);
    keys(s) = key_offsets(t);
  }
};

/// A query sees the chosen keys of its sequence up to its own place.
template <class Space>
struct RoutedQuery {
  Groups<Space> sequences;
  Vector<const Index, Space> row_token;    // (queries)
  Vector<const Index, Space> key_offsets;  // (T+1)
  Vector<Index, Space> sequence, visible;
  KOKKOS_FUNCTION void operator()(Index r) const {
    const Index t = row_token(r), s = t < 0 ? -1 : sequences.of(t);
    sequence(r) = s;
    visible(r) = t < 0 ? 0 : key_offsets(t + 1) - key_offsets(sequences.begin(s));
  }
};

/// to(r) = weight * from(row of the key row's token); zeros where that token was not chosen. Of keys themselves, too.
template <class T, class Real, class Space>
struct WeighForKey {
  Vector<const Index, Space> row_token;  // (keys)
  ChosenTokens<Real, Space> chosen;
  Matrix<const T, Space> from;
  Matrix<T, Space> to;  // (keys, columns)
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index row = chosen.row(row_token(r));
    const Real w = row < 0 ? Real(0) : chosen.weight(chosen.row_assignment(row));
    team.each(Index(to.extent(1)), [&](Index i) { to(r, i) = row < 0 ? T(0) : T(w * Real(from(row, i))); });
  }
};

/// Its backward: the gradients of a row of `from` and of its weight. Zeros where its token is no key.
template <class T, class Real, class Space>
struct WeighForKeyGradient {
  ChosenTokens<Real, Space> chosen;
  Vector<const Index, Space> key_offsets;  // (T+1)
  Matrix<const T, Space> from, dto;
  Matrix<T, Space> dfrom;
  Vector<Real, Space> dweight;  // (A)
  KOKKOS_FUNCTION void operator()(Index row, const Team& team) const {
    const Index t = chosen.row_token(row), a = t < 0 ? -1 : chosen.row_assignment(row);
    const Index r = t < 0 || key_offsets(t) == key_offsets(t + 1) ? -1 : key_offsets(t);
    const Real w = a < 0 ? Real(0) : chosen.weight(a);
    Real sum = 0;  // of this lane
    team.each(Index(dfrom.extent(1)), [&](Index i) {
      const Real g = r < 0 ? Real(0) : Real(dto(r, i));
      sum += g * Real(from(row, i));
      dfrom(row, i) = T(w * g);
    });
    sum = team.total_of(sum);
    if (a >= 0) team.single([&] { dweight(a) = sum; });
  }
};

/// dx(t) = the sum of the gradients of its rows as query, key and value.
template <class T, class Space>
struct SumChosenRows {
  Vector<const Index, Space> query_offsets, key_offsets, value_offsets;  // (T+1)
  Matrix<const T, Space> dquery, dkey, dvalue;
  Matrix<T, Space> dx;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    using Sum = RouterReal<T>;
    const bool query = query_offsets(t) < query_offsets(t + 1), key = key_offsets(t) < key_offsets(t + 1),
               value = value_offsets(t) < value_offsets(t + 1);
    const Index q = query_offsets(t), k = key_offsets(t), v = value_offsets(t);
    team.each(Index(dx.extent(1)), [&](Index h) {
      Sum sum = query ? Sum(dquery(q, h)) : Sum(0);
      if (key) sum += Sum(dkey(k, h));
      if (value) sum += Sum(dvalue(v, h));
      dx(t, h) = T(sum);
    });
  }
};

}  // namespace detail

MOE_NAMESPACE_END
