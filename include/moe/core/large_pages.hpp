#pragma once
/// @file
/// Large arrays in pages of 2 MiB where the system gives them: reading then misses the translation buffer less.

#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>

#include "moe/version.hpp"
#if defined(__linux__)
#  include <sys/mman.h>
#endif

MOE_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::size_t large_page = std::size_t(2) << 20;

/// Asks for large pages before the memory is first written. Where that fails, pages stay small.
inline void advise_large_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(data) + large_page - 1) / large_page * large_page;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / large_page * large_page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

/// A new array, uninitialised: its layout, or its extents.
template <class View, class... Extents>
View allocate(const std::string& label, const Extents&... extents) {
  View view(Kokkos::view_alloc(Kokkos::WithoutInitializing, label), extents...);
  if constexpr (Kokkos::SpaceAccessibility<Kokkos::HostSpace, typename View::memory_space>::accessible)
    advise_large_pages(view.data(), view.span() * sizeof(typename View::value_type));
  return view;
}

/// The same with zeros.
template <class View, class... Extents>
View allocate_zeros(const std::string& label, const Extents&... extents) {
  View view = allocate<View>(label, extents...);
  if (view.size() != 0) Kokkos::deep_copy(view, typename View::value_type(0));
  return view;
}

}  // namespace detail

MOE_NAMESPACE_END
