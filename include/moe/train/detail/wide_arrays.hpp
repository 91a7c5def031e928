#pragma once
/// @file
/// Arrays beside a struct's own, wide enough to sum in: optimisers' moments and master copies.

#include <any>
#include <vector>

#include "moe/core/parameter.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class Data, class Real>
struct WithScalar {
  using type = Real;
};
template <class Data, class Real>
struct WithScalar<Data*, Real> {
  using type = typename WithScalar<Data, Real>::type*;
};

/// The view of the same rank and memory in the precision of sums.
template <class View>
using WideView =
    Kokkos::View<typename WithScalar<typename View::non_const_data_type, RouterReal<typename View::value_type>>::type,
                 typename View::array_layout, typename View::memory_space>;

template <class T>
inline constexpr bool is_narrow = sizeof(T) < sizeof(RouterReal<T>);

/// Zeros in the shapes of a struct's arrays, of all or of the narrow ones alone.
template <class Parameters>
class WideArrays {
 public:
  WideArrays() = default;  ///< none at all
  explicit WideArrays(const Parameters& like, bool narrow_alone = false) : like_(like) {
    auto allocate = [&](std::string_view, const auto& view) {
      using View = std::decay_t<decltype(view)>;
      const bool wanted = view.is_allocated() && (is_narrow<typename View::value_type> || !narrow_alone);
      arrays_.emplace_back(wanted ? WideView<View>("moe::optimizer", view.layout()) : WideView<View>());
    };
    Parameters::visit(allocate, like);
  }

  /// The elements beside those of `view`, array `number` of the struct; null where there are none.
  template <class View>
  RouterReal<typename View::value_type>* data(std::size_t number, const View&) const {
    return arrays_.empty() ? nullptr : std::any_cast<const WideView<View>&>(arrays_[number]).data();
  }

  /// Calls f(prefix + name, array) for all there are.
  template <class F>
  void visit(std::string_view prefix, F& f) const {
    if (arrays_.empty()) return;
    std::size_t number = 0;
    auto one = [&](std::string_view name, const auto& view) {
      const auto& array = std::any_cast<const WideView<std::decay_t<decltype(view)>>&>(arrays_[number++]);
      if (array.is_allocated()) f(std::string(prefix) + std::string(name), array);
    };
    Parameters::visit(one, like_);
  }

 private:
  Parameters like_;               // for names and types
  std::vector<std::any> arrays_;  // WideView of each array, in visiting order
};

}  // namespace detail

MOE_NAMESPACE_END
