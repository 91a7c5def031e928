#pragma once
/// @file
/// Errors: what is wrong, where, the numbers, and what to do. Thrown before anything is written.

#include <sstream>
#include <stdexcept>
#include <string>

#include "moe/version.hpp"

MOE_NAMESPACE_BEGIN

/// The base of everything this library throws.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// A view has the wrong rank, extents or strides.
struct ShapeError : Error {
  using Error::Error;
};
/// A configuration that cannot work: sizes, options, values of policies.
struct ConfigError : Error {
  using Error::Error;
};
/// The numbers themselves are bad: NaN logits, ids out of range.
struct DataError : Error {
  using Error::Error;
};
/// A file is missing, cut short, malformed or cannot be written.
struct IoError : Error {
  using Error::Error;
};

namespace detail {

/// Joins its arguments into a sentence.
template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws `E` with the joined parts unless `condition` holds.
template <class E, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw E(sentence(parts...));
}

}  // namespace detail

MOE_NAMESPACE_END
