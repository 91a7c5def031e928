#pragma once
/// @file
/// The library's version, and the inline namespace that keeps the symbols of two versions apart.

#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0

/// Everything public lives in `moe::`; the inline namespace changes with every release that changes a layout.
namespace moe {
inline namespace v0_1 {}
}  // namespace moe

#define MOE_NAMESPACE_BEGIN \
  namespace moe {           \
  inline namespace v0_1 {
#define MOE_NAMESPACE_END \
  }                       \
  }
