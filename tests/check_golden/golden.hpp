#pragma once
/// @file
/// A golden: tensors that an independent implementation made, and a table of how far ours are from them.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <moe/io/safetensors.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace golden {

using Space = Kokkos::DefaultExecutionSpace;
using HostSpace = Kokkos::DefaultHostExecutionSpace;
using Values = std::vector<float>;

/// A copy on the host, or the array itself where it lies there.
template <class View>
auto on_host(const View& view) {
  return Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
}
/// The same the other way.
template <class View>
auto on_device(const View& view) {
  return Kokkos::create_mirror_view_and_copy(Space::memory_space{}, view);
}

/// The file: tensors, and in its metadata the family and the configuration.
class Golden {
 public:
  explicit Golden(const std::string& path) : file_(path) {
    const auto found = file_.metadata().find("meta");
    if (found == file_.metadata().end())
      throw moe::IoError("moe: '" + path + "' is no golden: its metadata has no 'meta'.");
    meta_ = nlohmann::json::parse(found->second, nullptr, false);
    if (!meta_.is_object() || !meta_.contains("cls") || !meta_.contains("config"))
      throw moe::IoError("moe: '" + path + "' is no golden: its 'meta' lacks cls or config.");
  }

  std::string family() const { return meta_.at("cls").get<std::string>(); }
  bool training() const { return meta_.value("train", false); }
  bool has(const std::string& name) const { return file_.contains(name); }
  Values read(const std::string& name) const { return file_.read<float>(name); }
  std::vector<std::int32_t> integers(const std::string& name) const { return file_.read<std::int32_t>(name); }
  std::vector<moe::Index> shape(const std::string& name) const { return file_.info(name).shape; }

  /// A value of the configuration; "a.b" is b in a.
  template <class T>
  T config(const std::string& key) const {
    const auto dot = key.find('.');
    if (dot != std::string::npos) return meta_.at("config").at(key.substr(0, dot)).at(key.substr(dot + 1)).get<T>();
    const auto& config = meta_.at("config");
    if (!config.contains(key)) throw moe::IoError("moe: '" + file_.path() + "' has no '" + key + "' in its config.");
    return config.at(key).get<T>();
  }

  /// Copies a tensor into a view's elements from `offset` on; it must fit.
  template <class View>
  void copy(const std::string& name, const View& view, moe::Index offset = 0) const {
    const Values values = read(name);
    if (offset + moe::Index(values.size()) > moe::Index(view.size()))
      throw moe::ShapeError("moe: '" + file_.path() + "': tensor '" + name + "' does not fit the layer.");
    const auto copy = on_host(view);
    std::copy(values.begin(), values.end(), copy.data() + offset);
    Kokkos::deep_copy(view, copy);
  }

 private:
  moe::SafetensorsReader file_;
  nlohmann::json meta_;
};

/// Prints one line a tensor, and remembers the worst.
class Comparison {
 public:
  Comparison(const Golden& golden, double tolerance) : golden_(golden), tolerance_(tolerance) {
    std::printf("  %-44s %12s %12s\n", "tensor", "absolute", "relative");
  }

  /// Compares `size` elements of ours with a tensor of the golden, where it has it. Errors are relative to its largest.
  void check(const std::string& name, const float* ours, std::size_t size) {
    if (!golden_.has(name)) return;
    const Values expected = golden_.read(name);
    double absolute = 0, largest = 0;
    bool same = expected.size() == size;
    for (std::size_t i = 0; same && i < size; ++i) {
      const double error = std::abs(double(ours[i]) - double(expected[i]));
      same = std::isfinite(error);
      absolute = std::max(absolute, error);
      largest = std::max(largest, std::abs(double(expected[i])));
    }
    const double relative = largest > 0 ? absolute / largest : absolute;
    const bool good = same && relative <= tolerance_;
    good_ = good_ && good;
    ++checked_;
    std::printf("  %-44s %12.2e %12.2e%s\n", name.c_str(), absolute, relative,
                !same  ? "  MISFIT: another size, or not finite"
                : good ? ""
                       : "  ABOVE TOLERANCE");
  }
  template <class View>
  void check(const std::string& name, const View& view) {
    if (golden_.has(name)) check(name, on_host(view).data(), view.size());
  }

  /// A count of things that differ; none may.
  void count(const std::string& name, moe::Index differing) {
    if (!golden_.has(name)) return;
    good_ = good_ && differing == 0;
    std::printf("  %-44s %12lld %12s%s\n", name.c_str(), static_cast<long long>(differing), "tokens",
                differing == 0 ? "" : "  DIFFER");
  }

  bool good() const { return good_ && checked_ > 0; }

 private:
  const Golden& golden_;
  double tolerance_;
  bool good_ = true;
  int checked_ = 0;
};

/// Builds the golden's composition, runs it forward and backward, and compares every tensor. Throws moe::Error for a
/// family that is not known.
bool check(const Golden& golden, double tolerance);

}  // namespace golden
