// AdapterBank against plain loops in double, its gradients, its slots, and what it refuses.
#include <moe/adapters/adapter_bank.hpp>

#include "moe_test/cases.hpp"

namespace adapter_bank_test {

using namespace moe_test;
using Catch::Matchers::Contains;

template <class Space>
moe::Vector<std::int32_t, Space> names(const std::vector<int>& values) {
  moe::Vector<std::int32_t, Space> view("names", values.size());
  const auto copy = Kokkos::create_mirror_view(Kokkos::HostSpace{}, view);
  std::copy(values.begin(), values.end(), copy.data());
  Kokkos::deep_copy(view, copy);
  return view;
}

/// A bank of six slots, five of them taken by adapters of different ranks and scalings, and a batch.
template <class T, class ExecutionSpace>
struct Bank {
  using Space = ExecutionSpace;
  using Layer = moe::AdapterBank<moe::On<Space>, moe::Precision<T>>;
  using M = moe::Matrix<const T, Space>;
  static constexpr Index in = 37, out = 22, rank = 6, slots = 6;

  moe::Context<Space> ctx;
  moe::Matrix<T, Space> base = random<moe::Matrix<T, Space>>(1, out, in);
  moe::Vector<T, Space> bias = random<moe::Vector<T, Space>>(2, out);
  Layer layer;
  typename Layer::Tape tape;
  moe::Batch<T, Space> batch;
  std::vector<int> ids;

  explicit Bank(bool with_bias = true)
      : layer({.in = in, .out = out, .rank = rank, .adapters = slots}, base,
              with_bias ? moe::Vector<const T, Space>(bias) : moe::Vector<const T, Space>{}) {
    if (!with_bias) bias = moe::Vector<T, Space>("zeros", out);
    for (Index n = 0; n < slots - 1; ++n) CHECK(add(rank - n, 0.5 + double(n)) == n);
  }

  M a(Index r, unsigned seed = 0) const { return random<moe::Matrix<T, Space>>(10 + unsigned(r) + seed, r, in); }
  M b(Index r, unsigned seed = 0) const { return random<moe::Matrix<T, Space>>(50 + unsigned(r) + seed, out, r); }
  Index add(Index r, double scaling) { return layer.add(ctx, a(r), b(r), scaling); }

  void rows(std::vector<int> names, std::vector<std::uint8_t> mask = {}) {
    ids = std::move(names);
    batch.x = random<moe::Matrix<T, Space>>(3, Index(ids.size()), in);
    batch.mask = {};
    if (mask.empty()) return;
    moe::Vector<std::uint8_t, Space> of("mask", mask.size());
    const auto copy = Kokkos::create_mirror_view(Kokkos::HostSpace{}, of);
    std::copy(mask.begin(), mask.end(), copy.data());
    Kokkos::deep_copy(of, copy);
    batch.mask = of;
  }
  moe::Matrix<T, Space> forward() { return layer.forward(ctx, batch, names<Space>(ids), tape); }

  /// One row, adapter and number after another, from the slots' own arrays.
  std::vector<double> expected() const {
    const auto x = host(batch.x), w = host(M(base));
    const auto offset = host(bias);
    const auto of_a = host(layer.parameters.a), of_b = host(layer.parameters.b);
    const auto scaling = host(layer.buffers.scaling);
    const auto mask = host(batch.mask);
    std::vector<double> y(ids.size() * out);
    for (std::size_t t = 0; t < ids.size(); ++t) {
      if (batch.mask.is_allocated() && mask(t) == 0) continue;
      for (Index o = 0; o < out; ++o) {
        double sum = double(offset(o));
        for (Index i = 0; i < in; ++i) sum += double(w(o, i)) * double(x(t, i));
        for (Index k = 0; ids[t] >= 0 && k < rank; ++k) {
          double hidden = 0;
          for (Index i = 0; i < in; ++i) hidden += double(of_a(ids[t], k, i)) * double(x(t, i));
          sum += double(scaling(ids[t])) * double(of_b(ids[t], o, k)) * hidden;
        }
        y[t * out + std::size_t(o)] = sum;
      }
    }
    return y;
  }
  double error() {
    const auto y = host(forward());
    const auto wanted = expected();
    REQUIRE(y.size() == wanted.size());
    double worst = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const double difference = std::abs(double(y.data()[i]) - wanted[i]) / (1 + std::abs(wanted[i]));
      worst = difference <= worst ? worst : difference;
    }
    return worst;
  }
};

template <class T>
constexpr double allowed = std::is_same_v<T, double>  ? 1e-13
                           : std::is_same_v<T, float> ? 2e-5
                                                      : 0.05;

/// Every adapter, some rows of none, one adapter (3) of no row, and one of many.
std::vector<int> mixed(Index rows) {
  std::vector<int> ids;
  for (Index t = 0; t < rows; ++t) ids.push_back(t % 3 == 0 ? 4 : std::vector<int>{0, -1, 2, 1, 0}[std::size_t(t % 5)]);
  return ids;
}

TEMPLATE_LIST_TEST_CASE("Each row of a batch has its own adapter", "", Cases) {
  using T = typename TestType::T;
  for (const bool bias : {false, true}) {
    Bank<T, typename TestType::Space> bank(bias);
    for (const Index rows : {0, 1, 2, 77, 400}) {
      INFO(rows << " rows");
      bank.rows(mixed(rows));
      CHECK(bank.error() < allowed<T>);
    }
    bank.rows(std::vector<int>(9, -1));
    CHECK(bank.error() < allowed<T>);
    bank.rows(std::vector<int>(150, 1));
    CHECK(bank.error() < allowed<T>);
  }
}

TEMPLATE_TEST_CASE("Adapters in 16 bits are those in f32, roughly", "", moe::bfloat16, moe::float16) {
  Bank<TestType, Kokkos::DefaultExecutionSpace> bank;
  bank.rows(mixed(130));
  CHECK(bank.error() < allowed<TestType>);
}

TEMPLATE_LIST_TEST_CASE("Masked rows get nothing and give nothing", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  Bank<T, Space> bank;
  std::vector<std::uint8_t> mask(60, 1);
  for (const std::size_t t : {0, 7, 8, 59}) mask[t] = 0;
  auto ids = mixed(60);
  ids[7] = 999;  // not even looked at
  bank.rows(ids, mask);
  ids[7] = -1;
  bank.forward();
  bank.ids = ids;
  CHECK(bank.error() < allowed<T>);
  auto gradients = bank.layer.gradients();
  const auto dx =
      host(bank.layer.backward(bank.ctx, random<moe::Matrix<T, Space>>(4, 60, bank.out), bank.tape, gradients));
  for (const std::size_t t : {0, 7, 8, 59}) {
    for (Index i = 0; i < bank.in; ++i) CHECK(dx(t, i) == 0);
  }
}

TEMPLATE_LIST_TEST_CASE("Ids can be given by sequence", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  Bank<T, Space> bank;
  std::vector<int> by_row(20, 2);
  by_row.insert(by_row.end(), 1, -1);
  by_row.insert(by_row.end(), 10, 0);
  bank.rows(by_row);
  const auto one_a_row = clone(bank.forward());
  bank.batch.sequence_offsets = indices<Space>({0, 20, 20, 21, 31});
  const auto one_a_sequence = bank.layer.forward(bank.ctx, bank.batch, names<Space>({2, 4, -1, 0}), bank.tape);
  CHECK(same_bits(one_a_row, one_a_sequence));
  CHECK_THROWS_WITH(bank.layer.forward(bank.ctx, bank.batch, names<Space>({2, 4, -1}), bank.tape),
                    Contains("3 ids for 31 rows of 4 sequences"));
}

TEMPLATE_TEST_CASE("AdapterBank passes the gradient check", "", Kokkos::DefaultExecutionSpace) {
  using Space = TestType;
  for (const bool with_mask : {false, true}) {
    Bank<double, Space> bank;
    const Index rows = 29;
    bank.rows(mixed(rows), with_mask ? std::vector<std::uint8_t>{1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                                                 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0}
                                     : std::vector<std::uint8_t>{});
    const auto g = random<moe::Matrix<double, Space>>(4, rows, bank.out);
    const auto weight = host(g);
    auto value = [&] {
      const auto y = host(bank.forward());
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * weight.data()[i];
      return sum;
    };
    value();
    auto gradients = bank.layer.gradients();
    const auto dx = clone(bank.layer.backward(bank.ctx, g, bank.tape, gradients));
    moe::Matrix<double, Space> x("x", rows, bank.in);
    Kokkos::deep_copy(x, bank.batch.x);
    bank.batch.x = x;
    check_gradient(x, dx, value);
    // Of numbers that are an adapter's own: the padding behind its rank has none, and stays zero.
    const auto da = host(gradients.a), db = host(gradients.b);
    double own = 0;
    for (Index n = 0; n < bank.slots; ++n) {
      const Index r = n < bank.slots - 1 ? bank.rank - n : 0;
      for (Index k = 0; k < bank.rank; ++k) {
        const auto count = [&](double derivative) {
          if (k < r) {
            own += std::abs(derivative);
          } else {
            CHECK(derivative == 0);
          }
        };
        for (Index i = 0; i < bank.in; ++i) count(da(n, k, i));
        for (Index o = 0; o < bank.out; ++o) count(db(n, o, k));
      }
    }
    CHECK(own > 0);
    bank.layer.parameters.visit(
        [&](std::string_view name, auto& parameter, auto& gradient) {
          INFO(std::string(name));
          // The padding is no parameter: kernels of hosts do not read it.
          const auto values = host(parameter);
          const auto expected = host(gradient);
          double worst = 0;
          for (std::size_t i = 0; i < values.size(); ++i) {
            const double old = values.data()[i], step = 1e-5;
            if (old == 0) continue;
            const auto at = [&](double to) {
              values.data()[i] = to;
              Kokkos::deep_copy(parameter, values);
              return value();
            };
            const double slope = (at(old + step) - at(old - step)) / (2 * step);
            at(old);
            const double error = std::abs(slope - expected.data()[i]) / (1 + std::abs(slope));
            worst = error <= worst ? worst : error;
          }
          CHECK(worst < 1e-8);
        },
        bank.layer.parameters, static_cast<typename Bank<double, Space>::Layer::Parameters&>(gradients));
  }
}

TEMPLATE_LIST_TEST_CASE("Adapters come and go while others serve", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  Bank<T, Space> bank;
  auto& layer = bank.layer;
  CHECK(layer.resident() == 5);
  CHECK(bank.add(2, 3) == 5);
  CHECK_THROWS_AS(bank.add(2, 3), moe::ConfigError);
  bank.rows({5, 0, 5, 1, -1, 2, 2});
  CHECK(bank.error() < allowed<T>);
  const auto before = host(clone(bank.tape.y));
  layer.replace(bank.ctx, 2, bank.a(1, 7), bank.b(1, 7), -2);  // a lower rank: nothing of the old one is left
  CHECK(bank.error() < allowed<T>);
  const auto after = host(clone(bank.tape.y));
  for (Index t = 0; t < 7; ++t) {
    bool same = true;
    for (Index o = 0; o < bank.out; ++o) same = same && before(t, o) == after(t, o);
    CHECK(same == (t < 5));
  }
  layer.evict(bank.ctx, 0);
  CHECK(!layer.is_resident(0));
  CHECK(layer.resident() == 5);
  CHECK_THROWS_AS(layer.evict(bank.ctx, 0), moe::DataError);
  CHECK_THROWS_AS(layer.replace(bank.ctx, 6, bank.a(1), bank.b(1), 1), moe::DataError);
  const auto faulty = [&] {
    bank.forward();
    bank.ctx.check();
  };
  CHECK_THROWS_WITH(faulty(), Contains("names an adapter that is not resident"));
  const auto y = host(bank.tape.y);
  bank.ids[1] = -1;  // what the row got
  CHECK(bank.error() < allowed<T>);
  CHECK(same_bits(y, host(bank.tape.y)));
  for (const int bad : {6, -2, 1000000}) {
    bank.ids[1] = bad;
    CHECK_THROWS_AS(faulty(), moe::DataError);
  }
  bank.ids[1] = 0;
  CHECK(layer.add(bank.ctx, 4, 1.0, moe::Seed{3}) == 0);  // fresh: adds nothing yet
  CHECK(bank.error() < allowed<T>);
  const auto drawn = host(layer.parameters.a);
  double squares = 0;
  for (Index k = 0; k < bank.rank; ++k) {
    for (Index i = 0; i < bank.in; ++i) squares += double(drawn(0, k, i)) * double(drawn(0, k, i));
  }
  CHECK(squares > 2);
  CHECK(squares < 7);
}

TEST_CASE("A bank goes on from arrays that were loaded") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  Bank<float, Space> bank;
  bank.layer.evict(bank.ctx, 1);
  Bank<float, Space>::Layer loaded({.in = 37, .out = 22, .rank = 6, .adapters = 6}, bank.base);
  const auto copy = [](std::string_view, const auto& from, const auto& to) { Kokkos::deep_copy(to, from); };
  decltype(loaded.parameters)::visit(copy, bank.layer.parameters, loaded.parameters);
  decltype(loaded.buffers)::visit(copy, bank.layer.buffers, loaded.buffers);
  loaded.take_loaded(bank.ctx);
  CHECK(loaded.resident() == 4);
  CHECK(loaded.is_resident(0));
  CHECK(!loaded.is_resident(1));
  CHECK(loaded.add(bank.ctx, bank.a(2), bank.b(2), 1) == 1);
  CHECK(loaded.add(bank.ctx, bank.a(2), bank.b(2), 1) == 5);
}

TEST_CASE("AdapterBank refuses what does not fit") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  Bank<float, Space> bank;
  using Layer = Bank<float, Space>::Layer;
  CHECK_THROWS_AS(Layer({.in = 37, .out = 22, .rank = 0, .adapters = 6}, bank.base), moe::ConfigError);
  CHECK_THROWS_WITH(Layer({.in = 22, .out = 37, .rank = 1, .adapters = 6}, bank.base), Contains("expected (out, in)"));
  CHECK_THROWS_WITH(bank.layer.add(bank.ctx, bank.a(7), bank.b(7), 1), Contains("rank 7"));
  CHECK_THROWS_WITH(bank.layer.add(bank.ctx, bank.a(3), bank.b(2), 1), Contains("expected (r, 37) and (22, r)"));
  bank.rows({0, 1});
  Layer::Tape empty;
  auto gradients = bank.layer.gradients();
  const moe::Matrix<float, Space> dy("dy", 2, bank.out);
  CHECK_THROWS_WITH(bank.layer.backward(bank.ctx, dy, empty, gradients), Contains("this tape is empty"));
  bank.batch.x = random<moe::Matrix<float, Space>>(1, 2, 5);
  CHECK_THROWS_AS(bank.forward(), moe::ShapeError);
}

TEST_CASE("A captured step of adapters needs one before it") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  Bank<float, Space> bank;
  bank.rows({0, 1});
  moe::detail::pretend_capture = true;
  CHECK_THROWS_WITH(bank.forward(), Contains("holds none on 2 tokens"));
  moe::detail::pretend_capture = false;
}

int allocations = 0;

TEST_CASE("The second step of a bank allocates nothing, and has the same bits on one thread") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  Bank<float, Space> bank;
  bank.rows(mixed(300));
  const auto ids = names<Space>(bank.ids);
  auto gradients = bank.layer.gradients();
  const auto dy = random<moe::Matrix<float, Space>>(4, 300, bank.out);
  const auto step = [&](auto& layer, auto& ctx, const auto& batch, const auto& adapters, auto& tape, auto& to) {
    layer.forward(ctx, batch, adapters, tape);
    layer.backward(ctx, dy, tape, to);
  };
  step(bank.layer, bank.ctx, bank.batch, ids, bank.tape, gradients);
  const auto y = clone(bank.tape.y), dx = clone(bank.tape.dx);
  const auto da = clone(gradients.a), db = clone(gradients.b);
  allocations = 0;
  Kokkos::Tools::Experimental::set_allocate_data_callback(
      [](Kokkos_Profiling_SpaceHandle, const char*, const void*, std::uint64_t) { ++allocations; });
  step(bank.layer, bank.ctx, bank.batch, ids, bank.tape, gradients);
  Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr);
  CHECK(allocations == 0);
  CHECK(same_bits(y, bank.tape.y));
#if defined(KOKKOS_ENABLE_SERIAL)
  Bank<float, Kokkos::Serial> serial;
  serial.rows(mixed(300));
  auto of_serial = serial.layer.gradients();
  step(serial.layer, serial.ctx, serial.batch, ids, serial.tape, of_serial);
  CHECK(same_bits(y, serial.tape.y));
  CHECK(same_bits(dx, serial.tape.dx));
  CHECK(same_bits(da, of_serial.a));
  CHECK(same_bits(db, of_serial.b));
#endif
}

TEMPLATE_LIST_TEST_CASE("A row's numbers do not depend on its neighbours in the batch", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  Bank<T, Space> bank;
  bank.rows(mixed(140));
  const auto all = host(clone(bank.forward()));
  const auto x = host(bank.batch.x);
  for (const Index t : {0, 5, 139}) {
    moe::Matrix<T, Space> one("one", 1, bank.in);
    Kokkos::deep_copy(Kokkos::subview(one, 0, Kokkos::ALL), Kokkos::subview(bank.batch.x, t, Kokkos::ALL));
    moe::Batch<T, Space> alone;
    alone.x = one;
    const auto y = host(bank.layer.forward(bank.ctx, alone, names<Space>({bank.ids[std::size_t(t)]}), bank.tape));
    bool same = true;
    for (Index o = 0; o < bank.out; ++o) same = same && y(0, o) == all(t, o);
    CHECK(same);
  }
}

}  // namespace adapter_bank_test
