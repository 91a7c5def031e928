#pragma once
/// @file
/// Training runs as a page to look at.
///
///   {"command", "date", "machine", "runs": [{
///      "model", "title", "note", "comparable", "seed", "steps", "tokens_per_step", "seconds", "tokens_per_second",
///      "parameters", "active_parameters", "flops_per_token", "memory_bytes",
///      "validation_bits_per_byte": {"mean", DOMAIN...},
///      "curve": [{"step", "bits_per_byte", "maximum_violation", "drop_rate", "router_entropy", "gradient_norm",
///                 "activation_norm"}...],
///      "validation_curve": [{"step", "bits_per_byte"}...],
///      "load_history": {"steps", "layers": [layer][step][expert]},        // shares, each line sums to 1
///      "domain_load": {"domains", "layers": [layer][domain][expert]},
///      "byte_load": {"bytes", "layers": [layer][byte][expert]},
///      "time_shares": {"attention", "route", "dispatch", "experts", "combine", "optimiser", "other"},
///      "maximum_violation", "drop_rate", "router_entropy", "spikes": [{"step", "loss", "action"}...],
///      "skipped_steps": [{"step", "loss_scale"}...], "sample"}...]}
///
/// Runs of one "model" are its seeds; "dense" is what mixtures are held against; NAME and "NAME-unbalanced" are shown
/// as a pair. A model with a "note" stays out of the verdict unless it says "comparable": true. Any key may be missing.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

/// Writes folder/report.html and folder/{loss_curves,load,domains}.svg, each at once or not at all, and returns their
/// paths. A picture without numbers is not written, and an older one of its name removed. Throws std::runtime_error.
std::vector<std::string> write_report(const std::string& folder, const nlohmann::json& comparison);
