#pragma once
/// @file
/// The interface of the arithmetic on packed weights: experts' networks in one call, gather and weighted sum included.
/// On hosts; another backend's belongs here too.

#include "moe/kernels/cpu/expert_ffn.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

/// Weights (experts, columns, depth) as the kernels read them.
template <class T>
using PackedWeights = cpu::Panels<T>;
/// The column that row `row` of `rows` becomes, in weights and in biases.
using cpu::column_of;
/// What a call keeps for the next.
using PackedWorkspace = cpu::FFNWorkspace;
/// Arguments of `packed_ffn`.
template <class T, class Activation>
using PackedFFNCall = cpu::ExpertFFN<T, Activation>;

/// Fills `to` from `weight` (experts, rows, depth). gated: rows are the gate's, then up's, and become neighbours.
template <bool gated, class Space, class From, class To>
void pack(const Space& space, const Tensor3<From, Space>& weight, const PackedWeights<To>& to) {
  cpu::micro_kernels();  // throws where this processor cannot run them
  cpu::pack<gated>(space, weight.data(), Index(weight.extent(1)), Index(weight.extent(2)), to);
}

/// y(token of r) += weight(r) * FFN_e(x(token of r)) for each row r of each expert e, experts in order.
template <class Space, class T, class Activation>
void packed_ffn(const Space& space, const PackedFFNCall<T, Activation>& call, PackedWorkspace& work) {
  cpu::run_expert_ffn(space, call, work);
}

}  // namespace kernels

MOE_NAMESPACE_END
