#pragma once
/// @file
/// Hugging Face PEFT adapters: folders of adapter_config.json and adapter_model.safetensors, read and written.
///
///     const moe::PeftAdapter adapter("my_adapter");
///     auto [update, scaling] = adapter.update<float>("model.layers.0.self_attn.q_proj");
///
/// Tensors are named base_model.model.<module>.lora_A.weight, of shape (r, in), and lora_B.weight, (out, r): the
/// slices of a `LowRank`. PEFT gives a parameter of fused experts (E, ...) one pair of matrices, A (E * r, in), expert
/// by expert, and B (out, r * E), whose column k * E + e is column k of expert e; a module with several such
/// parameters nests them as <module>.base_layer.lora_A, the first parameter innermost.

#include <map>
#include <string>
#include <vector>

#include "moe/adapters/low_rank.hpp"
#include "moe/io/peft_config.hpp"
#include "moe/io/safetensors.hpp"

MOE_NAMESPACE_BEGIN

/// What an adapter says of one module.
struct PeftModule {
  Index rank = 0;  ///< rows of A: r, of fused experts E * r
  Index in = 0, out = 0;
};

/// Updates as a file has them: scaling * B A.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct PeftUpdate {
  LowRank<T, Space> update;
  double scaling = 1;
};

namespace detail {

inline constexpr const char* peft_prefix = "base_model.model.";
inline constexpr const char* peft_a = ".lora_A.weight";
inline constexpr const char* peft_b = ".lora_B.weight";

/// <module>.base_layer...: the place of parameter `number` of `of` adapted ones, the last outermost.
inline std::string nested_module(std::string module, std::size_t number, std::size_t of) {
  for (; number + 1 < of; ++number) module += ".base_layer";
  return module;
}

/// Takes `before` and `after` off a name; false, and nothing taken, where it has not both and something between.
inline bool strip_affixes(std::string& name, std::string_view before, std::string_view after) {
  if (name.size() <= before.size() + after.size() || name.rfind(before, 0) != 0 || !name.ends_with(after)) return false;
  name = name.substr(before.size(), name.size() - before.size() - after.size());
  return true;
}

/// A LowRank filled from arrays on the host.
template <class T, class Space, class Fill>
LowRank<T, Space> filled_low_rank(const LowRankShape& shape, const Fill& fill) {
  LowRank<T, Space> update;
  update.a = Tensor3<T, Space>("moe::peft::lora_A", shape.adapters, shape.rank, shape.in);
  update.b = Tensor3<T, Space>("moe::peft::lora_B", shape.adapters, shape.out, shape.rank);
  const auto a = Kokkos::create_mirror_view(Kokkos::HostSpace{}, update.a);
  const auto b = Kokkos::create_mirror_view(Kokkos::HostSpace{}, update.b);
  fill(a, b);
  Kokkos::deep_copy(update.a, a);
  Kokkos::deep_copy(update.b, b);
  return update;
}

}  // namespace detail

/// An adapter's folder, opened: the configuration read, the tensors mapped and their names and shapes checked. Throws
/// IoError for files that are missing, malformed or hold more than plain LoRA (see read_peft_config); the message
/// names file and tensor.
class PeftAdapter {
 public:
  explicit PeftAdapter(const std::string& folder)
      : folder_(folder),
        config_(read_peft_config(folder + "/adapter_config.json")),
        file_(folder + "/adapter_model.safetensors") {
    for (const auto& [name, info] : file_.tensors()) {
      std::string module = name;
      const bool is_a = detail::strip_affixes(module, detail::peft_prefix, detail::peft_a);
      const bool is_b = !is_a && detail::strip_affixes(module, detail::peft_prefix, detail::peft_b);
      require(is_a || is_b, "holds a tensor '", name, "' that is no low-rank factor. Names are '", detail::peft_prefix,
              "<module>", detail::peft_a, "' and '...", detail::peft_b, "'");
      require(info.shape.size() == 2 && info.shape[0] > 0 && info.shape[1] > 0, "tensor '", name, "' has shape ",
              detail::shape_text(info.shape), "; factors are matrices");
      require(detail::convertible_dtype(info.dtype, false), "tensor '", name, "' has dtype ", info.dtype);
      if (!is_a) continue;
      const std::string other = detail::peft_prefix + module + detail::peft_b;
      require(file_.contains(other), "holds '", name, "', but no '", other, "'");
      const TensorInfo& b = file_.info(other);
      require(b.shape.size() == 2 && b.shape[1] == info.shape[0], "has factors of '", module, "' of shapes ",
              detail::shape_text(info.shape), " and ", detail::shape_text(b.shape), "; their ranks differ");
      modules_[module] = {info.shape[0], info.shape[1], b.shape[0]};
    }
    require(2 * modules_.size() == file_.tensors().size(), "holds factors B without their A");
    require(!modules_.empty(), "holds no tensors");
  }

  const std::string& folder() const { return folder_; }
  const PeftConfig& config() const { return config_; }
  /// By name, as the base model has it: "model.layers.0.self_attn.q_proj".
  const std::map<std::string, PeftModule>& modules() const { return modules_; }
  bool contains(const std::string& module) const { return modules_.count(module) != 0; }

  const PeftModule& module(const std::string& name) const {
    const auto found = modules_.find(name);
    require(found != modules_.end(), "holds no module '", name, "' among its ", modules_.size(), ", such as '",
            modules_.begin()->first, "'");
    return found->second;
  }

  /// A module's update: one adapter, a (1, r, in), b (1, out, r). Throws IoError for a module that is not there.
  template <class T, class Space = Kokkos::DefaultExecutionSpace>
  PeftUpdate<T, Space> update(const std::string& name) const {
    return {read<T, Space>(module(name), name, 1), scaling(name)};
  }
  /// The factor of a module's update.
  double scaling(const std::string& name) const {
    const PeftModule& of = module(name);
    require(config_.rank_of(name) == of.rank, "has factors of '", name, "' of rank ", of.rank,
            ", but its adapter_config.json says ", config_.rank_of(name));
    return config_.scaling_of(name);
  }

  /// Updates of the fused parameters of a module of E experts: of each parameter, in the order given, E adapters, a (E,
  /// r, in), b (E, out, r). `parameters` are those that the adapter has, in the order in which the module declares
  /// them. Throws IoError where they are not there, or ranks do not fit.
  ///
  ///     auto of = adapter.experts_updates<float>("model.layers.0.mlp.experts", {"gate_up_proj", "down_proj"}, 8);
  template <class T, class Space = Kokkos::DefaultExecutionSpace>
  std::vector<PeftUpdate<T, Space>> experts_updates(const std::string& name, const std::vector<std::string>& parameters,
                                                    Index experts) const {
    std::vector<PeftUpdate<T, Space>> result;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const std::string nested = detail::nested_module(name, i, parameters.size());
      const std::string key = name + "." + parameters[i];
      const PeftModule& of = module(nested);
      require(experts > 0 && config_.rank_of(key) * experts == of.rank, "has factors of '", nested, "' for '", key,
              "' with ", of.rank, " rows of A; ", experts, " experts of rank ", config_.rank_of(key), " have ",
              experts * config_.rank_of(key));
      result.push_back({read<T, Space>(of, nested, experts), config_.scaling_of(key)});
    }
    const std::string beyond = detail::nested_module(name, 0, parameters.size() + 1);
    require(!contains(beyond), "adapts more parameters of '", name, "' than the ", parameters.size(), " named");
    return result;
  }

 private:
  template <class... Parts>
  void require(bool condition, const Parts&... parts) const {
    detail::require<IoError>(condition, "moe: '", folder_, "' ", parts..., ".");
  }

  template <class T, class Space>
  LowRank<T, Space> read(const PeftModule& of, const std::string& name, Index experts) const {
    const std::string prefix = detail::peft_prefix + name;
    const std::vector<double> from_a = file_.read<double>(prefix + detail::peft_a);
    const std::vector<double> from_b = file_.read<double>(prefix + detail::peft_b);
    const Index rank = of.rank / experts;
    return detail::filled_low_rank<T, Space>({experts, of.in, of.out, rank}, [&](const auto& a, const auto& b) {
      for (Index e = 0; e < experts; ++e) {
        for (Index k = 0; k < rank; ++k) {
          for (Index i = 0; i < of.in; ++i) a(e, k, i) = T(from_a[std::size_t((e * rank + k) * of.in + i)]);
          for (Index o = 0; o < of.out; ++o) b(e, o, k) = T(from_b[std::size_t((o * rank + k) * experts + e)]);
        }
      }
    });
  }

  std::string folder_;
  PeftConfig config_;
  SafetensorsReader file_;
  std::map<std::string, PeftModule> modules_;
};

/// One module's updates of many adapters as one LowRank: adapter n is adapters[n]'s, factors padded with zeros to the
/// largest rank, scalings multiplied into B, so that each counts once (scaling 1). An adapter without the module has an
/// update of zeros. Throws IoError where no adapter has it, ShapeError where two disagree about its sizes.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
LowRank<T, Space> stack_adapters(const std::vector<PeftAdapter>& adapters, const std::string& module) {
  LowRankShape shape{Index(adapters.size()), 0, 0, 0};
  const PeftAdapter* first = nullptr;
  for (const PeftAdapter& adapter : adapters) {
    if (!adapter.contains(module)) continue;
    const PeftModule& of = adapter.module(module);
    if (first == nullptr) {
      first = &adapter;
      shape.in = of.in;
      shape.out = of.out;
    }
    detail::require<ShapeError>(of.in == shape.in && of.out == shape.out, "moe::stack_adapters: '", module, "' maps ",
                                shape.in, " to ", shape.out, " in '", first->folder(), "', but ", of.in, " to ", of.out,
                                " in '", adapter.folder(), "'.");
    shape.rank = std::max(shape.rank, of.rank);
  }
  detail::require<IoError>(first != nullptr, "moe::stack_adapters: none of ", adapters.size(),
                           " adapters has a module '", module, "'.");
  return detail::filled_low_rank<T, Space>(shape, [&](const auto& a, const auto& b) {
    for (Index n = 0; n < shape.adapters; ++n) {
      const PeftAdapter& adapter = adapters[std::size_t(n)];
      if (!adapter.contains(module)) continue;
      const auto [update, scaling] = adapter.update<double, Kokkos::DefaultHostExecutionSpace>(module);
      for (Index k = 0; k < update.rank(); ++k) {
        for (Index i = 0; i < shape.in; ++i) a(n, k, i) = T(update.a(0, k, i));
        for (Index o = 0; o < shape.out; ++o) b(n, o, k) = T(update.b(0, o, k) * scaling);
      }
    }
  });
}

MOE_NAMESPACE_END
