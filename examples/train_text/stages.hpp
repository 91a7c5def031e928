#pragma once
/// @file
/// Time by stage, and bytes held by arrays, through Kokkos' tool interface: the layers' stages are regions, and so
/// are optimiser and validation.

#include <Kokkos_Core.hpp>
#include <Kokkos_Profiling_ScopedRegion.hpp>
#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace text {

using Stage = Kokkos::Profiling::ScopedRegion;

/// One account for the process, as Kokkos' callbacks are plain functions.
class Stages {
 public:
  /// Starts counting, once a process.
  static void watch() {
    watch_regions();
    watch_bytes();
  }
  /// Regions alone, while it lives. Kokkos then waits for a device at each end of a stage.
  struct Regions {
    Regions() { watch_regions(); }
    ~Regions() {
      Kokkos::Tools::Experimental::set_push_region_callback(nullptr);
      Kokkos::Tools::Experimental::set_pop_region_callback(nullptr);
    }
    Regions(const Regions&) = delete;
    Regions& operator=(const Regions&) = delete;
  };
  static void watch_regions() {
    Kokkos::Tools::Experimental::set_push_region_callback([](const char* name) { account().push(name); });
    Kokkos::Tools::Experimental::set_pop_region_callback([] { account().pop(); });
  }
  static void watch_bytes() {
    namespace tools = Kokkos::Tools::Experimental;
    tools::set_allocate_data_callback([](Kokkos::Tools::SpaceHandle, const char*, const void*, std::uint64_t bytes) {
      account().bytes_ += bytes;
      account().peak_ = std::max(account().peak_, account().bytes_);
    });
    tools::set_deallocate_data_callback(
        [](Kokkos::Tools::SpaceHandle, const char*, const void*, std::uint64_t bytes) { account().bytes_ -= bytes; });
  }

  /// Forgets times, and takes what is held now as the peak.
  static void reset() {
    account().seconds_.clear();
    account().peak_ = account().bytes_;
    account().mark_ = Clock::now();
  }

  /// Each stage's share of the time since reset; time inside a nested stage is the nested one's.
  static std::map<std::string, double> shares() {
    account().charge();
    double total = 0;
    for (const auto& [name, seconds] : account().seconds_) total += seconds;
    std::map<std::string, double> result;
    for (const auto& [name, seconds] : account().seconds_) result[name] = seconds / total;
    return result;
  }

  static std::uint64_t peak_bytes() { return account().peak_; }
  static std::uint64_t held_bytes() { return account().bytes_; }

 private:
  using Clock = std::chrono::steady_clock;

  static Stages& account() {
    static Stages stages;
    return stages;
  }

  void charge() {
    const auto now = Clock::now();
    const std::string name = open_.empty() ? "other" : open_.back();
    seconds_[name] += std::chrono::duration<double>(now - mark_).count();
    mark_ = now;
  }
  void push(std::string name) {
    charge();
    const std::size_t colons = name.rfind("::");
    open_.push_back(colons == std::string::npos ? name : name.substr(colons + 2));
  }
  void pop() {
    charge();
    if (!open_.empty()) open_.pop_back();
  }

  std::vector<std::string> open_;
  std::map<std::string, double> seconds_;
  Clock::time_point mark_ = Clock::now();
  std::uint64_t bytes_ = 0, peak_ = 0;
};

}  // namespace text
