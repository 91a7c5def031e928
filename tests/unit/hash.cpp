// Hash tables: distinct and even draws, greedy balance against a plain search, and errors.
#include <moe/routing/hash.hpp>
#include <moe_test/catch.hpp>
#include <set>

namespace hash_test {

using Catch::Matchers::Contains;
using moe::ExpertId;
using moe::Index;

template <class Error, class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST_CASE("A random hash draws distinct experts, each about as often, and the same ones again") {
  const Index vocabulary = 6000;
  const int experts = 6, k = 3;
  const auto table = moe::random_hash(vocabulary, experts, k, moe::Seed{7});
  REQUIRE(table.size() == std::size_t(vocabulary * k));
  std::vector<std::vector<int>> counts(k, std::vector<int>(experts));
  for (Index id = 0; id < vocabulary; ++id) {
    const std::set<ExpertId> row(table.begin() + id * k, table.begin() + (id + 1) * k);
    REQUIRE(row.size() == std::size_t(k));
    for (int i = 0; i < k; ++i) ++counts[i].at(std::size_t(table[id * k + i]));
  }
  for (const auto& choice : counts) {  // 1000 expected, deviation 29
    for (int count : choice) CHECK(std::abs(count - 1000) < 150);
  }
  CHECK(table == moe::random_hash(vocabulary, experts, k, moe::Seed{7}));
  CHECK(table != moe::random_hash(vocabulary, experts, k, moe::Seed{8}));

  const auto one = moe::random_hash(vocabulary, experts, 1, moe::Seed{7});
  bool prefix = true;
  for (Index id = 0; id < vocabulary; ++id) prefix = prefix && one[id] == table[id * k];
  CHECK(prefix);
}

TEST_CASE("A random hash of all experts is a permutation") {
  const auto table = moe::random_hash(50, 5, 5, moe::Seed{1});
  for (int id = 0; id < 50; ++id) CHECK(std::set(table.begin() + id * 5, table.begin() + (id + 1) * 5).size() == 5);
  CHECK(moe::random_hash(0, 5, 5, moe::Seed{1}).empty());
  CHECK(moe::random_hash(3, 1, 1, moe::Seed{1}) == std::vector<ExpertId>{0, 0, 0});
}

TEST_CASE("A balanced hash gives each id to the emptiest expert, the most frequent first") {
  CHECK(moe::balanced_hash(std::vector<double>{1, 8, 2, 5, 5, 0, 0, 0}, 3) ==
        std::vector<ExpertId>{2, 0, 1, 1, 2, 0, 1, 2});
  CHECK(moe::balanced_hash(std::vector<double>{3, 3, 3}, 1) == std::vector<ExpertId>{0, 0, 0});
  CHECK(moe::balanced_hash({}, 4).empty());

  std::vector<double> zipf(1000);  // shuffled: 331 has no factor in common with 1000
  for (int rank = 0; rank < 1000; ++rank) zipf[std::size_t(rank * 331 % 1000)] = 1.0 / (rank + 8);
  const auto table = moe::balanced_hash(zipf, 8);
  std::vector<double> load(8);
  for (std::size_t id = 0; id < zipf.size(); ++id) load.at(std::size_t(table[id])) += zipf[id];
  const auto [least, most] = std::minmax_element(load.begin(), load.end());
  CHECK(*most - *least <= 1.0 / 1007 + 1e-12);  // no more than the last and rarest id
}

TEST_CASE("Hash tables that cannot be are refused with a sentence") {
  using moe::ConfigError;
  CHECK_THAT(error_of<ConfigError>([] { moe::random_hash(5, 4, 5, {}); }), Contains("cannot choose 5 of 4 experts"));
  CHECK_THAT(error_of<ConfigError>([] { moe::random_hash(5, 4, 0, {}); }), Contains("cannot choose 0 of 4 experts"));
  CHECK_THAT(error_of<ConfigError>([] { moe::random_hash(-1, 4, 1, {}); }), Contains("each of -1 ids"));
  CHECK_THAT(error_of<ConfigError>([] { moe::balanced_hash({}, 0); }), Contains("0 experts"));
  for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK_THAT(error_of<moe::DataError>([&] {
                 moe::balanced_hash(std::vector<double>{1, bad}, 2);
               }),
               Contains("the frequency of token id 1 is"));
  }
}

}  // namespace hash_test
