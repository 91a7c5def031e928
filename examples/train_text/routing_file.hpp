#pragma once
/// @file
/// Routing decisions as a file: who chose whom, for every token of a text and every layer. One safetensors file, or
/// CSV.
///
/// The letters: T tokens, A choices of a layer. Tensors of the file:
///   byte (T) U8, domain (T) U8, and for each layer n: layer.n.offsets (T+1) I32, layer.n.expert (A) U8 where 256
///   experts or fewer, else I32, layer.n.weight (A) F32, layer.n.kept (A) U8.
/// Metadata, all strings: routing ("1", the version), model, step, domains and layers (how many), domain.n (a name),
/// layer.n.experts (how many).

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <moe/io/safetensors.hpp>
#include <string>
#include <vector>

/// What routing did to a text. The choices of token t in a layer are [offsets[t], offsets[t+1]), as the router ranks
/// them.
struct RoutingRecord {
  std::string model;
  std::int64_t step = 0;
  std::vector<std::string> domains;
  std::vector<std::uint8_t> byte;    // (T) the text
  std::vector<std::uint8_t> domain;  // (T) index in domains

  struct Layer {
    std::int64_t experts = 0;
    std::vector<std::int32_t> offsets;  // (T+1)
    std::vector<std::int32_t> expert;   // (A) choices, kept and dropped; a choice that was not made is left out
    std::vector<float> weight;          // (A)
    std::vector<std::uint8_t> kept;     // (A) 1 = kept, 0 = dropped by capacity
    bool operator==(const Layer&) const = default;
  };
  std::vector<Layer> layers;
  bool operator==(const RoutingRecord&) const = default;
};

/// Writes a record as one safetensors file, whole or not at all. Throws moe::IoError where the record contradicts
/// itself.
void write_routing(const std::string& path, const RoutingRecord& record);

/// Reads it back. Throws moe::IoError where anything is missing, too long or out of bounds.
RoutingRecord read_routing(const std::string& path);

/// Writes one line a choice: token,domain,byte,layer,choice,expert,weight,kept.
void write_routing_csv(const std::string& path, const RoutingRecord& record);

namespace routing_file {

inline constexpr std::int64_t most_experts = 65536;  // so that a damaged count cannot ask for all memory

template <class... Parts>
void require(bool condition, const std::string& path, const Parts&... parts) {
  moe::detail::require<moe::IoError>(condition, "routing file '", path, "' ", parts...);
}

/// Everything that readers of a record rely on.
inline void check(const std::string& path, const RoutingRecord& record) {
  const std::size_t tokens = record.byte.size();
  require(record.step >= 0, path, "is of step ", record.step, "; steps count from 0.");
  require(record.domains.size() <= 256, path, "has ", record.domains.size(), " domains; 256 fit.");
  require(record.domain.size() == tokens, path, "has ", tokens, " bytes, but the domains of ", record.domain.size(),
          ".");
  for (std::size_t t = 0; t < tokens; ++t)
    require(record.domain[t] < record.domains.size(), path, "puts token ", t, " in domain ", int(record.domain[t]),
            " of ", record.domains.size(), ".");
  for (std::size_t n = 0; n < record.layers.size(); ++n) {
    const auto& layer = record.layers[n];
    const std::size_t choices = layer.expert.size();
    require(layer.experts >= 1 && layer.experts <= most_experts, path, "has ", layer.experts, " experts in layer ", n,
            "; 1 to ", most_experts, " are allowed.");
    require(layer.offsets.size() == tokens + 1, path, "has ", layer.offsets.size(), " offsets in layer ", n, "; ",
            tokens, " tokens need ", tokens + 1, ".");
    require(layer.weight.size() == choices && layer.kept.size() == choices, path, "has ", choices, " choices, ",
            layer.weight.size(), " weights and ", layer.kept.size(), " kept flags in layer ", n, ".");
    require(layer.offsets.front() == 0 && std::int64_t(layer.offsets.back()) == std::int64_t(choices), path,
            "has offsets from ", layer.offsets.front(), " to ", layer.offsets.back(), " in layer ", n, " for ", choices,
            " choices.");
    for (std::size_t t = 0; t < tokens; ++t)
      require(layer.offsets[t] <= layer.offsets[t + 1], path, "has offsets that descend at token ", t, " of layer ", n,
              ".");
    for (std::size_t a = 0; a < choices; ++a) {
      require(layer.expert[a] >= 0 && layer.expert[a] < layer.experts, path, "names expert ", layer.expert[a], " of ",
              layer.experts, " in choice ", a, " of layer ", n, ".");
      require(std::isfinite(layer.weight[a]), path, "has a weight that is not finite in choice ", a, " of layer ", n,
              ".");
      require(layer.kept[a] <= 1, path, "has a kept flag of ", int(layer.kept[a]), " in choice ", a, " of layer ", n,
              "; 0 or 1 are allowed.");
    }
  }
}

inline std::string tensor(std::size_t layer, const char* name) {
  return "layer." + std::to_string(layer) + "." + name;
}

inline std::string metadata(const moe::SafetensorsReader& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  require(found != file.metadata().end(), file.path(), "lacks the metadata '", key, "'.");
  return found->second;
}

/// A whole number of the metadata in [0, most].
inline std::int64_t number(const moe::SafetensorsReader& file, const std::string& key, std::int64_t most) {
  const std::string text = metadata(file, key);
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size() && value >= 0 && value <= most, file.path(),
          "says '", text, "' for '", key, "'; a whole number up to ", most, " is needed.");
  return value;
}

/// A tensor of rank 1; integers that do not fit T are refused.
template <class T>
std::vector<T> values(const moe::SafetensorsReader& file, const std::string& name) {
  require(file.info(name).shape.size() == 1, file.path(), "has a tensor '", name, "' of shape ",
          moe::detail::shape_text(file.info(name).shape), "; one dimension is needed.");
  if constexpr (!std::is_integral_v<T>) {
    return file.read<T>(name);
  } else {
    const auto wide = file.read<std::int64_t>(name);
    for (std::int64_t value : wide)
      require(value >= std::numeric_limits<T>::min() && value <= std::numeric_limits<T>::max(), file.path(), "has ",
              value, " in tensor '", name, "', which is out of range.");
    return {wide.begin(), wide.end()};
  }
}

/// A field of a CSV line: quoted where it must be.
inline std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted.append(c == '"' ? 2 : 1, c);
  return quoted + '"';
}

/// The shortest text that reads back as the same float.
inline std::string shortest(float value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

}  // namespace routing_file

inline void write_routing(const std::string& path, const RoutingRecord& record) {
  using routing_file::tensor;
  routing_file::check(path, record);
  moe::SafetensorsWriter file;
  auto add = [&](const std::string& name, const auto& values) {
    file.add(name, {moe::Index(values.size())}, std::span(values));
  };
  file.metadata("routing", "1");
  file.metadata("model", record.model);
  file.metadata("step", std::to_string(record.step));
  file.metadata("domains", std::to_string(record.domains.size()));
  file.metadata("layers", std::to_string(record.layers.size()));
  for (std::size_t d = 0; d < record.domains.size(); ++d)
    file.metadata("domain." + std::to_string(d), record.domains[d]);
  add("byte", record.byte);
  add("domain", record.domain);
  for (std::size_t n = 0; n < record.layers.size(); ++n) {
    const auto& layer = record.layers[n];
    file.metadata(tensor(n, "experts"), std::to_string(layer.experts));
    add(tensor(n, "offsets"), layer.offsets);
    if (layer.experts <= 256) {
      add(tensor(n, "expert"), std::vector<std::uint8_t>(layer.expert.begin(), layer.expert.end()));
    } else {
      add(tensor(n, "expert"), layer.expert);
    }
    add(tensor(n, "weight"), layer.weight);
    add(tensor(n, "kept"), layer.kept);
  }
  file.write(path);
}

inline RoutingRecord read_routing(const std::string& path) {
  using routing_file::tensor;
  const moe::SafetensorsReader file(path);
  routing_file::require(file.metadata().count("routing") != 0, path,
                        "holds no routing decisions. train_text --export-routing writes files that do.");
  routing_file::require(file.metadata().at("routing") == "1", path, "has version '", file.metadata().at("routing"),
                        "'; this program reads version 1.");
  constexpr std::int64_t any = std::numeric_limits<std::int64_t>::max();
  RoutingRecord record;
  record.model = routing_file::metadata(file, "model");
  record.step = routing_file::number(file, "step", any);
  const std::int64_t domains = routing_file::number(file, "domains", 256);
  for (std::int64_t d = 0; d < domains; ++d)
    record.domains.push_back(routing_file::metadata(file, "domain." + std::to_string(d)));
  record.byte = routing_file::values<std::uint8_t>(file, "byte");
  record.domain = routing_file::values<std::uint8_t>(file, "domain");
  const auto layers = std::size_t(routing_file::number(file, "layers", any));
  for (std::size_t n = 0; n < layers; ++n) {
    auto& layer = record.layers.emplace_back();
    layer.experts = routing_file::number(file, tensor(n, "experts"), routing_file::most_experts);
    layer.offsets = routing_file::values<std::int32_t>(file, tensor(n, "offsets"));
    layer.expert = routing_file::values<std::int32_t>(file, tensor(n, "expert"));
    layer.weight = routing_file::values<float>(file, tensor(n, "weight"));
    layer.kept = routing_file::values<std::uint8_t>(file, tensor(n, "kept"));
  }
  routing_file::check(path, record);
  return record;
}

inline void write_routing_csv(const std::string& path, const RoutingRecord& record) {
  routing_file::check(path, record);
  std::vector<std::string> domains;
  for (const std::string& name : record.domains) domains.push_back(routing_file::csv_field(name));
  moe::detail::AtomicFile file(path);
  std::string text = "token,domain,byte,layer,choice,expert,weight,kept\n";
  for (std::size_t t = 0; t < record.byte.size(); ++t) {
    const std::string token =
        std::to_string(t) + ',' + domains[record.domain[t]] + ',' + std::to_string(record.byte[t]) + ',';
    for (std::size_t n = 0; n < record.layers.size(); ++n) {
      const auto& layer = record.layers[n];
      const auto begin = std::size_t(layer.offsets[t]), end = std::size_t(layer.offsets[t + 1]);
      for (std::size_t a = begin; a < end; ++a)
        text += token + std::to_string(n) + ',' + std::to_string(a - begin) + ',' + std::to_string(layer.expert[a]) +
                ',' + routing_file::shortest(layer.weight[a]) + (layer.kept[a] ? ",1\n" : ",0\n");
    }
    if (text.size() > 1 << 20) {
      file.write(std::as_bytes(std::span(text)));
      text.clear();
    }
  }
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}
