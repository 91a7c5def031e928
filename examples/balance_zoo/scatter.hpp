#pragma once
/// @file
/// The trade-off as a picture: a named dot a method, its spread, and the front of those that none beats in both.

#include <string>
#include <vector>

#include "../train_text/report/svg.hpp"

namespace svg {

struct Dot {
  std::string name;
  int color = 0;
  Point at, spread;     // spread: half the length of its bars
  bool hollow = false;  // stands beside the others: in no front
};

struct Scatter {
  std::string title, x_title;
  std::vector<Dot> dots;
  double width = 860, height = 540;
};

/// Less is better on both axes. x is logarithmic, with a place for 0; a y far above the others is put at the edge.
Picture scatter(const Scatter& chart);

/// The dots that no other is below in one number and not above in the other, by x. Hollow ones are not looked at.
std::vector<Dot> front(const std::vector<Dot>& dots);

}  // namespace svg
