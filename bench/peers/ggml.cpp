// A mixture layer's forward pass in ggml, with the graph that llama.cpp builds: router, top-k, three products by
// expert, weighted sum, shared experts. The shape comes from the command line, so that it is written down once.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// `--name value` pairs.
class Options {
 public:
  Options(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; i += 2) values_[argv[i] + 2] = argv[i + 1];
  }
  const std::string& text(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::runtime_error("--" + name + " is missing");
    return found->second;
  }
  long number(const std::string& name) const { return std::stol(text(name)); }
  double real(const std::string& name) const { return std::stod(text(name)); }

 private:
  std::map<std::string, std::string> values_;
};

struct Shape {
  std::string name, router;
  long hidden, intermediate, experts, top_k, shared, groups, kept_groups;

  explicit Shape(const Options& options)
      : name(options.text("shape")),
        router(options.text("router")),
        hidden(options.number("hidden")),
        intermediate(options.number("intermediate")),
        experts(options.number("experts")),
        top_k(options.number("top-k")),
        shared(options.number("shared")),
        groups(options.number("groups")),
        kept_groups(options.number("kept-groups")) {}

  bool gated() const { return router != "switch"; }
  long matrices() const { return gated() ? 3 : 2; }
  double flops(long tokens) const {
    return 2.0 * double(matrices() * hidden * intermediate * (top_k + shared)) * double(tokens);
  }
};

/// Fills with small random rows, repeated, since drawing them all takes longer than measuring.
void fill(ggml_tensor* tensor, std::mt19937& generator) {
  const long columns = tensor->ne[0], rows = ggml_nrows(tensor), drawn = std::min(rows, 256L);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> values(std::size_t(columns * drawn));
  for (float& value : values) value = normal(generator);
  const std::size_t row_bytes = ggml_row_size(tensor->type, columns);
  std::vector<char> block(row_bytes * drawn), all(row_bytes * rows);
  if (tensor->type == GGML_TYPE_F32) {
    std::memcpy(block.data(), values.data(), block.size());
  } else {
    ggml_quantize_chunk(tensor->type, values.data(), block.data(), 0, drawn, columns, nullptr);
  }
  for (long row = 0; row < rows; row += drawn) {
    std::memcpy(all.data() + row * row_bytes, block.data(), row_bytes * std::min(drawn, rows - row));
  }
  ggml_backend_tensor_set(tensor, all.data(), 0, all.size());
}

/// The tensors that stay. ggml writes shapes with the fastest axis first.
struct Weights {
  ggml_tensor *up, *gate = nullptr, *down;
  ggml_tensor *shared_up = nullptr, *shared_gate = nullptr, *shared_down = nullptr;
  ggml_tensor *router, *bias;

  Weights(const Shape& s, ggml_type type, ggml_backend_t backend, double skew) {
    ggml_context* ctx = ggml_init({ggml_tensor_overhead() * 16, nullptr, true});
    up = ggml_new_tensor_3d(ctx, type, s.hidden, s.intermediate, s.experts);
    if (s.gated()) gate = ggml_new_tensor_3d(ctx, type, s.hidden, s.intermediate, s.experts);
    down = ggml_new_tensor_3d(ctx, type, s.intermediate, s.hidden, s.experts);
    if (s.shared > 0) {
      shared_up = ggml_new_tensor_2d(ctx, type, s.hidden, s.intermediate * s.shared);
      shared_gate = ggml_new_tensor_2d(ctx, type, s.hidden, s.intermediate * s.shared);
      shared_down = ggml_new_tensor_2d(ctx, type, s.intermediate * s.shared, s.hidden);
    }
    router = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.hidden, s.experts);
    bias = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, s.experts);
    if (!ggml_backend_alloc_ctx_tensors(ctx, backend)) throw std::runtime_error("not enough memory");
    std::mt19937 generator(1);
    for (ggml_tensor* each : {up, gate, down, shared_up, shared_gate, shared_down, router}) {
      if (each) fill(each, generator);
    }
    const std::vector<float> zeros(std::size_t(s.experts), 0.0f);
    ggml_backend_tensor_set(bias, zeros.data(), 0, zeros.size() * sizeof(float));
    for (long e = 0; skew != 0 && e < s.experts; ++e) {  // the first input is 1: popularity falls with the rank
      const float popularity = float(-skew * std::log(double(e + 1)));
      ggml_backend_tensor_set(router, &popularity, std::size_t(e) * router->nb[1], sizeof(float));
    }
  }
};

/// The layer for one number of tokens.
struct Graph {
  ggml_context* ctx = ggml_init({ggml_tensor_overhead() * 256 + ggml_graph_overhead(), nullptr, true});
  ggml_cgraph* graph = ggml_new_graph(ctx);
  ggml_gallocr_t allocator;
  ggml_tensor *x, *chosen, *out;

  Graph(const Shape& s, const Weights& w, long tokens, ggml_backend_t backend) {
    x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.hidden, tokens);
    ggml_set_input(x);
    ggml_tensor* weights = route(s, w, tokens);
    ggml_build_forward_expand(graph, weights);
    out = combine(s, experts(s, w, tokens), weights, tokens);
    if (s.shared > 0) out = ggml_add(ctx, out, shared(w));
    ggml_set_output(out);
    ggml_build_forward_expand(graph, out);
    allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
    if (!ggml_gallocr_alloc_graph(allocator, graph)) throw std::runtime_error("not enough memory");
  }
  ~Graph() {
    ggml_gallocr_free(allocator);
    ggml_free(ctx);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Chooses experts and returns their weights, (1, top_k, tokens).
  ggml_tensor* route(const Shape& s, const Weights& w, long tokens) {
    ggml_tensor* logits = ggml_mul_mat(ctx, w.router, x);
    const bool grouped = s.router == "deepseek-v3";
    ggml_tensor* scores = grouped ? ggml_sigmoid(ctx, logits) : ggml_soft_max(ctx, logits);
    ggml_tensor* keys = grouped ? keep_groups(s, ggml_add(ctx, scores, w.bias), tokens) : scores;
    chosen = ggml_argsort_top_k(ctx, keys, int(s.top_k));
    ggml_set_output(chosen);
    if (chosen->view_src) ggml_set_output(chosen->view_src);
    ggml_tensor* weights = ggml_get_rows(ctx, ggml_reshape_3d(ctx, scores, 1, s.experts, tokens), chosen);
    if (s.top_k == 1) return weights;
    weights = ggml_reshape_2d(ctx, weights, s.top_k, tokens);
    weights = ggml_div(ctx, weights, ggml_clamp(ctx, ggml_sum_rows(ctx, weights), 6.1e-5f, INFINITY));
    return ggml_reshape_3d(ctx, weights, 1, s.top_k, tokens);
  }

  /// Leaves -infinity in groups whose best two scores are not among the best.
  ggml_tensor* keep_groups(const Shape& s, ggml_tensor* keys, long tokens) {
    const long size = s.experts / s.groups;
    ggml_tensor* grouped = ggml_reshape_3d(ctx, keys, size, s.groups, tokens);
    ggml_tensor* best = ggml_argsort_top_k(ctx, grouped, 2);
    best = ggml_get_rows(ctx, ggml_reshape_4d(ctx, grouped, 1, size, s.groups, tokens), best);
    best = ggml_sum_rows(ctx, ggml_reshape_3d(ctx, best, best->ne[1], best->ne[2], best->ne[3]));
    best = ggml_reshape_2d(ctx, best, best->ne[1], best->ne[2]);
    ggml_tensor* kept = ggml_argsort_top_k(ctx, best, int(s.kept_groups));
    ggml_tensor* nothing = ggml_fill(ctx, grouped, -INFINITY);
    ggml_tensor* result = ggml_set_rows(ctx, nothing, ggml_get_rows(ctx, grouped, kept), kept);
    return ggml_reshape_2d(ctx, result, s.experts, tokens);
  }

  /// (hidden, top_k, tokens)
  ggml_tensor* experts(const Shape& s, const Weights& w, long tokens) {
    ggml_tensor* rows = ggml_reshape_3d(ctx, x, s.hidden, 1, tokens);
    ggml_tensor* up = ggml_mul_mat_id(ctx, w.up, rows, chosen);
    ggml_tensor* hidden =
        w.gate ? ggml_swiglu_split(ctx, ggml_mul_mat_id(ctx, w.gate, rows, chosen), up) : ggml_relu(ctx, up);
    return ggml_mul_mat_id(ctx, w.down, hidden, chosen);
  }

  ggml_tensor* combine(const Shape& s, ggml_tensor* results, ggml_tensor* weights, long tokens) {
    ggml_tensor* weighted = ggml_mul(ctx, results, weights);
    ggml_tensor* sum = nullptr;
    for (long k = 0; k < s.top_k; ++k) {
      ggml_tensor* one = ggml_view_2d(ctx, weighted, s.hidden, tokens, weighted->nb[2], k * weighted->nb[1]);
      sum = sum ? ggml_add(ctx, sum, one) : one;
    }
    return s.top_k == 1 ? ggml_cont(ctx, sum) : sum;
  }

  ggml_tensor* shared(const Weights& w) {
    ggml_tensor* gate = ggml_mul_mat(ctx, w.shared_gate, x);
    return ggml_mul_mat(ctx, w.shared_down, ggml_swiglu_split(ctx, gate, ggml_mul_mat(ctx, w.shared_up, x)));
  }

  long distinct_experts(const Shape& s, long tokens) const {
    ggml_tensor* full = chosen->view_src ? chosen->view_src : chosen;
    std::vector<std::int32_t> ids(ggml_nelements(full));
    ggml_backend_tensor_get(full, ids.data(), 0, ggml_nbytes(full));
    std::set<std::int32_t> seen;
    for (long t = 0; t < tokens; ++t) {
      for (long k = 0; k < s.top_k; ++k) seen.insert(ids[t * full->ne[0] + k]);
    }
    return long(seen.size());
  }

  bool finite() const {
    std::vector<float> values(ggml_nelements(out));
    ggml_backend_tensor_get(out, values.data(), 0, ggml_nbytes(out));
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
  }
};

/// Reads more than the last-level cache holds, on every thread.
void flush_cache(long threads) {
  static const std::vector<float> memory(32 << 20, 1.0f);
  [[maybe_unused]] static volatile float sink;  // keeps the compiler from dropping the reads
  std::vector<std::thread> readers;
  for (long t = 0; t < threads; ++t) {
    readers.emplace_back([=] {
      const std::size_t part = memory.size() / threads;
      float sums[16] = {};
      for (std::size_t i = part * t; i + 16 <= part * (t + 1); i += 16) {
        for (int j = 0; j < 16; ++j) sums[j] += memory[i + j];
      }
      sink = std::accumulate(sums, sums + 16, 0.0f);
    });
  }
  for (std::thread& reader : readers) reader.join();
}

/// Times one number of tokens and prints the line that compare.py reads.
void measure(const Shape& s, const Options& options, const Weights& w, long tokens, ggml_backend_t backend) {
  const long threads = options.number("threads"), repeats = options.number("repeats");
  const long inputs = tokens <= 4 ? 12 : tokens <= 32 ? 6 : 1;  // as in measure.py
  Graph graph(s, w, tokens, backend);
  std::mt19937 generator(2);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> xs(inputs, std::vector<float>(s.hidden * tokens));
  for (auto& x : xs) {
    for (float& value : x) value = normal(generator);
    for (long t = 0; t < tokens; ++t) x[t * s.hidden] = 1;
  }
  const auto pass = [&](long input) {
    ggml_backend_tensor_set(graph.x, xs[input].data(), 0, xs[input].size() * sizeof(float));
    if (tokens <= 32) flush_cache(threads);
    const double start = now();
    ggml_backend_graph_compute(backend, graph.graph);
    return now() - start;
  };

  double distinct = 0, least = 0, median = 0;
  std::vector<std::vector<double>> times(inputs);
  for (long i = 0; i < inputs; ++i) {
    pass(i);
    distinct += double(graph.distinct_experts(s, tokens)) / double(inputs);
  }
  if (!graph.finite()) throw std::runtime_error("its result is not finite here");
  const double end = now() + 9;
  for (long r = 0; r < repeats && (r < 3 || now() < end); ++r) {
    for (long i = 0; i < inputs; ++i) times[i].push_back(pass(i));
  }
  for (auto& each : times) {
    std::sort(each.begin(), each.end());
    least += each.front() / double(inputs);
    median += each[each.size() / 2] / double(inputs);
  }
  const double matrix = double(ggml_row_size(w.up->type, s.hidden)) * double(s.intermediate);
  const double bytes = (distinct + double(s.shared)) * double(s.matrices()) * matrix;
  std::printf(
      "{\"impl\": \"ggml %s mul_mat_id%s\", \"shape\": \"%s\", \"dtype\": \"%s\", \"threads\": %ld, \"T\": %ld, "
      "\"min_s\": %.9g, \"med_s\": %.9g, \"gflops\": %.6g, \"gbs\": %.6g, "
      "\"bytes\": %.9g}\n",
      ggml_version(), w.up->type == GGML_TYPE_Q8_0 ? " q8_0" : "", s.name.c_str(), options.text("dtype").c_str(),
      threads, tokens, least, median, s.flops(tokens) / least * 1e-9, bytes / least * 1e-9, bytes);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options(argc, argv);
    const Shape shape(options);
    const std::map<std::string, ggml_type> types{
        {"f32", GGML_TYPE_F32}, {"bf16", GGML_TYPE_BF16}, {"int8", GGML_TYPE_Q8_0}};
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, int(options.number("threads")));
    const Weights weights(shape, types.at(options.text("dtype")), backend, options.real("skew"));
    std::string rest = options.text("tokens");
    while (!rest.empty()) {
      const std::size_t comma = rest.find(',');
      measure(shape, options, weights, std::stol(rest.substr(0, comma)), backend);
      rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
