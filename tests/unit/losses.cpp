// Losses and routing policies against goldens of the published formulas.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"
#include "moe_test/golden.hpp"

namespace losses_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using Routing = moe::Routing<float, Space>;
using Batch = moe::Batch<float, Space>;

/// Routes logits as they are.
template <class Router>
Routing route(const Router& router, const moe::Matrix<float, Space>& logits, Batch& batch,
              const moe::Vector<float, Space>& bias = {}) {
  moe::Context<Space> ctx;
  ctx.training = false;
  batch.x = logits;
  Routing routing;
  const Index experts = logits.extent(1);
  router.forward(ctx, batch, {identity_weight<Space>(experts)}, {bias}, experts, routing);
  return routing;
}

template <class Loss>
double value(const Loss& loss, const Routing& routing, const Batch& batch) {
  moe::Context<Space> ctx;
  moe::Vector<double, Space> slot("slot", 1);
  loss.value(ctx, batch, routing, slot);
  return slot(0);
}

TEST_CASE("DeepSeek's losses and bias step agree with their golden") {
  const GoldenFile golden("deepseek_losses");
  const auto& shape = golden.file.info("logits").shape;  // (S, T, E)
  const Index sequences = shape[0], length = shape[1], experts = shape[2];
  const auto values = golden.file.read<float>("logits");
  moe::Matrix<float, Space> logits("logits", sequences * length, experts);
  std::copy(values.begin(), values.end(), logits.data());
  Batch batch;
  batch.sequence_offsets = indices<Space>({0, length, 2 * length});

  const auto softmax = route(moe::Router<moe::Softmax, moe::TopK<3>>{}, logits, batch);
  CHECK(value(moe::ExpertBalanceLoss(1.0), softmax, batch) == Approx(golden.file.read<float>("batch_aux_v1")[0]));
  CHECK(value(moe::SequenceBalanceLoss(1.0), softmax, batch) == Approx(golden.file.read<float>("seq_aux_v2")[0]));
  CHECK(value(moe::DeviceBalanceLoss(1.0, 4), softmax, batch) == Approx(golden.file.read<float>("device_aux")[0]));
  CHECK(value(moe::CommunicationBalanceLoss(1.0, 4, 2), softmax, batch) ==
        Approx(golden.file.read<float>("comm_aux")[0]));
  const auto sigmoid = route(moe::Router<moe::Sigmoid, moe::TopK<3>>{}, logits, batch);
  CHECK(value(moe::SequenceBalanceLoss(1.0), sigmoid, batch) == Approx(golden.file.read<float>("seq_aux_v3")[0]));

  using Router = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::BiasBalancer>;
  const auto load = golden.file.read<float>("load");
  std::vector<Index> counts(load.begin(), load.end());
  moe::Vector<float, Space> bias("bias", experts);
  golden.file.read("bias", bias);
  moe::Context<Space> ctx;
  Router::Buffers<float, Space> buffers{bias};
  Router{moe::BiasBalancer{0.001}}.update_balance(ctx, buffers, moe::Vector<const Index, Space>(indices<Space>(counts)),
                                                  moe::Vector<const Index, Space>(indices<Space>({18})));
  const auto next = golden.file.read<float>("bias_next");
  for (Index e = 0; e < experts; ++e) CHECK(bias(e) == Approx(next[e]).margin(1e-7));
}

TEST_CASE("GShard's loss agrees with its golden") {
  const GoldenFile golden("gshard_top2");
  Batch batch;
  const auto routing = route(moe::Router<moe::Softmax, moe::TopK<2>>{}, golden.matrix<Space>("logits"), batch);
  CHECK(value(moe::GShardBalanceLoss(1.0), routing, batch) == Approx(golden.file.read<float>("aux_paper")[0]));
}

TEST_CASE("Top-k with capacity agrees with its golden") {
  const GoldenFile golden("topk_capacity");
  Batch batch;
  const auto routing = route(moe::Router<moe::Softmax, moe::TopK<2>>{}, golden.matrix<Space>("logits"), batch);
  CHECK(value(moe::RouterZLoss{1.0}, routing, batch) == Approx(golden.file.read<float>("z_loss")[0]));
  moe::Vector<moe::ExpertId, Space> expected("index", routing.assignments.bound);
  const auto index = golden.file.read<std::int32_t>("index");
  for (Index a = 0; a < routing.assignments.bound; ++a) CHECK(routing.assignments.expert(a) == index[a]);

  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.tokens_per_expert = 8;
  capacity.priority = moe::Priority::choice;
  moe::Context<Space> ctx;
  moe::DispatchPlan<Space> plan;
  moe::dispatch(ctx, routing.assignments, batch, routing.logits.extent(1), capacity, plan);
  const auto keep = golden.file.read<float>("keep.order");
  for (Index a = 0; a < routing.assignments.bound; ++a) CHECK((plan.assignment_row(a) >= 0) == (keep[a] != 0));
}

TEST_CASE("Expert choice agrees with its golden") {
  const GoldenFile golden("expert_choice");
  Batch batch;
  moe::ExpertChoice choice;
  choice.tokens_per_expert = 6;
  const auto routing =
      route(moe::Router<moe::Softmax, moe::ExpertChoice>{choice}, golden.matrix<Space>("logits"), batch);
  const auto expected = golden.matrix<Space>("dense_w");
  moe::Matrix<float, Space> dense("dense", expected.extent(0), expected.extent(1));
  const auto& a = routing.assignments;
  for (Index t = 0; t < a.tokens; ++t) {
    for (Index i = a.begin(t); i < a.end(t); ++i) dense(t, a.expert(i)) = a.weight(i);
  }
  for (std::size_t i = 0; i < dense.size(); ++i) CHECK(dense.data()[i] == Approx(expected.data()[i]).margin(1e-7));
}

TEST_CASE("Equal loads cost what the papers say: Switch 1, its count of all choices K") {
  const Index experts = 4, tokens = 8;
  moe::Matrix<float, Space> logits("logits", tokens, experts);
  for (Index t = 0; t < tokens; ++t) logits(t, t % experts) = 2, logits(t, (t + 1) % experts) = 1;
  Batch batch;
  const auto routing = route(moe::Router<moe::Softmax, moe::TopK<2>>{}, logits, batch);
  CHECK(value(moe::SwitchBalanceLoss(1.0), routing, batch) == Approx(1.0));
  CHECK(value(moe::SwitchBalanceLoss(1.0, moe::Count::all), routing, batch) == Approx(2.0));
  CHECK(value(moe::ExpertBalanceLoss(1.0), routing, batch) == Approx(1.0));
}

TEST_CASE("In ragged lists K is the mean of the choices made") {
  using Ragged = moe::MoELayer<moe::On<Space>, moe::Router<moe::Softmax, moe::ExpertChoice>, moe::ExpertBalanceLoss>;
  const Index experts = 5, tokens = 7;
  Ragged layer(moe::MoEConfig{.hidden = 6, .intermediate = 4, .experts = experts}, moe::ExpertBalanceLoss(1.0));
  moe::Context<Space> ctx;
  Ragged::Tape tape;
  layer.forward(ctx, random<moe::Matrix<float, Space>>(1, tokens, 6), tape);
  const auto report = moe::load_report(tape);
  REQUIRE(report.assignments() < tape.routing.assignments.bound + 1);
  double expected = 0;
  for (Index e = 0; e < experts; ++e) {
    double mean = 0;
    for (Index t = 0; t < tokens; ++t) mean += double(tape.routing.scores(t, e)) / double(tokens);
    expected += double(experts) * report.share(e) * mean;
  }
  CHECK(tape.loss() == Approx(expected));
}

TEST_CASE("The balancing bias moves choices and never weights") {
  moe::Matrix<float, Space> logits("logits", 1, 4);
  const float z[] = {2, 1, 0, -1};
  std::copy(z, z + 4, logits.data());
  moe::Vector<float, Space> bias("bias", 4);
  bias(3) = 10;
  bias(0) = -10;  // negative keys are keys like any other
  Batch batch;
  const auto routing = route(moe::Router<moe::Sigmoid, moe::TopK<2>, moe::BiasBalancer>{}, logits, batch, bias);
  CHECK(routing.assignments.expert(0) == 3);
  CHECK(routing.assignments.expert(1) == 1);
  CHECK(routing.assignments.weight(0) == Approx(1 / (1 + std::exp(1.0))));
}

TEST_CASE("A group limit masks with -infinity: negative keys inside beat everything outside") {
  moe::Matrix<float, Space> logits("logits", 1, 6);
  moe::Vector<float, Space> bias("bias", 6);
  const float b[] = {-5, -6, -9, -9, -7, -8};
  std::copy(b, b + 6, bias.data());
  Batch batch;
  using Router = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::GroupLimit<3, 2>, moe::BiasBalancer>;
  const auto routing = route(Router{}, logits, batch, bias);
  CHECK(routing.assignments.expert(0) == 0);
  CHECK(routing.assignments.expert(1) == 1);
  CHECK(routing.assignments.expert(2) == 4);
}

TEST_CASE("Jitter is off in inference, replayed by its counters, and within its bounds") {
  const moe::Jitter jitter{0.25};
  const moe::RowRandom on{{1, 2, 3, moe::Purpose::jitter}, 5, true}, off{{1, 2, 3, moe::Purpose::jitter}, 5, false};
  std::vector<double> a(100, 1.0), b(100, 1.0), c(100, 1.0);
  jitter.apply(moe::Team{}, moe::Row<double>{a.data(), 100}, on);
  jitter.apply(moe::Team{}, moe::Row<double>{b.data(), 100}, on);
  jitter.apply(moe::Team{}, moe::Row<double>{c.data(), 100}, off);
  CHECK(a == b);
  CHECK(c == std::vector<double>(100, 1.0));
  CHECK(*std::min_element(a.begin(), a.end()) >= 0.75);
  CHECK(*std::max_element(a.begin(), a.end()) <= 1.25);
  CHECK(*std::max_element(a.begin(), a.end()) > 1.1);
}

}  // namespace losses_test
