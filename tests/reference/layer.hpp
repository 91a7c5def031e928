#pragma once
/// @file
/// A mixture-of-experts layer as the papers write it, one token at a time, in double. It judges the library and shares
/// nothing with it.
///
/// T tokens, H hidden, I intermediate, E experts, K choices a token. Padding is in no count, no capacity and no loss.

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

namespace reference {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;
using Lists = std::vector<std::vector<int>>;

enum class Scoring { softmax, sigmoid };
enum class Selection { top_k, expert_choice };
enum class GroupScore { max, best_two };
enum class Rounding { ceiling, floor };
enum class Priority { position, choice, score };
enum class Activation { relu, gelu, silu, swiglu, geglu };
enum class LossKind { switch_transformer, gshard, expert, sequence, z };

/// The tokens that compete or are averaged: all, those of a sequence, or `size` in a row.
struct Span {
  enum Kind { batch, sequence, tokens } kind = batch;
  int size = 0;
};

struct Loss {
  LossKind kind;
  double coefficient;
  bool all_choices = false;  // Switch's loss as transformers computes it for Mixtral
  Span span = {};
};

/// What a layer does.
struct Description {
  Scoring scoring = Scoring::softmax;
  Selection selection = Selection::top_k;
  int k = 1;                        // choices a token
  double choice_factor = 2;         // expert choice: mean number of experts a token
  Span choice_span;                 // expert choice: the tokens that compete
  int groups = 0, kept_groups = 0;  // group limit; 0: none
  GroupScore group_score = GroupScore::max;
  bool normalize = false;
  double epsilon = 0, scale = 1;

  bool drops = false;
  double capacity_factor = 1;
  Rounding rounding = Rounding::ceiling;
  int minimum = 1;
  Span capacity_span;
  Priority priority = Priority::position;
  bool renormalize = false;

  Activation activation = Activation::swiglu;
  Activation shared_activation = Activation::swiglu;
  std::vector<Loss> losses;
};

/// gate where the activation is gated, biases where there are some.
struct FFN {
  Matrix gate, up, down;  // (I, H), (I, H), (H, I)
  Vector gate_bias, up_bias, down_bias;
};

struct Parameters {
  Matrix router;        // (E, H)
  Vector balance_bias;  // (E) or empty
  std::vector<FFN> experts, shared;
  Vector shared_gate;  // (H) or empty
};

struct Batch {
  Matrix x;                  // (T, H)
  std::vector<int> offsets;  // first token of each sequence, then T
  std::vector<bool> live;    // false: padding
};

struct Result {
  Matrix logits, scores;                      // (T, E)
  Lists chosen;                               // experts of each token, in choice order
  std::vector<std::vector<double>> weights;   // of the choices
  Lists kept;                                 // 1, or 0 where dropped
  std::vector<std::vector<double>> combined;  // weights after drops; 0 where dropped
  Matrix y;                                   // (T, H)
  std::vector<double> losses;                 // coefficients included
};

/// The live tokens of each span.
inline Lists spans(const Span& span, const Batch& batch) {
  const int tokens = int(batch.x.rows());
  std::vector<int> bounds{0, tokens};
  if (span.kind == Span::sequence) bounds = batch.offsets;
  if (span.kind == Span::tokens) {
    bounds = {0};
    while (bounds.back() < tokens) bounds.push_back(bounds.back() + span.size);
  }
  Lists result(bounds.size() - 1);
  for (std::size_t s = 0; s < result.size(); ++s) {
    for (int t = bounds[s]; t < bounds[s + 1]; ++t) {
      if (batch.live[t]) result[s].push_back(t);
    }
  }
  return result;
}

/// Places of the `count` largest values, largest first, of equal ones the first.
inline std::vector<int> largest(const Vector& values, int count) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values(a) > values(b); });
  order.resize(count);
  return order;
}

/// softmax: s_e = exp(z_e) / sum_j exp(z_j); sigmoid: s_e = 1 / (1 + exp(-z_e)) (DeepSeek-V3, eq. 15).
inline Vector scores_of(const Description& d, const Vector& z) {
  if (d.scoring == Scoring::sigmoid) return 1 / (1 + (-z.array()).exp());
  const Eigen::ArrayXd e = (z.array() - z.maxCoeff()).exp();
  return e / e.sum();
}

/// What choices compare: s + b (DeepSeek-V3, eq. 16), and -infinity outside the best groups, where a group counts with
/// its best key (DeepSeek-V2, section 2.2.2) or the sum of its two best (DeepSeek-V3, section 2.1.2).
inline Vector keys_of(const Description& d, const Parameters& p, const Vector& s) {
  Vector key = s;
  if (p.balance_bias.size() > 0) key += p.balance_bias;
  if (d.groups == 0) return key;
  const int size = int(key.size()) / d.groups;
  Vector group_scores(d.groups);
  for (int g = 0; g < d.groups; ++g) {
    Vector group = key.segment(g * size, size);
    std::sort(group.begin(), group.end(), std::greater<>());
    group_scores(g) = d.group_score == GroupScore::max ? group(0) : group(0) + group(1);
  }
  Vector open = Vector::Constant(key.size(), -std::numeric_limits<double>::infinity());
  for (int g : largest(group_scores, d.kept_groups)) open.segment(g * size, size) = key.segment(g * size, size);
  return open;
}

/// Top-k: each token its K best experts. Expert choice (Zhou et al. 2022): of n tokens each expert takes its
/// factor * n / E best, at least one.
inline Lists choose(const Description& d, const Parameters& p, const Batch& batch, const Matrix& scores) {
  const int experts = int(scores.cols());
  Matrix keys(scores.rows(), experts);
  for (int t = 0; t < scores.rows(); ++t) keys.row(t) = keys_of(d, p, scores.row(t));
  Lists chosen(scores.rows());
  if (d.selection == Selection::top_k) {
    for (int t = 0; t < scores.rows(); ++t) {
      if (batch.live[t]) chosen[t] = largest(keys.row(t), d.k);
    }
    return chosen;
  }
  for (const auto& tokens : spans(d.choice_span, batch)) {
    const int n = int(tokens.size());
    const int taken = std::min(n, std::max(1, int(std::floor(d.choice_factor * n / experts))));
    for (int e = 0; e < experts; ++e) {
      for (int i : largest(keys.col(e)(tokens), taken)) chosen[tokens[i]].push_back(e);
    }
  }
  return chosen;
}

/// Which choices fit: in each span of n tokens an expert takes the first C = factor * K * n / E of its queue.
inline Lists keep(const Description& d, const Batch& batch, int experts, const Result& r) {
  Lists kept;
  for (const auto& list : r.chosen) kept.emplace_back(list.size(), 1);
  if (!d.drops) return kept;
  struct Entry {
    int token, choice;
  };
  for (const auto& tokens : spans(d.capacity_span, batch)) {
    const double exact = d.capacity_factor * d.k * double(tokens.size()) / experts;
    const double whole = d.rounding == Rounding::ceiling ? std::ceil(exact) : std::floor(exact);
    const int capacity = std::max(d.minimum, int(whole));
    std::vector<Entry> queue;  // Switch: in token order
    for (int t : tokens) {
      for (int i = 0; i < int(r.chosen[t].size()); ++i) queue.push_back({t, i});
    }
    if (d.priority == Priority::choice) {  // GShard: first choices first
      std::stable_sort(queue.begin(), queue.end(), [](Entry a, Entry b) { return a.choice < b.choice; });
    } else if (d.priority == Priority::score) {  // the largest weights first
      std::stable_sort(queue.begin(), queue.end(),
                       [&](Entry a, Entry b) { return r.weights[a.token][a.choice] > r.weights[b.token][b.choice]; });
    }
    std::vector<int> load(experts, 0);
    for (const Entry& a : queue) kept[a.token][a.choice] = load[r.chosen[a.token][a.choice]]++ < capacity;
  }
  return kept;
}

/// ReLU; GELU: x Phi(x) (Hendrycks and Gimpel 2016); SiLU: x sigmoid(x).
inline double activate(Activation activation, double x) {
  if (activation == Activation::relu) return std::max(x, 0.0);
  if (activation == Activation::gelu || activation == Activation::geglu)
    return x * (1 + std::erf(x / std::sqrt(2))) / 2;
  return x / (1 + std::exp(-x));
}

inline Vector affine(const Matrix& weight, const Vector& bias, const Vector& x) {
  return bias.size() > 0 ? Vector(weight * x + bias) : Vector(weight * x);
}

/// W_down f(W_up x), or with a gate W_down (f(W_gate x) * W_up x) (Shazeer 2020).
inline Vector ffn(Activation activation, const FFN& f, const Vector& x) {
  const auto act = [&](double v) { return activate(activation, v); };
  Vector hidden = affine(f.up, f.up_bias, x);
  if (f.gate.size() > 0) {
    hidden = hidden.cwiseProduct(affine(f.gate, f.gate_bias, x).unaryExpr(act));
  } else {
    hidden = hidden.unaryExpr(act).eval();
  }
  return affine(f.down, f.down_bias, hidden);
}

inline double loss_of(const Description& d, const Loss& loss, const Batch& batch, const Result& r) {
  const int experts = int(r.scores.cols());
  if (loss.kind == LossKind::z) {  // mean of (log sum_e exp z_e)^2 (ST-MoE, eq. 5)
    const auto live = spans({}, batch)[0];
    double sum = 0;
    for (int t : live) sum += std::pow(std::log(r.logits.row(t).array().exp().sum()), 2);
    return loss.coefficient * sum / double(live.size());
  }
  const bool by_sequence = loss.kind == LossKind::sequence;
  const bool all = loss.all_choices || loss.kind == LossKind::expert || by_sequence;
  const auto groups = spans(by_sequence ? Span{Span::sequence} : loss.span, batch);
  double sum = 0;
  for (const auto& tokens : groups) {
    Vector count = Vector::Zero(experts), P = Vector::Zero(experts);
    for (int t : tokens) {
      const Vector s = r.scores.row(t);
      P += (by_sequence ? Vector(s / s.sum()) : s) / double(tokens.size());
      for (std::size_t i = 0; i < (all ? r.chosen[t].size() : 1); ++i) count(r.chosen[t][i]) += 1;
    }
    const Vector share = count / std::max(1.0, double(tokens.size()));
    switch (loss.kind) {
      case LossKind::switch_transformer:  // E sum_e f_e P_e (Switch, eq. 4)
        sum += experts * share.dot(P);
        break;
      case LossKind::gshard:  // 1/E sum_e (c_e / S) m_e (GShard, algorithm 1)
        sum += share.dot(P) / experts;
        break;
      default:  // sum_e f_e P_e, f_e = E / (K T) count_e (DeepSeekMoE, eq. 12 to 14; DeepSeek-V3, eq. 17 to 20)
        sum += (share * experts / d.k).dot(P);
    }
  }
  return loss.coefficient * sum / double(groups.size());
}

/// The layer. `frozen` holds choices and drops at those of another result: gradients treat them as constants.
inline Result forward(const Description& d, const Parameters& p, const Batch& batch, const Result* frozen = nullptr) {
  const int tokens = int(batch.x.rows()), experts = int(p.router.rows());
  Result r;
  r.logits = r.scores = Matrix::Zero(tokens, experts);
  for (int t = 0; t < tokens; ++t) {
    if (!batch.live[t]) continue;
    r.logits.row(t) = p.router * batch.x.row(t).transpose();
    r.scores.row(t) = scores_of(d, r.logits.row(t));
  }
  r.chosen = frozen != nullptr ? frozen->chosen : choose(d, p, batch, r.scores);

  r.weights.resize(tokens);
  for (int t = 0; t < tokens; ++t) {  // w = scale * s / (sum s + epsilon), or scale * s
    double sum = 0;
    for (int e : r.chosen[t]) sum += r.scores(t, e);
    for (int e : r.chosen[t]) r.weights[t].push_back(d.scale * r.scores(t, e) / (d.normalize ? sum + d.epsilon : 1));
  }
  r.kept = frozen != nullptr ? frozen->kept : keep(d, batch, experts, r);

  r.combined = r.weights;
  r.y = Matrix::Zero(tokens, batch.x.cols());
  for (int t = 0; t < tokens; ++t) {
    if (!batch.live[t]) continue;
    const Vector x = batch.x.row(t);
    double all = 0, left = 0;
    for (std::size_t i = 0; i < r.chosen[t].size(); ++i) {
      all += r.weights[t][i];
      left += r.kept[t][i] * r.weights[t][i];
    }
    for (std::size_t i = 0; i < r.chosen[t].size(); ++i) {
      double& w = r.combined[t][i];
      w *= r.kept[t][i] * (d.renormalize && left > 0 ? all / left : 1);
      if (r.kept[t][i]) r.y.row(t) += w * ffn(d.activation, p.experts[r.chosen[t][i]], x);
    }
    // Shared experts, times sigmoid(w . x) where there is a gate (Qwen2-MoE).
    const double gate = p.shared_gate.size() > 0 ? 1 / (1 + std::exp(-p.shared_gate.dot(x))) : 1;
    for (const FFN& shared : p.shared) r.y.row(t) += gate * ffn(d.shared_activation, shared, x);
  }
  for (const Loss& loss : d.losses) r.losses.push_back(loss_of(d, loss, batch, r));
  return r;
}

}  // namespace reference
