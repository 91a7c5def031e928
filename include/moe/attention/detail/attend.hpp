#pragma once
/// @file
/// Attention between its projections: positions, cache, softmax. What dense attention and all mixtures of heads share.

#include "moe/attention/rotary.hpp"
#include "moe/kernels/attention.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Beside queries, keys and values, what backward needs.
template <class T, class Space>
struct AttentionSaved {
  using Real = RouterReal<T>;
  AttentionPlan<Space> plan;
  Matrix<Real, Space> rotary;   ///< (T, width) angles' cosines and sines; empty without positions
  Matrix<Real, Space> log_sum;  ///< (T, heads)
};

struct AttentionSettings {
  Index width = 0;         ///< of a head
  double rotary_base = 0;  ///< 0: no positions
  bool in_turn = false;    ///< see kernels::AttentionHeads

  double scale() const { return 1 / Kokkos::sqrt(double(width)); }
};

template <class T>
using HeadRows = kernels::HeadRows<T>;

template <class T>
HeadRows<const T> constant(const HeadRows<T>& rows) {
  return {rows.data, rows.stride, rows.heads};
}

/// Keys and values of new tokens into their rows of the cache.
template <class T, class Space>
struct StoreInCache {
  Vector<Index, Space> slot;
  HeadRows<const T> k, v;
  Index columns;
  Matrix<T, Space> key, value;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    if (slot(t) < 0) return;
    team.each(columns, [&](Index i) {
      key(slot(t), i) = k.data[t * k.stride + i];
      value(slot(t), i) = v.data[t * v.stride + i];
    });
  }
};

/// out = attention of the batch's queries to its keys, and those in the cache, which takes the new ones. Turns q and k
/// in place.
template <class T, class Space>
void attend(Context<Space>& ctx, const AttentionSettings& settings, const Batch<T, Space>& batch, const HeadRows<T>& q,
            const HeadRows<T>& k, const HeadRows<T>& v, const HeadRows<T>& out, AttentionSaved<T, Space>& saved,
            KeyValueCache<T, Space>* cache = nullptr) {
  const Index tokens = batch.tokens(), width = settings.width;
  if (cache != nullptr) {
    require<ShapeError>(Index(cache->key.extent(1)) == k.heads * width, "moe::KeyValueCache: rows of ",
                        cache->key.extent(1), " columns for a layer whose keys have ", k.heads * width,
                        ". Make it by this layer's cache().");
    plan_causal_attention(ctx, batch, *cache, saved.plan);
  } else {
    plan_causal_attention(ctx, batch, saved.plan);
  }
  if (settings.rotary_base > 0) {
    shape(saved.rotary, "moe::rotary", tokens, width);
    rotary_angles(ctx, batch, saved.plan, settings.rotary_base, saved.rotary);
    rotate(ctx, saved.rotary, q.data, q.stride, q.heads, false);
    rotate(ctx, saved.rotary, k.data, k.stride, k.heads, false);
  }
  shape(saved.log_sum, "moe::log_sum", tokens, q.heads);
  kernels::AttentionHeads<T> heads{width, settings.scale(), settings.in_turn, constant(q), constant(k), constant(v)};
  if (cache != nullptr) {
    const Index columns = k.heads * width;
    each_row(ctx.space, "moe::KeyValueCache", tokens,
             StoreInCache<T, Space>{saved.plan.slot, heads.k, heads.v, columns, cache->key, cache->value});
    heads.k = {cache->key.data(), columns, k.heads};
    heads.v = {cache->value.data(), columns, k.heads};
  }
  kernels::attention_forward(ctx, saved.plan, heads, out, saved.log_sum);
  if constexpr (!device_path<Space>) {
    if (cache != nullptr) ctx.check();  // now that the cache holds what it counts
  }
}

/// The gradients of q, k and v as the projections gave them, before they were turned.
template <class T, class Space>
void attend_backward(Context<Space>& ctx, const AttentionSettings& settings, const HeadRows<const T>& q,
                     const HeadRows<const T>& k, const HeadRows<const T>& v, const HeadRows<const T>& out,
                     const AttentionSaved<T, Space>& saved, const HeadRows<const T>& dout, const HeadRows<T>& dq,
                     const HeadRows<T>& dk, const HeadRows<T>& dv) {
  const kernels::AttentionHeads<T> heads{settings.width, settings.scale(), settings.in_turn, q, k, v};
  kernels::attention_backward(ctx, saved.plan, heads, out, saved.log_sum, dout, dq, dk, dv);
  rotate(ctx, saved.rotary, dq.data, dq.stride, dq.heads, true);
  rotate(ctx, saved.rotary, dk.data, dk.stride, dk.heads, true);
}

}  // namespace detail

MOE_NAMESPACE_END
