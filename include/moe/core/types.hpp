#pragma once
/// @file
/// Views, scalars and the two type policies `On` and `Precision`.
///
/// The letters, declared once: T tokens, H hidden, I intermediate, E experts, K choices a token, G groups, R rows
/// after dispatch, C capacity, S sequences, A assignments (T*K where every token has K choices).

#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>
#include <type_traits>

#if defined(__NVCC__) && defined(MDSPAN_IMPL_USE_ATTRIBUTE_NO_UNIQUE_ADDRESS) && \
    !defined(MDSPAN_IMPL_USE_FAKE_ATTRIBUTE_NO_UNIQUE_ADDRESS) &&                \
    (__CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 9))
// Views would be read at wrong offsets in kernels (kokkos/mdspan#434).
#  error \
      "moe: this nvcc mislays members that this Kokkos marks [[no_unique_address]]; take Kokkos 5.0 or newer, or ours"
#endif

#include "moe/core/error.hpp"
#include "moe/core/kind.hpp"
#include "moe/core/large_pages.hpp"
#include "moe/core/team.hpp"

MOE_NAMESPACE_BEGIN

/// An expert's number; `no_expert` marks a choice that was not made.
using ExpertId = std::int32_t;
inline constexpr ExpertId no_expert = -1;

/// Row-major arrays of rank 1 to 3 in the memory of `Space`. `Kokkos::View<T**>` is column-major on CUDA: use these.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
using Vector = Kokkos::View<T*, Kokkos::LayoutRight, typename Space::memory_space>;
template <class T, class Space = Kokkos::DefaultExecutionSpace>
using Matrix = Kokkos::View<T**, Kokkos::LayoutRight, typename Space::memory_space>;
template <class T, class Space = Kokkos::DefaultExecutionSpace>
using Tensor3 = Kokkos::View<T***, Kokkos::LayoutRight, typename Space::memory_space>;

/// Is the memory of `Space` the host's own?
template <class Space>
inline constexpr bool on_host = Kokkos::SpaceAccessibility<Kokkos::HostSpace, typename Space::memory_space>::accessible;

/// Layer policy: the execution space a layer runs on.
template <class ExecutionSpace>
struct On {
  using policy = kind::space;
  using space = ExecutionSpace;
};

/// Layer policy: the type parameters and activations are stored in, and the type sums are kept in.
template <class Storage, class Accumulate = Storage>
struct Precision {
  using policy = kind::precision;
  using storage = Storage;
  using accumulate = Accumulate;
};

/// The router's arithmetic: f32, or f64 where the tokens are f64 (a bf16 router changes which experts are chosen).
template <class T>
using RouterReal = std::conditional_t<std::is_same_v<T, double>, double, float>;

namespace detail {

/// Does `Space` take the code paths of devices? Hosts do where MOE_DEVICE_PATHS is defined: their tests then run the
/// devices' kernels.
#if defined(MOE_DEVICE_PATHS)
template <class Space>
inline constexpr bool device_path = true;
#else
template <class Space>
inline constexpr bool device_path = !on_host<Space>;
#endif

template <class View>
KOKKOS_FUNCTION auto row_of(const View& matrix, Index i) {
  return Row<typename View::value_type>{matrix.data() + i * Index(matrix.extent(1)), Index(matrix.extent(1))};
}

/// Gives `view` these extents, allocating only when they differ: a second call of a shape allocates nothing.
template <class View, class... Extents>
void shape(View& view, const char* label, Extents... extents) {
  const Index wanted[] = {Index(extents)...};
  bool same = view.is_allocated();
  for (unsigned r = 0; same && r < sizeof...(Extents); ++r) same = Index(view.extent(r)) == wanted[r];
  if (!same) view = allocate<View>(label, std::size_t(extents)...);
}

/// A flat view of all of an array's elements.
template <class View>
auto flat(const View& view) {
  using T = typename View::value_type;
  return Kokkos::View<T*, Kokkos::LayoutRight, typename View::memory_space, Kokkos::MemoryUnmanaged>(view.data(),
                                                                                                     view.size());
}

/// Makes functors kernel arguments on devices. By default Kokkos puts those of 512 bytes and more into constant memory,
/// and the host waits until the launch before them has left it.
using LightWeight = Kokkos::Experimental::WorkItemProperty::HintLightWeight_t;

/// The range of every launch. Positions have 64 bits on devices, too: Kokkos counts in 32 on CUDA, and a layer of
/// experts has more weights than that.
template <class Space>
using Range = std::conditional_t<on_host<Space>, Kokkos::RangePolicy<Space>,
                                 Kokkos::RangePolicy<Space, Kokkos::IndexType<Index>, LightWeight>>;

/// Teams of threads, launched alike.
template <class Space>
using Teams = std::conditional_t<on_host<Space>, Kokkos::TeamPolicy<Space>, Kokkos::TeamPolicy<Space, LightWeight>>;

/// Is a functor small enough to be an argument? A kernel's arguments end at 4 KB, its range included.
template <class F>
inline constexpr bool fits_arguments = sizeof(F) <= 3968;

/// Steps of some nanoseconds that take less than to wake other threads, which is 2 to 5 microseconds.
inline constexpr Index few = 256;

/// Calls f(0) to f(items - 1); on hosts on the calling thread, where there are no more than `alone`.
template <class Space, class F>
void each(const Space& space, const char* name, Index items, const F& f, Index alone = few) {
  static_assert(fits_arguments<F>, "moe: a kernel's functor must fit into its arguments.");
  if constexpr (!device_path<Space>) {
    if (items <= alone) {
      for (Index i = 0; i < items; ++i) f(i);
      return;
    }
  }
  Kokkos::parallel_for(name, Range<Space>(space, 0, items), f);
}

/// Calls f(i, sum, final) as Kokkos::parallel_scan does, with a sum of type Index.
template <class Space, class F>
void scan(const Space& space, const char* name, Index items, const F& f) {
  static_assert(fits_arguments<F>, "moe: a kernel's functor must fit into its arguments.");
  if constexpr (!device_path<Space>) {
    if (items <= few) {
      Index sum = 0;
      for (Index i = 0; i < items; ++i) f(i, sum, true);
      return;
    }
  }
  Kokkos::parallel_scan(name, Range<Space>(space, 0, items), f);
}

/// Sets every element, in stream order.
template <class Space, class View>
void fill(const Space& space, const View& view, typename View::non_const_value_type value) {
  if (view.size() == 0) return;
  if constexpr (!device_path<Space>) {
    if (Index(view.size()) <= 16 * few && view.span_is_contiguous()) {
      for (std::size_t i = 0; i < view.size(); ++i) view.data()[i] = value;
      return;
    }
  }
  Kokkos::deep_copy(space, view, value);
}

}  // namespace detail

MOE_NAMESPACE_END
