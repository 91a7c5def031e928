#pragma once
/// @file
/// Small files of a run.

#include <moe/io/detail/file.hpp>
#include <string_view>

/// Replaces a file whole or not at all. Throws moe::IoError.
inline void write_whole(const std::string& path, std::string_view text) {
  moe::detail::AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}
