#pragma once
/// @file
/// Losses that are chosen when the program runs, so that one type of layer serves them all.

#include <moe/balance/entropy_loss.hpp>
#include <moe/balance/gate_losses.hpp>
#include <moe/balance/losses.hpp>
#include <moe/balance/mutual_information_loss.hpp>
#include <moe/balance/straight_through_loss.hpp>
#include <variant>
#include <vector>

namespace zoo {

using Loss = std::variant<moe::SwitchBalanceLoss, moe::GShardBalanceLoss, moe::ImportanceLoss, moe::LoadLoss,
                          moe::ExpertBalanceLoss, moe::SequenceBalanceLoss, moe::RouterZLoss, moe::EntropyLoss,
                          moe::MutualInformationLoss, moe::StraightThroughLoss<moe::LoadEntropy>>;

/// Any number of losses as one policy of a layer. Its members are no templates, so that the losses' kernels are
/// compiled once, in losses.cpp, whatever layers there are.
struct ChosenLosses {
  using policy = moe::kind::loss;
  using Space = Kokkos::DefaultExecutionSpace;
  std::vector<Loss> losses;

  void value(moe::Context<Space>& ctx, const moe::Batch<float, Space>& batch, const moe::Routing<float, Space>& routing,
             const moe::Vector<double, Space>& slot) const;
  void backward(moe::Context<Space>& ctx, const moe::Batch<float, Space>& batch,
                const moe::Routing<float, Space>& routing, double scale,
                const moe::RoutingGradients<float, Space>& to) const;
};

}  // namespace zoo
