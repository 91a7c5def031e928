#pragma once
/// @file
/// `PeftConfig`: what the adapter_config.json of a Hugging Face PEFT adapter says of low-rank updates.

#include <cmath>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/detail/file.hpp"
#include "moe/io/detail/json.hpp"

MOE_NAMESPACE_BEGIN

/// The fields of PEFT's LoraConfig that say how an adapter's factors are to be used.
struct PeftConfig {
  Index rank = 8;                              ///< "r"
  double alpha = 8;                            ///< "lora_alpha"
  bool rank_stabilized = false;                ///< "use_rslora": scaling is alpha / sqrt(r)
  std::string base_model;                      ///< "base_model_name_or_path", empty where it is null
  std::string task_type;                       ///< "CAUSAL_LM" and the like, empty where it is null
  std::vector<std::string> target_modules;     ///< names, or one regular expression
  std::vector<std::string> target_parameters;  ///< of fused experts: "mlp.experts.gate_up_proj"
  /// Modules whose rank or alpha is another. A key is a regular expression for the end of a module's name, from a dot
  /// on; of several that fit, the first counts.
  std::vector<std::pair<std::string, Index>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;

  Index rank_of(const std::string& module) const { return value_of(rank_pattern, module, rank); }
  double alpha_of(const std::string& module) const { return value_of(alpha_pattern, module, alpha); }
  /// alpha / r, or alpha / sqrt(r)
  double scaling_of(const std::string& module) const {
    const double r = double(rank_of(module));
    return alpha_of(module) / (rank_stabilized ? std::sqrt(r) : r);
  }

 private:
  template <class Value>
  static Value value_of(const std::vector<std::pair<std::string, Value>>& pattern, const std::string& module,
                        Value otherwise) {
    for (const auto& [key, value] : pattern) {
      try {
        if (std::regex_match(module, std::regex("(.*\\.)?(" + key + ")"))) return value;
      } catch (const std::regex_error& error) {
        throw IoError(detail::sentence("moe: '", key, "' in a rank_pattern or alpha_pattern of adapter_config.json is ",
                                       "no regular expression that can be read: ", error.what(), "."));
      }
    }
    return otherwise;
  }
};

namespace detail {

/// Reads and checks one adapter_config.json.
class PeftConfigReader {
 public:
  explicit PeftConfigReader(const std::string& path) : path_(path) {
    const MappedFile file(path);
    const auto bytes = file.bytes();
    try {
      root_ = JsonParser({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, JsonValues::all).parse();
    } catch (const IoError& error) {
      require(false, "cannot be read: ", error.what());
    }
    require(root_.kind == Kind::object, "is no JSON object");
  }

  PeftConfig read() const {
    check_supported();
    PeftConfig config;
    config.rank = whole("r", field("r"));
    config.alpha = number("lora_alpha", field("lora_alpha"));
    config.rank_stabilized = is_true("use_rslora");
    config.base_model = text("base_model_name_or_path");
    config.task_type = text("task_type");
    config.target_modules = texts("target_modules");
    config.target_parameters = texts("target_parameters");
    each_of("rank_pattern", [&](const std::string& key, const Json& value) {
      config.rank_pattern.emplace_back(key, whole("rank_pattern", value));
    });
    each_of("alpha_pattern", [&](const std::string& key, const Json& value) {
      config.alpha_pattern.emplace_back(key, number("alpha_pattern", value));
    });
    return config;
  }

 private:
  using Kind = Json::Kind;

  template <class... Parts>
  void require(bool condition, const Parts&... parts) const {
    detail::require<IoError>(condition, "moe: '", path_, "' ", parts..., ".");
  }

  /// A field, or null where it is missing.
  const Json& field(const std::string& name) const {
    static const Json null;
    const auto found = root_.object.find(name);
    return found == root_.object.end() ? null : found->second;
  }
  bool is_true(const std::string& name) const {
    const Json& value = field(name);
    require(value.kind == Kind::null || value.kind == Kind::boolean, "has a ", name, " that is neither true nor false");
    return value.boolean;
  }
  double number(const char* name, const Json& value) const {
    require(value.kind == Kind::number || value.kind == Kind::real, "has no number for ", name);
    return value.kind == Kind::number ? double(value.number) : value.real;
  }
  Index whole(const char* name, const Json& value) const {
    require(value.kind == Kind::number && value.number >= 1 && value.number <= std::uint64_t(INT32_MAX), "has a ", name,
            " that is no whole number from 1 on");
    return Index(value.number);
  }
  std::string text(const std::string& name) const {
    const Json& value = field(name);
    require(value.kind == Kind::null || value.kind == Kind::string, "has a ", name, " that is no string");
    return value.string;
  }
  std::vector<std::string> texts(const std::string& name) const {
    const Json& value = field(name);
    if (value.kind == Kind::null) return {};
    if (value.kind == Kind::string) return {value.string};
    require(value.kind == Kind::array, "has a ", name, " that is no list of strings");
    std::vector<std::string> result;
    for (const Json& entry : value.array) {
      require(entry.kind == Kind::string, "has a ", name, " that is no list of strings");
      result.push_back(entry.string);
    }
    return result;
  }
  template <class F>
  void each_of(const std::string& name, const F& f) const {
    const Json& value = field(name);
    require(value.kind == Kind::null || value.kind == Kind::object, "has a ", name, " that is no object");
    for (const std::string& key : value.keys) f(key, value.object.at(key));
  }

  static bool says_something(const Json& value) {
    return value.kind != Kind::null && !(value.kind == Kind::boolean && !value.boolean) &&
           !(value.kind == Kind::array && value.array.empty()) && !(value.kind == Kind::object && value.object.empty());
  }

  /// Refuses whatever changes what the factors mean.
  void check_supported() const {
    const std::string type = text("peft_type");
    require(type == "LORA", "has peft_type '", type, "'; only LORA is read");
    const std::string bias = text("bias");
    require(bias.empty() || bias == "none", "has bias '", bias,
            "': it changes biases of the base model, which low-rank updates do not hold. Only 'none' is read");
    for (const auto& [name, value] : root_.object) {
      const bool variant = name.rfind("use_", 0) == 0 && name != "use_rslora";
      require(!variant || !says_something(value), "asks for ", name,
              ", a variant of LoRA with other equations. Only plain LoRA and use_rslora are read");
    }
    for (const char* name : {"modules_to_save", "trainable_token_indices", "layer_replication", "lora_bias",
                             "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"}) {
      require(!says_something(field(name)), "has ", name,
              ", which changes the model beyond low-rank updates of its weights; such adapters are not read");
    }
    const Json& start = field("init_lora_weights");
    const std::string& how = start.string;
    require(start.kind != Kind::string || how == "gaussian" || how == "eva" || how == "orthogonal",
            "has init_lora_weights '", how,
            "', which changes the base model's weights. Convert the adapter with PEFT (save_pretrained with "
            "path_initial_model_for_weight_conversion)");
  }

  std::string path_;
  Json root_;
};

inline std::string json_list(const std::vector<std::string>& texts) {
  std::string result = "[";
  for (const std::string& text : texts) result += (result.size() > 1 ? ", " : "") + json_quote(text);
  return result + "]";
}
template <class Value>
std::string json_pattern(const std::vector<std::pair<std::string, Value>>& pattern) {
  std::string result = "{";
  for (const auto& [key, value] : pattern)
    result += (result.size() > 1 ? ", " : "") + json_quote(key) + ": " + json_number(double(value));
  return result + "}";
}

}  // namespace detail

/// Reads adapter_config.json. Throws IoError for a file that is missing or malformed, and for an adapter that is not
/// plain LoRA: another peft_type, DoRA and other `use_` variants, a trained bias, modules_to_save, trainable tokens,
/// starts that change the base model (PiSSA, OLoRA, CorDA, LoftQ). Dropout and how training began do not matter here.
inline PeftConfig read_peft_config(const std::string& path) {
  return detail::PeftConfigReader(path).read();
}

/// Writes adapter_config.json, for inference. An older file is replaced whole or not at all.
inline void write_peft_config(const std::string& path, const PeftConfig& config) {
  const auto or_null = [](const std::string& text) { return text.empty() ? "null" : detail::json_quote(text); };
  std::string text = "{";
  const auto add = [&](const char* name, const std::string& value) {
    text.append(text.size() > 1 ? ",\n  \"" : "\n  \"").append(name).append("\": ").append(value);
  };
  add("alpha_pattern", detail::json_pattern(config.alpha_pattern));
  add("base_model_name_or_path", or_null(config.base_model));
  add("bias", "\"none\"");
  add("fan_in_fan_out", "false");
  add("inference_mode", "true");
  add("init_lora_weights", "true");
  add("lora_alpha", detail::json_number(config.alpha));
  add("lora_dropout", "0.0");
  add("modules_to_save", "null");
  add("peft_type", "\"LORA\"");
  add("r", std::to_string(config.rank));
  add("rank_pattern", detail::json_pattern(config.rank_pattern));
  add("target_modules", detail::json_list(config.target_modules));
  if (!config.target_parameters.empty()) add("target_parameters", detail::json_list(config.target_parameters));
  add("task_type", or_null(config.task_type));
  add("use_dora", "false");
  add("use_rslora", config.rank_stabilized ? "true" : "false");
  text += "\n}\n";
  detail::AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

MOE_NAMESPACE_END
