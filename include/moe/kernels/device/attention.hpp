#pragma once
/// @file
/// Attention by teams of lanes, for any backend: a team takes a query (forward, dq) or a key (dk, dv) of one head, goes
/// through the others in order, a lane each, and keeps sums of columns in its lanes.

#include "moe/core/each_row.hpp"
#include "moe/kernels/attention_heads.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

template <class T, class Real, class Space>
struct AttentionTeam {
  static constexpr int lanes = moe::detail::row_lanes<Space>, columns = int(most_head_width) / lanes;
  AttentionPlan<Space> plan;
  AttentionHeads<T> heads;

  /// Columns of a vector of the head's width, those of one lane.
  struct Columns {
    Real value[columns] = {};
    template <class From>
    KOKKOS_FUNCTION void add(const Team& team, Index width, Real factor, const From* row) {
      for (int c = 0; c < columns; ++c) {
        const Index d = team.lane() + Index(c) * lanes;
        if (d < width) value[c] += factor * Real(row[d]);
      }
    }
    KOKKOS_FUNCTION void scale(Real factor) {
      for (int c = 0; c < columns; ++c) value[c] *= factor;
    }
    KOKKOS_FUNCTION void store(const Team& team, Index width, Real factor, T* to) const {
      for (int c = 0; c < columns; ++c) {
        const Index d = team.lane() + Index(c) * lanes;
        if (d < width) to[d] = T(value[c] * factor);
      }
    }
  };

  KOKKOS_FUNCTION Real dot(const T* a, const T* b) const {
    Real sum = 0;
    for (Index d = 0; d < heads.width; ++d) sum += Real(a[d]) * Real(b[d]);
    return sum;
  }
  KOKKOS_FUNCTION bool sees(Index t, Index first, Index key) const {
    return key - first < plan.visible(t) && !moe::detail::is_padding<Space>(plan.key_mask, key);
  }
};

template <class T, class Real, class Space>
struct AttendQuery : AttentionTeam<T, Real, Space> {
  using Base = AttentionTeam<T, Real, Space>;
  HeadRows<T> out;
  Matrix<Real, Space> log_sum;

  KOKKOS_FUNCTION void operator()(Index item, const Team& team) const {
    const auto& heads = this->heads;
    const auto& plan = this->plan;
    const Index t = item / heads.q.heads, h = item % heads.q.heads, s = plan.sequence(t), shared = heads.key_head(h);
    const Index first = s < 0 ? 0 : plan.key_begin(s), end = s < 0 ? 0 : first + plan.visible(t);
    const T* q = heads.q.at(t, h, heads.width);
    Real largest = -Kokkos::Experimental::infinity_v<Real>, total = 0;
    typename Base::Columns sum;
    for (Index begin = first; begin < end; begin += Base::lanes) {
      const Index key = begin + team.lane();
      const bool live = key < end && this->sees(t, first, key);
      const Real score = live ? Real(heads.scale) * this->dot(q, heads.k.at(key, shared, heads.width))
                              : -Kokkos::Experimental::infinity_v<Real>;
      const Real top = team.max<Real>(Base::lanes, [&](Index) {
        return score == score ? score : Kokkos::Experimental::infinity_v<Real>;  // NaN is to be seen
      });
      if (!(top > -Kokkos::Experimental::infinity_v<Real>)) continue;  // all of these are padding
      const Real now = top > largest ? top : largest, shrink = Kokkos::exp(largest - now);
      const Real p = live ? Kokkos::exp(score - now) : Real(0);
      total = total * shrink + team.total_of(p);
      sum.scale(shrink);
      for (int l = 0; l < Base::lanes && begin + l < end; ++l)
        sum.add(team, heads.width, team.shuffle(p, l), heads.v.at(begin + l, shared, heads.width));
      largest = now;
    }
    sum.store(team, heads.width, total > 0 ? 1 / total : Real(0), out.at(t, h, heads.width));
    team.single([&] { log_sum(t, h) = total > 0 ? largest + Kokkos::log(total) : Real(0); });
  }
};

template <class T, class Real, class Space>
struct PullQuery : AttentionTeam<T, Real, Space> {
  using Base = AttentionTeam<T, Real, Space>;
  detail::AttentionGradients<T, Real, Space> of;

  KOKKOS_FUNCTION void operator()(Index item, const Team& team) const {
    const auto& heads = this->heads;
    const auto& plan = this->plan;
    const Index t = item / heads.q.heads, h = item % heads.q.heads, s = plan.sequence(t), shared = heads.key_head(h);
    const Index first = s < 0 ? 0 : plan.key_begin(s), end = s < 0 ? 0 : first + plan.visible(t);
    const T *q = heads.q.at(t, h, heads.width), *dout = of.dout.at(t, h, heads.width);
    typename Base::Columns dq;
    for (Index begin = first; begin < end; begin += Base::lanes) {
      const Index key = begin + team.lane();
      Real dscore = 0;
      if (key < end && this->sees(t, first, key)) {
        const T* k = heads.k.at(key, shared, heads.width);
        const Real p = Kokkos::exp(Real(heads.scale) * this->dot(q, k) - of.log_sum(t, h));
        dscore = p * (this->dot(dout, heads.v.at(key, shared, heads.width)) - of.delta(t, h));
      }
      for (int l = 0; l < Base::lanes && begin + l < end; ++l)
        dq.add(team, heads.width, team.shuffle(dscore, l), heads.k.at(begin + l, shared, heads.width));
    }
    dq.store(team, heads.width, Real(heads.scale), of.dq.at(t, h, heads.width));
  }
};

/// Queries of a key come head by head, tokens in order.
template <class T, class Real, class Space>
struct PullKey : AttentionTeam<T, Real, Space> {
  using Base = AttentionTeam<T, Real, Space>;
  detail::AttentionGradients<T, Real, Space> of;

  KOKKOS_FUNCTION void operator()(Index item, const Team& team) const {
    const auto& heads = this->heads;
    const auto& plan = this->plan;
    const Index key = item / heads.k.heads, shared = item % heads.k.heads;
    Index low = 0, high = plan.sequences;  // the sequence with this key: the last that begins at or before it
    while (high - low > 1) {
      const Index middle = (low + high) / 2;
      (plan.key_begin(middle) <= key ? low : high) = middle;
    }
    const bool inside = plan.sequences > 0 && key >= plan.key_begin(low) && key < plan.key_end(low);
    const Index first = inside ? plan.key_begin(low) : 0;
    const Index from = inside ? plan.query_offsets(low) : 0, end = inside ? plan.query_offsets(low + 1) : 0;
    const T *k = heads.k.at(key, shared, heads.width), *v = heads.v.at(key, shared, heads.width);
    typename Base::Columns dk, dv;
    for (Index i = 0; i < heads.sharing(); ++i) {
      const Index h = heads.query_head(shared, i);
      for (Index begin = from; begin < end; begin += Base::lanes) {
        const Index t = begin + team.lane();
        const bool seen = t < end && this->sees(t, first, key);
        if (!(team.max<Real>(Base::lanes, [&](Index) { return seen ? Real(1) : Real(0); }) > 0)) continue;
        Real p = 0, dscore = 0;
        if (seen) {
          p = Kokkos::exp(Real(heads.scale) * this->dot(heads.q.at(t, h, heads.width), k) - of.log_sum(t, h));
          dscore = p * (this->dot(of.dout.at(t, h, heads.width), v) - of.delta(t, h));
        }
        for (int l = 0; l < Base::lanes && begin + l < end; ++l) {
          dv.add(team, heads.width, team.shuffle(p, l), of.dout.at(begin + l, h, heads.width));
          dk.add(team, heads.width, team.shuffle(dscore, l), heads.q.at(begin + l, h, heads.width));
        }
      }
    }
    dk.store(team, heads.width, Real(heads.scale), of.dk.at(key, shared, heads.width));
    dv.store(team, heads.width, Real(1), of.dv.at(key, shared, heads.width));
  }
};

template <class Space, class T, class Real>
void attention_forward(const Space& space, const AttentionPlan<Space>& plan, const AttentionHeads<T>& heads,
                       const HeadRows<T>& out, const Matrix<Real, Space>& log_sum) {
  moe::detail::each_row(space, "moe::attention", plan.queries * heads.q.heads,
                        AttendQuery<T, Real, Space>{{plan, heads}, out, log_sum});
}

template <class Space, class T, class Real>
void attention_backward(const Space& space, const AttentionPlan<Space>& plan, const AttentionHeads<T>& heads,
                        const detail::AttentionGradients<T, Real, Space>& of) {
  moe::detail::each_row(space, "moe::attention", plan.queries * heads.q.heads,
                        PullQuery<T, Real, Space>{{plan, heads}, of});
  moe::detail::each_row(space, "moe::attention", plan.keys * heads.k.heads, PullKey<T, Real, Space>{{plan, heads}, of});
}

}  // namespace kernels::device

MOE_NAMESPACE_END
