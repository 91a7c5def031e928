// Hugging Face PEFT's adapters: read as PEFT wrote them (tests/data/peft/make.py), written, and refused.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <moe/adapters/adapt_experts.hpp>
#include <moe/io/peft_writer.hpp>
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace peft_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using moe::PeftAdapter;
namespace fs = std::filesystem;

const std::string data = std::string(MOE_TEST_DATA) + "/peft/";

moe::SafetensorsReader expected_file() {
  return moe::SafetensorsReader(data + "expected.safetensors");
}

/// A folder that goes with the object.
struct PeftFolder {
  fs::path path = fs::temp_directory_path() / ("moe_test_peft_" + std::to_string(::getpid()));
  PeftFolder() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~PeftFolder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  std::size_t entries() const {
    return std::size_t(std::distance(fs::directory_iterator(path), fs::directory_iterator()));
  }
};

/// scaling * B_n A_n, row-major.
template <class T, class Space>
std::vector<double> dense_update(const moe::LowRank<T, Space>& update, double scaling, Index n = 0) {
  const auto a = host(update.a);
  const auto b = host(update.b);
  std::vector<double> result;
  for (Index o = 0; o < update.out(); ++o) {
    for (Index i = 0; i < update.in(); ++i) {
      double sum = 0;
      for (Index k = 0; k < update.rank(); ++k) sum += double(b(n, o, k)) * double(a(n, k, i));
      result.push_back(scaling * sum);
    }
  }
  return result;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

TEST_CASE("Updates of PEFT's adapters are those that PEFT computes") {
  const auto expected = expected_file();
  const std::map<std::string, double> scalings{
      {"layers.0.q_proj", 3}, {"layers.0.down", 2}, {"layers.1.q_proj", 2.5}, {"layers.1.down", 2}};
  const PeftAdapter adapter(data + "attention");
  CHECK(adapter.config().rank == 2);
  CHECK(adapter.config().alpha == 6);
  CHECK(adapter.modules().size() == 4);
  for (const auto& [module, of] : adapter.modules()) {
    INFO(module);
    const auto [update, scaling] = adapter.update<float>(module);
    CHECK((update.adapters() == 1 && update.rank() == of.rank && update.in() == of.in && update.out() == of.out));
    CHECK(scaling == scalings.at(module));
    CHECK(largest_difference(dense_update(update, scaling), expected.read<double>("attention." + module)) < 1e-6);
  }
  const PeftAdapter other(data + "other");
  CHECK(other.scaling("layers.0.q_proj") == 3.5 / 2);  // by the root of rank 4
  CHECK_THROWS_WITH(other.update<float>("layers.1.q_proj"),
                    Contains("no module 'layers.1.q_proj' among its 1, such as"));
}

TEST_CASE("A linear map with an update read gives what PEFT's module gives") {
  const auto expected = expected_file();
  const auto [update, scaling] = PeftAdapter(data + "attention").update<double>("layers.0.q_proj");
  auto weight = expected.read<double>("base.layers.0.q_proj");
  const auto delta = dense_update(update, scaling);
  const auto x = expected.read<double>("x");
  std::vector<double> y;
  for (std::size_t t = 0; t < 3; ++t) {
    for (std::size_t o = 0; o < 5; ++o) {
      double sum = 0;
      for (std::size_t i = 0; i < 6; ++i) sum += (weight[o * 6 + i] + delta[o * 6 + i]) * x[t * 6 + i];
      y.push_back(sum);
    }
  }
  CHECK(largest_difference(y, expected.read<double>("attention.y")) < 1e-5);
}

const std::vector<std::string> projections{"gate_up_proj", "down_proj"};

TEST_CASE("Updates of fused experts are those that PEFT computes") {
  const auto expected = expected_file();
  const PeftAdapter adapter(data + "experts");
  const auto updates = adapter.experts_updates<float>("experts", projections, 3);
  REQUIRE(updates.size() == 2);
  CHECK((updates[0].scaling == 1.5 && updates[1].scaling == 3.5));
  for (std::size_t p = 0; p < 2; ++p) {
    std::vector<double> all;
    for (Index e = 0; e < 3; ++e) {
      const auto one = dense_update(updates[p].update, updates[p].scaling, e);
      all.insert(all.end(), one.begin(), one.end());
    }
    CHECK(largest_difference(all, expected.read<double>("experts.experts." + projections[p])) < 1e-6);
  }
  CHECK_THROWS_WITH(adapter.experts_updates<float>("experts", projections, 2), Contains("2 experts of rank 2 have 4"));
  CHECK_THROWS_WITH(adapter.experts_updates<float>("experts", {"down_proj"}, 3), Contains("more parameters"));
  CHECK_THROWS_WITH(adapter.experts_updates<float>("mlp", projections, 3), Contains("no module 'mlp.base_layer'"));
}

/// A routing of every token to one expert, so that the layer is that expert.
struct ToExpert {
  using policy = moe::kind::choice_key;
  Index expert = 0;
  template <class Real>
  KOKKOS_FUNCTION void apply(const moe::Team& team, moe::Row<const Real>, moe::Row<const Real>,
                             moe::Row<Real> key) const {
    team.each(key.size, [&](Index e) { key[e] = e == expert ? Real(1) : Real(0); });
  }
};

TEST_CASE("A layer with adapted experts computes what PEFT's experts compute") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  using Layer = moe::MoELayer<moe::On<Space>, moe::Precision<double>,
                              moe::Router<moe::Softmax, moe::TopK<1>, ToExpert, moe::NormalizeSum>>;
  const auto expected = expected_file();
  const auto updates = PeftAdapter(data + "experts").experts_updates<double, Space>("experts", projections, 3);
  const auto y = expected.read<double>("experts.y");  // (expert, token, hidden)
  for (Index e = 0; e < 3; ++e) {
    Layer layer({.hidden = 6, .intermediate = 4, .experts = 3}, Layer::Router(ToExpert{e}));
    expected.read("base.experts.gate_up_proj", layer.parameters.experts.up);
    expected.read("base.experts.down_proj", layer.parameters.experts.down);
    auto adapted = moe::adapt_experts(layer, {.rank = 2, .alpha = 2 * updates[0].scaling});
    Kokkos::deep_copy(adapted.parameters.experts.up.a, updates[0].update.a);
    Kokkos::deep_copy(adapted.parameters.experts.up.b, updates[0].update.b);
    Kokkos::deep_copy(adapted.parameters.experts.down.a, updates[1].update.a);
    for (std::size_t i = 0; i < updates[1].update.b.size(); ++i)  // its own scaling, over the layer's
      adapted.parameters.experts.down.b.data()[i] =
          updates[1].update.b.data()[i] * updates[1].scaling / updates[0].scaling;
    moe::Matrix<double, Space> x("x", 3, 6);
    expected.read("x", x);
    moe::Context<Space> ctx;
    const auto out = adapted.forward(ctx, x);
    const std::vector<double> of(y.begin() + e * 18, y.begin() + (e + 1) * 18);
    CHECK(largest_difference({out.data(), out.data() + 18}, of) < 1e-4);
  }
}

TEST_CASE("A Mixtral layer with an adapter read computes what transformers and PEFT compute") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  using Layer = moe::MixtralLayer<moe::On<Space>>;
  const std::string experts = "model.layers.0.mlp.experts";
  const auto expected = expected_file();
  Layer layer({.hidden = 8, .intermediate = 4, .experts = 4});
  expected.read("base.mixtral.gate", layer.parameters.router.weight);
  expected.read("base.mixtral.gate_up_proj", layer.parameters.experts.up);
  expected.read("base.mixtral.down_proj", layer.parameters.experts.down);
  const auto updates = PeftAdapter(data + "mixtral").experts_updates<float, Space>(experts, projections, 4);
  REQUIRE(updates[0].scaling == updates[1].scaling);
  auto adapted = moe::adapt_experts(layer, {.rank = 2, .alpha = 2 * updates[0].scaling});
  adapted.parameters.experts = {updates[0].update, updates[1].update};
  moe::Matrix<float, Space> x("x", 7, 8);
  expected.read("mixtral.x", x);
  moe::Context<Space> ctx;
  const auto before = layer.forward(ctx, x), y = adapted.forward(ctx, x);
  const auto values = [](const auto& view) { return std::vector<double>(view.data(), view.data() + view.size()); };
  CHECK(largest_difference(values(y), expected.read<double>("mixtral.y")) < 1e-5);
  CHECK(largest_difference(values(before), expected.read<double>("mixtral.y")) > 0.01);
}

TEST_CASE("Adapters of different ranks and scalings stack into one array") {
  const auto expected = expected_file();
  std::vector<PeftAdapter> adapters;
  for (const char* name : {"attention", "other", "experts"}) adapters.emplace_back(data + name);
  const auto update = moe::stack_adapters<float>(adapters, "layers.0.q_proj");
  CHECK((update.adapters() == 3 && update.rank() == 4 && update.in() == 6 && update.out() == 5));
  CHECK(largest_difference(dense_update(update, 1, 0), expected.read<double>("attention.layers.0.q_proj")) < 1e-6);
  CHECK(largest_difference(dense_update(update, 1, 1), expected.read<double>("other.layers.0.q_proj")) < 1e-6);
  CHECK(largest_difference(dense_update(update, 1, 2), std::vector<double>(30)) == 0);  // the third lacks the module
  const auto a = host(update.a);
  for (Index i = 0; i < 6; ++i) CHECK((a(0, 2, i) == 0 && a(0, 3, i) == 0));
  CHECK_THROWS_WITH(moe::stack_adapters<float>(adapters, "nothing"), Contains("none of 3 adapters"));
}

template <class T>
moe::LowRank<T> drawn(unsigned seed, Index adapters, Index in, Index out, Index rank) {
  return {random<moe::Tensor3<T>>(seed, adapters, rank, in), random<moe::Tensor3<T>>(seed + 1, adapters, out, rank)};
}

TEMPLATE_TEST_CASE("What is written is read back to the bit", "", float, moe::bfloat16, moe::float16) {
  const PeftFolder folder;
  const auto q = drawn<TestType>(1, 4, 6, 5, 2), down = drawn<TestType>(3, 1, 5, 4, 3);
  moe::LowRank<TestType> shared = drawn<TestType>(5, 3, 6, 5, 2);
  shared.a = random<moe::Tensor3<TestType>>(7, 1, 2, 6);
  const std::vector<moe::PeftUpdate<TestType>> experts{{drawn<TestType>(9, 3, 6, 8, 2), 1.5},
                                                       {drawn<TestType>(11, 3, 4, 6, 2), 0.1}};
  moe::PeftWriter writer;
  writer.base_model("a \"base\"");
  writer.task_type("CAUSAL_LM");
  writer.add("layers.0.q_proj", q, 2, 1.5);
  writer.add("layers.0.down", down, 0, 0.7);
  writer.add("q_proj", shared, 1, 1.5);
  writer.add_experts("experts", projections, experts);
  writer.write(folder / "deeper/adapter/");

  const PeftAdapter adapter(folder / "deeper/adapter");
  CHECK(adapter.config().base_model == "a \"base\"");
  CHECK(adapter.config().task_type == "CAUSAL_LM");
  CHECK((adapter.config().rank == 2 && adapter.config().alpha == 3));
  CHECK(adapter.config().target_modules == std::vector<std::string>{"layers.0.q_proj", "layers.0.down", "q_proj"});
  CHECK(adapter.config().target_parameters == std::vector<std::string>{"experts.gate_up_proj", "experts.down_proj"});
  const auto slice = [](const auto& tensor, Index n) {
    moe::Tensor3<TestType> copy("copy", 1, tensor.extent(1), tensor.extent(2));
    Kokkos::deep_copy(Kokkos::subview(copy, 0, Kokkos::ALL(), Kokkos::ALL()),
                      Kokkos::subview(tensor, n, Kokkos::ALL(), Kokkos::ALL()));
    return copy;
  };
  const auto check_module = [&](const char* module, const auto& from, Index n, double scaling) {
    const auto read = adapter.template update<TestType>(module);
    CHECK(same_bits(read.update.a, slice(from.a, from.a.extent(0) == 1 ? 0 : n)));
    CHECK(same_bits(read.update.b, slice(from.b, n)));
    CHECK(read.scaling == Approx(scaling).epsilon(1e-15));
  };
  check_module("layers.0.q_proj", q, 2, 1.5);
  check_module("layers.0.down", down, 0, 0.7);
  check_module("q_proj", shared, 1, 1.5);
  const auto back = adapter.template experts_updates<TestType>("experts", projections, 3);
  for (std::size_t p = 0; p < 2; ++p) {
    CHECK(same_bits(back[p].update.a, experts[p].update.a));
    CHECK(same_bits(back[p].update.b, experts[p].update.b));
    CHECK(back[p].scaling == Approx(experts[p].scaling).epsilon(1e-15));
  }
}

TEST_CASE("Folders appear whole or not at all, and replace nothing") {
  const PeftFolder folder;
  const auto update = drawn<float>(1, 2, 6, 5, 2);
  moe::PeftWriter writer;
  CHECK_THROWS_WITH(writer.write(folder / "a"), Contains("no updates were added"));
  writer.add("q", update, 0, 1.0);
  std::ofstream(folder / "file") << "x";
  CHECK_THROWS_AS(writer.write(folder / "file"), moe::IoError);
  CHECK_THROWS_AS(writer.write(folder / "file/adapter"), moe::IoError);
  CHECK(folder.entries() == 1);
  fs::create_directories(folder / "a");  // empty: taken
  writer.write(folder / "a");
  CHECK_THROWS_WITH(writer.write(folder / "a"), Contains("exists and is not empty"));
  CHECK(folder.entries() == 2);
  CHECK(PeftAdapter(folder / "a").contains("q"));

  CHECK_THROWS_WITH(writer.add("q", update, 1, 1.0), Contains("'q' was added before"));
  CHECK_THROWS_WITH(writer.add("r", update, 2, 1.0), Contains("adapter 2 of 2"));
  CHECK_THROWS_WITH(writer.add("q*", update, 0, 1.0), Contains("no module's name"));
  CHECK_THROWS_WITH(writer.add("r", update, 0, INFINITY), Contains("scaling inf"));
  CHECK_THROWS_AS(writer.add_experts<float>("e", projections, std::vector<moe::PeftUpdate<float>>{}), moe::ConfigError);
}

std::string text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// The message that reading gets, with one text in the configuration of "attention" replaced.
std::string refusal(const std::string& from, const std::string& to) {
  const PeftFolder folder;
  std::string config = text_of(data + "attention/adapter_config.json");
  const std::size_t at = config.find(from);
  REQUIRE(at != std::string::npos);
  config.replace(at, from.size(), to);
  std::ofstream(folder / "adapter_config.json") << config;
  fs::copy(data + "attention/adapter_model.safetensors", folder / "adapter_model.safetensors");
  try {
    const PeftAdapter adapter(folder / "");
    adapter.update<float>("layers.0.q_proj");
  } catch (const moe::IoError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST_CASE("Adapters that are not plain LoRA are refused with the reason") {
  CHECK(refusal("\"bias\": \"none\"", "\"bias\": \"none\"") == "nothing was thrown");
  CHECK_THAT(refusal("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\""), Contains("peft_type 'IA3'; only LORA"));
  CHECK_THAT(refusal("\"bias\": \"none\"", "\"bias\": \"lora_only\""), Contains("bias 'lora_only'"));
  CHECK_THAT(refusal("\"use_dora\": false", "\"use_dora\": true"), Contains("asks for use_dora"));
  CHECK_THAT(refusal("\"use_qalora\": false", "\"use_qalora\": true"), Contains("asks for use_qalora"));
  CHECK_THAT(refusal("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]"),
             Contains("has modules_to_save"));
  CHECK(refusal("\"modules_to_save\": null", "\"modules_to_save\": []") == "nothing was thrown");
  CHECK_THAT(refusal("\"trainable_token_indices\": null", "\"trainable_token_indices\": [3]"),
             Contains("has trainable_token_indices"));
  CHECK_THAT(refusal("\"init_lora_weights\": false", "\"init_lora_weights\": \"pissa\""), Contains("'pissa'"));
  CHECK(refusal("\"init_lora_weights\": false", "\"init_lora_weights\": \"gaussian\"") == "nothing was thrown");
  CHECK(refusal("\"lora_dropout\": 0.0", "\"lora_dropout\": 1.5e-1") == "nothing was thrown");
  CHECK_THAT(refusal("\"r\": 2", "\"r\": 3"), Contains("of rank 2, but its adapter_config.json says 3"));
  CHECK_THAT(refusal("\"r\": 2", "\"r\": -2"), Contains("no whole number from 1 on"));
  CHECK_THAT(refusal("\"r\": 2", "\"r\": 2,,"), Contains("malformed JSON at byte"));
  CHECK_THAT(refusal("\"lora_alpha\": 6", "\"lora_alpha\": 1.2.3"), Contains("not a number"));
  CHECK_THAT(refusal("\"lora_alpha\": 6", "\"lora_alpha\": tru"), Contains("not a value"));
  CHECK_THAT(refusal("\"lora_alpha\": 6", "\"lora_alpha\": \"6\""), Contains("no number for lora_alpha"));
  CHECK_THAT(refusal("\"layers.1.q_proj\"", "\"layers.(1.q_proj\""), Contains("no regular expression"));
}

/// The message for an adapter of these tensors under the configuration of "other".
std::string tensors_refusal(const std::map<std::string, std::vector<Index>>& tensors) {
  const PeftFolder folder;
  fs::copy(data + "other/adapter_config.json", folder / "adapter_config.json");
  moe::SafetensorsWriter writer;
  for (const auto& [name, shape] : tensors) {
    Index size = 1;
    for (Index extent : shape) size *= extent;
    const std::vector<float> zeros(std::size_t(size), 0.0f);
    writer.add(name, shape, std::span<const float>(zeros));
  }
  writer.write(folder / "adapter_model.safetensors");
  try {
    PeftAdapter{folder / ""};
  } catch (const moe::IoError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST_CASE("Tensors that are no pairs of factors are refused by name") {
  const std::string a = "base_model.model.q.lora_A.weight", b = "base_model.model.q.lora_B.weight";
  CHECK(tensors_refusal({{a, {4, 6}}, {b, {5, 4}}}) == "nothing was thrown");
  CHECK_THAT(tensors_refusal({{a, {4, 6}}}), Contains("but no 'base_model.model.q.lora_B.weight'"));
  CHECK_THAT(tensors_refusal({{b, {5, 4}}}), Contains("factors B without their A"));
  CHECK_THAT(tensors_refusal({{a, {4, 6}}, {b, {5, 3}}}), Contains("their ranks differ"));
  CHECK_THAT(tensors_refusal({{a, {4, 6, 1}}, {b, {5, 4}}}), Contains("(4, 6, 1); factors are matrices"));
  CHECK_THAT(tensors_refusal({{a, {4, 6}}, {b, {5, 4}}, {"base_model.model.q.lora_magnitude_vector", {5}}}),
             Contains("'base_model.model.q.lora_magnitude_vector' that is no low-rank factor"));
  CHECK_THAT(tensors_refusal({}), Contains("holds no tensors"));
  CHECK_THROWS_WITH(PeftAdapter("/nowhere"), Contains("cannot open '/nowhere/adapter_config.json'"));
}

TEST_CASE("The first pattern that fits a module's end counts") {
  moe::PeftConfig config;
  config.alpha_pattern = {{"layers\\.[0-3]\\.q_proj", 1}, {"q_proj", 2}, {"^k_proj", 3}};
  CHECK(config.alpha_of("model.layers.2.q_proj") == 1);
  CHECK(config.alpha_of("model.layers.4.q_proj") == 2);
  CHECK(config.alpha_of("model.layers.4.eq_proj") == 8);  // only from a dot on
  CHECK(config.alpha_of("k_proj") == 3);
  CHECK(config.alpha_of("model.k_proj") == 8);
  CHECK(config.scaling_of("q_proj") == 0.25);
}

TEST_CASE("Numbers are written in the digits that give them back") {
  CHECK(moe::detail::json_number(16) == "16");
  CHECK(moe::detail::json_number(0.1) == "0.1");
  for (double value : {1.0 / 3, 1.5 * 7, 1e-9, 123456789.0, 2.0 / 3 * 8}) {
    const auto back = moe::detail::JsonParser(moe::detail::json_number(value), moe::detail::JsonValues::all).parse();
    CHECK((back.kind == moe::detail::Json::Kind::real ? back.real : double(back.number)) == value);
  }
}

}  // namespace peft_test
