#pragma once
/// @file
/// Parts of a page that reports share.

#include <cmath>
#include <string>
#include <vector>

#include "data.hpp"
#include "svg.hpp"

namespace report {

/// Is there a picture with a body?
bool any(const std::vector<svg::Picture>& pictures);

/// Pictures in a grid of the given class; a heading before them, and all of it only where there is a picture.
std::string gallery(const std::string& grid, const std::vector<svg::Picture>& pictures, const std::string& heading = "",
                    const std::string& hint = "");

/// A square of a colour.
std::string swatch(int color);

/// A cell from the mean over seeds, or a dash.
template <class Format>
std::string cell(const Model& model, const std::string& path, const Format& format) {
  const double value = estimate(model, path).mean;
  return "<td>" + (std::isfinite(value) ? format(value) : "–") + "</td>";
}

/// The machine, the command and the date of a comparison.
std::string footer(const json& comparison);

/// A whole page of one file: no script, no network.
std::string document(const std::string& title, const std::string& body);

}  // namespace report
