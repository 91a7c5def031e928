#pragma once
/// @file
/// Rows in blocks of 16 bytes, which a device's thread loads and stores at once.

#include <cstring>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// 16 bytes of anything.
struct __attribute__((aligned(16), may_alias)) Block {
  std::uint32_t words[4];
};

/// The numbers of a block.
template <class T>
struct Pack {
  static constexpr Index size = 16 / sizeof(T);
  T values[size];
};

/// Do rows of this width begin and end with blocks, where the first begins at `data`?
template <class T>
KOKKOS_FUNCTION bool in_blocks(const T* data, Index width) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && width % Pack<T>::size == 0;
}

/// Block i of a row, and its place.
template <class T>
KOKKOS_FUNCTION Pack<T> load_block(const T* row, Index i) {
  const Block block = reinterpret_cast<const Block*>(row)[i];
  Pack<T> pack;
  memcpy(pack.values, block.words, 16);
  return pack;
}
template <class T>
KOKKOS_FUNCTION void store_block(T* row, Index i, const Pack<T>& pack) {
  Block block;
  memcpy(block.words, pack.values, 16);
  reinterpret_cast<Block*>(row)[i] = block;
}

/// to = from, or zeros where `from` is null.
template <class T>
KOKKOS_FUNCTION void copy_row(const Team& team, T* to, const T* from, Index width) {
  if (from == nullptr) {
    team.each(width, [=](Index h) { to[h] = T(0); });
  } else if (in_blocks(to, width) && in_blocks(from, width)) {
    team.each_apart(width / Pack<T>::size,
                    [=](Index i) { reinterpret_cast<Block*>(to)[i] = reinterpret_cast<const Block*>(from)[i]; });
  } else {
    team.each_apart(width, [=](Index h) { to[h] = from[h]; });
  }
}

}  // namespace detail

MOE_NAMESPACE_END
