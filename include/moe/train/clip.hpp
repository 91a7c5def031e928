#pragma once
/// @file
/// Gradients to zero, their global norm, and clipping by it.

#include <cmath>

#include "moe/core/context.hpp"
#include "moe/core/convert.hpp"
#include "moe/core/each_row.hpp"
#include "moe/core/parameter.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

inline constexpr Index norm_chunk = 4096;  // fixed, so that sums do not depend on threads

template <class T>
struct SquareChunk {
  const T* data;
  Index size;
  double* parts;

  KOKKOS_FUNCTION static double square(RouterReal<T> x) { return double(x) * double(x); }
  KOKKOS_FUNCTION void operator()(Index chunk) const {
    constexpr int width = 16, block = 4 * width;  // sums side by side, for loops to run by vectors
    const Index first = chunk * norm_chunk, next = first + norm_chunk, last = next < size ? next : size;
    double sums[width] = {}, sum = 0;
    Index i = first;
    for (; i + block <= last; i += block) {
      RouterReal<T> x[block];
      convert<block>(data + i, x);
      for (int j = 0; j < width; ++j)
        sums[j] += square(x[j]) + square(x[j + width]) + square(x[j + 2 * width]) + square(x[j + 3 * width]);
    }
    for (; i < last; ++i) sum += square(data[i]);
    for (int j = 0; j < width; ++j) sum += sums[j];
    parts[chunk] = sum;
  }
};

/// SquareChunk where a warp takes a chunk: neighbours read neighbours.
template <class T>
struct SquareChunkByTeam {
  const T* data;
  Index size;
  double* parts;
  KOKKOS_FUNCTION void operator()(Index chunk, const Team& team) const {
    const Index first = chunk * norm_chunk, left = size - first;
    double sum = 0;
    team.each(left < norm_chunk ? left : norm_chunk,
              [&](Index i) { sum += SquareChunk<T>::square(RouterReal<T>(data[first + i])); });
    sum = team.total_of(sum);
    team.single([&] { parts[chunk] = sum; });
  }
};

struct AddParts {
  const double* parts;
  Index size;
  double* total;
  KOKKOS_FUNCTION void operator()(Index, const Team& team) const {
    double sum = 0;
    team.each(size, [&](Index i) { sum += parts[i]; });
    sum = team.total_of(sum);
    team.single([&] { *total += sum; });
  }
};

template <class T>
struct ScaleElement {
  T* data;
  double factor;
  KOKKOS_FUNCTION void operator()(Index i) const { data[i] = T(double(data[i]) * factor); }
};

/// What gradients with squares of this sum are multiplied by, in its place. 0 where it is not finite, which is noted.
struct ClipFactor {
  double* number;
  double max_norm;
  int* flag;
  KOKKOS_FUNCTION void operator()(Index) const {
    const double norm = Kokkos::sqrt(*number);
    if (!Kokkos::isfinite(norm)) Kokkos::atomic_or(flag, int(fault_gradient));
    *number = !Kokkos::isfinite(norm) ? 0.0 : max_norm <= 0 || norm <= max_norm ? 1.0 : max_norm / norm;
  }
};

template <class T>
struct ScaleByNumber {
  T* data;
  const double* factor;
  KOKKOS_FUNCTION void operator()(Index i) const {
    const double by = *factor;
    if (by == 0) {
      data[i] = T(0);  // also where it was NaN
    } else if (by != 1) {
      data[i] = T(double(data[i]) * by);
    }
  }
};

/// The sum of the squares of all gradients, on the device.
template <class Space, class Gradients>
Vector<double, Space> sum_of_squares(Context<Space>& ctx, typename Context<Space>::Scratch& scratch,
                                     Gradients& gradients) {
  auto total = scratch.template vector<double>(1);
  fill(ctx.space, total, 0.0);
  auto square = [&](std::string_view, auto& view) {
    using T = typename std::decay_t<decltype(view)>::value_type;
    typename Context<Space>::Scratch inner(ctx);
    const Index size = view.size(), chunks = (size + norm_chunk - 1) / norm_chunk;
    auto parts = inner.template vector<double>(chunks);
    if constexpr (device_path<Space>) {
      each_row(ctx.space, "moe::clip::square", chunks, SquareChunkByTeam<T>{view.data(), size, parts.data()});
    } else {
      Kokkos::parallel_for("moe::clip::square", detail::Range<Space>(ctx.space, 0, chunks),
                           SquareChunk<T>{view.data(), size, parts.data()});
    }
    each_row(ctx.space, "moe::clip::add", 1, AddParts{parts.data(), chunks, total.data()});
  };
  Gradients::visit(square, gradients);
  return total;
}

}  // namespace detail

/// Sets every array of a struct of gradients to zero.
template <class Space, class Gradients>
void zero(Context<Space>& ctx, Gradients& gradients) {
  auto clear = [&](std::string_view, auto& view) {
    detail::fill(ctx.space, view, typename std::decay_t<decltype(view)>::value_type(0));
  };
  Gradients::visit(clear, gradients);
}

/// The global norm of gradients: infinity or NaN where they are not finite. Waits for the device.
template <class Space, class Gradients>
double gradient_norm(Context<Space>& ctx, Gradients& gradients) {
  detail::refuse_capture(ctx.space, "moe::gradient_norm, which returns a number to the host,",
                         "Clip by clip_by_global_norm, which leaves the norm on the device.");
  typename Context<Space>::Scratch scratch(ctx);
  const auto total = detail::sum_of_squares(ctx, scratch, gradients);
  double squares = 0;
  Kokkos::deep_copy(ctx.space, Kokkos::View<double, Kokkos::HostSpace, Kokkos::MemoryUnmanaged>(&squares),
                    Kokkos::View<double, typename Space::memory_space, Kokkos::MemoryUnmanaged>(total.data()));
  ctx.space.fence("moe::gradient_norm");
  return std::sqrt(squares);
}

/// What gradients of this norm are multiplied by to have a norm of at most max_norm (max_norm <= 0: 1). Optimisers
/// take it as their `gradient_scale`, which spares the pass of clip_gradient_norm.
inline double clip_factor(double norm, double max_norm) {
  return max_norm <= 0 || norm <= max_norm ? 1.0 : max_norm / norm;
}

/// Scales gradients so that their global norm is at most max_norm, and returns the norm before (max_norm <= 0: only
/// measures). Throws DataError, with nothing changed, where the norm is not finite. Waits for the device.
template <class Space, class Gradients>
double clip_gradient_norm(Context<Space>& ctx, Gradients& gradients, double max_norm) {
  const double norm = gradient_norm(ctx, gradients), factor = clip_factor(norm, max_norm);
  detail::require<DataError>(std::isfinite(norm), "moe::clip_gradient_norm: the gradients' norm is ", norm,
                             ". Skip this step, lower the learning rate, or look for NaN in the input.");
  if (factor == 1) return norm;
  auto scale = [&](std::string_view, auto& view) {
    using T = typename std::decay_t<decltype(view)>::value_type;
    Kokkos::parallel_for("moe::clip::scale", detail::Range<Space>(ctx.space, 0, Index(view.size())),
                         detail::ScaleElement<T>{view.data(), factor});
  };
  Gradients::visit(scale, gradients);
  return norm;
}

/// Scales gradients so that their global norm is at most max_norm (max_norm <= 0: leaves them). The norm stays on the
/// device: nothing waits, and a graph can hold it, with this max_norm. Where the norm is not finite gradients become 0,
/// so that a step moves by momentum and weight decay alone, and `ctx.check()` throws (on hosts the next forward pass).
template <class Space, class Gradients>
void clip_by_global_norm(Context<Space>& ctx, Gradients& gradients, double max_norm) {
  typename Context<Space>::Scratch scratch(ctx);
  const auto number = detail::sum_of_squares(ctx, scratch, gradients);
  Kokkos::parallel_for("moe::clip::factor", detail::Range<Space>(ctx.space, 0, 1),
                       detail::ClipFactor{number.data(), max_norm, ctx.flag().data()});
  auto scale = [&](std::string_view, auto& view) {
    using T = typename std::decay_t<decltype(view)>::value_type;
    Kokkos::parallel_for("moe::clip::scale", detail::Range<Space>(ctx.space, 0, Index(view.size())),
                         detail::ScaleByNumber<T>{view.data(), number.data()});
  };
  Gradients::visit(scale, gradients);
}

MOE_NAMESPACE_END
