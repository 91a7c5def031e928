#pragma once
/// @file
/// Copying past the caches, for arrays that are larger than they.

#include <cstdint>
#include <cstring>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Arrays of more bytes are not worth a place in a cache: nothing of them would be left when they are read.
inline constexpr Index streamed_bytes = Index(32) << 20;

/// memcpy of `size` elements; `past_caches` spares the memory the reading of lines that are overwritten as a whole.
template <class T>
void stream_copy(T* to, const T* from, Index size, [[maybe_unused]] bool past_caches) {
  const std::size_t bytes = std::size_t(size) * sizeof(T);
#if defined(__SSE__)
  if (past_caches && bytes >= 256) {
    typedef float Plain __attribute__((vector_size(16)));
    typedef float Vector __attribute__((vector_size(16), aligned(1), may_alias));
    char* out = reinterpret_cast<char*>(to);
    const char* in = reinterpret_cast<const char*>(from);
    const std::size_t head = (16 - reinterpret_cast<std::uintptr_t>(out) % 16) % 16;
    std::memcpy(out, in, head);
    std::size_t i = head;
    for (; i + 16 <= bytes; i += 16) {
      const Plain value = *reinterpret_cast<const Vector*>(in + i);
#  if defined(__clang__)
      __builtin_nontemporal_store(value, reinterpret_cast<Plain*>(out + i));
#  else
      __builtin_ia32_movntps(reinterpret_cast<float*>(out + i), value);
#  endif
    }
    std::memcpy(out + i, in + i, bytes - i);
    __builtin_ia32_sfence();  // other threads may read once this one is through
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

}  // namespace detail

MOE_NAMESPACE_END
