#pragma once
/// @file
/// Bytes and names as a terminal can show them.

#include <fmt/format.h>

#include <string>

/// 'a', space, \n, or x and two hexadecimal digits for bytes that are no ASCII characters.
inline std::string byte_label(int byte) {
  if (byte == ' ') return "space";
  if (byte == '\n') return "\\n";
  if (byte == '\r') return "\\r";
  if (byte == '\t') return "\\t";
  if (byte > ' ' && byte < 127) return fmt::format("'{}'", char(byte));
  return fmt::format("x{:02X}", byte);
}

/// A name without control characters, and not longer than a column should be.
inline std::string name_label(std::string name) {
  for (char& c : name) c = static_cast<unsigned char>(c) < ' ' || c == 127 ? '?' : c;
  return fmt::format("{:.20}", name);
}
