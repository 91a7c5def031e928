#pragma once
/// @file
/// From runs to pictures. A picture whose numbers are missing has an empty body.

#include <string>
#include <vector>

#include "data.hpp"
#include "svg.hpp"

namespace report {

/// A model's line from step `from` on, the mean over its seeds, and the seeds beside it as thin lines.
void add_lines(svg::LineChart& chart, const Model& model, const std::string& key, double from,
               const std::string& list = "curve");

/// All models' loss: smoothed training lines and validation dots, seeds as thin lines. From `from` (0 to 1) of the way
/// on.
svg::Picture loss_picture(const std::vector<Model>& models, double from);
/// Bits per byte of unseen text over what a model costs, a dot a model: milliseconds a step, or FLOPs a token.
std::vector<svg::Picture> cost_pictures(const std::vector<Model>& models);
svg::Picture violation_picture(const std::vector<Model>& models);

/// One picture a layer: the share of every expert over training, for every domain, for every frequent byte.
std::vector<svg::Picture> load_over_training(const json& run);
std::vector<svg::Picture> load_by_domain(const json& run);
std::vector<svg::Picture> load_by_byte(const json& run);
/// The colours of these three.
svg::Picture load_key();

/// The layer whose last recorded load is the furthest from even, of a model for the pair of pictures.
svg::Picture most_uneven_layer(const Model& model);

/// Drop rate, router entropy, gradient norm, activation norm and agreement of a depth predictor along training.
std::vector<svg::Picture> diagnostics(const Model& model);

std::vector<svg::Segment> time_segments(const json& run);

}  // namespace report
