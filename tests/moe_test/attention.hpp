#pragma once
/// @file
/// What tests of attention layers share: sequences, attention written out, the cache against all at once.

#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace moe_test {

/// Which tokens of which sequences see each other.
struct SequenceSetting {
  std::vector<Index> offsets;
  std::vector<std::uint8_t> mask = {};
  std::vector<Index> positions = {};

  bool live(Index t) const { return mask.empty() || mask[std::size_t(t)] != 0; }
};

template <class T, class Space = Kokkos::DefaultExecutionSpace>
moe::Batch<T, Space> batch_of(const std::type_identity_t<moe::Matrix<T, Space>>& x, const SequenceSetting& setting) {
  moe::Batch<T, Space> batch;
  batch.x = x;
  batch.sequence_offsets = indices<Space>(setting.offsets);
  if (!setting.positions.empty()) batch.positions = indices<Space>(setting.positions);
  if (!setting.mask.empty()) {
    moe::Vector<std::uint8_t, Space> mask("mask", setting.mask.size());
    const auto copy = Kokkos::create_mirror_view(mask);
    std::copy(setting.mask.begin(), setting.mask.end(), copy.data());
    Kokkos::deep_copy(mask, copy);
    batch.mask = mask;
  }
  return batch;
}

/// The largest difference, NaN if there is one.
template <class View>
double worst(const View& result, const std::vector<double>& values) {
  const auto copy = host(result);
  REQUIRE(copy.size() == values.size());
  double most = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(double(copy.data()[i]) - values[i]);
    most = error <= most ? most : error;
  }
  return most;
}

/// Rows of numbers in double.
struct Rows {
  Index width;
  std::vector<double> data;
  Rows(Index rows, Index columns) : width(columns), data(std::size_t(rows * columns)) {}
  template <class View>
  explicit Rows(const View& view) : Rows(Index(view.extent(0)), Index(view.extent(1))) {
    const auto copy = host(view);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = double(copy.data()[i]);
  }
  double& operator()(Index i, Index j) { return data[std::size_t(i * width + j)]; }
  double operator()(Index i, Index j) const { return data[std::size_t(i * width + j)]; }
};

/// to(t, first + i) = sum over h of weight[i * hidden + h] * x(t, h), for `count` rows of the weight.
inline void project(const Rows& x, Index t, const double* weight, Index count, Rows& to, Index first) {
  for (Index i = 0; i < count; ++i) {
    double sum = 0;
    for (Index h = 0; h < x.width; ++h) sum += weight[i * x.width + h] * x(t, h);
    to(t, first + i) = sum;
  }
}

template <class View>
std::vector<double> doubles(const View& view) {
  const auto copy = host(view);
  return std::vector<double>(copy.data(), copy.data() + copy.size());
}

/// Causal attention with rotary positions, one token, head and key after another; key_head(h) is the key head that
/// query head h sees.
template <class KeyHead>
Rows attend_by_hand(const SequenceSetting& setting, Index width, double rotary_base, Rows q, Rows k, const Rows& v,
                    const KeyHead& key_head) {
  const Index heads = q.width / width;
  Rows out(Index(q.data.size()) / q.width, q.width);
  for (std::size_t s = 0; s + 1 < setting.offsets.size(); ++s) {
    const Index begin = setting.offsets[s], end = setting.offsets[s + 1];
    for (Index t = begin; t < end && rotary_base > 0; ++t) {
      const double position = setting.positions.empty() ? double(t - begin) : double(setting.positions[std::size_t(t)]);
      for (Rows* rows : {&q, &k}) {
        for (Index first = 0; first < rows->width; first += width) {
          for (Index i = 0; i < width / 2; ++i) {
            const double angle = position * std::pow(rotary_base, -2.0 * double(i) / double(width));
            double &a = (*rows)(t, first + i), &b = (*rows)(t, first + i + width / 2);
            const double turned = a * std::cos(angle) - b * std::sin(angle);
            b = a * std::sin(angle) + b * std::cos(angle);
            a = turned;
          }
        }
      }
    }
    for (Index t = begin; t < end; ++t) {
      for (Index h = 0; h < heads && setting.live(t); ++h) {
        const Index from = key_head(h) * width;
        double total = 0;
        for (Index j = begin; j <= t; ++j) {
          if (!setting.live(j)) continue;
          double score = 0;
          for (Index d = 0; d < width; ++d) score += q(t, h * width + d) * k(j, from + d);
          const double p = std::exp(score / std::sqrt(double(width)));
          total += p;
          for (Index d = 0; d < width; ++d) out(t, h * width + d) += p * v(j, from + d);
        }
        for (Index d = 0; d < width; ++d) out(t, h * width + d) /= total;
      }
    }
  }
  return out;
}

/// The numbers of the k largest of `keys`, the first of equals first.
inline std::vector<Index> largest(const std::vector<double>& keys, Index k) {
  std::vector<Index> order(keys.size());
  for (std::size_t e = 0; e < order.size(); ++e) order[e] = Index(e);
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return keys[std::size_t(a)] > keys[std::size_t(b)]; });
  order.resize(std::size_t(k));
  return order;
}

/// Outputs and gradients in 16 bits are those in f32 with the same numbers, roughly: the relative errors' norms.
template <class Single, class Half>
void check_half(const Single& single, const Half& half) {
  using T = typename Half::Scalar;
  using Space = typename Half::Space;
  const auto round = [](std::string_view, const auto& exact, const auto& rounded) {
    const auto values = host(exact);
    const auto to = host(rounded);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values.data()[i] = float(T(values.data()[i]));
      to.data()[i] = T(values.data()[i]);
    }
    Kokkos::deep_copy(exact, values);
    Kokkos::deep_copy(rounded, to);
  };
  const auto router = [](std::string_view name) { return name.find("router") != std::string_view::npos; };
  Single::Parameters::visit(
      [&](std::string_view name, const auto& exact, const auto& rounded) {
        if constexpr (std::is_same_v<decltype(exact), decltype(rounded)>) {
          REQUIRE(router(name));  // in f32 in both
          Kokkos::deep_copy(rounded, exact);
        } else {
          round(name, exact, rounded);
        }
      },
      single.parameters, half.parameters);
  const SequenceSetting setting{{0, 50, 81}};
  const Index hidden = single.config().hidden;
  const auto x = random<moe::Matrix<float, Space>>(1, 81, hidden),
             dy = random<moe::Matrix<float, Space>>(2, 81, hidden);
  const moe::Matrix<T, Space> half_x("x", 81, hidden), half_dy("dy", 81, hidden);
  round("x", x, half_x);
  round("dy", dy, half_dy);
  moe::Context<Space> ctx;
  typename Single::Tape tape;
  typename Half::Tape half_tape;
  auto gradients = single.gradients();
  auto half_gradients = half.gradients();
  single.forward(ctx, batch_of<float, Space>(x, setting), tape);
  half.forward(ctx, batch_of<T, Space>(half_x, setting), half_tape);
  single.backward(ctx, dy, tape, gradients);
  half.backward(ctx, half_dy, half_tape, half_gradients);
  const auto close = [](std::string_view name, const auto& exact, const auto& rounded) {
    const auto a = doubles(exact);
    const auto b = host(rounded);
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      error += (double(float(b.data()[i])) - a[i]) * (double(float(b.data()[i])) - a[i]);
      norm += a[i] * a[i];
    }
    INFO(std::string(name));
    CHECK(std::sqrt(error / norm) < 0.03);
  };
  close("y", tape.y, half_tape.y);
  close("dx", tape.dx, half_tape.dx);
  Single::Parameters::visit(close, gradients, half_gradients);
}

/// Token by token behind a cache, a layer gives what it gives at once: two sequences, the second starts later.
template <class Layer>
void check_cache(const Layer& layer) {
  using T = typename Layer::Scalar;
  using Space = typename Layer::Space;
  moe::Context<Space> ctx;
  const Index hidden = layer.config().hidden;
  const Index lengths[] = {37, 21};
  const SequenceSetting setting{{0, 37, 58}};
  const auto x = random<moe::Matrix<T, Space>>(3, 58, hidden);
  const auto at_once = host(clone(layer.forward(ctx, batch_of<T, Space>(x, setting))));
  auto cache = layer.cache(2, 40);
  double most = 0;
  for (Index step = 0; step < lengths[0];) {
    const Index count = step == 0 ? 9 : 1;  // a prompt, then one by one
    std::vector<Index> rows, offsets{0};
    for (Index s = 0; s < 2; ++s) {
      for (Index i = step; i < step + count; ++i) {
        const Index own = i - (lengths[0] - lengths[s]);
        if (own >= 0) rows.push_back(setting.offsets[std::size_t(s)] + own);
      }
      offsets.push_back(Index(rows.size()));
    }
    moe::Matrix<T, Space> part("part", rows.size(), hidden);
    for (std::size_t i = 0; i < rows.size(); ++i)
      Kokkos::deep_copy(Kokkos::subview(part, i, Kokkos::ALL), Kokkos::subview(x, rows[i], Kokkos::ALL));
    const auto y = host(clone(layer.forward(ctx, batch_of<T, Space>(part, {offsets}), cache)));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (Index h = 0; h < hidden; ++h) most = std::max(most, std::abs(double(y(i, h)) - double(at_once(rows[i], h))));
    }
    step += count;
  }
  CHECK(most < 20 * tolerance<T>(hidden));
  CHECK(host(cache.length)(0) == 37);
  CHECK(host(cache.length)(1) == 21);
}

}  // namespace moe_test
