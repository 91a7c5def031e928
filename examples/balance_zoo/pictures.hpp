#pragma once
/// @file
/// From the zoo's runs to pictures.

#include <string>
#include <vector>

#include "../train_text/report/data.hpp"
#include "../train_text/report/svg.hpp"

namespace zoo {

/// The models in the order of methods(), those of a strength behind their method.
std::vector<report::Model> in_order(std::vector<report::Model> models);

/// The colour of a model's family, 0 for "none".
int family_color(const report::Model& model);

/// A family, coloured apart, behind the method that does nothing.
struct Panel {
  std::string title;
  int color = 0;
  std::vector<report::Model> models;
};
std::vector<Panel> panels_of(const std::vector<report::Model>& models);

/// Final loss over the violation of training's batches, and over that of validation.
std::vector<svg::Picture> trade_off(const std::vector<report::Model>& models);
svg::Picture violation_picture(const Panel& panel);
/// Validation loss along training less that of "none" on the same seed.
svg::Picture gap_picture(const Panel& panel);
/// Validation loss along training, coloured by family.
svg::Picture validation_picture(const std::vector<report::Model>& models);

/// A picture a panel, each with its legend, as one file.
std::string panels_svg(const std::string& title, const std::vector<Panel>& panels,
                       svg::Picture (*picture)(const Panel&));

}  // namespace zoo
