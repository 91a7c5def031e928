// Losses on probabilities: goldens, equations written out in double, gradients, and what they cost at balance and at
// collapse.
#include <moe/balance/choice_cross_entropy.hpp>
#include <moe/balance/entropy_loss.hpp>
#include <moe/balance/gate_losses.hpp>
#include <moe/balance/localised_balance_loss.hpp>
#include <moe/balance/losses.hpp>
#include <moe/balance/mutual_information_loss.hpp>

#include "moe_test/balance.hpp"
#include "moe_test/golden.hpp"

namespace probability_losses_test {

using namespace moe_test;
using namespace moe_test::balance;
using Dense = moe::Router<moe::GivenLogits, moe::Softmax, moe::AllExperts>;

TEST_CASE("Losses on entropy, gates and logits have the documented values, and keep their batches apart") {
  Routed<TopTwo> even(balanced_logits()), two(collapsed_logits()), flat(Matrix("z", tokens, experts));
  const double e = double(experts);
  const auto check = [&](const auto& loss, double at_balance, double at_collapse) {
    CHECK(even.value(loss) == Approx(at_balance).margin(1e-8));
    CHECK(two.value(loss) == Approx(at_collapse));
    check_differences<TopTwo>(loss);
    check_batches<TopTwo>(loss);
  };
  check(moe::EntropyLoss{1}, -std::log(e), -std::log(2.0));
  check(moe::ImportanceLoss{1}, 0, e / 2 - 1);
  const double z = std::log(std::exp(2.0) + std::exp(1.0) + 2);
  check(moe::RouterZLoss{1}, z * z, std::pow(1000 + std::log(2.0), 2));
  check_differences<TopTwo>(moe::ChoiceCrossEntropy{1});
  check_batches<TopTwo>(moe::ChoiceCrossEntropy{1});
  CHECK(flat.value(moe::ChoiceCrossEntropy{1}) == Approx(std::log(2.0)));
  CHECK(flat.value(moe::RouterZLoss{1}) == Approx(std::log(e) * std::log(e)));
}

/// -I(token; expert) over live tokens, or -I(task; expert) of the first `tasks` tasks, by the definition.
double mutual_information(const Routed<TopTwo>& routed, Index tasks) {
  const std::vector<Index> task_of_sequence = {1, 0, 2}, first = {0, 5, 7, 12};
  std::vector<std::vector<double>> joint;  // rows p(e | token or task) times its probability
  double n = 0;
  if (tasks > 0) joint.assign(std::size_t(tasks), std::vector<double>(experts));
  for (Index s = 0; s < 3; ++s) {
    for (Index t = first[s]; t < first[s + 1]; ++t) {
      if (t == 2 || t == 6 || (tasks > 0 && task_of_sequence[s] >= tasks)) continue;
      double total = 0;
      for (Index e = 0; e < experts; ++e) total += std::exp(routed.logits(t, e));
      if (tasks == 0) joint.emplace_back(experts);
      auto& row = tasks == 0 ? joint.back() : joint[task_of_sequence[s]];
      for (Index e = 0; e < experts; ++e) row[e] += std::exp(routed.logits(t, e)) / total;
      n += 1;
    }
  }
  double information = 0;
  for (const auto& row : joint) {
    double own = 0;
    for (double p : row) own += p / n;
    for (Index e = 0; e < experts; ++e) {
      double column = 0;
      for (const auto& other : joint) column += other[e] / n;
      if (row[e] > 0) information += row[e] / n * std::log(row[e] / n / (own * column));
    }
  }
  return -information;
}

TEST_CASE("Mutual information of tokens or tasks and experts is its definition") {
  for (Index tasks : {0, 2, 3}) {
    CAPTURE(tasks);
    const moe::MutualInformationLoss loss{.coefficient = 0.6, .tasks = tasks};
    auto routed = padded<TopTwo>();
    CHECK(routed.value(loss) == Approx(0.6 * mutual_information(routed, tasks)));
    check_differences<TopTwo>(loss);
    check_batches<TopTwo>(loss);
  }
  Matrix sure("z", tokens, experts), same("z", tokens, experts);
  for (Index t = 0; t < tokens; ++t) sure(t, t % experts) = 1000, same(t, 1) = 1000;
  const moe::MutualInformationLoss loss{1};
  CHECK(Routed<TopTwo>(sure).value(loss) == Approx(-std::log(double(experts))));
  CHECK(Routed<TopTwo>(same).value(loss) == Approx(0).margin(1e-14));
  CHECK(Routed<TopTwo>(Matrix("z", tokens, experts)).value(loss) == Approx(0).margin(1e-14));
  Routed<TopTwo> without(same);
  CHECK_THROWS_AS(without.value(moe::MutualInformationLoss{.coefficient = 1, .tasks = 2}), moe::ShapeError);
}

TEST_CASE("LoRAMoE's localised balance agrees with its golden") {
  const GoldenFile golden("lora_family");
  const auto& shape = golden.file.info("x").shape;  // (S, T, H)
  const Index sequences = shape[0], length = shape[1], hidden = shape[2];
  const auto x = golden.file.read<float>("x"), weight = golden.file.read<float>("router");
  Matrix z("z", sequences * length, 4);
  for (Index t = 0; t < sequences * length; ++t) {
    for (Index e = 0; e < 4; ++e) {
      for (Index h = 0; h < hidden; ++h) z(t, e) += double(x[t * hidden + h]) * double(weight[e * hidden + h]);
    }
  }
  Routed<Dense> routed(z);
  routed.batch.sequence_offsets = indices<Space>({0, length, 2 * length});
  moe::Vector<std::int32_t, Space> tasks("tasks", 2);
  golden.file.read("task_types", tasks);
  routed.batch.task_ids = tasks;
  CHECK(routed.value(moe::LocalisedBalanceLoss{1, 0.1}) == Approx(golden.file.read<float>("loramoe_blc")[0]));
}

TEST_CASE("Localised balance passes the gradient check, and costs nothing in proportion to 1 / I") {
  const moe::LocalisedBalanceLoss loss{0.7, 0.3};
  check_differences<Dense>(loss);
  check_batches<Dense>(loss);
  check_differences<TopTwo>(loss);

  Matrix z("z", tokens, experts);
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < experts; ++e) z(t, e) = -std::log((t < 6) == (e < 2) ? 1.3 : 0.7);
  }
  Routed<Dense> local(z);
  local.batch.sequence_offsets = indices<Space>({0, 6, 12});
  moe::Vector<std::int32_t, Space> tasks("tasks", 2);
  tasks(0) = 1;
  local.batch.task_ids = tasks;
  CHECK(local.value(loss) == Approx(0).margin(1e-13));
  tasks(0) = 0, tasks(1) = 1;
  CHECK(local.value(loss) > 0.1);

  for (Index t = 0; t < tokens; ++t) z(t, 2) = 1000;
  local.route();
  CHECK(local.value(moe::LocalisedBalanceLoss{1, 0}) == Approx(2.0 * 4 * 3 / (2 * 4 - 1)));
  Routed<Dense> odd(Matrix("z", tokens, 3));
  CHECK_THROWS_AS(odd.value(loss), moe::ConfigError);
  tasks = moe::Vector<std::int32_t, Space>("tasks", 3);
  local.batch.task_ids = tasks;
  CHECK_THROWS_AS(local.value(loss), moe::ShapeError);
}

}  // namespace probability_losses_test
