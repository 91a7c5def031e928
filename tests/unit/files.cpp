// safetensors and checkpoints: round trips, every malformed header, and nothing lost or half-written.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace files_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using Catch::Matchers::Contains;

/// A folder that goes with the object.
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("moe_test_" + std::to_string(::getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// A file of this header and `data` bytes of data.
std::string with_header(const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data, '\0');
}

std::string open_error(const std::string& path) {
  try {
    moe::SafetensorsReader reader(path);
  } catch (const moe::IoError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST_CASE("Tensors come back as they were written") {
  const Folder folder;
  const auto matrix = random<moe::Matrix<float, Space>>(1, 3, 5);
  const auto cube = random<moe::Tensor3<double, Space>>(2, 2, 3, 4);
  moe::SafetensorsWriter writer;
  writer.add("a \"quoted\" name", matrix);
  writer.add("cube", cube);
  const std::vector<std::int32_t> ids{1, -2, 3};
  writer.add("ids", {3}, std::span(ids));
  writer.metadata("key", "line\nbreak");
  writer.write(folder / "t.safetensors");

  const moe::SafetensorsReader reader(folder / "t.safetensors");
  CHECK(reader.tensors().size() == 3);
  CHECK(reader.metadata().at("key") == "line\nbreak");
  CHECK(reader.info("cube").shape == std::vector<Index>{2, 3, 4});
  CHECK(reader.read<std::int32_t>("ids") == ids);
  moe::Matrix<float, Space> back("back", 3, 5);
  reader.read("a \"quoted\" name", back);
  CHECK(same_bits(back, matrix));
  moe::Tensor3<float, Space> narrow("narrow", 2, 3, 4);  // f64 converts
  reader.read("cube", narrow);
  CHECK(narrow(1, 2, 3) == float(cube(1, 2, 3)));
  CHECK_THROWS_AS(reader.read("cube", back), moe::Error);
  CHECK_THROWS_WITH(reader.read("cube", moe::Tensor3<float, Space>("x", 2, 3, 5)),
                    Contains("(2, 3, 4), expected (2, 3, 5)"));
  CHECK_THROWS_WITH(reader.info("nothing"), Contains("holds no tensor 'nothing'"));
  CHECK_THROWS_WITH(reader.read<float>("ids"), Contains("dtype I32"));
  CHECK((read_bytes(folder / "t.safetensors").size() > 0 &&
         open_error(folder / "t.safetensors") == "nothing was thrown"));
}

TEST_CASE("16-bit floats convert") {
  const Folder folder;
  std::string bytes = with_header(
      R"({"h":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}})",
      0);
  const std::uint16_t values[] = {0x3C00, 0xC000, 0x0001, 0x7C00, 0x3F80, 0xC040};
  bytes.append(reinterpret_cast<const char*>(values), sizeof(values));
  write_bytes(folder / "h", bytes);
  const moe::SafetensorsReader reader(folder / "h");
  const auto h = reader.read<float>("h"), b = reader.read<float>("b");
  CHECK(h[0] == 1.0f);
  CHECK(h[1] == -2.0f);
  CHECK(h[2] == std::ldexp(1.0f, -24));
  CHECK(std::isinf(h[3]));
  CHECK(b == std::vector<float>{1.0f, -3.0f});
}

TEST_CASE("Malformed files are refused with a sentence") {
  const Folder folder;
  const std::string path = folder / "bad";
  auto error_of = [&](const std::string& bytes) {
    write_bytes(path, bytes);
    return open_error(path);
  };
  auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return with_header(R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
                       16);
  };
  CHECK_THAT(open_error(folder / "missing"), Contains("cannot open"));
  CHECK_THAT(open_error(folder.path.string()), Contains("not a regular file"));
  CHECK_THAT(error_of(""), Contains("has 0 bytes"));
  CHECK_THAT(error_of(std::string(8, '\xFF')), Contains("claims a header"));
  CHECK_THAT(error_of(with_header("{", 0)), Contains("bad header"));
  CHECK_THAT(error_of(with_header("[]", 0)), Contains("no JSON object"));
  CHECK_THAT(error_of(with_header(std::string(1000, '['), 0)), Contains("nested too deeply"));
  CHECK_THAT(error_of(tensor("F31", "[2,2]", "[0,16]")), Contains("dtype F31"));
  CHECK_THAT(error_of(tensor("F32", "[2,3]", "[0,16]")), Contains("needs 24 bytes, but has 16"));
  CHECK_THAT(error_of(tensor("F32", "[2,2]", "[8,24]")), Contains("lies at bytes 8 to 24 of 16"));
  CHECK_THAT(error_of(tensor("F32", "[2,2]", "[16,0]")), Contains("lies at bytes 16 to 0"));
  CHECK_THAT(error_of(tensor("F32", "[4294967296,4294967296]", "[0,16]")), Contains("passes 2^63"));
  CHECK_THAT(error_of(tensor("F32", "[99999999999999999999]", "[0,16]")), Contains("beyond 64 bits"));
  CHECK_THAT(error_of(tensor("F32", "[-1]", "[0,16]")), Contains("malformed JSON"));
  CHECK_THAT(error_of(tensor("F32", "[2,2]", "[0]")), Contains("two data_offsets"));
  CHECK_THAT(error_of(with_header(R"({"w":{"dtype":"F32","shape":[1]}})", 4)), Contains("lacks a proper data_offsets"));
  const std::string a = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  CHECK_THAT(error_of(with_header("{\"a\":" + a + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12)),
             Contains("overlap at byte 4"));
  CHECK_THAT(error_of(with_header("{\"a\":" + a + ",\"a\":" + a + "}", 8)), Contains("a key is there twice"));
}

TEST_CASE("Any flipped byte gives tensors or an error, never more") {
  const Folder folder;
  moe::SafetensorsWriter writer;
  writer.add("weight", random<moe::Matrix<float, Space>>(1, 4, 4));
  writer.metadata("k", "v");
  writer.write(folder / "good");
  const std::string good = read_bytes(folder / "good");
  int refused = 0;
  for (std::size_t i = 0; i < good.size() - 64; ++i) {
    for (const unsigned char flip : {0x01, 0x20, 0x80}) {
      std::string bad = good;
      bad[i] = char(static_cast<unsigned char>(bad[i]) ^ flip);
      write_bytes(folder / "flipped", bad);
      try {
        const moe::SafetensorsReader reader(folder / "flipped");
        for (const auto& [name, info] : reader.tensors()) (void)reader.bytes(name);
      } catch (const moe::IoError&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 100);
  for (std::size_t size = 0; size < good.size(); size += 7) {
    write_bytes(folder / "short", good.substr(0, size));
    CHECK_THROWS_AS(moe::SafetensorsReader(folder / "short"), moe::IoError);
  }
}

TEST_CASE("A file that cannot be written leaves the old one") {
  const Folder folder;
  moe::SafetensorsWriter writer;
  writer.add("w", random<moe::Matrix<float, Space>>(1, 2, 2));
  CHECK_THROWS_AS(writer.write(folder / "no/such/folder"), moe::IoError);
  std::filesystem::create_directories(folder.path / "taken" / "inside");
  CHECK_THROWS_AS(writer.write(folder / "taken"), moe::IoError);  // a folder cannot be replaced
  CHECK(std::filesystem::exists(folder.path / "taken" / "inside"));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);  // no temporary file stays
}

/// A layer in training, in f32 or in 16 bits with masters.
template <class T>
struct RunIn {
  using Layer =
      moe::MoELayer<moe::On<Space>, moe::Precision<T>, moe::Router<moe::Sigmoid, moe::TopK<2>, moe::BiasBalancer>>;
  using Parameters = typename Layer::Parameters;
  Layer layer;
  typename Layer::Gradients gradients = layer.gradients();
  moe::AdamW<Parameters> optimizer{layer.parameters};
  moe::Context<Space> ctx;
  typename Layer::Tape tape;

  explicit RunIn(std::uint64_t seed, Index experts = 4)
      : layer(moe::MoEConfig{.hidden = 6, .intermediate = 5, .experts = experts}, moe::Seed{seed}) {}

  void step(unsigned number) {
    const auto x = random<moe::Matrix<T, Space>>(number, 10, 6);
    moe::zero(ctx, static_cast<Parameters&>(gradients));
    layer.forward(ctx, x, tape);
    layer.backward(ctx, x, tape, gradients);
    optimizer.step(ctx, layer.parameters, gradients, 1e-2);
    moe::LoadStatistics<Space> statistics;
    statistics.add(tape);
    layer.update_balance(ctx, statistics);
  }
};

using Run = RunIn<float>;

template <class T>
bool same(RunIn<T>& a, RunIn<T>& b) {
  bool equal = true;
  auto compare = [&](std::string_view, auto& x, auto& y) { equal = equal && same_bits(x, y); };
  RunIn<T>::Parameters::visit(compare, a.layer.parameters, b.layer.parameters);
  RunIn<T>::Layer::Buffers::visit(compare, a.layer.buffers, b.layer.buffers);
  return equal;
}

TEMPLATE_TEST_CASE("A run goes on from its checkpoint as if it had not stopped", "", float, moe::bfloat16,
                   moe::float16) {
  using Run = RunIn<TestType>;
  const Folder folder;
  Run straight(1), stopped(1), resumed(2);
  for (unsigned n = 0; n < 6; ++n) straight.step(n);
  for (unsigned n = 0; n < 3; ++n) stopped.step(n);
  moe::save_checkpoint(folder / "c", stopped.layer.parameters, stopped.layer.buffers, stopped.optimizer, {3, 30, 1});
  const auto state =
      moe::load_checkpoint(folder / "c", resumed.layer.parameters, resumed.layer.buffers, resumed.optimizer);
  CHECK(state.step == 3);
  CHECK(state.data_position == 30);
  CHECK(same(stopped, resumed));
  for (unsigned n = 3; n < 6; ++n) resumed.step(n);
  CHECK(same(straight, resumed));

  Run inference(5);
  moe::load_model(folder / "c", inference.layer.parameters, inference.layer.buffers);
  CHECK(same(stopped, inference));
}

TEST_CASE("Checkpoints name the optimiser's arrays, and hold masters of 16 bits") {
  const Folder folder;
  Run wide(1);
  RunIn<moe::bfloat16> narrow(1);
  wide.step(1);
  narrow.step(1);
  moe::save_checkpoint(folder / "w", wide.layer.parameters, wide.layer.buffers, wide.optimizer, {});
  moe::save_checkpoint(folder / "n", narrow.layer.parameters, narrow.layer.buffers, narrow.optimizer, {});
  const moe::SafetensorsReader w(folder / "w"), n(folder / "n");
  const std::string name = "experts.down_proj";
  for (const char* kind : {"optimizer.first_moment.", "optimizer.second_moment."}) {
    CHECK(w.info(kind + name).dtype == "F32");
    CHECK(n.info(kind + name).dtype == "F32");
    CHECK(n.info(kind + name).shape == n.info(name).shape);
  }
  CHECK_FALSE(w.contains("optimizer.master." + name));
  CHECK(n.info(name).dtype == "BF16");
  CHECK_FALSE(n.contains("optimizer.master.router.weight"));  // the router is f32
  const auto values = n.read<float>(name), masters = n.read<float>("optimizer.master." + name);
  std::size_t rounded = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    rounded += values[i] == float(moe::bfloat16(masters[i]));
  }
  CHECK(rounded == values.size());
  CHECK(values != masters);
}

TEST_CASE("A checkpoint of another model changes nothing") {
  const Folder folder;
  Run small(1), large(2, 8), untouched(2, 8);
  moe::save_checkpoint(folder / "c", small.layer.parameters, small.layer.buffers, small.optimizer, {});
  CHECK_THROWS_AS(moe::load_checkpoint(folder / "c", large.layer.parameters, large.layer.buffers, large.optimizer),
                  moe::ShapeError);
  CHECK(same(large, untouched));
  moe::SafetensorsWriter writer;
  writer.add("router.weight", large.layer.parameters.router.weight);
  writer.write(folder / "part");
  CHECK_THROWS_AS(moe::load_model(folder / "part", large.layer.parameters, large.layer.buffers), moe::IoError);
  CHECK(same(large, untouched));
}

}  // namespace files_test
