#pragma once
/// @file
/// `PeftWriter`: low-rank updates as an adapter's folder that Hugging Face PEFT loads.

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/peft.hpp"

MOE_NAMESPACE_BEGIN

/// Gathers updates and writes them as one adapter; see peft.hpp for the files.
///
///     moe::PeftWriter writer;
///     writer.base_model("mistralai/Mixtral-8x7B-v0.1");
///     writer.add("model.layers.0.self_attn.q_proj", updates, 3, scaling);  // adapter 3 of N
///     writer.write("my_adapter");
///
/// r and lora_alpha of the configuration are the first module's; modules that differ are listed in rank_pattern and
/// alpha_pattern. Factors are written in the type that they have.
class PeftWriter {
 public:
  void base_model(const std::string& name_or_path) { config_.base_model = name_or_path; }
  void task_type(const std::string& type) { config_.task_type = type; }

  /// A module's update: adapter n, which counts `scaling` times. Throws ConfigError for an adapter that is not there, a
  /// module that was added before, a name with characters that module names do not have, and a scaling that is not
  /// finite.
  template <class T, class Space>
  void add(const std::string& module, const LowRank<T, Space>& update, Index n, double scaling) {
    check(module, scaling);
    detail::require<ConfigError>(n >= 0 && n < update.adapters(), "moe::PeftWriter: adapter ", n, " of ",
                                 update.adapters(), " for '", module, "'.");
    gather(module, update, n, 1);
    config_.target_modules.push_back(module);
    says_.push_back({module, update.rank(), scaling});
  }

  /// Updates of fused parameters of a module of E experts, one adapter an expert, in the order in which the module
  /// declares them.
  template <class T, class Space>
  void add_experts(const std::string& module, const std::vector<std::string>& parameters,
                   const std::vector<PeftUpdate<T, Space>>& updates) {
    detail::require<ConfigError>(parameters.size() == updates.size(), "moe::PeftWriter: ", updates.size(),
                                 " updates for ", parameters.size(), " parameters of '", module, "'.");
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      check(module + "." + parameters[i], updates[i].scaling);
      check(detail::nested_module(module, i, parameters.size()), updates[i].scaling);  // the name of its tensors
      for (std::size_t j = 0; j < i; ++j)
        detail::require<ConfigError>(parameters[i] != parameters[j], "moe::PeftWriter: '", module, ".", parameters[i],
                                     "' is named twice.");
    }
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto& [update, scaling] = updates[i];
      gather(detail::nested_module(module, i, parameters.size()), update, 0, update.adapters());
      config_.target_parameters.push_back(module + "." + parameters[i]);
      says_.push_back({module + "." + parameters[i], update.rank(), scaling});
    }
  }

  /// Writes the folder, which must not exist yet or be empty: it appears whole or not at all. Throws IoError where it
  /// cannot be written, ConfigError where nothing was added.
  void write(const std::string& folder) const {
    namespace fs = std::filesystem;
    detail::require<ConfigError>(!says_.empty(), "moe::PeftWriter: no updates were added for '", folder, "'.");
    std::error_code error;
    const fs::path to = fs::path(folder).has_filename() ? fs::path(folder) : fs::path(folder).parent_path();
    detail::require<IoError>(!fs::exists(to, error) || fs::is_empty(to, error), "moe: '", folder,
                             "' exists and is not empty. Remove it first, or write to another folder.");
    if (to.has_parent_path()) fs::create_directories(to.parent_path(), error);
    std::string temporary = to.string() + ".XXXXXX";
    if (::mkdtemp(temporary.data()) == nullptr) detail::io_failure(folder, "create");
    try {
      fs::permissions(temporary,
                      fs::perms::group_read | fs::perms::group_exec | fs::perms::others_read | fs::perms::others_exec,
                      fs::perm_options::add);  // mkdtemp gives 0700; an adapter is a folder like any other
      write_peft_config(temporary + "/adapter_config.json", config());
      tensors_.write(temporary + "/adapter_model.safetensors");
      if (::rename(temporary.c_str(), to.c_str()) != 0) detail::io_failure(folder, "write");
    } catch (...) {
      fs::remove_all(temporary, error);
      throw;
    }
  }

 private:
  struct Says {
    std::string module;
    Index rank;
    double scaling;
  };

  void check(const std::string& module, double scaling) const {
    constexpr std::string_view known = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    detail::require<ConfigError>(!module.empty() && module.find_first_not_of(known) == std::string::npos,
                                 "moe::PeftWriter: '", module,
                                 "' is no module's name: letters, digits, _, - and dots.");
    detail::require<ConfigError>(std::isfinite(scaling), "moe::PeftWriter: '", module, "' has scaling ", scaling, ".");
    for (const Says& other : says_)
      detail::require<ConfigError>(other.module != module, "moe::PeftWriter: '", module, "' was added before.");
  }

  /// Experts' factors side by side, as PEFT lays them out.
  template <class T, class Space>
  void gather(const std::string& module, const LowRank<T, Space>& update, Index first, Index experts) {
    const auto a = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, update.a);
    const auto b = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, update.b);
    const Index rank = update.rank(), in = update.in(), out = update.out();
    std::vector<T> to_a(std::size_t(experts * rank * in)), to_b(std::size_t(out * rank * experts));
    for (Index e = 0; e < experts; ++e) {
      const Index from = a.extent(0) == 1 ? 0 : first + e;
      for (Index k = 0; k < rank; ++k) {
        for (Index i = 0; i < in; ++i) to_a[std::size_t((e * rank + k) * in + i)] = a(from, k, i);
        for (Index o = 0; o < out; ++o) to_b[std::size_t((o * rank + k) * experts + e)] = b(first + e, o, k);
      }
    }
    const std::string prefix = detail::peft_prefix + module;
    tensors_.metadata("format", "pt");  // as PEFT writes it
    tensors_.add(prefix + detail::peft_a, {experts * rank, in}, std::span<const T>(to_a));
    tensors_.add(prefix + detail::peft_b, {out, experts * rank}, std::span<const T>(to_b));
  }

  PeftConfig config() const {
    PeftConfig config = config_;
    config.rank = says_.front().rank;
    config.alpha = says_.front().scaling * double(config.rank);
    for (const auto& [module, rank, scaling] : says_) {
      const std::string exactly = "^" + module;  // not also modules whose names end alike
      if (rank != config.rank) config.rank_pattern.emplace_back(exactly, rank);
      if (scaling * double(rank) != config.alpha) config.alpha_pattern.emplace_back(exactly, scaling * double(rank));
    }
    return config;
  }

  PeftConfig config_;
  SafetensorsWriter tensors_;
  std::vector<Says> says_;
};

MOE_NAMESPACE_END
