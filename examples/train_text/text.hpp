#pragma once
/// @file
/// Text of several domains as bytes, split into a training and a validation part.

#include <fstream>
#include <iterator>
#include <moe/core/random.hpp>
#include <string>
#include <vector>

struct Domain {
  std::string name;
  std::vector<unsigned char> training, validation;  // the last tenth is for validation
};

class Corpus {
 public:
  /// Reads one file a domain. Throws moe::IoError where one cannot be read or is too short for a sequence.
  Corpus(const std::vector<std::string>& files, moe::Index sequence) {
    for (const std::string& file : files) {
      std::ifstream in(file, std::ios::binary);
      std::vector<unsigned char> bytes{std::istreambuf_iterator<char>(in), {}};
      if (!in.good() && !in.eof()) throw moe::IoError("train_text: cannot read '" + file + "'. Is the path right?");
      const std::size_t needed = 20 * std::size_t(sequence + 1);
      if (bytes.size() < needed)
        throw moe::IoError("train_text: '" + file + "' has " + std::to_string(bytes.size()) +
                           " bytes, but sequences of " + std::to_string(sequence) + " need at least " +
                           std::to_string(needed) + ". Give a longer text or a shorter --sequence.");
      const auto cut = bytes.begin() + std::ptrdiff_t(bytes.size() - bytes.size() / 10);
      domains_.push_back({name_of(file), {bytes.begin(), cut}, {cut, bytes.end()}});
    }
  }

  const std::vector<Domain>& domains() const { return domains_; }

  /// Sequence `number` of a batch: domains take turns, the place is drawn. inputs and targets are `length` bytes each.
  void draw(std::uint64_t seed, std::uint64_t batch, moe::Index number, moe::Index length, std::int32_t* inputs,
            std::int32_t* targets) const {
    const auto& text = domains_[(batch + std::uint64_t(number)) % domains_.size()].training;
    const moe::RandomKey key{seed, batch, 0, moe::Purpose::data};
    const std::uint64_t places = text.size() - std::uint64_t(length);
    copy(text, moe::random_bits(key, std::uint64_t(number), 0) % places, length, inputs, targets);
  }

  static void copy(const std::vector<unsigned char>& text, std::uint64_t at, moe::Index length, std::int32_t* inputs,
                   std::int32_t* targets) {
    for (moe::Index i = 0; i < length; ++i) {
      inputs[i] = text[at + std::uint64_t(i)];
      targets[i] = text[at + std::uint64_t(i) + 1];
    }
  }

 private:
  static std::string name_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    const std::string file = slash == std::string::npos ? path : path.substr(slash + 1);
    return file.substr(0, file.rfind('.'));
  }

  std::vector<Domain> domains_;
};
