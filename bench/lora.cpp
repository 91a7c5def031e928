// bench_lora: one frozen linear layer and many low-rank adapters in one batch, beside a loop over the adapters, merged
// weights, and the machine's limits.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <moe/moe.hpp>
#include <nlohmann/json.hpp>
#include <random>

#include "limits.hpp"

namespace {

using moe::Index;
using Space = Kokkos::DefaultHostExecutionSpace;
using Ids = moe::Vector<std::int32_t, Space>;

struct Options {
  std::string type = "f32";
  Index in = 1024, out = 1024;
  std::vector<Index> ranks{4, 16, 64}, adapters{8, 64, 256, 1000}, rows{512, 2048};
  bool loop = false, merged = false;
  double seconds = 1;
  int threads = 0;
  bool json = false;
};

struct Case {
  Index rank, adapters, rows;
};

/// The work of a step, and the least time that the machine's arithmetic and memory leave it: the base's products, and
/// the adapters' matrices and gradients, each read or written once.
struct Work {
  double flops, bytes;
  double least(double gflops, double gbs) const { return 1e-9 * std::max(flops / gflops, bytes / gbs); }
};
Work work(const Options& options, const Case& of, Index used, bool backward) {
  const double size = options.type == "f32" ? 4 : 2, in = double(options.in), out = double(options.out);
  const double rows = double(of.rows), base = in * out, adapter = double(of.rank) * (in + out);
  const double one = 2 * rows * (base + adapter), once = size * (base + double(used) * adapter + rows * (in + out));
  if (!backward) return {one, once};
  // Backward: the base once more and the adapters twice; their matrices read again, their gradients read and written.
  return {2 * one + 2 * rows * adapter, 2 * once + size * (2 * double(used) * adapter)};
}

void print(const Options& options, const Case& of, const char* what, double forward, double train, const Work& one,
           const Work& both, const bench::Limits& limits) {
  const double gflops = options.type == "f32" ? limits.gflops : limits.bf16_gflops;
  const double forward_share = one.least(gflops, limits.gbs) / forward,
               train_share = train > 0 ? both.least(gflops, limits.gbs) / train : 0;
  if (options.json) {
    const nlohmann::json line{{"impl", "moe"},
                              {"what", what},
                              {"type", options.type},
                              {"in", options.in},
                              {"out", options.out},
                              {"rank", of.rank},
                              {"adapters", of.adapters},
                              {"T", of.rows},
                              {"threads", Space().concurrency()},
                              {"forward_s", forward},
                              {"train_s", train},
                              {"forward_share", forward_share},
                              {"train_share", train_share}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{:>5} {:>5} {:>8}  {:<8} {:>9.3f} {:>9.3f} {:>8.0f}% {:>8.0f}%\n", of.rows, of.rank, of.adapters, what,
               1e3 * forward, 1e3 * train, 100 * forward_share, 100 * train_share);
  }
  std::fflush(stdout);
}

template <class T>
struct Layer {
  using Bank = moe::AdapterBank<moe::On<Space>, moe::Precision<T>>;
  using Matrix = moe::Matrix<T, Space>;
  const Options& options;
  Case of;
  moe::Context<Space> ctx;
  Matrix base, x, dy;
  Ids ids;
  Bank bank;
  typename Bank::Tape tape;
  typename Bank::Gradients gradients;

  Layer(const Options& with, const Case& each)
      : options(with),
        of(each),
        base("base", with.out, with.in),
        x("x", each.rows, with.in),
        dy("dy", each.rows, with.out),
        ids("ids", each.rows),
        bank({.in = with.in, .out = with.out, .rank = each.rank, .adapters = each.adapters}, base),
        gradients(bank.gradients()) {
    moe::fill_normal(Space{}, base, moe::Seed{1}, 1 / std::sqrt(double(options.in)));
    moe::fill_normal(Space{}, x, moe::Seed{2});
    moe::fill_normal(Space{}, dy, moe::Seed{3});
    for (Index n = 0; n < of.adapters; ++n) bank.add(ctx, of.rank, 2.0, moe::Seed{std::uint64_t(n)});
    moe::fill_normal(Space{}, bank.parameters.b, moe::Seed{4}, 0.01);
    std::mt19937 engine(5);
    for (Index t = 0; t < of.rows; ++t) ids(t) = std::int32_t(engine() % std::uint32_t(of.adapters));
  }

  /// Adapters that have rows.
  Index used() const {
    std::vector<char> seen(std::size_t(of.adapters), 0);
    for (Index t = 0; t < of.rows; ++t) seen[std::size_t(ids(t))] = 1;
    return Index(std::count(seen.begin(), seen.end(), 1));
  }
  moe::Batch<T, Space> batch() const {
    moe::Batch<T, Space> batch;
    batch.x = x;
    return batch;
  }
  void forward() { bank.forward(ctx, batch(), ids, tape); }
  void train() {
    forward();
    bank.backward(ctx, moe::Matrix<const T, Space>(dy), tape, gradients);
  }
};

/// What a program does that knows no groups: the base for all rows, then one adapter after another, its rows gathered,
/// multiplied and added back. Dense products are the library's own.
template <class T>
struct Loop {
  using Matrix = moe::Matrix<T, Space>;
  using M = moe::Matrix<const T, Space>;
  Layer<T>& layer;
  std::vector<std::vector<Index>> rows;
  Matrix y, dx, some_x, some_h, some_y, some_dh, some_dx;

  explicit Loop(Layer<T>& of)
      : layer(of),
        rows(std::size_t(of.of.adapters)),
        y("y", of.of.rows, of.options.out),
        dx("dx", of.of.rows, of.options.in) {
    for (Index t = 0; t < of.of.rows; ++t) rows[std::size_t(of.ids(t))].push_back(t);
    std::size_t most = 0;
    for (const auto& list : rows) most = std::max(most, list.size());
    some_x = some_dx = Matrix("rows", most, of.options.in);
    some_dx = Matrix("rows", most, of.options.in);
    some_y = Matrix("rows", most, of.options.out);
    some_h = Matrix("rows", most, of.of.rank);
    some_dh = Matrix("rows", most, of.of.rank);
  }
  static Matrix top(const Matrix& of, Index count) { return Matrix(of.data(), count, of.extent(1)); }
  static M part(const moe::Tensor3<T, Space>& of, Index n) {
    return M(of.data() + n * Index(of.extent(1) * of.extent(2)), of.extent(1), of.extent(2));
  }
  static Matrix own(const moe::Tensor3<T, Space>& of, Index n) {
    return Matrix(of.data() + n * Index(of.extent(1) * of.extent(2)), of.extent(1), of.extent(2));
  }
  template <class F>
  static void each(const std::vector<Index>& list, Index width, const F& f) {
    Kokkos::parallel_for("rows", Kokkos::RangePolicy<Space>(0, Index(list.size())), [&](Index i) {
      for (Index h = 0; h < width; ++h) f(i, list[std::size_t(i)], h);
    });
  }
  void run(bool backward) {
    const Space space{};
    const T scaling(2.0f);
    auto& bank = layer.bank;
    const Index in = layer.options.in, out = layer.options.out;
    moe::kernels::dense_forward<T, Space, false>(space, M(layer.x), M(layer.base), y);
    if (backward) moe::kernels::dense_backward_rows<T, Space, false>(space, M(layer.dy), M(layer.base), dx, false);
    for (Index n = 0; n < layer.of.adapters; ++n) {
      const auto& list = rows[std::size_t(n)];
      if (list.empty()) continue;
      const Index count = Index(list.size());
      const Matrix xs = top(some_x, count), ys = top(some_y, count), h = top(some_h, count), dh = top(some_dh, count),
                   dxs = top(some_dx, count);
      each(list, in, [&](Index i, Index t, Index c) { xs(i, c) = layer.x(t, c); });
      moe::kernels::dense_forward<T, Space, false>(space, M(xs), part(bank.parameters.a, n), h);
      moe::kernels::dense_forward<T, Space, false>(space, M(h), part(bank.parameters.b, n), ys);
      each(list, out,
           [&](Index i, Index t, Index c) { y(t, c) = T(float(y(t, c)) + float(scaling) * float(ys(i, c))); });
      if (!backward) continue;
      each(list, out, [&](Index i, Index t, Index c) { ys(i, c) = T(float(scaling) * float(layer.dy(t, c))); });
      moe::kernels::dense_backward_weight<T, Space, false>(space, M(ys), M(h), own(layer.gradients.b, n));
      moe::kernels::dense_backward_rows<T, Space, false>(space, M(ys), part(bank.parameters.b, n), dh, false);
      moe::kernels::dense_backward_weight<T, Space, false>(space, M(dh), M(xs), own(layer.gradients.a, n));
      moe::kernels::dense_backward_rows<T, Space, false>(space, M(dh), part(bank.parameters.a, n), dxs, false);
      each(list, in, [&](Index i, Index t, Index c) { dx(t, c) = T(float(dx(t, c)) + float(dxs(i, c))); });
    }
  }
};

/// Every adapter merged into a copy of the base beforehand: rows sorted by adapter, one grouped product. Inference
/// alone, and where N copies of the base fit.
template <class T>
double merged(Layer<T>& layer) {
  using Matrix = moe::Matrix<T, Space>;
  const Index n = layer.of.adapters, in = layer.options.in, out = layer.options.out, rows = layer.of.rows;
  moe::Tensor3<T, Space> weight(Kokkos::view_alloc("merged", Kokkos::WithoutInitializing), n, out, in);
  Kokkos::parallel_for("merge", Kokkos::RangePolicy<Space>(0, n * out), [&](Index i) {
    const Index e = i / out, o = i % out;
    for (Index c = 0; c < in; ++c) {
      float sum = 0;
      for (Index k = 0; k < layer.of.rank; ++k)
        sum += float(layer.bank.parameters.b(e, o, k)) * float(layer.bank.parameters.a(e, k, c));
      weight(e, o, c) = T(float(layer.base(o, c)) + 2 * sum);
    }
  });
  layer.forward();
  const auto& plan = layer.tape.plan;
  Matrix x("x", rows, in), sorted("sorted", rows, out), y("y", rows, out);
  return bench::least(layer.options.seconds, [&] {
    moe::gather(layer.ctx, moe::Matrix<const T, Space>(layer.x), plan, x);
    moe::kernels::grouped_forward<T, Space>(Space{}, plan.expert_offsets, x, weight, sorted);
    moe::scatter_add(layer.ctx, moe::Matrix<const T, Space>(sorted), plan, y);
  });
}

template <class T>
void run(const Options& options, const Case& of) {
  Layer<T> layer(options, of);
  const Index used = layer.used();
  const Work one = work(options, of, used, false), both = work(options, of, used, true);
  const bench::Limits before = bench::Limits::measure();
  const double forward = bench::least(options.seconds, [&] { layer.forward(); }),
               train = bench::least(options.seconds, [&] { layer.train(); });
  const bench::Limits after = bench::Limits::measure();
  const bench::Limits& limits = before.gflops > after.gflops ? before : after;
  print(options, of, "bank", forward, train, one, both, limits);
  if (options.loop) {
    Loop<T> loop(layer);
    const double slow = bench::least(options.seconds, [&] { loop.run(false); }),
                 slow_train = bench::least(options.seconds, [&] { loop.run(true); });
    print(options, of, "loop", slow, slow_train, one, both, limits);
  }
  if (options.merged) print(options, of, "merged", merged(layer), 0, one, both, limits);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Times a frozen linear layer with many low-rank adapters, each row of the batch with one of its own, forward and "
      "with backward."};
  app.option_defaults()->always_capture_default();
  app.add_option("--type", options.type, "of all numbers")->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option("--in", options.in, "width of the layer's input")->check(CLI::PositiveNumber);
  app.add_option("--out", options.out, "width of its output")->check(CLI::PositiveNumber);
  app.add_option("--ranks", options.ranks, "of the adapters")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--adapters", options.adapters, "how many are resident; rows draw theirs among them")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--rows", options.rows, "rows of the batch")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_flag("--loop", options.loop, "also one adapter after another, by dense products");
  app.add_flag("--merged", options.merged, "also a copy of the base for each adapter, merged beforehand; inference");
  app.add_option("--seconds", options.seconds, "time for each measurement")->check(CLI::NonNegativeNumber);
  app.add_option("--threads", options.threads, "0: as many as Kokkos takes")->check(CLI::NonNegativeNumber);
  app.add_flag("--json", options.json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  Kokkos::InitializationSettings settings;
  if (options.threads > 0) settings.set_num_threads(options.threads);
  Kokkos::ScopeGuard kokkos(settings);
  try {
    if (!options.json) {
      fmt::print("{} to {}, {}, {} threads\n", options.in, options.out, options.type, Space().concurrency());
      fmt::print("{:>5} {:>5} {:>8}  {:<8} {:>9} {:>9} {:>18}\n", "rows", "rank", "adapters", "", "forward", "train ms",
                 "of the bound");
    }
    for (const Index rows : options.rows) {
      for (const Index rank : options.ranks) {
        for (const Index adapters : options.adapters) {
          const Case of{rank, adapters, rows};
          options.type == "f32" ? run<float>(options, of) : run<moe::bfloat16>(options, of);
        }
      }
    }
  } catch (const moe::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
