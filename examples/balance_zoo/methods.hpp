#pragma once
/// @file
/// Every method of the zoo: what it is called, what it does, and how it trains.

#include <moe/routing/balancer.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../train_text/options.hpp"
#include "../train_text/text.hpp"
#include "losses.hpp"

namespace zoo {

inline constexpr moe::Index experts = 16;

/// What a method sets in a layer.
struct Setting {
  std::vector<Loss> losses;
  double bias_rate = 0;
  moe::BiasRule bias_rule = moe::BiasRule::sign;
};

nlohmann::json train_top_k(const Options&, const Corpus&, const Setting&);
nlohmann::json train_noisy(const Options&, const Corpus&, const Setting&);
nlohmann::json train_sinkhorn(const Options&, const Corpus&, const Setting&);
nlohmann::json train_threshold(const Options&, const Corpus&, const Setting&);
nlohmann::json train_expert_choice(const Options&, const Corpus&, const Setting&);

/// Methods of a family share a picture.
enum class Family { batch_loss, other_loss, bias, assignment };
std::string title(Family family);

struct Method {
  std::string name, title;
  std::string about;  // one line: what it does, and what its strength is
  Family family;
  double strength;  // the coefficient or rate; 0: it has none
  Setting (*setting)(double strength);
  nlohmann::json (*train)(const Options&, const Corpus&, const Setting&);
  std::string note = {};  // why its loss cannot be held against the others'
};

/// All of them, in the order of the report.
const std::vector<Method>& methods();

/// The method that NAME or NAME@STRENGTH says, with that strength in its name and title. Throws moe::ConfigError.
Method method(const std::string& name);

}  // namespace zoo
