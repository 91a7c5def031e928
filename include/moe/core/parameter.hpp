#pragma once
/// @file
/// Parameters: each part keeps its arrays in one plain struct, and the same struct holds gradients, optimiser
/// moments and the like. `visit` walks any number of such structs side by side.
///
///     struct Parameters {
///       Tensor3<T, Space> weight;  // (E, out, in)
///       template <class F, class... Same>
///       static void visit(F&& f, Same&... same) { f("weight", same.weight...); }
///     };

#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "moe/core/random.hpp"

MOE_NAMESPACE_BEGIN

/// A struct of arrays with nothing in it, for parts without parameters.
struct NoParameters {
  template <class F, class... Same>
  static void visit(F&&, Same&...) {}
};

/// One array of a layer, as `Layer::visit` hands it over.
struct ParameterInfo {
  std::string name;   ///< stable, dotted, as in published checkpoints: "experts.down_proj"
  bool decay = true;  ///< matrices decay; biases, norms and other vectors do not
};

/// What an array's name and rank say: matrices decay; vectors, biases and norms do not.
template <class View>
ParameterInfo parameter_info(std::string_view name, const View&) {
  const bool bias = name.size() >= 4 && name.substr(name.size() - 4) == "bias";
  return {std::string(name), View::rank() >= 2 && !bias && name.find("norm") == std::string_view::npos};
}

namespace detail {

/// Prefixes names on the way down the tree of parts.
template <class F>
struct Prefixed {
  F& f;
  std::string_view prefix;
  template <class View, class... Views>
  void operator()(std::string_view name, View& view, Views&... views) const {
    f(std::string(prefix) + std::string(name), view, views...);
  }
};
template <class F>
Prefixed(F&, const char*) -> Prefixed<F>;

/// A copy of the struct's shape with fresh arrays of zeros: gradients, moments.
template <class Parameters>
Parameters zeros_like(const Parameters& parameters) {
  Parameters result = parameters;  // structs may hold lists of parts: take their lengths
  auto allocate = [](std::string_view, const auto& from, auto& to) {
    if (!from.is_allocated()) return;
    to = allocate_zeros<std::decay_t<decltype(to)>>("moe::zeros_like", from.layout());
  };
  Parameters::visit(allocate, parameters, result);
  return result;
}

/// FNV-1a: gives each parameter name its own stream of random numbers.
constexpr std::uint32_t hash(std::string_view text) {
  std::uint32_t h = 2166136261u;
  for (char c : text) h = (h ^ std::uint8_t(c)) * 16777619u;
  return h;
}

template <class T>
struct NormalFill {
  T* data;
  RandomKey key;
  double deviation;
  KOKKOS_FUNCTION void operator()(Index i) const {
    data[i] = T(deviation * random_normal<double>(key, std::uint64_t(i), 0));
  }
};

}  // namespace detail

/// Fills an array with draws from N(0, deviation^2): element i depends on the seed and i alone.
template <class Space, class View>
void fill_normal(const Space& space, const View& view, Seed seed, double deviation = 1, std::uint32_t stream = 0) {
  using T = typename View::non_const_value_type;
  const RandomKey key{seed.value, 0, stream, Purpose::initialise};
  Kokkos::parallel_for("moe::fill_normal", detail::Range<Space>(space, 0, Index(view.size())),
                       detail::NormalFill<T>{view.data(), key, deviation});
}

namespace detail {

/// gradient(i) += the sum of rows(:, i), in order: gradients of vectors.
template <class Sum, class T, class Space>
struct SumRows {
  Matrix<const Sum, Space> rows;
  Vector<T, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index i) const {
    Sum sum = 0;
    for (Index r = 0; r < Index(rows.extent(0)); ++r) sum += rows(r, i);
    gradient(i) = T(Sum(gradient(i)) + sum);
  }
};

/// Matrices are drawn from N(0, scale^2 / fan_in), vectors start at zero; each name has its own stream.
template <class Space, class View>
void initialise(const Space& space, std::string_view name, const View& view, Seed seed, double scale) {
  if (!view.is_allocated() || view.size() == 0) return;
  using T = typename View::non_const_value_type;
  if constexpr (View::rank() == 1) {
    fill(space, view, T(0));
  } else {
    fill_normal(space, view, seed, scale / std::sqrt(double(view.extent(View::rank() - 1))), hash(name));
  }
}

}  // namespace detail

MOE_NAMESPACE_END
