// Packed weights: the same bits for any number of threads and whatever batch a token sits in; nothing read or written
// outside the arrays.
#include <moe_test/packed.hpp>

#if defined(__linux__)
#  include <sys/mman.h>
#  include <unistd.h>
#endif

namespace packed_memory_test {

using namespace moe_test;
using moe::bfloat16;

/// Rows of experts, uneven, with padding and tokens that come twice.
template <class T, class Activation>
struct Problem {
  Index hidden, tokens;
  PackedExperts<T, Activation> experts;
  std::vector<Index> offsets{0}, token, assignment;
  std::vector<float> weight;
  std::vector<Token<T>> x;

  Problem(Index hidden_, Index inner, Index tokens_, const std::vector<Index>& counts)
      : hidden(hidden_),
        tokens(tokens_),
        experts(Index(counts.size()), hidden, inner, inner % 2 == 0),
        x(random_numbers<Token<T>>(1, tokens * hidden)) {
    for (Index count : counts) offsets.push_back(offsets.back() + count);
    std::mt19937 engine(7);
    for (Index r = 0; r < offsets.back(); ++r) {
      token.push_back(r % 13 == 5 ? -1 : Index(engine() % unsigned(tokens)));
      assignment.push_back(offsets.back() - 1 - r);
    }
    weight = random_numbers<float>(3, offsets.back());
  }

  template <class Space>
  std::vector<float> run(const Space& space, moe::kernels::PackedWorkspace& work) const {
    std::vector<float> y(tokens * hidden, 0.5f);
    auto call = experts.call(x.data(), offsets.data(), y.data());
    call.row_token = token.data();
    call.row_assignment = assignment.data();
    call.weight = weight.data();
    moe::kernels::packed_ffn(space, call, work);
    return y;
  }
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

#if defined(KOKKOS_ENABLE_OPENMP)
template <class T, class Activation>
void check_threads(const Problem<T, Activation>& problem) {
  moe::kernels::PackedWorkspace first, shared;
  const auto one = problem.run(Kokkos::OpenMP(1), first);
  CHECK(std::none_of(one.begin(), one.end(), [](float v) { return std::isnan(v); }));
#  if defined(KOKKOS_ENABLE_SERIAL)
  CHECK(same(one, problem.run(Kokkos::Serial(), first)));
#  endif
  for (const int threads : {2, 3}) {
    CAPTURE(threads);
    const Kokkos::OpenMP space(threads);       // a pool of its own
    for (int again = 0; again < 8; ++again) {  // threads meet in another order each time
      CHECK(same(one, problem.run(space, shared)));
    }
  }
}

TEMPLATE_TEST_CASE("Packed experts have the same bits for 1, 2 and 3 threads", "", float, bfloat16, std::int8_t) {
  check_threads(Problem<TestType, moe::SwiGLU>(70, 45, 50, {40, 0, 3, 1, 300, 17}));  // chunks share tokens
  check_threads(Problem<TestType, ShiftedProduct>(300, 130, 9, {1, 0, 1, 5, 2}));     // fewer rows than threads' units
  check_threads(Problem<TestType, moe::ReLU>(33, 40, 30, std::vector<Index>(150, 2)));
  check_threads(Problem<TestType, moe::GeGLU>(1, 1, 4, {5, 6}));
}
#endif

/// One row in a call of its own gives the bits that it gives between others.
template <class T, class Activation>
void check_alone(Index hidden, Index inner) {
  CAPTURE(hidden, inner, sizeof(T));
  moe::kernels::PackedWorkspace work;
  const PackedExperts<T, Activation> experts(3, hidden, inner, true);
  const std::vector<Index> offsets{0, 1, 100, 104};
  const auto x = random_numbers<Token<T>>(1, 104 * hidden);
  const auto weight = random_numbers<float>(2, 104);
  std::vector<float> y(104 * hidden);
  auto call = experts.call(x.data(), offsets.data(), y.data());
  call.weight = weight.data();
  moe::kernels::packed_ffn(Host{}, call, work);
  for (Index r = 0; r < 104; r = r < 20 ? r + 1 : r + 13) {
    CAPTURE(r);
    const Index e = r < 1 ? 0 : r < 100 ? 1 : 2;
    const std::vector<Index> own_offsets{0, e < 1, e < 2, 1};
    std::vector<float> own(hidden);
    auto single = experts.call(x.data() + r * hidden, own_offsets.data(), own.data());
    single.weight = weight.data() + r;
    moe::kernels::packed_ffn(Host{}, single, work);
    CHECK(std::memcmp(own.data(), y.data() + r * hidden, hidden * sizeof(float)) == 0);
  }
}

TEMPLATE_TEST_CASE("NaN and infinity stay in their row of packed experts", "", float, bfloat16, std::int8_t) {
  const Index hidden = 37, rows = 40;
  moe::kernels::PackedWorkspace work;
  const PackedExperts<TestType, moe::SwiGLU> experts(2, hidden, 21, true);
  const std::vector<Index> offsets{0, 25, rows};
  auto x = random_numbers<Token<TestType>>(1, rows * hidden);
  std::vector<float> clean(rows * hidden), y(rows * hidden);
  moe::kernels::packed_ffn(Host{}, experts.call(x.data(), offsets.data(), clean.data()), work);
  for (const Index r : {0, 3, 24, 25, 39}) x[r * hidden + r % hidden] = Token<TestType>(r % 2 == 0 ? NAN : INFINITY);
  moe::kernels::packed_ffn(Host{}, experts.call(x.data(), offsets.data(), y.data()), work);
  for (Index r = 0; r < rows; ++r) {
    CAPTURE(r);
    const bool spoilt = r == 0 || r == 3 || r == 24 || r == 25 || r == 39;
    CHECK((std::memcmp(&y[r * hidden], &clean[r * hidden], hidden * sizeof(float)) == 0) == !spoilt);
    if (spoilt) CHECK_FALSE(std::isfinite(y[r * hidden]));
  }
}

TEMPLATE_TEST_CASE("A row of packed experts does not depend on the rows around it", "", float, bfloat16, std::int8_t) {
  check_alone<TestType, moe::SwiGLU>(70, 45);
  check_alone<TestType, moe::ReLU>(31, 64);
  check_alone<TestType, moe::GeGLU>(128, 33);
}

#if defined(__linux__)
/// Numbers that end where an inaccessible page begins, or begin where one ends: a step outside stops the program.
template <class T>
class Guarded {
 public:
  Guarded(Index count, bool at_end) : page_(sysconf(_SC_PAGESIZE)) {
    const std::size_t bytes = std::max<std::size_t>(1, count * sizeof(T)), pages = (bytes + page_ - 1) / page_;
    size_ = (pages + 2) * page_;
    void* all = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(all != MAP_FAILED);
    base_ = static_cast<char*>(all);
    REQUIRE(mprotect(base_, page_, PROT_NONE) == 0);
    REQUIRE(mprotect(base_ + size_ - page_, page_, PROT_NONE) == 0);
    data_ = reinterpret_cast<T*>(at_end ? base_ + size_ - page_ - count * sizeof(T) : base_ + page_);
  }
  Guarded(const std::vector<T>& from, bool at_end) : Guarded(Index(from.size()), at_end) {
    std::copy(from.begin(), from.end(), data_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_, size_); }
  T* data() const { return data_; }

 private:
  std::size_t page_, size_ = 0;
  char* base_ = nullptr;
  T* data_ = nullptr;
};

template <class T>
moe::kernels::cpu::PageBuffer<T> guarded_buffer(Index size, bool at_end) {
  auto pages = std::make_shared<Guarded<T>>(size, at_end);
  return moe::kernels::cpu::PageBuffer<T>(std::shared_ptr<T>(pages, pages->data()));
}
/// The panels' memory in guarded pages, filled by pack().
template <class T>
void guard(moe::kernels::PackedWeights<T>& panels, bool at_end) {
  panels.memory = guarded_buffer<T>(panels.experts * panels.columns * panels.depth, at_end);
  if (panels.scale.data() != nullptr) panels.scale = guarded_buffer<float>(panels.experts * panels.columns, at_end);
}

template <class T, class Activation>
void check_guarded(Index hidden, Index inner, const std::vector<Index>& counts, bool at_end) {
  CAPTURE(sizeof(T), hidden, inner, counts, at_end);
  Problem<T, Activation> problem(hidden, inner, 6, counts);
  moe::kernels::PackedWorkspace work;
  const auto expected = problem.run(Host{}, work);

  auto& experts = problem.experts;
  guard(experts.up_panels, at_end);
  guard(experts.down_panels, at_end);
  // pack() reads the plain weights.
  const Guarded<float> up(std::vector<float>(experts.up.data(), experts.up.data() + experts.up.size()), at_end);
  const Guarded<float> down(std::vector<float>(experts.down.data(), experts.down.data() + experts.down.size()), at_end);
  experts.up = moe::Tensor3<float, Host>(up.data(), experts.up.extent(0), experts.up.extent(1), hidden);
  experts.down = moe::Tensor3<float, Host>(down.data(), experts.down.extent(0), hidden, inner);
  experts.pack();

  const Guarded<Token<T>> x(problem.x, at_end);
  const Guarded<float> y(std::vector<float>(expected.size(), 0.5f), at_end), weight(problem.weight, at_end);
  const Guarded<Index> offsets(problem.offsets, at_end), token(problem.token, at_end),
      assignment(problem.assignment, at_end);
  const Guarded<float> up_bias(experts.up_panel_bias, at_end), down_bias(experts.down_panel_bias, at_end);
  auto call = experts.call(x.data(), offsets.data(), y.data());
  call.row_token = token.data();
  call.row_assignment = assignment.data();
  call.weight = weight.data();
  if (call.up_bias != nullptr) {
    call.up_bias = up_bias.data();
    call.down_bias = down_bias.data();
  }
  moe::kernels::packed_ffn(Host{}, call, work);
  CHECK(same(expected, std::vector<float>(y.data(), y.data() + expected.size())));
}

TEMPLATE_TEST_CASE("Packed experts stay within their arrays", "", float, bfloat16, std::int8_t) {
  for (const bool at_end : {true, false}) {
    for (const auto& [hidden, inner] :
         std::vector<std::pair<Index, Index>>{{1, 1}, {17, 33}, {33, 18}, {47, 64}, {64, 32}, {31, 2}, {100, 48}}) {
      for (Index rows = 1; rows <= 20; rows += rows < 8 ? 1 : 3)
        check_guarded<TestType, moe::SwiGLU>(hidden, inner, {rows, 0, 1}, at_end);
      check_guarded<TestType, ShiftedProduct>(hidden, inner, {0, 2, 0, 150}, at_end);
      check_guarded<TestType, moe::ReLU>(hidden, inner, {5, 0, 30}, at_end);
    }
  }
}

/// Tile, panels and sums of each micro-kernel between inaccessible pages, which a prefetch may cross.
template <class Panel, class Factor>
void check_guarded_kernel(const moe::kernels::cpu::MicroKernel& kernel, Index rows, Index depth, bool at_end) {
  const Index columns = 16 * kernel.panels, lines = depth * Index(sizeof(Panel)) / 4;
  const Index tile_depth = moe::kernels::cpu::tile_depth<Factor>(depth);
  const Guarded<Factor> tile(std::vector<Factor>(rows * tile_depth, Factor(1)), at_end);
  const Guarded<Panel> panels(std::vector<Panel>(columns * depth, Panel(1)), at_end);
  const Guarded<float> sums(32 * (rows - 1) + columns, at_end);
  const auto* end = reinterpret_cast<const char*>(panels.data() + columns * depth);
  kernel.run(tile.data(), panels.data(), 16 * depth * Index(sizeof(Panel)), lines, {end, 64, 16}, sums.data());
  CHECK(sums.data()[32 * (rows - 1) + columns - 1] != 0.0f);
}

TEST_CASE("Micro-kernels stay within their arrays") {
  const auto& table = moe::kernels::cpu::micro_kernels();
  for (Index rows = 1; rows <= table.rows; ++rows) {
    for (const Index depth : {64, 192}) {
      for (const bool at_end : {true, false}) {
        if (table.bytes) {
          check_guarded_kernel<std::int8_t, std::int8_t>(table.int8[rows], rows, depth, at_end);
        } else {
          check_guarded_kernel<std::int8_t, std::int16_t>(table.int8[rows], rows, depth, at_end);
        }
        check_guarded_kernel<float, float>(table.f32[rows], rows, depth, at_end);
        if (rows == 1) check_guarded_kernel<float, float>(table.f32_row, 1, depth, at_end);
        if (table.pairs) {
          check_guarded_kernel<bfloat16, bfloat16>(table.bf16[rows], rows, depth, at_end);
        } else {
          check_guarded_kernel<bfloat16, float>(table.bf16[rows], rows, depth, at_end);
        }
      }
    }
  }
  for (int rows = 1; rows <= table.small_rows; ++rows) {
    for (const bool at_end : {true, false}) {
      const Index length = 37;
      const Guarded<float> a(std::vector<float>(rows * length, 1.0f), at_end);
      const Guarded<float> b(std::vector<float>(7 * length, 1.0f), at_end), dots(rows * 7, at_end);
      for (const bool add : {false, true}) {
        table.small_dots({a.data(), b.data(), dots.data(), length, length, 7, rows, 7, length, add});
        CHECK(dots.data()[rows * 7 - 1] == float(add ? 2 * length : length));
      }
      for (const int panels : {1, 2}) {
        const Guarded<float> lines(std::vector<float>(16 * panels * length, 1.0f), at_end), sums(32 * rows, at_end);
        table.small_lines(rows, panels, {a.data(), length, 1, lines.data(), 16, 16 * panels, length, sums.data()});
        CHECK(sums.data()[32 * (rows - 1) + 16 * panels - 1] == float(length));
        table.small_lines(rows, panels, {a.data(), 1, rows, lines.data(), 16, 16 * panels, length, sums.data()});
        CHECK(sums.data()[32 * (rows - 1) + 16 * panels - 1] == float(length));
      }
    }
  }
}
#endif

}  // namespace packed_memory_test
