#pragma once
/// @file
/// Goldens of single parts: small safetensors files under tests/data/goldens_extra.

#include <moe/io/safetensors.hpp>
#include <string>

namespace moe_test {

struct GoldenFile {
  moe::SafetensorsReader file;

  explicit GoldenFile(const std::string& name)
      : file(std::string(MOE_TEST_DATA) + "/goldens_extra/" + name + ".safetensors") {}

  template <class Space>
  moe::Matrix<float, Space> matrix(const std::string& name) const {
    const auto& shape = file.info(name).shape;
    moe::Matrix<float, Space> result(name, shape.at(0), shape.at(1));
    file.read(name, result);
    return result;
  }
};

/// A router weight that takes logits as they are.
template <class Space>
moe::Matrix<float, Space> identity_weight(moe::Index experts) {
  moe::Matrix<float, Space> weight("identity", experts, experts);
  for (moe::Index e = 0; e < experts; ++e) weight(e, e) = 1;
  return weight;
}

}  // namespace moe_test
