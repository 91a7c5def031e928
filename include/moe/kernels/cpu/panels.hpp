#pragma once
/// @file
/// `Panels`: weights (experts, columns, depth) laid out for the micro-kernels, in memory of 2 MiB pages.

#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "moe/core/bfloat16.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/cpu/quantise.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Memory that the system may back by large pages: reading weights then misses the translation buffer less.
template <class T>
class PageBuffer {
 public:
  PageBuffer() = default;
  explicit PageBuffer(Index size) {
    using moe::detail::large_page;
    const std::size_t bytes = sizeof(T) * std::size_t(size), align = bytes < large_page ? 64 : large_page;
    const std::size_t rounded = (bytes + align - 1) / align * align;
    auto* data = static_cast<T*>(std::aligned_alloc(align, rounded == 0 ? align : rounded));
    moe::detail::require<Error>(data != nullptr, "moe: no memory for ", rounded, " bytes of packed numbers.");
    moe::detail::advise_large_pages(data, rounded);
    data_ = std::shared_ptr<T>(data, [](T* p) { std::free(p); });
  }
  /// Memory made elsewhere, aligned to 64 bytes.
  explicit PageBuffer(std::shared_ptr<T> data) : data_(std::move(data)) {}
  T* data() const { return data_.get(); }

 private:
  std::shared_ptr<T> data_;
};

inline constexpr Index panel_columns = 16, pair_columns = 32;

/// A line of 64 bytes: `live` numbers, then zeros. Null: zeros alone.
template <class To, class From>
void copy_line(const From* __restrict from, Index live, To* __restrict to) {
  constexpr Index in_line = 64 / Index(sizeof(To));
  if (from != nullptr && live == in_line) {
    for (Index l = 0; l < in_line; ++l) to[l] = To(from[l]);
  } else {
    for (Index l = 0; l < in_line; ++l) to[l] = from != nullptr && l < live ? To(from[l]) : To(0.0f);
  }
}

/// Two panels of 16 columns after two panels, over the whole depth; both extents are padded with zeros. A line of a
/// panel is 64 bytes: one k (float), a pair (bfloat16) or two pairs (int8), [pair][column][k of the pair]. The same on
/// every instruction set. int8 numbers are multiplied by their column's scale.
template <class T>
struct Panels {
  static_assert(sizeof(T) == 4 || sizeof(T) == 2 || is_quantised<T>);
  static constexpr Index in_line = 4 / sizeof(T), together = sizeof(T) == 4 ? 1 : 2;
  static constexpr Index whole = std::max<Index>(32, 16 * in_line);  // the depth is a multiple of it

  Index experts = 0, columns = 0, depth = 0;  ///< as padded
  Index live = 0;                             ///< of the depth, before the padding
  PageBuffer<T> memory;
  PageBuffer<float> scale;  ///< (experts, columns), for int8 alone

  Panels() = default;
  /// Throws ConfigError where sums of int8 might not fit int32.
  Panels(Index experts_, Index columns_, Index depth_)
      : experts(experts_),
        columns((columns_ + 31) / 32 * 32),
        depth((depth_ + whole - 1) / whole * whole),
        live(depth_) {
    if constexpr (is_quantised<T>) {
      moe::detail::require<ConfigError>(depth_ <= quantised_depth, "moe::pack: sums of ", depth_,
                                        " products of int8 numbers may leave int32; ", quantised_depth,
                                        " are the most. Pack this layer as moe::bfloat16 or float.");
      scale = PageBuffer<float>(experts * columns);
    }
    memory = PageBuffer<T>(experts * columns * depth);
  }

  Index pairs() const { return columns / pair_columns; }
  Index lines() const { return depth / in_line; }             ///< of a panel
  Index panel_size() const { return panel_columns * depth; }  ///< numbers in it
  T* panel(Index expert, Index number) const { return memory.data() + (expert * 2 * pairs() + number) * panel_size(); }
  /// Where (expert, column, k) stands.
  T& at(Index expert, Index column, Index k) const {
    return panel(
        expert,
        column /
            panel_columns)[k / together * together * panel_columns + column % panel_columns * together + k % together];
  }
};

/// The column that a row of weights becomes. Gated (rows: the gate's, then up's): 16 of the gate, then the same 16 of
/// up, and so on.
template <bool gated>
Index column_of(Index row, Index rows) {
  if constexpr (!gated) return row;
  const Index half = rows / 2, i = row % half;
  return i / panel_columns * pair_columns + i % panel_columns + (row < half ? 0 : panel_columns);
}

/// Fills panels from weight (experts, rows, depth): `column_of` says where a row goes. One panel a work item.
template <class To, class From, bool gated>
struct PackPanel {
  Panels<To> panels;
  const From* weight;
  Index rows, depth;

  /// The row that a column holds, or -1.
  Index row_of(Index column) const {
    if constexpr (!gated) return column < rows ? column : -1;
    const Index half = rows / 2, row = column / pair_columns * panel_columns + column % panel_columns;
    if (row >= half) return -1;
    return column % pair_columns < panel_columns ? row : half + row;
  }

  void operator()(Index item) const {
    constexpr Index together = Panels<To>::together;
    const Index all = 2 * panels.pairs(), expert = item / all, number = item % all;
    To* to = panels.panel(expert, number);
    const From* from[panel_columns];
    RowScale scale[panel_columns];
    for (Index i = 0; i < panel_columns; ++i) {
      const Index column = number * panel_columns + i, row = row_of(column);
      from[i] = row < 0 ? nullptr : weight + (expert * rows + row) * depth;
      if constexpr (is_quantised<To>) {
        if (row >= 0) scale[i] = RowScale(from[i], depth);
        panels.scale.data()[expert * panels.columns + column] = scale[i].step;
      }
    }
    for (Index k = 0; k < panels.depth; k += together) {
      for (Index i = 0; i < panel_columns; ++i) {
        for (Index j = 0; j < together; ++j)
          *to++ = from[i] != nullptr && k + j < depth ? number_of(from[i][k + j], scale[i]) : To(0.0f);
      }
    }
  }

  static To number_of(From weight, const RowScale& scale) {
    if constexpr (is_quantised<To>) {
      return scale.inverse == 0 ? To(0) : To(scale.quantise(float(weight)));
    } else {
      return To(float(weight));
    }
  }
};

template <bool gated, class Space, class From, class To>
void pack(const Space& space, const From* weight, Index rows, Index depth, const Panels<To>& panels) {
  Kokkos::parallel_for("moe::pack", Kokkos::RangePolicy<Space>(space, 0, panels.experts * 2 * panels.pairs()),
                       PackPanel<To, From, gated>{panels, weight, rows, depth});
  space.fence("moe::pack");
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
