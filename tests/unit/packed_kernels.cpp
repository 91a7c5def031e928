// Packed weights: micro-kernels and panels against plain loops, whole networks against a reference in double, within
// bounds that follow from the roundings.
#include <moe_test/packed.hpp>

namespace packed_kernels_test {

using namespace moe_test;
using moe::bfloat16;
using moe::kernels::cpu::micro_kernels;
using moe::kernels::cpu::MicroKernel;

/// Numbers at a multiple of 64 bytes, as kernels want them.
template <class T>
struct Aligned {
  moe::kernels::cpu::PageBuffer<T> memory;
  explicit Aligned(const std::vector<T>& numbers) : memory(Index(numbers.size())), size(numbers.size()) {
    std::copy(numbers.begin(), numbers.end(), begin());
  }
  T* begin() const { return memory.data(); }
  T* end() const { return memory.data() + size; }
  T& operator[](Index i) const { return memory.data()[i]; }
  std::size_t size;
};

/// The number (row, k) of a tile of `rows` rows, lines of 64 bytes: [block of the sum][row][line].
template <class Factor>
Factor& in_tile(const Aligned<Factor>& tile, Index rows, Index row, Index k) {
  constexpr Index in_line = 64 / sizeof(Factor);
  return tile[(k / in_line * rows + row) * in_line + k % in_line];
}

/// One kernel of T's panels and tiles of Factor against plain loops. Panels lie apart, with NaN in between.
template <class T, class Factor>
void check_kernel(const MicroKernel& kernel, Index rows, Index depth, const reference::Precision& precision,
                  Worst& worst) {
  constexpr Index in_line = 4 / sizeof(T);
  const Index size = 16 * depth, gap = 64 / sizeof(T);
  REQUIRE(kernel.run != nullptr);
  REQUIRE((kernel.panels == 1 || kernel.panels == 2 || (kernel.panels == 4 && rows == 1)));
  Aligned<Factor> tile(random_numbers<Factor>(unsigned(rows + depth), rows * ((depth + 31) / 32 * 32)));
  if (sizeof(T) == 2) {
    for (Factor& f : tile) f = Factor(float(bfloat16(float(f))));
  }
  Aligned<T> panels(std::vector<T>(kernel.panels * (size + gap), T(NAN)));
  const auto numbers = random_numbers<T>(unsigned(3 * rows + depth), kernel.panels * size);
  for (Index p = 0; p < kernel.panels; ++p)
    std::copy_n(numbers.begin() + p * size, size, panels.begin() + p * (size + gap));
  const Index columns = 16 * kernel.panels, width = std::max<Index>(32, columns);
  Aligned<float> sums(std::vector<float>(rows * width, 77.0f));
  kernel.run(tile.begin(), panels.begin(), (size + gap) * Index(sizeof(T)), depth / in_line,
             {reinterpret_cast<const char*>(panels.begin()), 64, rows % 3}, sums.begin());
  for (Index i = 0; i < rows; ++i) {
    for (Index c = 0; c < width; ++c) {
      if (c >= columns) {
        CHECK(sums[32 * i + c] == 77.0f);
        continue;
      }
      double sum = 0, magnitude = 0;
      for (Index k = 0; k < depth; ++k) {
        const Index line = k / in_line;
        const double weight = panels[c / 16 * (size + gap) + (line * 16 + c % 16) * in_line + k % in_line];
        const double product = weight * double(in_tile(tile, rows, i, k));
        sum += product;
        magnitude += std::abs(product);
      }
      worst.see(std::abs(sum - double(sums[32 * i + c])),
                precision.products * double(depth + 1) * reference::f32_unit * magnitude);
    }
  }
}

/// One kernel of int8 and tiles of Factor against plain loops, bit for bit. Panels lie apart, with other numbers in
/// between.
template <class Factor>
void check_whole_kernel(const MicroKernel& kernel, Index rows, Index depth, int magnitude) {
  CAPTURE(rows, depth, magnitude);
  const Index size = 16 * depth, gap = 64;
  REQUIRE(kernel.run != nullptr);
  REQUIRE((kernel.panels == 1 || kernel.panels == 2 || (kernel.panels == 4 && rows == 1)));
  std::mt19937 engine(unsigned(rows + depth));
  const auto draw = [&]() {  // the extremes often, and alone where they are all that is asked for
    const int number = int(engine() % 300) - 150;
    return magnitude == 127 ? (number < 0 ? -127 : 127) : std::clamp(number, -127, 127);
  };
  Aligned<Factor> tile(std::vector<Factor>(rows * moe::kernels::cpu::tile_depth<Factor>(depth), Factor(0)));
  Aligned<std::int8_t> panels(std::vector<std::int8_t>(kernel.panels * (size + gap), 99));
  for (Index i = 0; i < rows * depth; ++i) tile[i] = Factor(draw());
  for (Index i = 0; i < kernel.panels * size; ++i) panels[i + i / size * gap] = std::int8_t(draw());
  if (magnitude == 127) {  // the largest sums of both signs
    for (Index k = 0; k < depth; ++k) {
      in_tile(tile, rows, 0, k) = 127;
      panels[k / 2 * 32 + k % 2] = 127;
      panels[k / 2 * 32 + 2 + k % 2] = -127;
    }
  }
  for (Index i = 0; sizeof(Factor) == 1 && i < rows; ++i) {
    std::uint32_t sum = 0;
    for (Index k = 0; k < depth; ++k) sum += std::uint32_t(in_tile(tile, rows, i, k));
    sum *= std::uint32_t(-128);
    std::memcpy(&in_tile(tile, rows, i, depth), &sum, sizeof(sum));
  }
  const Index width = std::max(32, 16 * kernel.panels);
  Aligned<float> sums(std::vector<float>(rows * width, 77.0f));
  kernel.run(tile.begin(), panels.begin(), size + gap, depth / 4,
             {reinterpret_cast<const char*>(panels.begin()), 64, rows % 3}, sums.begin());
  Index wrong = 0;
  for (Index i = 0; i < rows; ++i) {
    for (Index c = 0; c < width; ++c) {
      std::int64_t sum = Kokkos::bit_cast<std::int32_t>(77.0f);
      if (c < 16 * kernel.panels) {
        sum = 0;
        for (Index k = 0; k < depth; ++k)
          sum += panels[c / 16 * (size + gap) + k / 2 * 32 + c % 16 * 2 + k % 2] * in_tile(tile, rows, i, k);
      }
      wrong += sum != Kokkos::bit_cast<std::int32_t>(sums[32 * i + c]);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("Micro-kernels of int8 are exact, up to the longest sums") {
  const auto& table = micro_kernels();
  CAPTURE(table.name);
  const auto check = [&](const MicroKernel& kernel, Index rows, Index depth, int magnitude) {
    if (table.bytes) {
      check_whole_kernel<std::int8_t>(kernel, rows, depth, magnitude);
    } else {
      check_whole_kernel<std::int16_t>(kernel, rows, depth, magnitude);
    }
  };
  for (Index rows = 1; rows <= table.rows; ++rows) {
    for (const Index depth : {64, 128, 704}) check(table.int8[rows], rows, depth, 0);
    check(table.int8[rows], rows, 320, 127);
  }
  check(table.int8[1], 1, moe::kernels::cpu::quantised_depth / 64 * 64, 127);
  check(table.int8_row, 1, 704, 0);
  for (Index rows = table.rows + 1; rows <= moe::kernels::cpu::MicroKernels::most_rows; ++rows)
    CHECK(table.int8[rows].run == nullptr);
}

TEST_CASE("Micro-kernels agree with plain loops") {
  const auto& table = micro_kernels();
  CAPTURE(table.name);
  REQUIRE(table.rows >= 1);
  REQUIRE(table.rows <= moe::kernels::cpu::MicroKernels::most_rows);
  Worst full, half;
  const auto check = [&](const MicroKernel& f32, const MicroKernel& bf16, Index rows) {
    for (const Index depth : {0, 2, 30, 32, 64, 90, 352}) {
      CAPTURE(rows, depth);
      check_kernel<float, float>(f32, rows, depth, kernel_precision<float>(), full);
      if (table.pairs) {
        check_kernel<bfloat16, bfloat16>(bf16, rows, depth, kernel_precision<bfloat16>(), half);
      } else {
        check_kernel<bfloat16, float>(bf16, rows, depth, kernel_precision<bfloat16>(), half);
      }
    }
  };
  for (Index rows = 1; rows <= table.rows; ++rows) check(table.f32[rows], table.bf16[rows], rows);
  check(table.f32_row, table.bf16_row, 1);
  for (Index rows = table.rows + 1; rows <= moe::kernels::cpu::MicroKernels::most_rows; ++rows)
    CHECK((table.f32[rows].run == nullptr && table.bf16[rows].run == nullptr));
  full.check();
  half.check();
}

template <class From, class To, bool gated>
void check_panels(Index experts, Index rows, Index depth) {
  CAPTURE(experts, rows, depth, gated, sizeof(From), sizeof(To));
  const auto weight = random<moe::Tensor3<From, Host>>(5, experts, rows, depth);
  const Index half = rows / 2, padded = (half + 31) / 32 * 32;
  moe::kernels::PackedWeights<To> panels(experts, gated ? 2 * padded : rows, depth);
  REQUIRE(panels.experts == experts);
  REQUIRE(panels.columns % 32 == 0);
  REQUIRE(panels.lines() % 16 == 0);
  REQUIRE(panels.depth % 32 == 0);
  REQUIRE(panels.depth < depth + 16 * std::max<Index>(2, moe::kernels::PackedWeights<To>::in_line));
  REQUIRE(panels.columns >= rows);
  REQUIRE(panels.depth >= depth);
  REQUIRE(reinterpret_cast<std::uintptr_t>(panels.memory.data()) % 64 == 0);
  std::memset(static_cast<void*>(panels.memory.data()), 0xff, experts * panels.columns * panels.depth * sizeof(To));
  constexpr bool whole = std::is_same_v<To, std::int8_t>;
  if (whole) std::fill_n(panels.scale.data(), experts * panels.columns, NAN);
  moe::kernels::pack<gated>(Host{}, weight, panels);
  std::vector<char> seen(experts * panels.columns * panels.depth);
  Index wrong = 0;
  for (Index e = 0; e < experts; ++e) {
    for (Index column = 0; column < panels.columns; ++column) {
      // Gated: pairs of panels hold 16 of the gate's rows and the same 16 of up's.
      const Index within = column / 32 * 16 + column % 16, up = column % 32 / 16;
      const Index row = !gated ? column : within < half ? up * half + within : rows;
      double largest = 0, step = 1;  // of int8: a row's largest magnitude is 127 steps
      for (Index k = 0; row < rows && k < depth; ++k) largest = std::max(largest, std::abs(double(weight(e, row, k))));
      if (whole) {
        step = panels.scale.data()[e * panels.columns + column];
        wrong += std::abs(127 * step - largest) > 1e-6 * largest;
      }
      for (Index k = 0; k < panels.depth; ++k) {
        const bool live = row < rows && k < depth;
        To& number = panels.at(e, column, k);
        if (whole) {
          const double exact = live ? double(weight(e, row, k)) : 0;
          wrong += std::abs(double(number) * step - exact) > 0.50001 * step || (!live && number != To(0.0f));
        } else {
          const float expected = live ? float(To(float(weight(e, row, k)))) : 0.0f;
          wrong += float(number) != expected || std::signbit(float(number)) != std::signbit(expected);
        }
        ++seen[&number - panels.memory.data()];
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(std::all_of(seen.begin(), seen.end(), [](char times) { return times == 1; }));
}

TEST_CASE("Panels give back what was packed, and zeros around it") {
  for (const Index rows : {1, 2, 15, 16, 17, 31, 32, 33, 34, 70, 96}) {
    for (const Index depth : {1, 2, 31, 32, 33, 65}) {
      check_panels<float, float, false>(2, rows, depth);
      check_panels<double, bfloat16, false>(3, rows, depth);
      check_panels<double, std::int8_t, false>(3, rows, depth);
      if (rows % 2 != 0) continue;
      check_panels<float, float, true>(3, rows, depth);
      check_panels<float, bfloat16, true>(2, rows, depth);
      check_panels<float, std::int8_t, true>(2, rows, depth);
    }
  }
}

/// What a call is made of beside the experts.
struct Rows {
  std::vector<Index> counts;  ///< of each expert
  Index tokens;
  bool tokens_given = true;  ///< else row r is token r
  bool weighted = true;
  int padding = 0;  ///< every so manieth row has no token
};

/// y += the experts' sum, from the reference, and how far the kernels may be from it.
template <class T, class Activation>
void check_call(Index hidden, Index inner, bool biased, const Rows& rows, moe::kernels::PackedWorkspace& work,
                Worst& worst) {
  const Index experts = Index(rows.counts.size());
  CAPTURE(sizeof(T), hidden, inner, biased, rows.counts, rows.tokens, rows.tokens_given, rows.weighted, rows.padding);
  const PackedExperts<T, Activation> packed(experts, hidden, inner, biased);
  std::vector<Index> offsets{0};
  for (Index count : rows.counts) offsets.push_back(offsets.back() + count);
  const Index all = offsets.back();
  const auto x = random_numbers<Token<T>>(1, rows.tokens * hidden);
  const auto before = random_numbers<float>(2, rows.tokens * hidden);
  const auto weight = random_numbers<float>(3, all + 7);
  std::mt19937 engine(unsigned(4 + all));
  std::vector<Index> token(all), assignment(all);
  for (Index r = 0; r < all; ++r) {
    token[r] = rows.tokens_given ? Index(engine() % unsigned(rows.tokens)) : r;
    if (rows.padding != 0 && r % rows.padding == 0) token[r] = -1;
    assignment[r] = Index(engine() % unsigned(all + 7));
  }
  std::vector<float> y = before;
  auto call = packed.call(x.data(), offsets.data(), y.data());
  if (rows.tokens_given) call.row_token = token.data();
  if (rows.weighted) call.weight = weight.data();
  if (rows.weighted && rows.tokens_given) call.row_assignment = assignment.data();
  moe::kernels::packed_ffn(Host{}, call, work);

  // y + w_1 v_1 + w_2 v_2 ...: each step rounds the product and the sum so far.
  std::vector<double> expected(before.begin(), before.end()), bound(y.size()), size(y.size());
  for (std::size_t i = 0; i < y.size(); ++i) size[i] = std::abs(expected[i]);
  for (Index e = 0; e < experts; ++e) {
    const auto expert = expert_of(packed, e, Activation::gated);
    for (Index r = offsets[e]; r < offsets[e + 1]; ++r) {
      const Index t = token[r];
      if (t < 0) continue;
      const reference::Bounded in{rows_at(x.data() + t * hidden, hidden, 1), reference::Column::Zero(hidden)};
      const auto out = expert_ffn(expert, curve_of<Activation>(), in, kernel_precision<T>());
      const double w = !rows.weighted ? 1.0 : weight[rows.tokens_given ? assignment[r] : r];
      for (Index h = 0; h < hidden; ++h) {
        const Index at = t * hidden + h;
        expected[at] += w * out.value(h);
        size[at] += std::abs(w) * (std::abs(out.value(h)) + out.bound(h));
        bound[at] += std::abs(w) * out.bound(h) + 2 * reference::f32_unit * size[at];
      }
    }
  }
  for (std::size_t i = 0; i < y.size(); ++i) worst.see(std::abs(double(y[i]) - expected[i]), bound[i]);
}

/// Sizes that no vector divides, 1 included, and some that all do.
const std::vector<std::pair<Index, Index>> sizes = {{1, 1},  {5, 3},   {17, 33}, {33, 17}, {31, 1},
                                                    {1, 40}, {64, 96}, {47, 64}, {32, 16}, {100, 70}};

template <class T, class Activation>
void check_activation() {
  moe::kernels::PackedWorkspace work;  // one for calls of all shapes
  Worst worst;
  bool biased = false;
  for (const auto& [hidden, inner] : sizes) {
    check_call<T, Activation>(hidden, inner, biased, {{3, 0, 1, 8}, 9}, work, worst);
    check_call<T, Activation>(hidden, inner, !biased, {{0, 0, 13, 0}, 6, true, false}, work, worst);
    check_call<T, Activation>(hidden, inner, biased, {{0, 7, 20, 1}, 5, true, true, 3}, work, worst);
    check_call<T, Activation>(hidden, inner, !biased, {{6, 0, 5}, 11, false, true}, work, worst);
    check_call<T, Activation>(hidden, inner, !biased, {{6, 1, 4}, 11, false, false}, work, worst);
    biased = !biased;
  }
  worst.check();
}

TEMPLATE_TEST_CASE("Packed experts agree with the reference", "", float, bfloat16, std::int8_t) {
  check_activation<TestType, moe::SwiGLU>();
  check_activation<TestType, moe::GeGLU>();
  check_activation<TestType, moe::ClampedSwiGLU>();
  check_activation<TestType, moe::ReLU>();
  check_activation<TestType, moe::SiLU>();
  check_activation<TestType, Shifted>();
  check_activation<TestType, ShiftedProduct>();
}

TEMPLATE_TEST_CASE("Packed experts agree with the reference for any number of rows", "", float, bfloat16, std::int8_t) {
  moe::kernels::PackedWorkspace work;
  Worst worst;
  for (Index count = 1; count <= 33; ++count)
    check_call<TestType, moe::SwiGLU>(37, 21, count % 2 == 0, {{count, 34 - count, 2}, 40, true, true, 11}, work,
                                      worst);
  check_call<TestType, moe::SwiGLU>(37, 21, true, {{500, 0, 100, 227}, 90}, work, worst);  // several chunks each
  check_call<TestType, moe::SwiGLU>(700, 45, true, {{150, 3}, 40}, work, worst);           // long rows: short chunks
  check_call<TestType, moe::SwiGLU>(45, 700, true, {{150, 3}, 40}, work, worst);
  for (const Index count : {1, 2, 3})  // many panels for few rows
    check_call<TestType, moe::SwiGLU>(700, 333, true, {{count, 0, 1, count}, 40}, work, worst);
  check_call<TestType, moe::SwiGLU>(20, 20, true, {std::vector<Index>(200, 1), 40}, work, worst);  // many experts
  worst.check();
}

TEMPLATE_TEST_CASE("Packed experts without rows leave y as it is", "", float, bfloat16, std::int8_t) {
  moe::kernels::PackedWorkspace work;
  const PackedExperts<TestType, ShiftedProduct> packed(3, 33, 5, true);
  const std::vector<Index> none{0, 0, 0, 0}, five{0, 2, 2, 5}, nowhere(5, -1);
  const auto x = random_numbers<Token<TestType>>(1, 4 * 33);
  const auto before = random_numbers<float>(2, 4 * 33);
  auto y = before;
  moe::kernels::packed_ffn(Host{}, packed.call(x.data(), none.data(), y.data()), work);
  CHECK(y == before);
  moe::kernels::packed_ffn(Host{}, packed.call(nullptr, none.data(), nullptr), work);  // no tokens
  auto call = packed.call(x.data(), five.data(), y.data());
  call.row_token = nowhere.data();
  moe::kernels::packed_ffn(Host{}, call, work);
  CHECK(y == before);
}

}  // namespace packed_kernels_test
