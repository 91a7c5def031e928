#pragma once
/// @file
/// The analysis as tables to read in a terminal.

#include "settings.hpp"

/// One file: load, specialisation, typical bytes and pairs, layer by layer.
void print_analysis(const Settings& settings, const RoutingRecord& record);

/// Several files of one text: how each measure moves, and how much of the routing stays.
void print_comparison(const Settings& settings, const std::vector<RoutingRecord>& records);
