// Published mixtures of adapters: goldens, and each one's equations written out in double.
#include <functional>
#include <moe/models/adapters.hpp>

#include "moe_test/adapters.hpp"
#include "moe_test/golden.hpp"

namespace adapter_family_test {

using namespace moe_test;
using Space = Kokkos::DefaultExecutionSpace;
using D = moe::Precision<double>;
using M = moe::Matrix<double, Space>;
using Values = std::vector<double>;

constexpr Index in = 7, out = 5, experts = 4, rank = 3, tokens = 11;
const moe::AdaptedLinearConfig config{.in = in, .out = out, .experts = experts, .rank = rank, .alpha = 6};

/// A random batch through a layer with random weights.
template <class Layer>
struct Run {
  M x = random<M>(1, tokens, in);
  moe::Batch<double, Space> batch = adapter_batch<double, Space>(x);
  moe::FrozenLinear<double, Space> base = frozen_linear<double, Space>(out, in, true);
  Layer layer;
  typename Layer::Tape tape;

  template <class... Values>
  explicit Run(moe::AdaptedLinearConfig c, const Values&... values) : layer(c, base, moe::Seed{3}, values...) {
    randomise_parameters(layer);
  }
  template <class... Values>
  static Run of(const Values&... values) {
    return Run(config, values...);
  }

  /// Compares y with expected(t, x, W x + bias), padding with zeros.
  void compare(const std::function<Values(Index, const Values&, const Values&)>& expected) {
    moe::Context<Space> ctx;
    ctx.training = false;
    const auto y = layer.forward(ctx, batch, tape);
    const Table rows(x), weight(base.weight), bias(base.bias);
    Table result(tokens, out);
    for (Index t = 0; t < tokens; ++t) {
      if (t == 1 || t == 2) continue;  // padding
      auto start = times(weight.data.data(), out, row_of(rows, t));
      add(start, 1, bias.data);
      const auto row = expected(t, row_of(rows, t), start);
      std::copy(row.begin(), row.end(), &result(t, 0));
    }
    CHECK(worst_difference(y, result) < 1e-12);
  }
};

/// What W x and weighted low-rank adapters sum to.
template <class Parameters>
auto sum_of(const Parameters& p, std::vector<double> start, const std::vector<double>& weight, double scaling,
            const std::vector<double>& x) {
  for (Index e = 0; e < Index(weight.size()); ++e) {
    if (weight[std::size_t(e)] != 0) add(start, weight[std::size_t(e)] * scaling, low_rank(p, e, x));
  }
  return start;
}
std::vector<double> logits(const M& weight, const std::vector<double>& x) {
  const Table w(weight);
  return times(w.data.data(), w.rows, x);
}
/// All but the k largest become 0.
std::vector<double> best(std::vector<double> weight, std::size_t k, bool normalise = false) {
  auto sorted = weight;
  std::sort(sorted.rbegin(), sorted.rend());
  double sum = 0;
  for (double& w : weight) sum += w = w >= sorted[k - 1] ? w : 0;
  for (double& w : weight) w /= normalise ? sum : 1;
  return weight;
}
/// The mean of the live tokens of t's sequence: {0, 3, 4}, {5}, {6 to 10}.
std::vector<double> sequence_mean(const M& x, Index t) {
  const Table rows(x);
  const std::vector<Index> members = t < 5    ? std::vector<Index>{0, 3, 4}
                                     : t == 5 ? std::vector<Index>{5}
                                              : std::vector<Index>{6, 7, 8, 9, 10};
  std::vector<double> mean(in);
  for (Index m : members) add(mean, 1 / double(members.size()), row_of(rows, m));
  return mean;
}
Index task_of(Index t) {
  return t < 5 ? 0 : t == 5 ? 2 : 1;
}

TEST_CASE("The family's goldens of soft, top-k, shared and task-gated LoRAs and of MoV agree") {
  const GoldenFile golden("lora_family");
  using F = moe::Precision<float>;
  const auto read = [&](const char* name, auto view) {
    golden.file.read(name, view);
    return view;
  };
  moe::Tensor3<float, Space> x3("x", 2, 5, 6), y3("y", 2, 5, 4);
  golden.file.read("x", x3);
  const moe::FrozenLinear<float, Space> base{read("base_weight", moe::Matrix<float, Space>("w", 4, 6)), {}};
  const moe::AdaptedLinearConfig sizes{.in = 6, .out = 4, .experts = 4, .rank = 2, .alpha = 16};
  moe::Batch<float, Space> batch;
  batch.x = moe::Matrix<const float, Space>(x3.data(), 10, 6);
  batch.sequence_offsets = indices<Space>({0, 5, 10});
  const auto check = [&](auto& layer, const std::string& name) {
    INFO(name);
    moe::Context<Space> ctx;
    typename std::decay_t<decltype(layer)>::Tape tape;
    golden.file.read("y." + name, y3);
    const Table expected(y3);
    double largest = 0;
    for (double v : expected.data) largest = std::max(largest, std::abs(v));
    CHECK(worst_difference(layer.forward(ctx, batch, tape), expected) < 1e-5 * largest);
  };
  const auto fill = [&](auto& layer) {
    golden.file.read("A", layer.parameters.adapters.a);
    golden.file.read("B", layer.parameters.adapters.b);
  };
  moe::MoLoRALayer<F> molora(sizes, base);
  fill(molora);
  golden.file.read("router", molora.parameters.router.weight);
  check(molora, "molora_soft");
  moe::MoLALayer<F> mola(sizes, base);
  fill(mola);
  golden.file.read("router", mola.parameters.router.weight);
  check(mola, "mola_top2");
  moe::LLaVAMoLELayer<F> llava(sizes, base);
  fill(llava);
  golden.file.read("router", llava.parameters.router.weight);
  check(llava, "llava_mole_top1");

  moe::HydraLoRALayer<F> hydra(sizes, base);
  const auto all_a = read("A", moe::Tensor3<float, Space>("A", 4, 2, 6));
  Kokkos::deep_copy(hydra.parameters.adapters.a,
                    Kokkos::subview(all_a, Kokkos::pair<int, int>(0, 1), Kokkos::ALL, Kokkos::ALL));
  golden.file.read("B", hydra.parameters.adapters.b);
  golden.file.read("router", hydra.parameters.router.weight);
  check(hydra, "hydralora");

  moe::MOELoRALayer<F> moelora(sizes, base, moe::MOELoRARouter{moe::TaskLogits{.tasks = 2, .width = 3}});
  fill(moelora);
  golden.file.read("task_embedding", moelora.parameters.router.embedding);
  golden.file.read("task_gate", moelora.parameters.router.weight);
  moe::Vector<std::int32_t, Space> tasks("tasks", 2);
  const auto task = Kokkos::create_mirror_view(Kokkos::HostSpace{}, tasks);
  task(0) = 0, task(1) = 1;
  Kokkos::deep_copy(tasks, task);
  batch.task_ids = tasks;
  check(moelora, "moelora_task");

  moe::MoVLayer<F> mov(sizes, base);
  golden.file.read("vectors", mov.parameters.adapters.vector);
  golden.file.read("vector_router", mov.parameters.router.weight);
  check(mov, "mov");
}

TEST_CASE("Mixtures by token are what their equations say") {
  auto lora = Run<moe::LoRALayer<D>>::of();
  lora.compare([&](Index, const Values& x, Values y) {
    return sum_of(lora.layer.parameters.adapters, y, {1, 1, 1, 1}, 2, x);
  });
  static_assert(std::is_same_v<moe::MoRALLayer<D>, moe::MoLoRALayer<D>> &&
                std::is_same_v<moe::LoRAMoELayer<D>, moe::MoLoRALayer<D>>);
  auto molora = Run<moe::MoLoRALayer<D>>::of();
  molora.compare([&](Index, const Values& x, Values y) {
    const auto& p = molora.layer.parameters;
    return sum_of(p.adapters, y, softmax(logits(p.router.weight, x)), 2, x);
  });
  auto hydra = Run<moe::HydraLoRALayer<D>>::of();
  hydra.compare([&](Index, const Values& x, Values y) {
    const auto& p = hydra.layer.parameters;
    CHECK(p.adapters.a.extent(0) == 1);
    return sum_of(p.adapters, y, softmax(logits(p.router.weight, x)), 2, x);
  });
  auto mola = Run<moe::MoLALayer<D>>::of();
  mola.compare([&](Index, const Values& x, Values y) {
    const auto& p = mola.layer.parameters;
    return sum_of(p.adapters, y, best(softmax(logits(p.router.weight, x)), 2, true), 2, x);
  });
  auto llava = Run<moe::LLaVAMoLELayer<D>>::of();
  llava.compare([&](Index, const Values& x, Values y) {
    const auto& p = llava.layer.parameters;
    return sum_of(p.adapters, y, best(softmax(logits(p.router.weight, x)), 1, true), 2, x);
  });
  auto mov = Run<moe::MoVLayer<D>>::of();
  mov.compare([&](Index, const Values&, Values y) {
    const auto w = softmax(logits(mov.layer.parameters.router.weight, y));
    const Table vectors(mov.layer.parameters.adapters.vector);
    std::vector<double> factor(out);
    for (Index e = 0; e < experts; ++e) add(factor, w[std::size_t(e)], row_of(vectors, e));
    for (std::size_t i = 0; i < y.size(); ++i) y[i] *= factor[i];
    return y;
  });
}

TEST_CASE("MultiLoRA's scales start at zero; SiRA drops what its capacity cannot hold") {
  auto multi = Run<moe::MultiLoRALayer<D>>::of();
  const moe::MultiLoRALayer<D> fresh(config, moe::Seed{3});
  for (double v : Table(fresh.parameters.router.weightings.values[1]).data) CHECK(v == 0);
  const auto b = Table(fresh.parameters.adapters.b).data;
  CHECK(std::none_of(b.begin(), b.end(), [](double v) { return v == 0; }));
  multi.compare([&](Index, const Values& x, Values y) {
    const auto& p = multi.layer.parameters;
    return sum_of(p.adapters, y, Table(p.router.weightings.values[1]).data, 2, x);
  });

  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.factor = 0.5;
  auto sira = Run<moe::SiRALayer<D>>::of(capacity);
  std::vector<Index> taken(experts);
  const Index limit = capacity.limit(9, 2, experts);
  sira.compare([&](Index, const Values& x, Values y) {
    const auto& p = sira.layer.parameters;
    auto w = best(softmax(logits(p.router.weight, x)), 2);
    for (std::size_t e = 0; e < w.size(); ++e) {
      if (w[e] != 0 && ++taken[e] > limit) w[e] = 0;
    }
    return sum_of(p.adapters, y, w, 2, x);
  });
  CHECK(moe::load_report(sira.tape).dropped() > 0);
}

TEST_CASE("Mixtures by task and cluster are what their equations say") {
  const moe::TaskLogits tasks{.tasks = 3, .width = 6};
  const auto gate = [](const auto& router, Index t, double temperature) {
    const Table embedding(router.embedding), weight(router.weight);
    auto z = times(weight.data.data(), experts, row_of(embedding, task_of(t)));
    for (double& v : z) v /= temperature;
    return softmax(z);
  };
  auto moelora = Run<moe::MOELoRALayer<D>>::of(moe::MOELoRARouter{tasks});
  moelora.compare([&](Index t, const Values& x, Values y) {
    const auto& p = moelora.layer.parameters;
    return sum_of(p.adapters, y, gate(p.router, t, 1), 6.0 / (rank * experts), x);
  });
  auto mocle = Run<moe::MoCLELayer<D>>::of(moe::mocle_router(3, 0.5, 6));
  mocle.compare([&](Index t, const Values& x, Values y) {
    const auto& p = mocle.layer.parameters;
    const auto w = best(gate(p.router, t, 0.5), 1);
    const double largest = *std::max_element(w.begin(), w.end());
    return sum_of(p.adapters.universal, sum_of(p.adapters.inner, y, w, 2, x), {1 - largest}, 2, x);
  });
  auto mit = Run<moe::MITLoRALayer<D>>::of();
  mit.compare([&](Index t, const Values& x, Values y) {
    const auto& p = mit.layer.parameters;
    std::vector<double> w(experts);
    w[std::size_t(task_of(t))] = 1;
    return sum_of(p.adapters.universal, sum_of(p.adapters.inner, y, w, 2, x), {1}, 2, x);
  });
  auto flora = Run<moe::FLoRALayer<D>>::of();
  flora.compare([&](Index t, const Values& x, Values y) {
    const Table a(flora.layer.parameters.adapters.a), b(flora.layer.parameters.adapters.b), weight(flora.base.weight);
    y = Table(flora.base.bias).data;
    for (Index o = 0; o < out; ++o) {
      for (Index i = 0; i < in; ++i) {
        double of_adapter = 0;  // (B A)(o, i)
        for (Index j = 0; j < rank; ++j) of_adapter += b(task_of(t), o * rank + j) * a(task_of(t), j * in + i);
        y[std::size_t(o)] += weight(o, i) * of_adapter * x[std::size_t(i)];
      }
    }
    return y;
  });
  flora.layer.adapters().start(Space{}, flora.layer.parameters.adapters);
  flora.compare([](Index, const Values&, Values y) { return y; });  // starts as the frozen map
}

TEST_CASE("Mixtures by sequence are what their equations say, and the loss of domains") {
  auto moa = Run<moe::MixtureOfLoRAsLayer<D, moe::TaskClassificationLoss>>::of(moe::TaskClassificationLoss{0.5});
  static_assert(std::is_same_v<moe::MOA, moe::MixtureOfLoRAs>);
  double loss = 0;
  moa.compare([&](Index t, const Values& x, Values y) {
    const auto& p = moa.layer.parameters;
    const auto w = softmax(logits(p.router.weight, sequence_mean(moa.x, t)));
    if (t == 0 || t == 5 || t == 6) loss -= std::log(w[std::size_t(task_of(t))]) / 3;
    return sum_of(p.adapters, y, best(w, 1), 2, x);
  });
  CHECK(std::abs(moa.tape.loss() - 0.5 * loss) < 1e-12);
  auto octavius = Run<moe::OctaviusLayer<D>>::of();
  octavius.compare([&](Index t, const Values& x, Values y) {
    const auto& p = octavius.layer.parameters;
    const auto w = softmax(logits(p.router.weight, sequence_mean(octavius.x, t)));
    return sum_of(p.adapters, y, best(w, 2, true), 2, x);
  });
  auto mlore = Run<moe::MLoRELayer<D>>::of();
  mlore.compare([&](Index t, const Values& x, Values y) {
    const auto& p = mlore.layer.parameters;
    const auto w = softmax(logits(p.router.weight, sequence_mean(mlore.x, t)));
    return sum_of(p.adapters.universal, sum_of(p.adapters.inner, y, best(w, 2, true), 2, x), {1}, 2, x);
  });
}

TEST_CASE("X-LoRA mixes frozen adapters by what a first pass gave") {
  auto sizes = config;
  sizes.router_hidden = 3;
  Run<moe::XLoRALayer<D>> xlora(sizes, moe::XLoRARouter{moe::LogitScale{2}});
  const auto hidden = random<M>(8, tokens, 3);
  xlora.batch.router_input = hidden;
  auto& frozen = xlora.layer.parameters.adapters.frozen;
  randomise(frozen.a, 5);
  randomise(frozen.b, 6);
  xlora.compare([&](Index t, const Values& x, Values y) {
    auto z = logits(xlora.layer.parameters.router.weight, row_of(Table(hidden), t));
    for (double& v : z) v *= 2;
    return sum_of(frozen, y, softmax(z), 2, x);
  });
  int arrays = 0;
  xlora.layer.visit([&](const moe::ParameterInfo& info, const auto&) {
    ++arrays;
    CHECK(info.name == "router.weight");
  });
  CHECK(arrays == 1);
  const auto before = clone(frozen.b);
  auto gradients = xlora.layer.gradients();
  moe::Context<Space> ctx;
  xlora.layer.backward(ctx, random<M>(9, tokens, out), xlora.tape, gradients);
  CHECK(same_bits(before, frozen.b));
}

TEST_CASE("MoELoRA's contrastive loss compares all chosen rows") {
  using Loss = moe::ContrastiveExpertLoss;
  auto moelora = Run<moe::MoELoRALayer<D, Loss>>::of(Loss{.coefficient = 0.3, .temperature = 0.5});
  struct Row {
    Index expert;
    std::vector<double> unit;
  };
  std::vector<Row> rows;
  moelora.compare([&](Index, const Values& x, Values y) {
    const auto& p = moelora.layer.parameters;
    const auto w = best(softmax(logits(p.router.weight, x)), 2, true);
    for (Index e = 0; e < experts; ++e) {
      if (w[std::size_t(e)] == 0) continue;
      auto o = low_rank(p.adapters, e, x);
      double squares = 0;
      for (double v : o) squares += v * v;
      for (double& v : o) v /= std::sqrt(squares);
      rows.push_back({e, o});
    }
    return sum_of(p.adapters, y, w, 2, x);
  });
  double loss = 0, anchors = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    double all = 0, same = 0, count = 0;
    for (std::size_t j = 0; j < rows.size(); ++j) {
      if (j == i) continue;
      double s = 0;
      for (std::size_t k = 0; k < rows[i].unit.size(); ++k) s += rows[i].unit[k] * rows[j].unit[k] / 0.5;
      all += std::exp(s);
      if (rows[i].expert == rows[j].expert) same += s, ++count;
    }
    if (count > 0) loss += std::log(all) - same / count, ++anchors;
  }
  CHECK(std::abs(moelora.tape.loss() - 0.3 * loss / anchors) < 1e-11);
}

TEST_CASE("I-LoRA's slow memory is an average, and its loss holds both together") {
  auto fast = Run<moe::ILoRALayer<D>>::of(), slow = Run<moe::ILoRALayer<D>>::of();
  randomise_parameters(slow.layer, 77);
  const Table before(slow.layer.parameters.adapters.b), target(fast.layer.parameters.adapters.b);
  moe::Context<Space> ctx;
  moe::move_average(ctx, fast.layer.parameters, slow.layer.parameters, 0.9);
  Table after(slow.layer.parameters.adapters.b);
  for (std::size_t i = 0; i < after.data.size(); ++i)
    CHECK(std::abs(after.data[i] - 0.9 * before.data[i] - 0.1 * target.data[i]) < 1e-15);

  const auto a = clone(fast.layer.forward(ctx, fast.batch, fast.tape)),
             b = clone(slow.layer.forward(ctx, fast.batch, slow.tape));
  const moe::ConsistencyLoss loss{0.7};
  moe::Vector<double, Space> slot("slot", 1);
  moe::Matrix<double, Space> gradient("gradient", tokens, out);
  using Const = moe::Matrix<const double, Space>;
  loss.value(ctx, fast.batch, Const(a), b, slot);
  loss.backward(ctx, fast.batch, Const(a), b, 1, gradient);
  const Table x(a), y(b), g(gradient);
  double sum = 0;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double d = x.data[i] - y.data[i];  // 0 in padding
    sum += d * d;
    CHECK(std::abs(g.data[i] - 2 * 0.7 * d / (9 * out)) < 1e-14);
  }
  CHECK(std::abs(host(slot)(0) - 0.7 * sum / (9 * out)) < 1e-13);
}

TEST_CASE("MoLA's numbers of experts by layer") {
  CHECK(moe::expert_counts(8, moe::mola::inverted_triangle) == std::vector<Index>{2, 2, 4, 4, 6, 6, 8, 8});
  CHECK(moe::expert_counts(6, moe::mola::hourglass) == std::vector<Index>{8, 8, 2, 2, 2, 8});
  CHECK_THROWS_AS(moe::expert_counts(3, moe::mola::diamond), moe::ConfigError);
}

}  // namespace adapter_family_test
