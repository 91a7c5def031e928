#pragma once
/// @file
/// A router as the papers write it, one token at a time, in double, for any combination of policies. It judges the
/// library and shares nothing with it.

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

namespace reference {

/// One step from scores to weights.
struct Step {
  enum Kind { sum, sum_at_least, lp, softmax, sigmoid, constant, scale, learned, per_expert } kind;
  double value = 0;
};

/// One step from logits to logits.
struct LogitMap {
  enum Kind { soft_cap, scale } kind;
  double value = 1;
};

/// What a router does.
struct RouterDescription {
  enum Scoring { softmax, sigmoid, sqrt_softplus, identity } scoring = softmax;
  enum Selection { top_k, top_p, threshold, all, expert_choice } selection = top_k;
  bool biased_logits = false;
  std::vector<LogitMap> maps;
  bool choose_by_logits = false, balance_bias = false;
  int groups = 0, kept_groups = 0, group_best = 1;  // the sum of so many best keys is a group's score
  double closed = -std::numeric_limits<double>::infinity();
  int k = 3, at_least = 0;  // choices, or bounds of their number
  double limit = 0;         // p of top_p, the threshold, or the mean number of experts of expert choice
  int shared = 0;           // the last experts, always chosen
  std::vector<Step> steps;
  double skip = 0;  // choices whose weight is below this part of the first one's
};

struct RouterParameters {
  Eigen::MatrixXd weight;  // (E, H)
  Eigen::VectorXd bias, balance_bias, per_expert;
  double scale = 1;
};

struct RouterResult {
  std::vector<std::vector<int>> chosen, live;  // experts of each token; 1, or 0 where skipped
  std::vector<std::vector<double>> weights;
};

namespace router {

using Vector = Eigen::VectorXd;

inline double logistic(double z) {
  return 1 / (1 + std::exp(-z));
}

inline Vector softmax(const Vector& z) {
  const Eigen::ArrayXd e = (z.array() - z.maxCoeff()).exp();
  return e / e.sum();
}

inline Vector logits(const RouterDescription& d, const RouterParameters& p, const Vector& x) {
  Vector z = p.weight * x;
  if (d.biased_logits) z += p.bias;
  for (const LogitMap& map : d.maps) {
    if (map.kind == LogitMap::scale) z *= map.value;
    if (map.kind == LogitMap::soft_cap) z = map.value * (z / map.value).array().tanh().matrix();
  }
  return z;
}

inline Vector scores(const RouterDescription& d, const Vector& z) {
  switch (d.scoring) {
    case RouterDescription::softmax:
      return softmax(z);
    case RouterDescription::sigmoid:
      return z.unaryExpr(&logistic);
    case RouterDescription::sqrt_softplus:
      return z.unaryExpr([](double v) { return std::sqrt(std::log(1 + std::exp(v))); });
    default:
      return z;
  }
}

inline Vector keys(const RouterDescription& d, const RouterParameters& p, const Vector& z, const Vector& s) {
  Vector key = d.choose_by_logits ? z : s;
  if (d.balance_bias) key += p.balance_bias;
  if (d.groups == 0) return key;
  const int size = int(key.size()) / d.groups;
  std::vector<std::pair<double, int>> order;  // best first, of equals the lowest
  for (int g = 0; g < d.groups; ++g) {
    std::vector<double> members(key.data() + g * size, key.data() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    order.push_back({-std::accumulate(members.begin(), members.begin() + d.group_best, 0.0), g});
  }
  std::sort(order.begin(), order.end());
  Vector open = Vector::Constant(key.size(), d.closed);
  for (int i = 0; i < d.kept_groups; ++i)
    open.segment(order[i].second * size, size) = key.segment(order[i].second * size, size);
  return open;
}

/// Experts by key, best first, of equals the lowest; those of -infinity left out.
inline std::vector<int> ranked(const Vector& key) {
  std::vector<int> order;
  for (int e = 0; e < key.size(); ++e) {
    if (key(e) > -std::numeric_limits<double>::infinity()) order.push_back(e);
  }
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key(a) > key(b); });
  return order;
}

inline std::vector<int> choose(const RouterDescription& d, const Vector& key) {
  std::vector<int> chosen;
  if (d.selection == RouterDescription::all) {
    chosen = ranked(key);
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }
  double total = 0;
  for (int e : ranked(key.head(key.size() - d.shared))) {
    const int count = int(chosen.size());
    if (count == d.k - d.shared) break;
    if (count >= d.at_least) {
      if (d.selection == RouterDescription::top_p && total >= d.limit) break;
      if (d.selection == RouterDescription::threshold && !(key(e) > d.limit)) break;
    }
    chosen.push_back(e);
    total += key(e);
  }
  for (int e = int(key.size()) - d.shared; e < key.size(); ++e) chosen.push_back(e);
  return chosen;
}

inline std::vector<double> weigh(const RouterDescription& d, const RouterParameters& p, std::vector<double> w,
                                 const std::vector<int>& chosen) {
  for (const Step& step : d.steps) {
    Eigen::Map<Vector> v(w.data(), Eigen::Index(w.size()));
    if (v.size() == 0) break;
    if (step.kind == Step::sum) v /= v.sum() + step.value;
    if (step.kind == Step::sum_at_least) v /= std::max(v.sum(), step.value);
    if (step.kind == Step::lp) v /= std::pow(v.array().abs().pow(step.value).sum(), 1 / step.value);
    if (step.kind == Step::softmax) v = softmax(v);
    if (step.kind == Step::sigmoid) v = v.unaryExpr(&logistic).eval();
    if (step.kind == Step::constant) v.setConstant(step.value);
    if (step.kind == Step::scale) v *= step.value;
    if (step.kind == Step::learned) v *= p.scale;
    for (std::size_t i = 0; step.kind == Step::per_expert && i < w.size(); ++i) w[i] *= p.per_expert(chosen[i]);
  }
  return w;
}

}  // namespace router

/// x (T, H). `frozen` holds choices and skips at those of another result: gradients treat them as constants.
inline RouterResult route(const RouterDescription& d, const RouterParameters& p, const Eigen::MatrixXd& x,
                          const RouterResult* frozen = nullptr) {
  using namespace router;
  const int tokens = int(x.rows()), experts = int(p.weight.rows());
  Eigen::MatrixXd s(tokens, experts), key(tokens, experts);
  for (int t = 0; t < tokens; ++t) {
    const Vector z = logits(d, p, x.row(t));
    s.row(t) = scores(d, z);
    key.row(t) = keys(d, p, z, s.row(t));
  }
  RouterResult r;
  r.chosen.resize(tokens);
  if (frozen != nullptr) {
    r.chosen = frozen->chosen;
  } else if (d.selection == RouterDescription::expert_choice) {
    const int taken = std::max(1, int(d.limit * tokens / experts));
    for (int e = 0; e < experts; ++e) {
      const auto order = ranked(key.col(e));
      for (int i = 0; i < taken && i < int(order.size()); ++i) r.chosen[order[i]].push_back(e);
    }
  } else {
    for (int t = 0; t < tokens; ++t) r.chosen[t] = choose(d, key.row(t));
  }
  for (int t = 0; t < tokens; ++t) {
    std::vector<double> w;
    for (int e : r.chosen[t]) w.push_back(s(t, e));
    w = weigh(d, p, w, r.chosen[t]);
    std::vector<int> live(w.size(), 1);
    for (std::size_t i = 1; i < w.size(); ++i) live[i] = w[i] >= d.skip * w[0] || d.skip == 0;
    r.weights.push_back(w);
    r.live.push_back(frozen != nullptr ? frozen->live[t] : live);
  }
  return r;
}

}  // namespace reference
