#pragma once
/// @file
/// AdapterBank's forward, backward and copies.

#include <Kokkos_Profiling_ScopedRegion.hpp>

#include "moe/adapters/adapter_bank.hpp"
#include "moe/adapters/detail/concepts.hpp"
#include "moe/core/each_row.hpp"
#include "moe/dispatch/dispatch.hpp"
#include "moe/kernels/gemm.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// One choice a row: its adapter, where the row is none of the mask's and the adapter is resident.
template <class Space>
struct ChooseAdapter {
  Vector<const std::int32_t, Space> ids;
  Groups<Space> sequences;  // whose ids these are, where by_sequence
  bool by_sequence;
  Vector<const std::uint8_t, Space> mask;
  Vector<const Index, Space> rank;  // (N)
  Vector<ExpertId, Space> expert;   // (T)
  Kokkos::View<int, typename Space::memory_space> flag;
  KOKKOS_FUNCTION void operator()(Index t) const {
    ExpertId id = is_padding<Space>(mask, t) ? no_expert : ids(by_sequence ? sequences.of(t) : t);
    if (id != no_expert && (id < 0 || id >= Index(rank.extent(0)) || rank(id) == 0)) {
      Kokkos::atomic_or(flag.data(), int(fault_adapter_id));
      id = no_expert;
    }
    expert(t) = id;
  }
};

template <class Real, class Space>
struct ScaleOfRow {
  DispatchPlan<Space> plan;
  Vector<const ExpertId, Space> expert;
  Vector<const Real, Space> scaling;  // (N)
  Vector<Real, Space> scale;          // (R)
  KOKKOS_FUNCTION void operator()(Index r) const {
    const Index t = plan.row_token(r);
    scale(r) = t < 0 ? Real(0) : scaling(expert(t));
  }
};

/// Rank and scaling of a slot.
template <class Real, class Space>
struct SetAdapter {
  Vector<Real, Space> scaling;
  Vector<Index, Space> rank;
  Index slot, new_rank;
  Real new_scaling;
  KOKKOS_FUNCTION void operator()(Index) const {
    rank(slot) = new_rank;
    scaling(slot) = new_scaling;
  }
};

/// Both matrices of an adapter of rank r into its slot, zeros behind r.
template <class T, class Space>
struct CopyAdapter {
  Matrix<const T, Space> a, b;
  Tensor3<T, Space> to_a, to_b;
  Index slot;
  KOKKOS_FUNCTION void operator()(Index i) const {
    const Index rank = to_b.extent(2), in = to_a.extent(2), r = a.extent(0), of_a = rank * in;
    if (i < of_a) {
      const Index k = i / in;
      to_a(slot, k, i % in) = k < r ? a(k, i % in) : T(0);
    } else {
      const Index o = (i - of_a) / rank, k = (i - of_a) % rank;
      to_b(slot, o, k) = k < r ? b(o, k) : T(0);
    }
  }
};

template <class T, class Space>
struct DrawAdapter {
  Tensor3<T, Space> a, b;
  Index slot, rank;
  RandomKey key;
  KOKKOS_FUNCTION void operator()(Index i) const {
    const Index in = a.extent(2), of_a = Index(a.extent(1)) * in;
    if (i < of_a) {
      const Index k = i / in;
      a(slot, k, i % in) =
          k < rank ? T(random_normal<double>(key, std::uint64_t(i), 0) / Kokkos::sqrt(double(in))) : T(0);
    } else {
      b(slot, (i - of_a) / Index(b.extent(2)), (i - of_a) % Index(b.extent(2))) = T(0);
    }
  }
};

}  // namespace detail

template <class... Policies>
void AdapterBank<Policies...>::set(Context<Space>& ctx, Index slot, Index rank, double scaling) const {
  detail::each(ctx.space, "moe::AdapterBank::set", 1,
               detail::SetAdapter<Real, Space>{buffers.scaling, buffers.rank, slot, rank, Real(scaling)});
}

template <class... Policies>
void AdapterBank<Policies...>::write(Context<Space>& ctx, Index slot, const M& a, const M& b, double scaling) {
  detail::each(ctx.space, "moe::AdapterBank::write", config_.rank * (config_.in + config_.out),
               detail::CopyAdapter<Scalar, Space>{a, b, parameters.a, parameters.b, slot});
  set(ctx, slot, Index(a.extent(0)), scaling);
}

template <class... Policies>
Index AdapterBank<Policies...>::add(Context<Space>& ctx, Index r, double scaling, Seed seed) {
  check_rank(r);
  const Index slot = take_slot();
  const RandomKey key{seed.value * 0x9E3779B97F4A7C15ull + config_.layer, std::uint64_t(slot), detail::hash("lora_A"),
                      Purpose::initialise};
  detail::each(ctx.space, "moe::AdapterBank::add", config_.rank * (config_.in + config_.out),
               detail::DrawAdapter<Scalar, Space>{parameters.a, parameters.b, slot, r, key});
  set(ctx, slot, r, scaling);
  return slot;
}

template <class... Policies>
auto AdapterBank<Policies...>::forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Ids& ids,
                                       Tape& tape) const -> Matrix<Scalar, Space> {
  const Kokkos::Profiling::ScopedRegion stage("moe::AdapterBank");
  const Index tokens = batch.tokens();
  detail::check_tokens("moe::AdapterBank", batch, config_.in);
  const auto sequences = detail::groups(Scope::sequence(), batch);
  const bool by_sequence = Index(ids.extent(0)) != tokens;
  detail::require<ShapeError>(
      !by_sequence || (batch.sequence_offsets.is_allocated() && Index(ids.extent(0)) == sequences.count),
      "moe::AdapterBank::forward: ", ids.extent(0), " ids for ", tokens, " rows",
      batch.sequence_offsets.is_allocated() ? detail::sentence(" of ", sequences.count, " sequences") : "",
      ". Give one a row, or one a sequence and the batch's sequence_offsets.");
  detail::check_seen(ctx.space, "moe::AdapterBank::forward", tape.owner == id_ && tape.batch.tokens() == tokens,
                     tokens);
  tape.batch = batch;
  auto& chosen = tape.assignments;
  chosen.tokens = chosen.bound = tokens;
  chosen.uniform_k = 1;
  detail::shape(chosen.expert, "moe::adapter", tokens);
  detail::shape(tape.y, "moe::y", tokens, config_.out);
  detail::each(
      ctx.space, "moe::AdapterBank::choose", tokens,
      detail::ChooseAdapter<Space>{ids, sequences, by_sequence, batch.mask, buffers.rank, chosen.expert, ctx.flag()});
  dispatch(ctx, chosen, batch, config_.adapters, CapacityPolicy<Dropless>{}, tape.plan);
  detail::shape(tape.scale, "moe::scale", tape.plan.rows);
  detail::shape(tape.hidden, "moe::hidden", tape.plan.rows, config_.rank);
  detail::each(ctx.space, "moe::AdapterBank::scale", tape.plan.rows,
               detail::ScaleOfRow<Real, Space>{tape.plan, chosen.expert, buffers.scaling, tape.scale});
  detail::frozen_forward<Scalar, Space>(ctx, base_, bias_, batch.x, tape.y);
  detail::clear_padding<Scalar, Space>(ctx.space, batch.mask, tape.y);
  kernels::low_rank_forward<Scalar, Space>(ctx, rows(tape), batch.x, W(parameters.a), W(parameters.b), tape.hidden,
                                           tape.y, true);
  if constexpr (!detail::device_path<Space>) ctx.check();
  tape.owner = id_;
  return tape.y;
}

template <class... Policies>
auto AdapterBank<Policies...>::backward(Context<Space>& ctx, const M& dy, Tape& tape, Gradients& gradients) const
    -> Matrix<Scalar, Space> {
  const Kokkos::Profiling::ScopedRegion stage("moe::AdapterBank");
  const Index tokens = tape.batch.tokens();
  detail::check_backward("moe::AdapterBank", id_, tape.owner, gradients.owner, dy, tokens, config_.out);
  detail::check_seen(ctx.space, "moe::AdapterBank::backward", tape.dx, tokens);
  detail::shape(tape.dx, "moe::dx", tokens, config_.in);
  kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, dy, base_, tape.dx, false);
  detail::clear_padding<Scalar, Space>(ctx.space, tape.batch.mask, tape.dx);
  kernels::low_rank_backward<Scalar, Space>(ctx, rows(tape), tape.batch.x, W(parameters.a), W(parameters.b),
                                            M(tape.hidden), dy, {gradients.a, gradients.b, tape.dx, {}}, true);
  return tape.dx;
}

MOE_NAMESPACE_END
