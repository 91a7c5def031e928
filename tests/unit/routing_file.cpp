// Routing decisions: the file comes back as it was written, damage is refused, and the analysis agrees with numbers
// worked out by hand.
#include "../../examples/train_text/routing_file.hpp"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <moe_test/catch.hpp>

#include "../../examples/analyse_routing/coactivation.hpp"
#include "../../examples/analyse_routing/specialisation.hpp"
#include "../../examples/analyse_routing/stability.hpp"

namespace routing_file_test {

using Catch::Matchers::Contains;
using Layer = RoutingRecord::Layer;

/// A folder that goes with the object.
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("moe_routing_" + std::to_string(::getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Three tokens with two, none and one choice; and a layer of more experts than a byte can name.
RoutingRecord small() {
  return {.model = "mixtral",
          .step = 70,
          .domains = {"plain", "with, \"both\""},
          .byte = {'a', '\n', 255},
          .domain = {0, 0, 1},
          .layers = {{.experts = 4,
                      .offsets = {0, 2, 2, 3},
                      .expert = {3, 0, 1},
                      .weight = {0.75f, 0.25f, 0.1f},
                      .kept = {1, 0, 1}},
                     {.experts = 300,
                      .offsets = {0, 1, 2, 3},
                      .expert = {299, 0, 256},
                      .weight = {1, -2, 3e-20f},
                      .kept = {1, 1, 0}}}};
}

/// A layer of the given choices, all of weight 1 and kept.
Layer layer_of(std::int64_t experts, const std::vector<std::vector<std::int32_t>>& choices) {
  Layer layer{.experts = experts, .offsets = {0}, .expert = {}, .weight = {}, .kept = {}};
  for (const auto& token : choices) {
    layer.expert.insert(layer.expert.end(), token.begin(), token.end());
    layer.offsets.push_back(std::int32_t(layer.expert.size()));
  }
  layer.weight.assign(layer.expert.size(), 1);
  layer.kept.assign(layer.expert.size(), 1);
  return layer;
}

TEST_CASE("Routing comes back as it was written") {
  const Folder folder;
  write_routing(folder / "r", small());
  CHECK(read_routing(folder / "r") == small());
  const moe::SafetensorsReader file(folder / "r");
  CHECK(file.info("layer.0.expert").dtype == "U8");
  CHECK(file.info("layer.1.expert").dtype == "I32");
  const RoutingRecord empty{.model = "", .domains = {}, .byte = {}, .domain = {}, .layers = {}};
  write_routing(folder / "empty", empty);
  CHECK(read_routing(folder / "empty") == empty);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 2);  // no temporary file stays
}

TEST_CASE("A record that contradicts itself is not written") {
  const Folder folder;
  auto error_of = [&](const std::function<void(RoutingRecord&)>& damage) -> std::string {
    RoutingRecord record = small();
    damage(record);
    for (const auto& write : {write_routing, write_routing_csv})
      CHECK_THROWS_AS(write(folder / "bad", record), moe::IoError);
    CHECK(std::filesystem::is_empty(folder.path));
    try {
      write_routing(folder / "bad", record);
    } catch (const moe::IoError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  CHECK_THAT(error_of([](auto& r) { r.step = -1; }), Contains("of step -1"));
  CHECK_THAT(error_of([](auto& r) { r.domains.resize(257); }), Contains("257 domains"));
  CHECK_THAT(error_of([](auto& r) { r.domain.pop_back(); }), Contains("3 bytes, but the domains of 2"));
  CHECK_THAT(error_of([](auto& r) { r.domain[1] = 2; }), Contains("token 1 in domain 2 of 2"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].experts = 0; }), Contains("0 experts in layer 0"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].experts = 1 << 20; }), Contains("1048576 experts in layer 0"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].offsets.pop_back(); }),
             Contains("3 offsets in layer 0; 3 tokens need 4"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].offsets.clear(); }), Contains("0 offsets in layer 0"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].offsets = {0, 2, 1, 3}; }), Contains("descend at token 1 of layer 0"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].offsets = {0, 9, 2, 3}; }), Contains("descend at token 1 of layer 0"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].offsets[0] = 1; }), Contains("offsets from 1 to 3"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].offsets[3] = 4; }), Contains("offsets from 0 to 4"));
  CHECK_THAT(error_of([](auto& r) { r.layers[1].weight.pop_back(); }), Contains("3 choices, 2 weights and 3 kept"));
  CHECK_THAT(error_of([](auto& r) { r.layers[1].kept.pop_back(); }), Contains("3 choices, 3 weights and 2 kept"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].expert[2] = 4; }), Contains("expert 4 of 4 in choice 2 of layer 0"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].expert[2] = -1; }), Contains("expert -1 of 4"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].weight[1] = NAN; }), Contains("not finite in choice 1 of layer 0"));
  CHECK_THAT(error_of([](auto& r) { r.layers[0].kept[1] = 2; }), Contains("kept flag of 2"));
}

TEST_CASE("Damaged and foreign routing files are refused with a sentence") {
  const Folder folder;
  const std::string path = folder / "r";
  auto refused = [&](const std::function<void(moe::SafetensorsWriter&)>& fill) -> std::string {
    moe::SafetensorsWriter writer;
    fill(writer);
    writer.write(path);
    try {
      read_routing(path);
    } catch (const moe::IoError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  /// A file of one token and one choice, but for one piece of metadata.
  auto with = [&](const std::string& key, const std::string& value) {
    return refused([&](moe::SafetensorsWriter& writer) {
      const std::vector<std::uint8_t> zero{0};
      const std::vector<std::int64_t> offsets{0, key == "offset" ? std::stoll(value) : 1};
      const std::vector<std::int32_t> expert{key == "expert" ? std::stoi(value) : 0};
      const std::vector<float> weight{1};
      for (const auto& [k, v] : std::map<std::string, std::string>{{"routing", "1"},
                                                                   {"model", "m"},
                                                                   {"step", "0"},
                                                                   {"domains", "1"},
                                                                   {"domain.0", "d"},
                                                                   {"layers", "1"},
                                                                   {"layer.0.experts", "2"}})
        if (k != key || !value.empty()) writer.metadata(k, k == key ? value : v);
      writer.add("byte", key == "rank" ? std::vector<moe::Index>{1, 1} : std::vector<moe::Index>{1}, std::span(zero));
      writer.add("domain", {1}, std::span(zero));
      writer.add("layer.0.offsets", {2}, std::span(offsets));
      if (key == "dtype") {
        writer.add("layer.0.expert", {1}, std::span(weight));
      } else {
        writer.add("layer.0.expert", {1}, std::span(expert));
      }
      if (key != "lack") writer.add("layer.0.weight", {1}, std::span(weight));
      writer.add("layer.0.kept", {1}, std::span(zero));
    });
  };
  CHECK(with("", "") == "nothing was thrown");
  CHECK_THAT(refused([](auto&) {}), Contains("holds no routing decisions"));
  CHECK_THAT(with("routing", "2"), Contains("version '2'"));
  CHECK_THAT(with("model", ""), Contains("lacks the metadata 'model'"));
  CHECK_THAT(with("step", "x"), Contains("says 'x' for 'step'"));
  CHECK_THAT(with("step", "1 "), Contains("says '1 ' for 'step'"));
  CHECK_THAT(with("step", "99999999999999999999"), Contains("for 'step'"));
  CHECK_THAT(with("step", "-1"), Contains("says '-1' for 'step'"));
  CHECK_THAT(with("domains", "257"), Contains("up to 256"));
  CHECK_THAT(with("domains", "2"), Contains("lacks the metadata 'domain.1'"));
  CHECK_THAT(with("domains", "0"), Contains("token 0 in domain 0 of 0"));
  CHECK_THAT(with("layers", "9000000000000000000"), Contains("lacks the metadata 'layer.1.experts'"));
  CHECK_THAT(with("layer.0.experts", "65537"), Contains("up to 65536"));
  CHECK_THAT(with("rank", ""), Contains("tensor 'byte' of shape (1, 1)"));
  CHECK_THAT(with("dtype", ""), Contains("dtype F32"));
  CHECK_THAT(with("lack", ""), Contains("holds no tensor 'layer.0.weight'"));
  CHECK_THAT(with("expert", "2"), Contains("expert 2 of 2"));
  CHECK_THAT(with("offset", "4294967297"), Contains("4294967297 in tensor 'layer.0.offsets'"));  // 1 in 32 bits

  write_routing(path, small());
  const std::string good = read_bytes(path);
  auto reads = [&](const std::string& bytes) {
    std::ofstream(folder / "d", std::ios::binary) << bytes;
    try {
      routing_file::check(folder / "d", read_routing(folder / "d"));
      return true;
    } catch (const moe::IoError&) {
      return false;
    }
  };
  int refusals = 0;
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (const unsigned char flip : {0x01, 0x20, 0x80}) {
      std::string bad = good;
      bad[i] = char(static_cast<unsigned char>(bad[i]) ^ flip);
      refusals += !reads(bad);
    }
  }
  CHECK(refusals > 100);
  for (std::size_t size = 0; size < good.size(); size += 7) CHECK_FALSE(reads(good.substr(0, size)));
}

TEST_CASE("A line of CSV is a choice") {
  const Folder folder;
  write_routing_csv(folder / "r.csv", small());
  CHECK(read_bytes(folder / "r.csv") ==
        "token,domain,byte,layer,choice,expert,weight,kept\n"
        "0,plain,97,0,0,3,0.75,1\n"
        "0,plain,97,0,1,0,0.25,0\n"
        "0,plain,97,1,0,299,1,1\n"
        "1,plain,10,1,0,0,-2,1\n"
        "2,\"with, \"\"both\"\"\",255,0,0,1,0.1,1\n"
        "2,\"with, \"\"both\"\"\",255,1,0,256,3e-20,0\n");
  CHECK_THROWS_AS(write_routing_csv(folder / "no/such/folder", small()), moe::IoError);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);
}

TEST_CASE("Information between experts and domains") {
  using analysis::information;
  CHECK(analysis::entropy({4, 4, 8}) == Approx(1.5));
  CHECK(analysis::entropy({7, 0}) == 0);
  CHECK(information({{10, 0}, {0, 10}}).bits == Approx(1));
  CHECK(information({{10, 0}, {0, 10}}).share == Approx(1));
  CHECK(information({{5, 15}, {5, 15}}).bits == Approx(0).margin(1e-12));
  // P = 3/8 and 1/8: 3/4 log2(3/2) + 1/4 log2(1/2) = 1 - H(1/4).
  CHECK(information({{3, 1}, {1, 3}}).bits == Approx(0.188721875540867));
  CHECK(information({{8, 0, 0, 0}, {0, 4, 2, 2}}).bits == Approx(1));  // the expert tells the domain: all of 1 bit
  CHECK(information({{3, 1}, {1, 3}}).by_luck == Approx(1 / (16 * std::log(2.0))));
  CHECK(information({{3, 1}, {1, 3}, {0, 0}}).by_luck == Approx(1 / (16 * std::log(2.0))));  // an empty row is no row
  CHECK(information({{4, 4}}).share == 0);  // one domain: nothing to know
  CHECK(information({{0, 0}, {0, 0}}).bits == 0);
  const Layer layer = layer_of(3, {{0, 1}, {2}, {}, {1, 1}});
  CHECK(analysis::choices_by({0, 1, 1, 0}, 2, layer) == analysis::Table{{1, 3, 0}, {0, 0, 1}});
}

TEST_CASE("Typical bytes of an expert") {
  analysis::Table by_byte(256, {0, 0});
  by_byte['a'] = {30, 10};  // lift with expert 0: 30 * 80 / (40 * 40) = 1.5
  by_byte['b'] = {8, 28};   // with expert 1: 28 * 80 / (36 * 40) = 14/9
  by_byte['c'] = {2, 2};    // 1 with both
  const auto typical = analysis::typical_bytes(by_byte, 10, 8);
  REQUIRE(typical.size() == 2);
  REQUIRE(typical[0].size() == 1);
  CHECK((typical[0][0].byte == 'a' && typical[0][0].count == 30));
  CHECK(typical[0][0].lift == Approx(1.5));
  REQUIRE(typical[1].size() == 1);
  CHECK(typical[1][0].lift == Approx(14.0 / 9));
  CHECK(analysis::typical_bytes(by_byte, 31, 8)[0].empty());  // too few to say
  CHECK(analysis::typical_bytes(by_byte, 1, 0)[0].empty());
  CHECK(analysis::typical_bytes(analysis::Table(256, {0}), 1, 8)[0].empty());
}

TEST_CASE("Experts chosen together") {
  const auto even = analysis::coactivation(layer_of(4, {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {3, 1}, {2, 3}}));
  CHECK(even.tokens == std::vector<analysis::Count>{3, 3, 3, 3});
  CHECK(even.given(0, 1) == Approx(1.0 / 3));
  CHECK(even.given(2, 2) == 1);
  for (std::size_t j = 1; j < 4; ++j) CHECK(even.lift(0, j) == Approx(1));

  // Two couples that never mix: each has one partner where independent ones would share three.
  const auto couples = analysis::coactivation(layer_of(4, {{0, 1}, {1, 0}, {2, 3}, {3, 2}}));
  CHECK(couples.both(1, 0) == 2);
  CHECK(couples.expected(0, 1) == Approx(2.0 / 3));
  CHECK(couples.lift(0, 1) == Approx(3));
  CHECK(couples.lift(0, 2) == 0);
  const auto pairs = analysis::strongest_pairs(couples, 1, 8);
  REQUIRE(pairs.size() == 2);
  CHECK((pairs[0].i == 0 && pairs[0].j == 1 && pairs[1].i == 2 && pairs[1].j == 3));
  CHECK(analysis::strongest_pairs(couples, 3, 8).empty());
  CHECK(analysis::strongest_pairs(couples, 1, 1).size() == 1);

  // Expert 0 takes part everywhere, as when routing collapses: that is load, not liking.
  const auto star = analysis::coactivation(layer_of(4, {{0, 1}, {0, 1}, {0, 2}, {0, 3}, {0, 1}, {0, 2}}));
  for (std::size_t j = 1; j < 4; ++j) CHECK(star.lift(0, j) == Approx(1).epsilon(0.01));

  // Products of loads 4, 2, 1, 1 and nothing else: lift 1 for every pair.
  std::vector<std::vector<std::int32_t>> choices;
  const int load[] = {4, 2, 1, 1};
  for (std::int32_t i = 0; i < 4; ++i)
    for (std::int32_t j = i + 1; j < 4; ++j) choices.insert(choices.end(), std::size_t(load[i] * load[j]), {i, j});
  const auto products = analysis::coactivation(layer_of(4, choices));
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = i + 1; j < 4; ++j) CHECK(products.lift(i, j) == Approx(1));

  CHECK(analysis::coactivation(layer_of(2, {{0}, {1}, {}, {1, 1}})).together.empty());
}

TEST_CASE("Routing that stays from file to file") {
  using analysis::jaccard;
  CHECK(jaccard({0, 1}, {1, 2}) == Approx(1.0 / 3));
  CHECK(jaccard({0, 1}, {0, 1}) == 1);
  CHECK(jaccard({0}, {1}) == 0);
  CHECK(jaccard({}, {}) == 1);
  CHECK(jaccard({}, {1}) == 0);

  Layer first = layer_of(3, {{0, 1}, {0, 1}, {2, 1}, {}});
  Layer second = layer_of(3, {{1, 0}, {1, 2}, {0}, {}});
  CHECK(analysis::top_expert(first, 0) == 0);
  first.weight[1] = 2;
  CHECK(analysis::top_expert(first, 0) == 1);  // the largest weight, wherever it stands
  CHECK(analysis::top_expert(first, 3) == -1);
  const auto s = analysis::stability(first, second);  // tops: 1, 0, 2, none and 1, 1, 0, none
  CHECK(s.same_set == Approx(0.5));
  CHECK(s.overlap == Approx((1 + 1.0 / 3 + 0 + 1) / 4));
  CHECK(s.same_top == Approx(0.5));
  CHECK(s.by_luck == Approx((1 * 1 + 1 * 2 + 1 * 0 + 1 * 1) / 16.0));

  const RoutingRecord record = small();
  auto differs = [&](const std::function<void(RoutingRecord&)>& change) -> std::string {
    RoutingRecord other = record;
    change(other);
    try {
      analysis::require_comparable("b", other, "a", record);
    } catch (const moe::DataError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  CHECK(differs([](auto& r) { r.step = 80; }) == "nothing was thrown");
  CHECK_THAT(differs([](auto& r) { r.byte.pop_back(); }), Contains("texts have 3 and 2 bytes"));
  CHECK_THAT(differs([](auto& r) { r.byte[1] = 'b'; }), Contains("differ from byte 1 on"));
  CHECK_THAT(differs([](auto& r) { r.domain[0] = 1; }), Contains("other domains"));
  CHECK_THAT(differs([](auto& r) { r.model = "switch"; }), Contains("models mixtral and switch"));
  CHECK_THAT(differs([](auto& r) { r.layers.pop_back(); }), Contains("2 and 1 layers"));
  CHECK_THAT(differs([](auto& r) { r.layers[1].experts = 301; }), Contains("layer 1 has 300 and 301 experts"));
}

}  // namespace routing_file_test
