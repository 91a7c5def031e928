#pragma once
/// @file
/// Auxiliary losses. Padding is in no count and in no mean; counts are of choices before drops and carry no gradient.
///
/// A loss is a struct with `using policy = moe::kind::loss;` and
///
///     value(ctx, batch, routing, slot) const             // adds to the double behind slot, on the device
///     backward(ctx, batch, routing, scale, to) const     // adds scale * gradient to a RoutingGradients
///
/// Both already hold the loss's coefficient.

#include "moe/balance/detail/balance_loss.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * E * sum_e f_e P_e: f_e the share of tokens whose first choice is e, P_e the mean score (Fedus et
/// al. 2021, Switch Transformer, eq. 4; 1e-2 there). 1 at balance, E where one expert has all. `count = all` counts
/// every choice: K at balance, and E where K experts have all. With a `scope` it is the mean over sequences
/// (transformers' Switch) or groups of tokens; pooled over layers (transformers' Mixtral) it is PooledBalanceLoss.
struct SwitchBalanceLoss : detail::BalanceLossPolicy<SwitchBalanceLoss> {
  using policy = kind::loss;
  double coefficient = 1e-2;
  Count count = Count::first_choice;
  Scope scope = Scope::batch();
  Probability probability = Probability::scores;

  explicit SwitchBalanceLoss(double c = 1e-2, Count n = Count::first_choice, Scope s = Scope::batch(),
                             Probability p = Probability::scores)
      : coefficient(c), count(n), scope(s), probability(p) {}
  detail::BalanceRule rule(double experts) const { return {coefficient * experts, count, scope, probability}; }
};

/// coefficient * 1/E * sum_e (c_e / S) m_e over groups of S tokens: c_e the first choices of e, m_e the mean gate
/// (Lepikhin et al. 2020, GShard, algorithm 1). 1 / E^2 at balance, 1 / E where one expert has all.
struct GShardBalanceLoss : detail::BalanceLossPolicy<GShardBalanceLoss> {
  using policy = kind::loss;
  double coefficient = 1e-2;
  Scope scope = Scope::batch();

  explicit GShardBalanceLoss(double c = 1e-2, Scope s = Scope::batch()) : coefficient(c), scope(s) {}
  detail::BalanceRule rule(double experts) const {
    return {coefficient / experts, Count::first_choice, scope, Probability::scores};
  }
};

/// coefficient * sum_e f_e P_e with f_e = E / (K T) * choices of e (Dai et al. 2024, DeepSeekMoE, eq. 12 to 14;
/// DeepSeek-V2). 1 at balance, E / K where K experts have all.
struct ExpertBalanceLoss : detail::BalanceLossPolicy<ExpertBalanceLoss> {
  using policy = kind::loss;
  double coefficient = 1e-3;

  explicit ExpertBalanceLoss(double c = 1e-3) : coefficient(c) {}
  detail::BalanceRule rule(double experts) const {
    return {coefficient * experts, Count::all, Scope::batch(), Probability::scores, true};
  }
};

/// The same for each sequence, averaged over sequences, with scores normalised over experts (DeepSeek-V3, eq. 17 to 20;
/// 1e-4 there. With softmax scores it is DeepSeek-V2's, as those sum to one). It counts the choices made, after bias
/// and group limit, as DeepSeek's code does. 1 at balance within each sequence, E / K where K experts have all.
struct SequenceBalanceLoss : detail::BalanceLossPolicy<SequenceBalanceLoss> {
  using policy = kind::loss;
  double coefficient = 1e-4;

  explicit SequenceBalanceLoss(double c = 1e-4) : coefficient(c) {}
  detail::BalanceRule rule(double experts) const {
    return {coefficient * experts, Count::all, Scope::sequence(), Probability::normalized_scores, true};
  }
};

/// coefficient * sum over devices of f_d P_d: f_d the mean over device d's experts of DeepSeekMoE's f_e, P_d the sum of
/// their mean scores (Dai et al. 2024, DeepSeekMoE, eq. 15 to 17; DeepSeek-V2, eq. 26 to 28: 0.05 there). 1 at balance,
/// the number of devices where one of them has all. Device d holds the d-th E / devices experts; throws ConfigError
/// where devices do not divide E.
struct DeviceBalanceLoss : detail::BalanceLossPolicy<DeviceBalanceLoss> {
  using policy = kind::loss;
  double coefficient = 0.05;
  Index devices = 8;

  explicit DeviceBalanceLoss(double c = 0.05, Index d = 8) : coefficient(c), devices(d) {}
  detail::BalanceRule rule(double experts) const {
    return {coefficient * experts,   Count::all, Scope::batch(), Probability::normalized_scores, true,
            detail::CountOf::device, devices};
  }
};

/// coefficient * sum over devices of f_d P_d: f_d = devices / (M T) * the tokens sent to d, each once, and P_d the sum
/// of its experts' mean scores (DeepSeek-V2, eq. 29 to 31: 0.02 there). M is how many devices a token may go to
/// (GroupLimit). 1 where tokens go to M devices evenly, devices / M where one device has all.
struct CommunicationBalanceLoss : detail::BalanceLossPolicy<CommunicationBalanceLoss> {
  using policy = kind::loss;
  double coefficient = 0.02;
  Index devices = 8;
  Index sends = 3;

  explicit CommunicationBalanceLoss(double c = 0.02, Index d = 8, Index m = 3) : coefficient(c), devices(d), sends(m) {}
  detail::BalanceRule rule(double) const {
    detail::require<ConfigError>(sends > 0, "moe::CommunicationBalanceLoss: tokens go to ", sends,
                                 " devices; `sends` must be positive.");
    return {coefficient * double(devices) / double(sends),
            Count::all,
            Scope::batch(),
            Probability::normalized_scores,
            false,
            detail::CountOf::tokens_of_device,
            devices};
  }
};

/// coefficient * mean over tokens of logsumexp(logits)^2 (Zoph et al. 2022, ST-MoE, eq. 5; 1e-3 there). It knows no
/// balance: (log E)^2 where all logits are 0.
struct RouterZLoss {
  using policy = kind::loss;
  double coefficient = 1e-3;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const {
    typename Context<Space>::Scratch scratch(ctx);
    auto parts = scratch.template vector<double>(detail::chunks_of(batch.tokens()) + 1);
    Kokkos::parallel_for("moe::RouterZLoss", detail::Range<Space>(ctx.space, 0, detail::chunks_of(batch.tokens())),
                         detail::ZLossChunk<Real, Space>{routing.logits, batch.mask, parts});
    Kokkos::parallel_for("moe::RouterZLoss::sum", detail::Range<Space>(ctx.space, 0, 1),
                         detail::ZLossSum<Space>{parts, detail::chunks_of(batch.tokens()), batch.mask, batch.tokens(),
                                                 coefficient, slot});
  }

  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const {
    typename Context<Space>::Scratch scratch(ctx);
    auto live = scratch.template vector<Index>(1);
    Kokkos::parallel_for("moe::RouterZLoss::count", detail::Range<Space>(ctx.space, 0, 1),
                         detail::CountLive<Space>{batch.mask, batch.tokens(), live});
    Kokkos::parallel_for(
        "moe::RouterZLoss::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
        detail::ZLossGradient<Real, Space>{routing.logits, batch.mask, live, scale * coefficient, to.dlogits});
  }
};

MOE_NAMESPACE_END
